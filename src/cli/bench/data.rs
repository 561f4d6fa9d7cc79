//! Fills a cluster with as much data as asked, quickly, and refuses where the disk is too small for it.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::BenchFailure;
use super::request::PREFIX;
use crate::client::{Client, Options};
use crate::proto::etcdserverpb as pb;

/// Bytes in one value: large, so that filling is a matter of the disk and not of requests.
const VALUE_BYTES: u64 = 256 << 10;
/// Writes under way at a time.
const WRITERS: usize = 16;
/// Copies of the data.
const COPIES: u64 = 3;
/// The data itself, its trees, and what they need to be rewritten, per copy.
const TIMES: u64 = 3;
/// Logs and their next segments, per copy.
const LOG_BYTES: u64 = 512 << 20;

/// Refuses where the file system of `directory` is too small for three copies of that much.
pub(super) fn check_space(directory: &Path, bytes: u64) -> Result<(), BenchFailure> {
    let needed_bytes = COPIES * (TIMES * bytes + LOG_BYTES);
    let system = rustix::fs::statvfs(directory)
        .map_err(|error| BenchFailure::Directory(directory.to_owned(), error.into()))?;
    let free_bytes = system.f_bavail * system.f_frsize;
    if free_bytes < needed_bytes {
        return Err(BenchFailure::Space { directory: directory.to_owned(), free_bytes, needed_bytes });
    }
    Ok(())
}

/// Writes that much, each key once; answers with how many bytes of values there are.
pub(super) async fn fill(endpoints: &[String], bytes: u64) -> Result<u64, BenchFailure> {
    let client = Client::new(endpoints, Options { timeout: Duration::from_secs(60), ..Options::default() })?;
    let value = Bytes::from(vec![b'd'; usize::try_from(VALUE_BYTES).unwrap_or(0)]);
    let mut pending = FuturesUnordered::new();
    let count = bytes.div_ceil(VALUE_BYTES);
    for number in 0..count {
        if pending.len() >= WRITERS
            && let Some::<Result<pb::PutResponse, _>>(written) = pending.next().await
        {
            written?;
        }
        let key = [PREFIX, format!("data/{number:08}").as_bytes()].concat().into();
        pending.push(client.put(pb::PutRequest { key, value: value.clone(), ..Default::default() }));
    }
    while let Some(written) = pending.next().await {
        written?;
    }
    Ok(count * VALUE_BYTES)
}

/// `67108864`, `64MiB`, `1GiB`.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("", 0)];
    let (number, shift) = units
        .iter()
        .find_map(|(unit, shift)| text.strip_suffix(unit).map(|number| (number, *shift)))
        .unwrap_or((text, 0));
    let number: Option<u64> = number.trim().parse().ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << shift));
    bytes
        .filter(|bytes| (1..=64 << 30).contains(bytes))
        .ok_or_else(|| "expected bytes such as 64MiB or 1GiB, up to 64GiB".to_owned())
}

/// As people say it.
pub(super) fn show(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = units.iter().find(|(_, shift)| bytes >= 1 << shift);
    let (name, shift) = unit.copied().unwrap_or(("B", 0));
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit after the point")]
    let number = bytes as f64 / (1_u64 << shift) as f64;
    if bytes.is_multiple_of(1 << shift) {
        format!("{number:.0} {name}")
    } else {
        format!("{number:.1} {name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_and_without_their_unit() {
        assert_eq!(parse_bytes("64MiB"), Ok(64 << 20));
        assert_eq!(parse_bytes("1GiB"), Ok(1 << 30));
        assert_eq!(parse_bytes("2 KiB"), Ok(2048));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        for bad in ["", "0", "65GiB", "1GB", "-1", "99999999999GiB", "1.5GiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_are_shown_in_the_unit_that_fits() {
        assert_eq!(
            (show(1 << 30), show(100), show(3 << 19)),
            ("1 GiB".into(), "100 B".into(), "1.5 MiB".into())
        );
    }

    #[test]
    fn more_than_the_disk_holds_is_refused_before_anything_is_written() {
        let directory = tempfile::tempdir().unwrap();
        assert!(check_space(directory.path(), 1 << 20).is_ok());
        let refused = check_space(directory.path(), 1 << 50);
        assert!(matches!(refused, Err(BenchFailure::Space { .. })), "{refused:?}");
    }
}
