//! A view as text: what stands in the register's files and in a node's promise. Readable without tools,
//! closed by a checksum. Not a wire format: views do not travel between nodes.
//!
//! ```text
//! replcluster view 1
//! cluster 00000000000000c1
//! epoch 4
//! leader 127.0.0.1:2380
//! led-since 3
//! floor 18204
//! in-sync 127.0.0.1:2380 00000000000000a2
//! member 127.0.0.1:2380 00000000000000a2
//! crc32c 1b2f00aa
//! ```
//!
//! A line `recovered 4` after the floor stands only where an operator has made such a view. A line `previous` and a
//! checksum stands where the view names the one before it; builds that do not know it cannot read such a view, so views
//! get it only once every member knows it (R37).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::view::{
    AddressError, Checksum, ClusterId, Epoch, Incarnation, Index, NodeId, VIEW_BYTES_MAX, View,
};

const FIRST_LINE: &str = "replcluster view ";
const VERSION: u32 = 1;

/// The longest text that every place has room for that keeps a view: the register and a node's promise.
pub const TEXT_BYTES_MAX: usize = VIEW_BYTES_MAX;

/// Why bytes are not a view.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadView {
    /// Nothing is there.
    #[error("it is empty")]
    Empty,
    /// It is something else.
    #[error("it does not begin with \"{FIRST_LINE}{VERSION}\"")]
    NotAView,
    /// A newer program wrote it.
    #[error(
        "it has format version {0}, this program knows {VERSION}: start a program at least as new as the one that wrote it"
    )]
    Version(String),
    /// The last line, which vouches for the others, is missing.
    #[error("its end is missing")]
    Truncated,
    /// The bytes are not those that were written.
    #[error("its checksum is {found:08x}, its last line says {written:08x}")]
    Checksum {
        /// Over the bytes found.
        found: u32,
        /// In the last line.
        written: u32,
    },
    /// The checksum holds but the content makes no sense.
    #[error("line {line}: {why}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What was expected.
        why: String,
    },
    /// A line that every view has is missing.
    #[error("it has no line \"{0}\"")]
    Missing(&'static str),
}

/// The view as text.
#[must_use]
pub fn encode(view: &View) -> String {
    let mut text = format!(
        "{FIRST_LINE}{VERSION}\ncluster {}\nepoch {}\nleader {}\nled-since {}\nfloor {}\n",
        view.cluster, view.epoch, view.leader, view.led_since, view.floor
    );
    if view.recovered > Epoch(0) {
        writeln!(text, "recovered {}", view.recovered).expect("a String takes every write");
    }
    if view.previous != Checksum(0) {
        writeln!(text, "previous {}", view.previous).expect("a String takes every write");
    }
    for (word, nodes) in [("in-sync", &view.in_sync), ("member", &view.members)] {
        for (node, incarnation) in nodes {
            writeln!(text, "{word} {node} {incarnation:?}").expect("a String takes every write");
        }
    }
    let checksum = crc32c::crc32c(text.as_bytes());
    writeln!(text, "crc32c {checksum:08x}").expect("a String takes every write");
    text
}

/// The view that [`encode`] turned into these bytes.
///
/// # Errors
/// [`BadView`] for anything else.
pub fn decode(bytes: &[u8]) -> Result<View, BadView> {
    let text = verified(bytes)?;
    let mut parts = Parts::default();
    for (number, line) in text.lines().enumerate().skip(1) {
        parts.take(line).map_err(|why| BadView::Line { line: number + 1, why })?;
    }
    parts.finish()
}

/// The lines that the checksum covers.
fn verified(bytes: &[u8]) -> Result<&str, BadView> {
    if bytes.is_empty() {
        return Err(BadView::Empty);
    }
    let begins = bytes.strip_prefix(FIRST_LINE.as_bytes()).ok_or(BadView::NotAView)?;
    let version_end = begins.iter().position(|byte| *byte == b'\n').ok_or(BadView::Truncated)?;
    let version = String::from_utf8_lossy(&begins[..version_end]).into_owned();
    if version != VERSION.to_string() {
        return Err(BadView::Version(version));
    }
    let without_newline = bytes.strip_suffix(b"\n").ok_or(BadView::Truncated)?;
    let last_line = without_newline.iter().rposition(|byte| *byte == b'\n').ok_or(BadView::Truncated)? + 1;
    let written = std::str::from_utf8(&without_newline[last_line..])
        .ok()
        .and_then(|line| line.strip_prefix("crc32c "))
        .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        .ok_or(BadView::Truncated)?;
    let found = crc32c::crc32c(&bytes[..last_line]);
    if found != written {
        return Err(BadView::Checksum { found, written });
    }
    std::str::from_utf8(&bytes[..last_line]).map_err(|_| BadView::NotAView)
}

#[derive(Default)]
struct Parts {
    cluster: Option<ClusterId>,
    epoch: Option<Epoch>,
    leader: Option<NodeId>,
    led_since: Option<Epoch>,
    floor: Option<Index>,
    recovered: Epoch,
    previous: Checksum,
    in_sync: BTreeMap<NodeId, Incarnation>,
    members: BTreeMap<NodeId, Incarnation>,
}

impl Parts {
    fn take(&mut self, line: &str) -> Result<(), String> {
        let (word, rest) = line.split_once(' ').ok_or_else(|| format!("\"{line}\" has no value"))?;
        match word {
            "cluster" => self.cluster = Some(ClusterId(hexadecimal(rest)?)),
            "epoch" => self.epoch = Some(Epoch(decimal(rest)?)),
            "floor" => self.floor = Some(Index(decimal(rest)?)),
            "recovered" => self.recovered = Epoch(decimal(rest)?),
            "previous" => self.previous = Checksum(hexadecimal(rest)?),
            "led-since" => self.led_since = Some(Epoch(decimal(rest)?)),
            "leader" => self.leader = Some(address(rest)?),
            "in-sync" => enter(&mut self.in_sync, rest)?,
            "member" => enter(&mut self.members, rest)?,
            _ => return Err(format!("\"{word}\" is not known")),
        }
        Ok(())
    }

    fn finish(self) -> Result<View, BadView> {
        if self.in_sync.is_empty() {
            return Err(BadView::Missing("in-sync"));
        }
        Ok(View {
            cluster: self.cluster.ok_or(BadView::Missing("cluster"))?,
            epoch: self.epoch.ok_or(BadView::Missing("epoch"))?,
            leader: self.leader.ok_or(BadView::Missing("leader"))?,
            led_since: self.led_since.ok_or(BadView::Missing("led-since"))?,
            floor: self.floor.ok_or(BadView::Missing("floor"))?,
            recovered: self.recovered,
            previous: self.previous,
            in_sync: self.in_sync,
            members: self.members,
        })
    }
}

fn enter(nodes: &mut BTreeMap<NodeId, Incarnation>, text: &str) -> Result<(), String> {
    let (node, incarnation) =
        text.split_once(' ').ok_or_else(|| format!("\"{text}\" is not an address and an incarnation"))?;
    nodes.insert(address(node)?, Incarnation(hexadecimal(incarnation)?));
    Ok(())
}

fn address(text: &str) -> Result<NodeId, String> {
    NodeId::parse(text).map_err(|error: AddressError| error.to_string())
}

fn decimal(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("\"{text}\" is not a number"))
}

fn hexadecimal(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|_| format!("\"{text}\" is not a hexadecimal number"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A view of epoch `epoch` whose content differs by `mark`.
    pub(crate) fn view(epoch: u64, mark: u64) -> View {
        let node = |port: u16| NodeId::parse(&format!("127.0.0.1:{port}")).unwrap();
        View {
            cluster: ClusterId(0xc1),
            epoch: Epoch(epoch),
            leader: node(2380),
            led_since: Epoch(epoch),
            in_sync: [(node(2380), Incarnation(0xa2)), (node(2381), Incarnation(mark + 1))].into(),
            members: [(node(2379), Incarnation(0xa1)), (node(2380), Incarnation(0xa2))].into(),
            floor: Index(mark),
            recovered: Epoch(0),
            previous: Checksum(0),
        }
    }

    #[test]
    fn a_view_comes_back_as_it_was() {
        let written = view(4, 18204);
        assert_eq!(decode(encode(&written).as_bytes()), Ok(written.clone()));
        let recovered = View { recovered: Epoch(3), ..written.clone() };
        assert_eq!(decode(encode(&recovered).as_bytes()), Ok(recovered));
        let chained = View { previous: Checksum(0xfeed), ..written };
        assert!(encode(&chained).contains("\nprevious 000000000000feed\n"));
        assert_eq!(decode(encode(&chained).as_bytes()), Ok(chained));
    }

    #[test]
    fn a_view_that_names_none_before_it_is_written_as_older_builds_do() {
        let text = encode(&view(4, 18204));
        let words: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
        let known = [
            "replcluster",
            "cluster",
            "epoch",
            "leader",
            "led-since",
            "floor",
            "in-sync",
            "member",
            "crc32c",
        ];
        assert!(words.iter().all(|word| known.contains(word)), "{words:?}");
    }

    #[test]
    fn no_changed_missing_or_added_byte_goes_unseen() {
        let text = encode(&view(4, 18204)).into_bytes();
        for length in 0..text.len() {
            assert!(decode(&text[..length]).is_err(), "cut to {length} bytes");
        }
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut changed = text.clone();
                changed[at] ^= 1 << bit;
                // The checksum's own digits may change case; that is the same checksum.
                let same_digits = changed.eq_ignore_ascii_case(&text) && at >= text.len() - 9;
                assert!(decode(&changed).is_err() || same_digits, "bit {bit} of byte {at}");
            }
        }
        let doubled = [text.as_slice(), text.as_slice()].concat();
        assert!(decode(&doubled).is_err());
    }

    #[test]
    fn a_newer_format_is_refused_by_its_version() {
        let newer = encode(&view(1, 1)).replacen("view 1", "view 2", 1);
        assert_eq!(decode(newer.as_bytes()), Err(BadView::Version("2".into())));
    }

    #[test]
    fn a_view_without_an_in_sync_node_is_refused() {
        let mut nobody = view(1, 1);
        nobody.in_sync.clear();
        assert_eq!(decode(encode(&nobody).as_bytes()), Err(BadView::Missing("in-sync")));
    }
}
