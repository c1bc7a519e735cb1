//! Times and amounts as people say them.

use jiff::Timestamp;

/// How long ago `then` was: `45s`, `3m`, `2h`, `5d`; a time in the future counts as now.
pub(crate) fn age(now: Timestamp, then: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(then.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A length of time with two parts at most: `0.42s`, `3.1s`, `45s`, `3m20s`, `2h5m`.
pub(crate) fn duration(from: Timestamp, to: Timestamp) -> String {
    let millis = to.as_millisecond().saturating_sub(from.as_millisecond()).max(0);
    let seconds = millis / 1000;
    match seconds {
        0 => format!("{}.{:02}s", seconds, millis % 1000 / 10),
        1..10 => format!("{}.{}s", seconds, millis % 1000 / 100),
        10..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m", seconds / 3_600, seconds % 3_600 / 60),
    }
}

/// An amount of bytes: `12 B`, `4.2 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Text that cannot move the cursor, change colours or forge lines of a terminal: every control character becomes a
/// visible picture of itself. For names and messages that others wrote.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' => ' ',
            // The block of control pictures follows the order of the control characters.
            '\0'..='\u{1f}' => char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}'),
            '\u{7f}' => '\u{2421}',
            '\u{80}'..='\u{9f}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    #[test]
    fn ages_have_one_unit() {
        let table = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7_199, "119m"),
            (7_200, "2h"),
            (172_800, "2d"),
            (-5, "0s"),
        ];
        for (seconds, expected) in table {
            assert_eq!(age(at(1_000_000_000), at(1_000_000_000 - seconds * 1000)), expected);
        }
    }

    #[test]
    fn durations_are_exact_where_they_are_short() {
        let table = [
            (0, "0.00s"),
            (429, "0.42s"),
            (3_150, "3.1s"),
            (45_900, "45s"),
            (200_000, "3m20s"),
            (7_500_000, "2h5m"),
            (-1, "0.00s"),
        ];
        for (millis, expected) in table {
            assert_eq!(duration(at(1_000_000), at(1_000_000 + millis)), expected);
        }
    }

    #[test]
    fn text_of_others_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\r\n\u{7f}\u{9b}\u{202e}c"), "a␛[31mb␍␊␡��c");
        assert_eq!(printable("žluť 日本\tx"), "žluť 日本 x");
    }
}
