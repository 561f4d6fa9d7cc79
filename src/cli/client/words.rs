//! Splits a line into words as a shell would, without variables, globs or pipes.

/// Splits at blanks. `"…"` takes the escapes of etcdctl (`\n \t \r \\ \" \xHH`), `'…'` takes none; a backslash
/// outside keeps the next character.
///
/// # Errors
/// What is wrong with the line, in words.
pub(super) fn split(line: &str) -> Result<Vec<Vec<u8>>, String> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            blank if blank.is_whitespace() => words.extend(word.take()),
            '"' => quoted(&mut characters, word.get_or_insert_default())?,
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next() {
                        Some('\'') => break,
                        Some(other) => push(word, other),
                        None => return Err("a ' is not closed".to_owned()),
                    }
                }
            }
            '\\' => match characters.next() {
                Some(other) => push(word.get_or_insert_default(), other),
                None => return Err("the line ends with a \\".to_owned()),
            },
            other => push(word.get_or_insert_default(), other),
        }
    }
    words.extend(word);
    Ok(words)
}

/// Reads up to the closing `"`, which the opening one stood before.
pub(super) fn quoted(characters: &mut std::str::Chars<'_>, word: &mut Vec<u8>) -> Result<(), String> {
    loop {
        match characters.next() {
            Some('"') => return Ok(()),
            Some('\\') => match characters.next() {
                Some('n') => word.push(b'\n'),
                Some('t') => word.push(b'\t'),
                Some('r') => word.push(b'\r'),
                Some('x') => {
                    let digits: String = characters.by_ref().take(2).collect();
                    let byte = u8::from_str_radix(&digits, 16);
                    word.push(
                        byte.map_err(|_| format!("\\x{digits} is not \\x and two hexadecimal digits"))?,
                    );
                }
                Some(other @ ('\\' | '"' | '\'')) => push(word, other),
                Some(other) => return Err(format!("\\{other} means nothing between quotes")),
                None => return Err("a \" is not closed".to_owned()),
            },
            Some(other) => push(word, other),
            None => return Err("a \" is not closed".to_owned()),
        }
    }
}

fn push(word: &mut Vec<u8>, character: char) {
    word.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_in_a_shell() {
        let words = split(r#"  put "a b" 'c "d'  e\ f "" x"y"z "\x00\xff\n" ü"#).unwrap();
        let expected: [&[u8]; 8] =
            [b"put", b"a b", b"c \"d", b"e f", b"", b"xyz", b"\x00\xff\n", "ü".as_bytes()];
        assert_eq!(words, expected);
        assert!(split("   ").unwrap().is_empty());
    }

    #[test]
    fn what_is_not_closed_is_refused() {
        for line in [r#"a "b"#, "a 'b", r"a \", r#""\q""#, r#""\xg0""#, r#""\"#] {
            assert!(split(line).is_err(), "{line}");
        }
    }
}
