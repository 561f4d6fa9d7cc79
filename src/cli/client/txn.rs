//! Reads a transaction in the text form of `etcdctl txn`: compares, a blank line, what to do when they hold, a blank
//! line, what to do when they do not.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use clap::Parser;

use super::{ClientFailure, ClientVerb, Input, words};
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::request_op::Request;

/// Shown below the help of `txn`.
pub(super) const HELP: &str = "\
Standard input holds three parts with a blank line after each:
  compares        value(\"key\") = \"text\"   also: version, create, mod, lease; =, !=, <, >
  when they hold  get, put and del, as on the command line
  when they don't get, put and del, as on the command line";

/// How many parts a transaction has.
pub(super) const PARTS: usize = 3;

/// An operation as it is typed.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true, disable_help_subcommand = true)]
struct Operation {
    #[command(subcommand)]
    verb: ClientVerb,
}

/// Reads the whole text.
///
/// # Errors
/// [`ClientFailure::Usage`] with the line that cannot be understood.
pub(super) fn parse(lines: &[String]) -> Result<pb::TxnRequest, ClientFailure> {
    let mut request = pb::TxnRequest::default();
    let mut part = 0;
    for (number, line) in (1..).zip(lines) {
        let at = |reason: String| {
            ClientFailure::Usage(format!("line {number} of the transaction: {reason}\n  {line}"))
        };
        match (line.trim(), part) {
            ("", _) => part += 1,
            (text, 0) => request.compare.push(compare(text).map_err(at)?),
            (text, 1) => request.success.push(operation(text).map_err(at)?),
            (text, 2) => request.failure.push(operation(text).map_err(at)?),
            (_, _) => return Err(at("nothing may follow the third part".to_owned())),
        }
    }
    Ok(request)
}

/// `mod("key") > "5"`; the quotes may be left out where there is no blank.
fn compare(text: &str) -> Result<pb::Compare, String> {
    let (target, rest) = text
        .split_once('(')
        .ok_or("expected a compare such as mod(\"key\") > \"0\"; an empty line ends the compares")?;
    let (key, rest) = token(rest, &[')'])?;
    let rest = rest.trim_start().strip_prefix(')').ok_or("expected a ) after the key")?.trim_start();
    let (result, rest) = [
        ("!=", CompareResult::NotEqual),
        ("==", CompareResult::Equal),
        ("=", CompareResult::Equal),
        ("<", CompareResult::Less),
        (">", CompareResult::Greater),
    ]
    .into_iter()
    .find_map(|(sign, result)| Some((result, rest.strip_prefix(sign)?)))
    .ok_or("expected =, !=, < or > after the key")?;
    let (operand, rest) = token(rest, &[])?;
    if !rest.trim().is_empty() {
        return Err(format!("\"{}\" is too much", rest.trim()));
    }
    let number = || {
        let text = String::from_utf8_lossy(&operand);
        text.parse::<i64>().map_err(|_| format!("\"{text}\" is not a number"))
    };
    let (target, union) = match target.trim() {
        "val" | "value" => (CompareTarget::Value, TargetUnion::Value(operand.into())),
        "ver" | "version" => (CompareTarget::Version, TargetUnion::Version(number()?)),
        "c" | "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number()?)),
        "m" | "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number()?)),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number()?)),
        other => {
            return Err(format!("\"{other}\" cannot be compared: value, version, create, mod or lease can"));
        }
    };
    Ok(pb::Compare {
        result: result.into(),
        target: target.into(),
        key: key.into(),
        target_union: Some(union),
        range_end: bytes::Bytes::new(),
    })
}

/// One word or one quoted text, and what follows it.
fn token<'a>(text: &'a str, ends: &[char]) -> Result<(Vec<u8>, &'a str), String> {
    let text = text.trim_start();
    if let Some(inside) = text.strip_prefix('"') {
        let mut characters = inside.chars();
        let mut word = Vec::new();
        words::quoted(&mut characters, &mut word)?;
        return Ok((word, characters.as_str()));
    }
    let end = text.find(|character: char| character.is_whitespace() || ends.contains(&character));
    let (word, rest) = text.split_at(end.unwrap_or(text.len()));
    if word.is_empty() {
        return Err("a key or a value is missing".to_owned());
    }
    Ok((word.as_bytes().to_vec(), rest))
}

/// `put key value` and the like.
fn operation(text: &str) -> Result<pb::RequestOp, String> {
    let words = words::split(text)?.into_iter().map(OsString::from_vec);
    let operation = Operation::try_parse_from(words).map_err(|error| {
        let text = error.render().to_string();
        text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })?;
    let request = match operation.verb {
        ClientVerb::Get(arguments) => Request::RequestRange(super::range_request(arguments)),
        ClientVerb::Put(arguments) => {
            let request = super::put_request(arguments, Input::Lines(Vec::new()));
            Request::RequestPut(request.map_err(|error| error.to_string())?)
        }
        ClientVerb::Del(arguments) => {
            let (key, range_end) =
                super::range(arguments.key, arguments.range_end, arguments.prefix, arguments.from_key);
            Request::RequestDeleteRange(pb::DeleteRangeRequest { key, range_end, prev_kv: arguments.prev_kv })
        }
        ClientVerb::Txn
        | ClientVerb::Compact { .. }
        | ClientVerb::Members
        | ClientVerb::Status
        | ClientVerb::Watch { .. }
        | ClientVerb::Lease { .. } => {
            return Err("only get, put and del may stand in a transaction".to_owned());
        }
    };
    Ok(pb::RequestOp { request: Some(request) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<pb::TxnRequest, String> {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        parse(&lines).map_err(|error| error.to_string())
    }

    #[test]
    fn the_three_parts_are_read() {
        let request = parse_text(
            "value(\"a b\") = \"x\"\nmod(k)>5\nver(\"k\") != \"0\"\n\nput k \"v w\"\nget k --prefix\n\ndel k z\n\n",
        )
        .unwrap();
        let compares: Vec<_> = request
            .compare
            .iter()
            .map(|compare| (&compare.key[..], compare.result, compare.target))
            .collect();
        assert_eq!(compares, [(&b"a b"[..], 0, 3), (&b"k"[..], 1, 2), (&b"k"[..], 3, 0)]);
        assert_eq!(request.compare[1].target_union, Some(TargetUnion::ModRevision(5)));
        assert_eq!((request.success.len(), request.failure.len()), (2, 1));
        match request.success[0].request.as_ref().unwrap() {
            Request::RequestPut(put) => assert_eq!((&put.key[..], &put.value[..]), (&b"k"[..], &b"v w"[..])),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn any_part_may_be_empty() {
        let request = parse_text("\n\nput k v").unwrap();
        assert_eq!((request.compare.len(), request.success.len(), request.failure.len()), (0, 0, 1));
        assert_eq!(parse_text("").unwrap(), pb::TxnRequest::default());
    }

    #[test]
    fn what_cannot_be_understood_is_shown_with_its_line() {
        for (text, number, words) in [
            ("put k v", 1, "expected a compare"),
            ("size(\"k\") = \"1\"", 1, "cannot be compared"),
            ("mod(\"k\") = \"x\"", 1, "is not a number"),
            ("mod(\"k\" = \"1\"", 1, "expected a )"),
            ("mod(\"k\") ~ \"1\"", 1, "expected ="),
            ("mod(\"k\") = 1 2", 1, "is too much"),
            ("mod(\"k\") = ", 1, "is missing"),
            ("\nmembers", 2, "only get, put and del"),
            ("\nput k", 2, "needs a key and a value"),
            ("\nfrob k", 2, "frob"),
            ("\n\n\nput k v", 4, "nothing may follow"),
        ] {
            let error = parse_text(text).unwrap_err();
            assert!(error.contains(&format!("line {number} ")) && error.contains(words), "{text:?}: {error}");
        }
    }
}
