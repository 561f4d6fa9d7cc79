//! One log line: what it says, how it is written, and how it is read back. Pure; files are in `rotate`.
//!
//! ```text
//! 2026-11-22T14:03:11.123456Z  INFO replcluster::server: started  pid=4711 version="0.1.0"
//! ```
//!
//! Stamp, level, target, message; two spaces; fields. Files hold this text and not JSON: they are read with `tail -f`
//! and `grep` at least as often as with `logs`, and nothing is lost by it, because the form is exact. A message never
//! holds two spaces in a row nor ends in one (`\s` stands for the second), a line never holds a control character, and
//! a value that is text is bare only where it could be nothing else. So what is read back is what was logged, to the
//! byte and with its types; a test shows it of random lines. Spans are left out: our own code has none.

use std::fmt::{self, Write};

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use tracing::Level;
use tracing::field::{Field, Visit};

/// Bytes of a stamp, with which every line begins.
pub const STAMP_BYTES: usize = 27;
/// Bytes of a level, padded on its left.
const LEVEL_BYTES: usize = 5;
/// Bytes from the end of the stamp to the target.
pub(super) const STAMP_TO_TARGET_BYTES: usize = LEVEL_BYTES + 2;
/// Between the message and the fields.
const GAP: &str = "  ";

/// A log line.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// When, as [`super::stamp`] writes it.
    pub at: String,
    /// How bad.
    pub level: Level,
    /// The module that says it.
    pub target: String,
    /// What it says.
    pub message: String,
    /// What goes with it, in the order it was given.
    pub fields: Fields,
}

/// Names and values, each name once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fields(Vec<(String, Value)>);

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// Text.
    Text(String),
    /// A whole number from nought.
    Unsigned(u64),
    /// A whole number below nought.
    Signed(i64),
    /// A number with a fraction, finite.
    Float(f64),
    /// True or false.
    Flag(bool),
}

impl Line {
    /// The level of a line, without reading the rest of it.
    #[must_use]
    pub fn level_of(text: &str) -> Option<Level> {
        stamp_of(text)?;
        let word = text.get(STAMP_BYTES + 1..STAMP_BYTES + 1 + LEVEL_BYTES)?.trim_start();
        // Levels also have numbers, but not here.
        if word.starts_with(|letter: char| letter.is_ascii_uppercase()) { word.parse().ok() } else { None }
    }

    /// Reads a line without its end. `None` where it is none of ours.
    #[must_use]
    pub fn parse(text: &str) -> Option<Line> {
        let at = stamp_of(text)?;
        let level = Line::level_of(text)?;
        let rest = text.get(STAMP_BYTES..)?.strip_prefix(' ')?;
        let (target, rest) = rest.get(LEVEL_BYTES..)?.strip_prefix(' ')?.split_once(": ")?;
        if target.is_empty() || target.contains(' ') {
            return None;
        }
        let split = rest.split_once(GAP).and_then(|(message, text)| Some((message, Fields::parse(text)?)));
        // Something like a message with a gap was written by somebody else: it is all message then.
        let (message, fields) = split.unwrap_or((rest, Fields::default()));
        Some(Line {
            at: at.to_owned(),
            level,
            target: target.to_owned(),
            message: without_escapes(message),
            fields,
        })
    }
}

/// The stamp a line begins with.
#[must_use]
pub fn stamp_of(text: &str) -> Option<&str> {
    const FORM: &[u8; STAMP_BYTES] = b"0000-00-00T00:00:00.000000Z";
    let stamp = text.get(..STAMP_BYTES)?;
    let fits = |(byte, form): (u8, &u8)| if *form == b'0' { byte.is_ascii_digit() } else { byte == *form };
    stamp.bytes().zip(FORM).all(fits).then_some(stamp)
}

impl fmt::Display for Line {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} {:>5} ", self.at, self.level.as_str())?;
        for letter in self.target.chars() {
            to.write_char(if letter.is_whitespace() || letter.is_control() { '_' } else { letter })?;
        }
        to.write_str(": ")?;
        write_message(to, &self.message)?;
        if self.fields.0.is_empty() {
            return Ok(());
        }
        write!(to, "{GAP}{}", self.fields)
    }
}

fn write_message(to: &mut impl Write, message: &str) -> fmt::Result {
    let mut letters = message.chars().peekable();
    let mut after_space = false;
    while let Some(letter) = letters.next() {
        match letter {
            ' ' if after_space || letters.peek().is_none() => to.write_str("\\s")?,
            '\\' => to.write_str("\\\\")?,
            '\n' => to.write_str("\\n")?,
            '\t' => to.write_str("\\t")?,
            letter if letter.is_control() => write!(to, "\\u{{{:x}}}", u32::from(letter))?,
            letter => to.write_char(letter)?,
        }
        after_space = letter == ' ';
    }
    Ok(())
}

fn without_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let numbered = after.strip_prefix("u{").and_then(|after| {
            let (digits, after) = after.split_once('}')?;
            Some((char::from_u32(u32::from_str_radix(digits, 16).ok()?)?, after))
        });
        let found = numbered.or_else(|| {
            let letter = match after.chars().next()? {
                's' => ' ',
                'n' => '\n',
                't' => '\t',
                '\\' => '\\',
                _ => return None,
            };
            Some((letter, &after[1..]))
        });
        // Whoever wrote a lone backslash meant one.
        let (letter, after) = found.unwrap_or(('\\', after));
        plain.push(letter);
        rest = after;
    }
    plain.push_str(rest);
    plain
}

impl Fields {
    /// The value of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// The value of this name, where it is a whole number.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.get(name)? {
            Value::Unsigned(number) => Some(*number),
            Value::Text(_) | Value::Signed(_) | Value::Float(_) | Value::Flag(_) => None,
        }
    }

    /// Adds a field; an older one of the same name is forgotten.
    pub fn set(&mut self, name: &str, value: Value) {
        let plain =
            |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '.' | '-' | ':' | '@' | '/');
        let mut name: String = name.chars().map(|letter| if plain(letter) { letter } else { '_' }).collect();
        if name.is_empty() {
            name.push('_');
        }
        self.0.retain(|(known, _)| *known != name);
        self.0.push((name, value));
    }

    fn parse(text: &str) -> Option<Fields> {
        let mut fields = Fields::default();
        let mut rest = text;
        loop {
            let (name, after) = rest.split_once('=')?;
            if name.is_empty() || name.contains(' ') {
                return None;
            }
            let (value, after) = Value::parse(after)?;
            fields.0.push((name.to_owned(), value));
            match after.strip_prefix(' ') {
                Some(more) => rest = more,
                None => return after.is_empty().then_some(fields),
            }
        }
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, value)) in self.0.iter().enumerate() {
            let gap = if index == 0 { "" } else { " " };
            write!(to, "{gap}{name}={value}")?;
        }
        Ok(())
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl Value {
    /// The value at the start of a text, and what follows it.
    fn parse(text: &str) -> Option<(Value, &str)> {
        if text.starts_with('"') {
            let mut escaped = false;
            let end = text.bytes().skip(1).position(|byte| {
                let ends = byte == b'"' && !escaped;
                escaped = byte == b'\\' && !escaped;
                ends
            })?;
            let (quoted, after) = text.split_at(end + 2);
            return Some((Value::Text(serde_json::from_str(quoted).ok()?), after));
        }
        let end = text.find(' ').unwrap_or(text.len());
        let (bare, after) = text.split_at(end);
        let value = Value::of_bare(bare).unwrap_or_else(|| Value::Text(bare.to_owned()));
        (!bare.is_empty()).then_some((value, after))
    }

    /// What a word means that is no text.
    fn of_bare(word: &str) -> Option<Value> {
        if let Ok(flag) = word.parse() {
            return Some(Value::Flag(flag));
        }
        if !word.strip_prefix('-').unwrap_or(word).starts_with(|first: char| first.is_ascii_digit()) {
            return None;
        }
        word.parse()
            .map(Value::Unsigned)
            .or_else(|_| word.parse().map(Value::Signed))
            .or_else(|_| word.parse().map(Value::Float))
            .ok()
    }
}

impl fmt::Display for Value {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) => {
                let special =
                    |letter: char| letter.is_whitespace() || letter.is_control() || "\"\\=".contains(letter);
                if text.is_empty() || text.contains(special) || Value::of_bare(text).is_some() {
                    write_quoted(to, text)
                } else {
                    to.write_str(text)
                }
            }
            Value::Unsigned(number) => write!(to, "{number}"),
            Value::Signed(number) => write!(to, "{number}"),
            // Debug writes as many digits as reading back needs.
            Value::Float(number) => write!(to, "{number:?}"),
            Value::Flag(flag) => write!(to, "{flag}"),
        }
    }
}

/// As JSON has it, and also free of the control characters that JSON leaves.
fn write_quoted(to: &mut impl Write, text: &str) -> fmt::Result {
    let quoted = serde_json::to_string(text).map_err(|_| fmt::Error)?;
    for letter in quoted.chars() {
        if letter.is_control() {
            write!(to, "\\u{:04x}", u32::from(letter))?;
        } else {
            to.write_char(letter)?;
        }
    }
    Ok(())
}

/// Collects what an event says.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) message: String,
    pub(super) fields: Fields,
}

impl Collected {
    fn take(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::Text(text)) => self.message = text,
            (name, value) => self.fields.set(name.strip_prefix("r#").unwrap_or(name), value),
        }
    }
}

impl Visit for Collected {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, Value::Text(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, Value::Text(value.to_owned()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.take(field, Value::Unsigned(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.take(field, u64::try_from(value).map_or(Value::Signed(value), Value::Unsigned));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.take(field, Value::Flag(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        let finite = value.is_finite().then_some(Value::Float(value));
        self.take(field, finite.unwrap_or_else(|| Value::Text(value.to_string())));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: &str = "2026-11-22T14:03:11.000001Z";

    fn line(message: &str, fields: &[(&str, Value)]) -> Line {
        let mut line = Line {
            at: AT.to_owned(),
            level: Level::INFO,
            target: "replcluster::server".to_owned(),
            message: message.to_owned(),
            fields: Fields::default(),
        };
        for (name, value) in fields {
            line.fields.set(name, value.clone());
        }
        line
    }

    fn text(value: &str) -> Value {
        Value::Text(value.to_owned())
    }

    #[test]
    fn a_line_reads_as_it_always_did() {
        let fields = [("pid", Value::Unsigned(4711)), ("node", text("127.0.0.1:2379")), ("why", text("a b"))];
        let line = line("cannot signal", &fields);
        let written = format!(
            "{AT}  INFO replcluster::server: cannot signal  pid=4711 node=127.0.0.1:2379 why=\"a b\""
        );
        assert_eq!(line.to_string(), written);
        assert_eq!(line.fields.number("pid"), Some(4711));
        assert_eq!(
            serde_json::to_string(&line.fields).unwrap(),
            r#"{"pid":4711,"node":"127.0.0.1:2379","why":"a b"}"#
        );
    }

    #[test]
    fn what_others_wrote_is_no_line_and_what_is_nearly_one_is_all_message() {
        for foreign in ["", "thread 'main' panicked", AT, &format!("{AT} said somebody: x"), "2026-11-22"] {
            assert_eq!(Line::parse(foreign), None, "{foreign}");
        }
        let near = Line::parse(&format!("{AT}  WARN a::b: one  two = three \\q")).unwrap();
        assert_eq!((near.message.as_str(), near.level), ("one  two = three \\q", Level::WARN));
        assert_eq!(near.fields, Fields::default());
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<String>().prop_map(Value::Text),
            "(true|false|-?[0-9]{1,20}|[0-9.]{1,6}e?[0-9]{0,2}|inf|NaN|[a-z=\" \\\\\n]{0,6})"
                .prop_map(Value::Text),
            any::<u64>().prop_map(Value::Unsigned),
            (i64::MIN..0).prop_map(Value::Signed),
            any::<f64>().prop_filter("finite", |number| number.is_finite()).prop_map(Value::Float),
            any::<bool>().prop_map(Value::Flag),
        ]
    }

    fn level() -> impl Strategy<Value = Level> {
        prop_oneof![
            Just(Level::ERROR),
            Just(Level::WARN),
            Just(Level::INFO),
            Just(Level::DEBUG),
            Just(Level::TRACE)
        ]
    }

    proptest! {
        #[test]
        fn what_is_read_back_is_what_was_logged(
            level in level(),
            message in prop_oneof![any::<String>(), "[ a=\\\\\"\n\tsnu{}:]{0,24}"],
            fields in proptest::collection::vec(("[a-z_][a-z0-9_.]{0,5}", value()), 0..5),
        ) {
            let mut logged = Line { level, ..line(&message, &[]) };
            for (name, value) in fields {
                logged.fields.set(&name, value);
            }
            let written = logged.to_string();
            prop_assert!(!written.contains(char::is_control), "{written:?}");
            prop_assert_eq!(Line::parse(&written), Some(logged), "{}", written);
        }
    }
}
