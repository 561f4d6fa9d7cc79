//! Numbers, times and tables as people read them. Values in, text out.

use std::time::Duration;

use anstyle::{AnsiColor, Style};

use crate::telemetry::line::Line;

/// Something is wrong.
pub const RED: Style = AnsiColor::Red.on_default().bold();
/// Something is not as it should be.
pub const YELLOW: Style = AnsiColor::Yellow.on_default();
/// All is well.
pub const GREEN: Style = AnsiColor::Green.on_default();
/// Less important.
pub const DIM: Style = Style::new().dimmed();
/// Ends any of these.
pub const PLAIN: anstyle::Reset = anstyle::Reset;

/// One colour a node in merged logs.
pub const NODE_COLOURS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Yellow,
    AnsiColor::Blue,
    AnsiColor::BrightRed,
];

/// True where what goes to stderr is coloured.
#[must_use]
pub fn is_coloured_stderr() -> bool {
    anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never
}

/// A log line with the ends of lines in its message as such: in the file they are written as `\n`.
#[must_use]
pub fn unfolded(line: &str) -> String {
    if !line.contains("\\n") {
        return line.to_owned();
    }
    let Some(message) = Line::parse(line).map(|line| line.message).filter(|text| text.contains('\n')) else {
        return line.to_owned();
    };
    // Its own escapes are no ends of lines. What follows the message stays on the last line.
    let folded = message.replace('\\', "\\\\").replace('\n', "\\n");
    line.replacen(&folded, &message.replace('\n', "\n    "), 1)
}

/// A time span in at most two units: `4s`, `3m12s`, `2h05m`, `3d04h`.
#[must_use]
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    if days > 0 {
        format!("{days}d{hours:02}h")
    } else if hours > 0 {
        format!("{hours}h{minutes:02}m")
    } else if minutes > 0 {
        format!("{minutes}m{:02}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

/// Bytes with a binary unit and no more digits than one reads: `31M`, `1.2G`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "K", "M", "G", "T"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit > 0 && value < 9.95 {
        format!("{value:.1}{}", UNITS[unit])
    } else {
        format!("{value:.0}{}", UNITS[unit])
    }
}

/// A whole number with its digits in groups of three: `18 204`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Milliseconds for people: one decimal below ten.
#[must_use]
pub fn milliseconds(value: f64) -> String {
    if value < 9.95 { format!("{value:.1} ms") } else { format!("{} ms", grouped(value.round() as u64)) }
}

/// A borderless table: columns two spaces apart, no space at the ends of lines.
#[must_use]
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> Vec<String> {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect()
}

/// How old an answer is: `0.1s` below ten seconds, then as a [`span`].
#[must_use]
pub fn age(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 10.0 { format!("{seconds:.1}s") } else { span(duration) }
}

/// The time of day in a stamp such as `2026-11-22T14:03:11.123456Z`, in local time where the machine knows it.
#[must_use]
pub fn time_of_day(stamp: &str) -> String {
    match stamp.parse::<jiff::Timestamp>() {
        Ok(timestamp) => timestamp.to_zoned(jiff::tz::TimeZone::system()).strftime("%H:%M:%S").to_string(),
        Err(_) => stamp.to_owned(),
    }
}

/// The name of a signal with its `SIG`, or its number.
#[must_use]
pub fn signal_name(signal: i32) -> String {
    nix::sys::signal::Signal::try_from(signal)
        .map_or_else(|_| format!("signal {signal}"), |signal| signal.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units_at_most() {
        let cases = [(0, "0s"), (4, "4s"), (192, "3m12s"), (7500, "2h05m"), (273_600, "3d04h")];
        for (seconds, text) in cases {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn ages_have_a_tenth_while_it_matters() {
        let cases = [(0, "0.0s"), (140, "0.1s"), (9_900, "9.9s"), (10_200, "10s"), (192_000, "3m12s")];
        for (milliseconds, text) in cases {
            assert_eq!(age(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn bytes_are_short() {
        let cases = [(0, "0B"), (999, "999B"), (1024, "1.0K"), (32_505_856, "31M"), (1_288_490_188, "1.2G")];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn digits_come_in_threes() {
        let cases = [(0, "0"), (999, "999"), (1204, "1 204"), (1_000_000, "1 000 000")];
        for (number, text) in cases {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(milliseconds(0.44), "0.4 ms");
        assert_eq!(milliseconds(11.2), "11 ms");
        assert_eq!(milliseconds(1412.0), "1 412 ms");
    }

    #[test]
    fn a_message_of_several_lines_is_shown_as_such() {
        let head = "2026-11-22T14:03:11.000001Z  INFO a::b:";
        let line = format!("{head} no room\\nfree some  why=\"x\\ny\"");
        assert_eq!(unfolded(&line), format!("{head} no room\n    free some  why=\"x\\ny\""));
        for line in [format!("{head} one  why=\"x\\ny\""), format!("{head} a\\\\n b"), "x\\ny".to_owned()] {
            assert_eq!(unfolded(&line), line);
        }
    }

    #[test]
    fn tables_have_no_borders_and_no_trailing_space() {
        let lines = table(&["A", "LONG"], vec![vec!["xyz".to_owned(), "1".to_owned()]]);
        assert_eq!(lines, ["A    LONG", "xyz  1"]);
    }

    #[test]
    fn signals_have_names() {
        assert_eq!(signal_name(9), "SIGKILL");
        assert_eq!(signal_name(99), "signal 99");
    }
}
