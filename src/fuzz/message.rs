//! Mistakes in protobuf messages that stay messages: a message is taken apart into its fields, those that look like
//! messages into theirs; a field is left out, repeated, given another type, number or length, or wrapped many times; and
//! the lengths around it are made right again, mostly.

use super::source::Source;

/// As much of a message as its bytes show.
#[derive(Clone, Debug)]
enum Content {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(Vec<u8>),
    Inner(Vec<Field>),
    Fixed32([u8; 4]),
}

#[derive(Clone, Debug)]
struct Field {
    number: u64,
    content: Content,
}

/// One to three mistakes.
pub(super) fn mistakes(source: &mut Source, bytes: &[u8]) -> Vec<u8> {
    let Some(mut fields) = fields_of(bytes, 64) else { return source.mistakes(bytes) };
    for _ in 0..=source.below(3) {
        mistake(source, &mut fields, 0);
    }
    let mut out = Vec::new();
    encode(&fields, &mut out);
    if source.chance(15) { source.mistakes(&out) } else { out }
}

fn mistake(source: &mut Source, fields: &mut Vec<Field>, depth: usize) {
    if fields.is_empty() {
        let number = 1 + source.below(16) as u64;
        fields.push(Field { number, content: Content::Varint(source.number()) });
        return;
    }
    let at = source.below(fields.len());
    if depth < 60
        && source.chance(75)
        && let Content::Inner(inner) = &mut fields[at].content
    {
        return mistake(source, inner, depth + 1);
    }
    match source.below(9) {
        0 => drop(fields.remove(at)),
        1 => {
            let field = fields[at].clone();
            // So often that a bound on counts lies within.
            let most = *source.pick(&[1, 3, 130, 1000]);
            let times = 1 + source.below(most);
            fields.splice(at..at, std::iter::repeat_n(field, times));
        }
        2 => fields[at].number = *source.pick(&[0, 1, 2, 3, 4, 5, 6, 15, 16, 2047, (1 << 29) - 1, 1 << 29]),
        3 => fields[at].content = Content::Varint(source.number()),
        4 => fields[at].content = Content::Fixed64(source.number().to_le_bytes()),
        5 => fields[at].content = Content::Fixed32([source.byte(); 4]),
        6 => {
            let length = {
                let most = *source.pick(&[4, 300, 70_000]);
                source.below(most)
            };
            fields[at].content = Content::Bytes(vec![source.byte(); length]);
        }
        7 => {
            // Around itself, with the same numbers: deeper and deeper of the same kind.
            let levels = 1 + source.below(120);
            let number = fields[at].number;
            for _ in 0..levels {
                let inner = std::mem::replace(&mut fields[at].content, Content::Varint(0));
                fields[at].content = Content::Inner(vec![Field { number, content: inner }]);
            }
        }
        _ => fields[at].content = Content::Inner(Vec::new()),
    }
}

/// `None` where the bytes are no message.
fn fields_of(mut bytes: &[u8], depth: usize) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let content = match tag & 7 {
            0 => Content::Varint(varint(&mut bytes)?),
            1 => Content::Fixed64(*take(&mut bytes, 8)?.first_chunk()?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let content = take(&mut bytes, length)?;
                match depth.checked_sub(1).and_then(|depth| fields_of(content, depth)) {
                    Some(inner) if !content.is_empty() => Content::Inner(inner),
                    _ => Content::Bytes(content.to_vec()),
                }
            }
            5 => Content::Fixed32(*take(&mut bytes, 4)?.first_chunk()?),
            _ => return None,
        };
        fields.push(Field { number: tag >> 3, content });
    }
    Some(fields)
}

fn take<'b>(bytes: &mut &'b [u8], length: usize) -> Option<&'b [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f).checked_shl(shift)?;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn encode(fields: &[Field], out: &mut Vec<u8>) {
    for Field { number, content } in fields {
        let tag = |kind: u64| number << 3 | kind;
        match content {
            Content::Varint(value) => {
                put_varint(tag(0), out);
                put_varint(*value, out);
            }
            Content::Fixed64(bytes) => {
                put_varint(tag(1), out);
                out.extend_from_slice(bytes);
            }
            Content::Bytes(bytes) => put_bytes(tag(2), bytes, out),
            Content::Inner(inner) => {
                let mut bytes = Vec::new();
                encode(inner, &mut bytes);
                put_bytes(tag(2), &bytes, out);
            }
            Content::Fixed32(bytes) => {
                put_varint(tag(5), out);
                out.extend_from_slice(bytes);
            }
        }
    }
}

fn put_bytes(tag: u64, bytes: &[u8], out: &mut Vec<u8>) {
    put_varint(tag, out);
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Takes a message apart and puts it together again.
#[cfg(test)]
#[allow(dead_code, reason = "this file is also part of the suite")]
pub(super) fn again(bytes: &[u8]) -> Vec<u8> {
    let mut again = Vec::new();
    encode(&fields_of(bytes, 200).unwrap_or_default(), &mut again);
    again
}
