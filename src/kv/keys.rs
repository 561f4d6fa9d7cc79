//! What a request's `key` and `range_end` mean.

use std::ops::Bound;

/// Where an ordered map is to be read.
pub(super) type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The keys a request speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyRange<'a> {
    One(&'a [u8]),
    /// From the first (inclusive) to the second (exclusive; none: without end).
    Span(&'a [u8], Option<&'a [u8]>),
}

impl<'a> KeyRange<'a> {
    /// etcd's reading: no end is the one key, an end of a single zero byte is no upper bound.
    pub(super) fn new(key: &'a [u8], range_end: &'a [u8]) -> Self {
        match range_end {
            [] => KeyRange::One(key),
            [0] => KeyRange::Span(key, None),
            end => KeyRange::Span(key, Some(end)),
        }
    }

    /// Bounds for an ordered map of the keys in the range and behind `cursor`; none where no key can be there, which the
    /// map would refuse.
    pub(super) fn bounds(&self, cursor: Option<&'a [u8]>) -> Option<Bounds<'a>> {
        let (from, to) = match *self {
            KeyRange::One(key) => (key, Bound::Included(key)),
            KeyRange::Span(from, None) => (from, Bound::Unbounded),
            KeyRange::Span(from, Some(to)) => (from, Bound::Excluded(to)),
        };
        let start = match cursor {
            Some(cursor) if cursor >= from => Bound::Excluded(cursor),
            Some(_) | None => Bound::Included(from),
        };
        let is_empty = match (start, to) {
            (Bound::Included(start), Bound::Excluded(end)) => start >= end,
            (Bound::Excluded(start), Bound::Included(end) | Bound::Excluded(end)) => start >= end,
            (Bound::Included(_) | Bound::Excluded(_) | Bound::Unbounded, _) => false,
        };
        (!is_empty).then_some((start, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_tells_one_key_a_span_or_everything_above() {
        assert_eq!(KeyRange::new(b"a", b""), KeyRange::One(b"a"));
        assert_eq!(KeyRange::new(b"a", b"\0"), KeyRange::Span(b"a", None));
        assert_eq!(KeyRange::new(b"a", b"b"), KeyRange::Span(b"a", Some(b"b")));
        assert_eq!(KeyRange::new(b"a", b"\0\0"), KeyRange::Span(b"a", Some(b"\0\0")));
    }

    #[test]
    fn a_span_that_ends_at_its_start_is_empty() {
        assert_eq!(KeyRange::new(b"b", b"b").bounds(None), None);
        assert_eq!(KeyRange::new(b"b", b"a").bounds(None), None);
        assert!(KeyRange::new(b"b", b"\0").bounds(None).is_some());
        assert!(KeyRange::new(b"b", b"b\0").bounds(None).is_some());
    }

    #[test]
    fn a_cursor_leaves_what_is_behind_it() {
        let bounds = |range: KeyRange<'static>, cursor| range.bounds(Some(cursor));
        let behind_b = (Bound::Excluded(&b"b"[..]), Bound::Excluded(&b"d"[..]));
        assert_eq!(bounds(KeyRange::new(b"a", b"d"), b"b"), Some(behind_b));
        assert_eq!(bounds(KeyRange::new(b"a", b"d"), b"d"), None);
        assert_eq!(bounds(KeyRange::new(b"a", b""), b"a"), None);
        // The empty key stands before every other.
        assert_eq!(bounds(KeyRange::new(b"a", b"d"), b""), KeyRange::new(b"a", b"d").bounds(None));
    }
}
