//! What a request's `key` and `range_end` mean.

use std::ops::Bound;

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

    /// True where no key can be in the range: it ends where it starts, or before.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            KeyRange::One(_) | KeyRange::Span(_, None) => false,
            KeyRange::Span(from, Some(to)) => from >= to,
        }
    }

    /// Bounds for an ordered map. Only for ranges that are not empty: the map would refuse the others.
    pub(super) fn bounds(&self) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
        match *self {
            KeyRange::One(key) => (Bound::Included(key), Bound::Included(key)),
            KeyRange::Span(from, None) => (Bound::Included(from), Bound::Unbounded),
            KeyRange::Span(from, Some(to)) => (Bound::Included(from), Bound::Excluded(to)),
        }
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
        assert!(KeyRange::new(b"b", b"b").is_empty());
        assert!(KeyRange::new(b"b", b"a").is_empty());
        assert!(!KeyRange::new(b"b", b"\0").is_empty());
        assert!(!KeyRange::new(b"b", b"b\0").is_empty());
    }
}
