//! Points in time as RFC 3339 has them.

use std::time::{Duration, SystemTime};

use toml::value::{Datetime, Offset};

use super::text::shown;

/// Reads a date with a time and an offset, such as `2026-12-01T00:00:00Z`.
pub(super) fn read_time(text: &str) -> Result<SystemTime, String> {
    let time = text.parse().ok().and_then(time_of);
    time.ok_or_else(|| {
        let text = shown(text);
        format!(
            "{text} is not a time, such as \"2026-12-01T00:00:00Z\" or \"2026-12-01T00:00:00+01:00\""
        )
    })
}

fn time_of(text: Datetime) -> Option<SystemTime> {
    let (date, time) = (text.date?, text.time?);
    let minutes = match text.offset? {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    let days = days_since_epoch(date.year.into(), date.month.into(), date.day.into());
    let of_day = (i64::from(time.hour) * 60 + i64::from(time.minute) - minutes) * 60;
    let seconds = days * 86_400 + of_day + i64::from(time.second.unwrap_or(0));
    // Before 1970 as at its beginning: what ends then has ended.
    let since = Duration::new(
        seconds.try_into().unwrap_or(0),
        time.nanosecond.unwrap_or(0),
    );
    SystemTime::UNIX_EPOCH.checked_add(since)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years begin in March here, so that the leap day is the
/// last one.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let months_since_march = (month + 9) % 12;
    let day_of_year = (153 * months_since_march + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_offset() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01T01:00:00+01:00", 0),
            ("1969-12-31T23:59:59Z", 0),
            ("1999-12-31T23:59:59Z", 946_684_799),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2024-02-29T00:00:00Z", 1_709_164_800),
            ("2026-12-01T00:00:00Z", 1_796_083_200),
            ("2026-12-01 00:00:00-05:30", 1_796_103_000),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
        ] {
            let expected = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(read_time(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_an_error() {
        for text in [
            "",
            "tomorrow",
            "2026-12-01",
            "00:00:00",
            // Without an offset it would be another time in each zone.
            "2026-12-01T00:00:00",
            "2026-02-30T00:00:00Z",
            "2026-12-01T25:00:00Z",
        ] {
            let error = read_time(text).unwrap_err();
            assert!(error.contains("2026-12-01T00:00:00Z"), "{text}: {error}");
        }
    }
}
