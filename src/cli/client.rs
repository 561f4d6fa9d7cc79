//! `replcluster client`: one request to any etcd v3 cluster, or a prompt where no request is named (O15).
//! Prints what etcdctl prints, so that scripts may call either. Reading a cluster's config is the caller's part.

pub(super) mod print;
mod prompt;
mod txn;
mod words;

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Failure};
use crate::client::{Client, ClientError, Options, prefix_end};
use crate::proto::etcdserverpb as pb;

/// Longest value taken from standard input, in bytes: no server here takes a longer request by default.
const LONGEST_INPUT: u64 = 64 << 20;

/// What becomes of a request whose answer is not waited for.
const UNANSWERED: &str = "what was sent may be carried out all the same";

/// What the user typed after `client`.
#[derive(Debug, Args)]
pub struct ClientArguments {
    /// Addresses of any etcd v3 servers, host:port with commas between; the cluster of the config where none is given
    #[arg(long, value_delimiter = ',', global = true, value_name = "ADDR,…")]
    pub endpoints: Vec<String>,
    /// Print JSON as etcdctl does: keys and values in base64
    #[arg(long, global = true)]
    pub json: bool,
    /// How long one request may take
    #[arg(long, global = true, default_value = "5s", value_parser = parse_duration, value_name = "DURATION")]
    pub timeout: Duration,
    /// What to do; a prompt where nothing is named
    #[command(subcommand)]
    pub verb: Option<ClientVerb>,
}

/// One request.
#[derive(Debug, Subcommand)]
pub enum ClientVerb {
    /// Read a key or a range of keys (read-only)
    Get(GetArguments),
    /// Write a key (changes the cluster)
    Put(PutArguments),
    /// Delete a key or a range of keys (destructive)
    Del(DelArguments),
    /// Carry out a transaction read from standard input (changes the cluster)
    #[command(after_help = txn::HELP)]
    Txn,
    /// Forget what was overwritten or deleted before a revision (destructive)
    Compact {
        /// The oldest revision that stays readable
        revision: i64,
        /// Answer only when the old revisions are gone from disk
        #[arg(long)]
        physical: bool,
    },
    /// List the members of the cluster (read-only)
    Members,
    /// Show what every endpoint says of itself (read-only)
    Status,
    /// Watches are not in this version.
    #[command(hide = true)]
    Watch {
        /// Taken and not used, so that the answer is the same whatever is asked for.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<OsString>,
    },
    /// Leases are not in this version.
    #[command(hide = true)]
    Lease {
        /// Taken and not used, so that the answer is the same whatever is asked for.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<OsString>,
    },
}

/// `get`
#[derive(Debug, Args)]
pub struct GetArguments {
    /// The key, or the first key of the range
    key: OsString,
    /// The key that the range ends before
    #[arg(conflicts_with_all = ["prefix", "from_key"])]
    range_end: Option<OsString>,
    /// All keys that begin with KEY
    #[arg(long, conflicts_with = "from_key")]
    prefix: bool,
    /// All keys from KEY on
    #[arg(long)]
    from_key: bool,
    /// At most so many keys; 0 for all
    #[arg(long, default_value_t = 0)]
    limit: i64,
    /// As of this revision; 0 for the newest
    #[arg(long, default_value_t = 0)]
    rev: i64,
    /// Ascend or descend
    #[arg(long, value_enum)]
    order: Option<Order>,
    /// What to sort by
    #[arg(long, value_enum)]
    sort_by: Option<SortBy>,
    /// Print keys without their values
    #[arg(long, conflicts_with_all = ["count_only", "print_value_only"])]
    keys_only: bool,
    /// Print how many keys there are
    #[arg(long, conflicts_with = "print_value_only")]
    count_only: bool,
    /// Print values without their keys
    #[arg(long)]
    print_value_only: bool,
    /// Take what the asked node holds, which may be stale
    #[arg(long)]
    serializable: bool,
}

/// `put`
#[derive(Debug, Args)]
pub struct PutArguments {
    /// The key
    key: OsString,
    /// The value; - or nothing reads it from standard input
    #[arg(allow_hyphen_values = true)]
    value: Option<OsString>,
    /// Print the key's value of before
    #[arg(long)]
    prev_kv: bool,
    /// Keep the value the key has
    #[arg(long, conflicts_with = "value")]
    ignore_value: bool,
}

/// `del`
#[derive(Debug, Args)]
pub struct DelArguments {
    /// The key, or the first key of the range
    key: OsString,
    /// The key that the range ends before
    #[arg(conflicts_with_all = ["prefix", "from_key"])]
    range_end: Option<OsString>,
    /// All keys that begin with KEY
    #[arg(long, conflicts_with = "from_key")]
    prefix: bool,
    /// All keys from KEY on
    #[arg(long)]
    from_key: bool,
    /// Print what was deleted
    #[arg(long)]
    prev_kv: bool,
}

/// In which direction `get` sorts.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Order {
    #[value(alias = "ASCEND")]
    Ascend,
    #[value(alias = "DESCEND")]
    Descend,
}

/// What `get` sorts by.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum SortBy {
    #[value(alias = "KEY")]
    Key,
    #[value(alias = "VERSION")]
    Version,
    #[value(alias = "CREATE")]
    Create,
    #[value(alias = "MODIFY")]
    Modify,
    #[value(alias = "VALUE")]
    Value,
}

/// Why `client` did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientFailure {
    /// The request failed.
    #[error(transparent)]
    Request(#[from] ClientError),
    /// What was typed cannot be understood.
    #[error("{0}")]
    Usage(String),
    /// What this version does not have.
    #[error("{0} are not in this version\nkeys can be read, written and deleted: see --help")]
    NotInThisVersion(&'static str),
    /// Standard input or output failed.
    #[error("standard input or output failed: {0}")]
    Terminal(#[from] std::io::Error),
    /// The user stopped it; what became of the request.
    #[error("interrupted: {0}")]
    Interrupted(&'static str),
}

impl From<ClientFailure> for Failure {
    fn from(error: ClientFailure) -> Failure {
        let exit = match &error {
            ClientFailure::Request(error) => Exit::from(error),
            ClientFailure::Usage(_) => Exit::Usage,
            ClientFailure::NotInThisVersion(_) | ClientFailure::Terminal(_) => Exit::Failed,
            ClientFailure::Interrupted(_) => Exit::Interrupted,
        };
        Failure::new(exit, error.to_string())
    }
}

/// What a request's arguments leave to standard input.
enum Input {
    /// All of standard input; empty where the request takes nothing from it.
    Stdin(Vec<u8>),
    /// The lines after the request, as the prompt read them; there is nothing for a value.
    Lines(Vec<String>),
}

/// Carries out what was typed, against `--endpoints` or else `configured`, until `interrupt`.
///
/// # Errors
/// [`ClientFailure`]; nothing was printed to standard output then.
pub async fn run(
    arguments: ClientArguments,
    configured: &[String],
    interrupt: &CancellationToken,
) -> Result<(), ClientFailure> {
    let endpoints = if arguments.endpoints.is_empty() { configured } else { &arguments.endpoints };
    let client = Client::new(endpoints, Options { timeout: arguments.timeout, ..Options::default() })?;
    let Some(verb) = arguments.verb else {
        return prompt::run(&client, arguments.json, interrupt).await;
    };
    // All of a request is there before any of it is sent, and nothing is sent after an interrupt.
    let input = tokio::select! {
        biased;
        () = interrupt.cancelled() => return Err(ClientFailure::Interrupted("nothing was sent")),
        input = stdin_for(&verb) => Input::Stdin(input?),
    };
    let output = tokio::select! {
        biased;
        () = interrupt.cancelled() => return Err(ClientFailure::Interrupted(UNANSWERED)),
        output = perform(&client, verb, arguments.json, input) => output?,
    };
    write_out(&output)?;
    Ok(())
}

/// Reads what a request takes from standard input. Reading blocks, and an interrupt must be seen meanwhile.
async fn stdin_for(verb: &ClientVerb) -> Result<Vec<u8>, ClientFailure> {
    let takes_it = match verb {
        ClientVerb::Put(put) => !put.ignore_value && put.value.as_ref().is_none_or(|value| value == "-"),
        ClientVerb::Txn => true,
        ClientVerb::Get(_)
        | ClientVerb::Del(_)
        | ClientVerb::Compact { .. }
        | ClientVerb::Members
        | ClientVerb::Status
        | ClientVerb::Watch { .. }
        | ClientVerb::Lease { .. } => false,
    };
    if !takes_it {
        return Ok(Vec::new());
    }
    tokio::task::spawn_blocking(read_stdin).await.map_err(std::io::Error::other)?
}

/// Carries out one request and gives what is to be printed.
async fn perform(
    client: &Client,
    verb: ClientVerb,
    json: bool,
    input: Input,
) -> Result<Vec<u8>, ClientFailure> {
    let output = match verb {
        ClientVerb::Get(arguments) => {
            let look = print::GetLook {
                keys_only: arguments.keys_only,
                count_only: arguments.count_only,
                value_only: arguments.print_value_only,
            };
            let answer = client.range(range_request(arguments)).await?;
            if json { print::json(&print::range_value(&answer)) } else { print::range_text(&answer, look) }
        }
        ClientVerb::Put(arguments) => {
            let answer = client.put(put_request(arguments, input)?).await?;
            if json { print::json(&print::put_value(&answer)) } else { print::put_text(&answer) }
        }
        ClientVerb::Del(arguments) => {
            let (key, range_end) =
                range(arguments.key, arguments.range_end, arguments.prefix, arguments.from_key);
            let request = pb::DeleteRangeRequest { key, range_end, prev_kv: arguments.prev_kv };
            let answer = client.delete(request).await?;
            if json { print::json(&print::delete_value(&answer)) } else { print::delete_text(&answer) }
        }
        ClientVerb::Txn => {
            let lines = match input {
                Input::Stdin(bytes) => {
                    let text = String::from_utf8(bytes)
                        .map_err(|_| ClientFailure::Usage("a transaction is text in UTF-8".to_owned()))?;
                    text.lines().map(str::to_owned).collect()
                }
                Input::Lines(lines) => lines,
            };
            let answer = client.txn(txn::parse(&lines)?).await?;
            if json { print::json(&print::txn_value(&answer)) } else { print::txn_text(&answer) }
        }
        ClientVerb::Compact { revision, physical } => {
            let answer = client.compact(revision, physical).await?;
            if json { print::json(&print::compact_value(&answer)) } else { print::compact_text(revision) }
        }
        ClientVerb::Members => {
            let answer = client.members(true).await?;
            if json { print::json(&print::members_value(&answer)) } else { print::members_text(&answer) }
        }
        ClientVerb::Status => {
            let answers = client.status().await;
            let output =
                if json { print::json(&print::status_value(&answers)) } else { print::status_text(&answers) };
            if answers.iter().all(|(_, answer)| answer.is_err()) {
                let first = answers.into_iter().find_map(|(_, answer)| answer.err());
                return Err(first.unwrap_or(ClientError::NoEndpoints).into());
            }
            output
        }
        ClientVerb::Watch { .. } => return Err(ClientFailure::NotInThisVersion("watches")),
        ClientVerb::Lease { .. } => return Err(ClientFailure::NotInThisVersion("leases")),
    };
    Ok(output)
}

fn range_request(arguments: GetArguments) -> pb::RangeRequest {
    use pb::range_request::{SortOrder, SortTarget};
    let (key, range_end) = range(arguments.key, arguments.range_end, arguments.prefix, arguments.from_key);
    let order = match arguments.order {
        None => SortOrder::None,
        Some(Order::Ascend) => SortOrder::Ascend,
        Some(Order::Descend) => SortOrder::Descend,
    };
    let target = match arguments.sort_by {
        None | Some(SortBy::Key) => SortTarget::Key,
        Some(SortBy::Version) => SortTarget::Version,
        Some(SortBy::Create) => SortTarget::Create,
        Some(SortBy::Modify) => SortTarget::Mod,
        Some(SortBy::Value) => SortTarget::Value,
    };
    pb::RangeRequest {
        key,
        range_end,
        limit: arguments.limit,
        revision: arguments.rev,
        sort_order: order.into(),
        sort_target: target.into(),
        serializable: arguments.serializable,
        keys_only: arguments.keys_only,
        count_only: arguments.count_only,
        ..Default::default()
    }
}

fn put_request(arguments: PutArguments, input: Input) -> Result<pb::PutRequest, ClientFailure> {
    let value = match arguments.value {
        _ if arguments.ignore_value => Bytes::new(),
        Some(value) if value != "-" => value.into_vec().into(),
        Some(_) | None => match input {
            Input::Stdin(bytes) => bytes.into(),
            Input::Lines(_) => return Err(ClientFailure::Usage("put needs a key and a value".to_owned())),
        },
    };
    Ok(pb::PutRequest {
        key: arguments.key.into_vec().into(),
        value,
        prev_kv: arguments.prev_kv,
        ignore_value: arguments.ignore_value,
        ..Default::default()
    })
}

/// Key and range end as the API wants them. An empty key with `--prefix` or `--from-key` means all keys.
fn range(key: OsString, range_end: Option<OsString>, prefix: bool, from_key: bool) -> (Bytes, Bytes) {
    let key = Bytes::from(key.into_vec());
    let zero = Bytes::from_static(&[0]);
    match (range_end, prefix, from_key) {
        (Some(end), _, _) => (key, end.into_vec().into()),
        (None, true, _) | (None, _, true) if key.is_empty() => (zero.clone(), zero),
        (None, true, _) => {
            let end = prefix_end(&key);
            (key, end)
        }
        (None, false, true) => (key, zero),
        (None, false, false) => (key, Bytes::new()),
    }
}

fn read_stdin() -> Result<Vec<u8>, ClientFailure> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(LONGEST_INPUT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST_INPUT {
        return Err(ClientFailure::Usage(format!("standard input is longer than {LONGEST_INPUT} bytes")));
    }
    Ok(bytes)
}

/// Prints; a reader that went away, such as `head`, is no failure.
fn write_out(bytes: &[u8]) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Reads "5s", "100ms", "1m 30s", as the configuration does; but nothing can be done in no time.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = crate::config::parse_duration(text)?;
    if duration.is_zero() {
        return Err("expected a time above zero, such as 5s or 100ms".to_owned());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: ClientArguments,
    }

    fn verb(words: &[&str]) -> ClientVerb {
        Line::try_parse_from([&["client"], words].concat()).unwrap().arguments.verb.unwrap()
    }

    fn get(words: &[&str]) -> pb::RangeRequest {
        match verb(words) {
            ClientVerb::Get(arguments) => range_request(arguments),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ranges_are_asked_for_as_etcd_wants_them() {
        let both = |words: &[&str]| {
            let request = get(words);
            (request.key, request.range_end)
        };
        let bytes = Bytes::from_static;
        assert_eq!(both(&["get", "a"]), (bytes(b"a"), bytes(b"")));
        assert_eq!(both(&["get", "a", "c"]), (bytes(b"a"), bytes(b"c")));
        assert_eq!(both(&["get", "a", "--prefix"]), (bytes(b"a"), bytes(b"b")));
        assert_eq!(both(&["get", "a", "--from-key"]), (bytes(b"a"), bytes(b"\0")));
        assert_eq!(both(&["get", "", "--prefix"]), (bytes(b"\0"), bytes(b"\0")));
        assert_eq!(both(&["get", "", "--from-key"]), (bytes(b"\0"), bytes(b"\0")));
        assert_eq!(both(&["get", "\0", "--prefix"]), (bytes(b"\0"), bytes(b"\x01")));
    }

    #[test]
    fn every_flag_of_get_reaches_the_request() {
        let request = get(&[
            "get",
            "a",
            "--limit",
            "3",
            "--rev",
            "9",
            "--keys-only",
            "--serializable",
            "--order",
            "DESCEND",
            "--sort-by",
            "MODIFY",
        ]);
        assert_eq!((request.limit, request.revision), (3, 9));
        assert!(request.keys_only && request.serializable && !request.count_only);
        assert_eq!((request.sort_order, request.sort_target), (2, 3));
    }

    #[test]
    fn a_value_may_look_like_a_flag() {
        match verb(&["put", "key", "-5"]) {
            ClientVerb::Put(arguments) => {
                assert_eq!(put_request(arguments, Input::Lines(Vec::new())).unwrap().value, "-5");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_there_yet_is_not_listed_but_answered() {
        use clap::CommandFactory as _;
        let help = Line::command().render_long_help().to_string();
        assert!(!help.contains("watch") && !help.contains("lease"), "{help}");
        assert!(matches!(verb(&["watch", "--prefix", "a"]), ClientVerb::Watch { .. }));
        assert!(matches!(verb(&["lease", "grant", "5"]), ClientVerb::Lease { .. }));
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        assert_eq!(parse_duration("100ms"), Ok(Duration::from_millis(100)));
        assert!(
            parse_duration("0s").is_err() && parse_duration("5").is_err() && parse_duration("-1s").is_err()
        );
    }
}
