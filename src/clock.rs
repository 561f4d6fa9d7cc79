//! The only place that asks what time it is. The brains never import it: they take time as an argument.

use std::time::{Instant, SystemTime};

/// Monotonic now, for intervals and deadlines.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// Wall-clock now, for what people read; no decision may rest on it.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}
