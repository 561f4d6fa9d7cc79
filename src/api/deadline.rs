//! Until when a request is worth working on.

use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;

/// What a request gets that names no time of its own: etcd's 5 s and two elections.
const DEFAULT: Duration = Duration::from_secs(7);

/// The earlier of what the client says (`grpc-timeout`) and the default, from now on.
pub(super) fn deadline(metadata: &MetadataMap) -> Instant {
    let asked = metadata.get("grpc-timeout").and_then(|text| parse(text.to_str().ok()?));
    Instant::from_std(crate::clock::now()) + asked.map_or(DEFAULT, |asked| asked.min(DEFAULT))
}

/// Reads at most eight digits and a unit; anything else counts as not given, as the specification of gRPC allows.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse::<u64>().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        assert_eq!(parse("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parse("3M"), Some(Duration::from_secs(180)));
        assert_eq!(parse("4S"), Some(Duration::from_secs(4)));
        assert_eq!(parse("5m"), Some(Duration::from_millis(5)));
        assert_eq!(parse("6u"), Some(Duration::from_micros(6)));
        assert_eq!(parse("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for text in ["", "S", "5", "123456789S", "-1S", "1.5S", "1é", "+1S"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_shorter_of_the_two_wins() {
        let left = |timeout: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", timeout.parse().unwrap());
            deadline(&metadata) - Instant::from_std(crate::clock::now())
        };
        assert!(left("100m") <= Duration::from_millis(100));
        assert!(left("1H") <= DEFAULT);
        assert!(left("1H") > Duration::from_secs(6));
        assert!(left("what") > Duration::from_secs(6));
    }
}
