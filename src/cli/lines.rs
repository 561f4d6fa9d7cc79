//! Lines made of pieces that say how they are meant, so that the same text goes to a pipe, to a terminal and into a
//! window; and what makes a line fit: wrapping between words and cutting. Values in, values out.

use anstyle::Style;

use super::charset;
use super::render::{DIM, GREEN, PLAIN, RED, YELLOW};

/// How a piece of text is meant. Where it is shown decides on the colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// All is well.
    Good,
    /// Something is not as it should be.
    Warning,
    /// Something is wrong.
    Bad,
    /// Less important, or not of now.
    Dim,
}

/// Text with a tone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// What is read; never a line end.
    pub text: String,
    /// How it is meant.
    pub tone: Tone,
}

/// A line.
pub type Line = Vec<Piece>;

/// A piece.
pub fn piece(tone: Tone, text: impl Into<String>) -> Piece {
    Piece { text: text.into(), tone }
}

/// Text of several lines in one tone.
#[must_use]
pub fn lines(tone: Tone, text: &str) -> Vec<Line> {
    text.lines().map(|line| vec![piece(tone, line)]).collect()
}

/// The text alone.
#[must_use]
pub fn plain(line: &[Piece]) -> String {
    line.iter().map(|piece| charset::fit(&piece.text)).collect()
}

/// The text with a terminal's escapes.
#[must_use]
pub fn painted(line: &[Piece]) -> String {
    let mut text = String::new();
    for piece in line {
        let style: Style = match piece.tone {
            Tone::Plain => {
                text.push_str(&charset::fit(&piece.text));
                continue;
            }
            Tone::Good => GREEN,
            Tone::Warning => YELLOW,
            Tone::Bad => RED,
            Tone::Dim => DIM,
        };
        text.push_str(&format!("{style}{}{PLAIN}", charset::fit(&piece.text)));
    }
    text
}

/// How many columns a text takes. Everything we print is one column a letter.
#[must_use]
pub fn columns(text: &str) -> usize {
    text.chars().count()
}

/// At most `width` columns, with `…` where the end was.
#[must_use]
pub fn cut_end(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    match width {
        0 => String::new(),
        1 => text.chars().take(1).collect(),
        _ => text.chars().take(width - 1).chain(['…']).collect(),
    }
}

/// At most `width` columns, with `…` in the middle. More of the end is kept: that is where addresses differ.
#[must_use]
pub fn cut_middle(text: &str, width: usize) -> String {
    let length = columns(text);
    if length <= width {
        return text.to_owned();
    }
    if width < 4 {
        return text.chars().skip(length - width).collect();
    }
    let head = (width - 1) / 3;
    let tail = width - 1 - head;
    text.chars().take(head).chain(['…']).chain(text.chars().skip(length - tail)).collect()
}

/// A line cut at `width` columns.
#[must_use]
pub fn cut_line(line: &[Piece], width: usize) -> Line {
    let mut left = width;
    let mut cut = Line::new();
    for one in line {
        let length = columns(&one.text);
        if length > left {
            cut.push(piece(one.tone, cut_end(&one.text, left)));
            break;
        }
        left -= length;
        cut.push(one.clone());
    }
    cut
}

/// What holds together: the spaces before it, and pieces without any.
struct Word {
    spaces: usize,
    pieces: Line,
}

/// Breaks a line between words so that none is longer than `width`; lines after the first are indented. A word that
/// is longer than a line is cut in its middle.
#[must_use]
pub fn wrap(line: &[Piece], width: usize) -> Vec<Line> {
    let indent = if width >= 16 { 2 } else { 0 };
    let mut wrapped = vec![Line::new()];
    let mut used = 0;
    for word in words(line) {
        let length: usize = word.pieces.iter().map(|piece| columns(&piece.text)).sum();
        let first = used == 0;
        let mut spaces = word.spaces;
        if !first && used + spaces + length > width {
            wrapped.push(Line::new());
            used = 0;
            spaces = indent;
        }
        let room = width.saturating_sub(used + spaces);
        let pieces = if length <= room {
            word.pieces
        } else {
            let tone = word.pieces.first().map(|piece| piece.tone).unwrap_or_default();
            vec![piece(tone, cut_middle(&plain(&word.pieces), room))]
        };
        used += spaces + length.min(room);
        if let Some(last) = wrapped.last_mut() {
            if spaces > 0 {
                last.push(piece(Tone::Plain, " ".repeat(spaces)));
            }
            last.extend(pieces);
        }
    }
    wrapped
}

fn words(line: &[Piece]) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    let mut spaces = 0;
    let mut begin = true;
    for one in line {
        for letter in one.text.chars() {
            if letter == ' ' {
                spaces += 1;
                begin = true;
                continue;
            }
            if begin || words.is_empty() {
                words.push(Word { spaces, pieces: Line::new() });
                (spaces, begin) = (0, false);
            }
            let Some(word) = words.last_mut() else { continue };
            match word.pieces.last_mut() {
                Some(last) if last.tone == one.tone => last.text.push(letter),
                Some(_) | None => word.pieces.push(piece(one.tone, letter)),
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_says_so_and_keeps_the_end_of_an_address() {
        assert_eq!(cut_end("follower", 8), "follower");
        assert_eq!(cut_end("follower", 5), "foll…");
        assert_eq!(cut_end("follower", 1), "f");
        assert_eq!(cut_middle("127.0.0.1:2379", 14), "127.0.0.1:2379");
        assert_eq!(cut_middle("127.0.0.1:2379", 6), "1…2379");
        assert_eq!(cut_middle("127.0.0.1:2379", 3), "379");
        assert_eq!(plain(&cut_line(&[piece(Tone::Bad, "abc"), piece(Tone::Plain, "def")], 5)), "abcd…");
    }

    #[test]
    fn lines_break_between_words_and_never_inside_one_that_fits() {
        let line = [
            piece(Tone::Plain, "demo  "),
            piece(Tone::Bad, "dis"),
            piece(Tone::Plain, "agree, 2/3  epoch 4"),
        ];
        let told: Vec<String> = wrap(&line, 18).iter().map(|line| plain(line)).collect();
        assert_eq!(told, ["demo  disagree,", "  2/3  epoch 4"]);
        for width in 1..60 {
            for line in wrap(&line, width) {
                assert!(columns(&plain(&line)) <= width, "{width}: {line:?}");
            }
        }
    }

    #[test]
    fn a_tone_is_an_escape_only_where_it_is_painted() {
        let line = [piece(Tone::Bad, "down"), piece(Tone::Plain, " now")];
        assert_eq!(plain(&line), "down now");
        assert!(painted(&line).starts_with("\u{1b}["));
        assert_eq!(anstream::adapter::strip_str(&painted(&line)).to_string(), "down now");
    }
}
