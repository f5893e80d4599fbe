//! The text form of a quota.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{DAY, HOUR, MINUTE, Quota, QuotaError, QuotaKind, SECOND, WEEK};

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = match self.0 {
            QuotaKind::Off => return f.write_str("off"),
            QuotaKind::DenyAll => return f.write_str("deny all"),
            QuotaKind::Rate(rate) => rate,
        };
        write!(f, "{}", rate.count)?;
        match rate.period {
            SECOND => f.write_str("/s")?,
            MINUTE => f.write_str("/min")?,
            HOUR => f.write_str("/h")?,
            DAY => f.write_str("/day")?,
            WEEK => f.write_str("/week")?,
            period if period.subsec_nanos() == 0 => write!(f, " per {}s", period.as_secs())?,
            period if period.subsec_nanos() % 1_000_000 == 0 => {
                write!(f, " per {}ms", period.as_millis())?;
            }
            period => write!(f, " per {}ns", period.as_nanos())?,
        }
        // An explicit burst is shown even if it equals the count: `sliding` would add it.
        if let Some(burst) = rate.burst {
            write!(f, " burst {burst}")?;
        }
        if rate.sliding {
            f.write_str(" sliding")?;
        }
        Ok(())
    }
}

impl FromStr for Quota {
    type Err = QuotaError;

    /// Reads `COUNT/UNIT`, `COUNT per PERIOD` or `COUNT per UNIT`, each optionally followed by
    /// `burst COUNT` and `sliding`, in this order. Also reads `0`, `off` and `deny all`. A count of
    /// 0 turns the quota off, whatever follows.
    ///
    /// Units are `ns`, `us`, `ms`, `s`, `sec`, `m`, `min`, `h`, `hr`, `d`, `day`, `w`, and
    /// `second`, `minute`, `hour`, `day`, `week` with or without a final `s`. A period is a whole
    /// number above 0 and a unit.
    ///
    /// A count may have underscores between its digits, and a final `k` (thousand) or `M`
    /// (million): `1_000/h`, `1k/min`. Notations of other systems are accepted too: `10r/s`,
    /// `10 req/s`, `10rps`, `600 rpm`, `600rph`, `600rpd`.
    fn from_str(text: &str) -> Result<Self, QuotaError> {
        let text = text.trim();
        match text {
            "0" | "off" => return Ok(Self::off()),
            "deny all" => return Ok(Self::deny_all()),
            _ => {}
        }
        let (text, sliding) = match text.strip_suffix("sliding") {
            Some(rest) if rest.ends_with(char::is_whitespace) => (rest.trim_end(), true),
            _ => (text, false),
        };
        let (rate, burst) = match text.split_once("burst") {
            Some((rate, burst)) => (rate.trim_end(), Some(count(burst)?)),
            None => (text, None),
        };
        let (number, period) = parse_rate(rate)?;
        let quota = Self::try_new(number, period)?;
        // Before the burst, because a bucket has other bounds.
        let quota = if sliding { quota.try_sliding()? } else { quota };
        burst.map_or(Ok(quota), |burst| quota.try_burst(burst))
    }
}

/// Suffixes for requests per unit in other systems.
const RATE_SUFFIXES: [(&str, Duration); 4] = [
    ("rps", SECOND),
    ("rpm", MINUTE),
    ("rph", HOUR),
    ("rpd", DAY),
];

fn parse_rate(text: &str) -> Result<(u32, Duration), QuotaError> {
    if let Some((number, period)) = text.split_once('/').or_else(|| text.split_once(" per ")) {
        let number = number.trim_end();
        let mut requests = ["requests", "req", "r"].into_iter();
        let plain = requests.find_map(|word| number.strip_suffix(word));
        return Ok((count(plain.unwrap_or(number))?, parse_period(period)?));
    }
    let mut suffixes = RATE_SUFFIXES.into_iter();
    let suffix = suffixes.find_map(|(word, unit)| Some((text.strip_suffix(word)?, unit)));
    let (number, unit) = suffix.ok_or(QuotaError::Syntax)?;
    Ok((count(number)?, unit))
}

/// Reads a count: `1000`, `1_000` or `1k`.
fn count(text: &str) -> Result<u32, QuotaError> {
    let text = text.trim();
    let (digits, factor) = match text.strip_suffix(['k', 'M']) {
        Some(digits) if text.ends_with('k') => (digits, 1_000),
        Some(digits) => (digits, 1_000_000),
        None => (text, 1),
    };
    // Each underscore must be between two digits.
    if digits.split('_').any(|part| !is_number(part)) {
        return Err(QuotaError::Count);
    }
    let number: Option<u32> = digits.replace('_', "").parse().ok();
    let number = number.and_then(|number| number.checked_mul(factor));
    number.ok_or(QuotaError::TooLarge)
}

/// `u32::from_str` would also accept a sign.
fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn parse_period(text: &str) -> Result<Duration, QuotaError> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim_start() {
        "ns" => Duration::from_nanos(1),
        "us" | "µs" => Duration::from_micros(1),
        "ms" => Duration::from_millis(1),
        "s" | "sec" | "second" | "seconds" => SECOND,
        "m" | "min" | "minute" | "minutes" => MINUTE,
        "h" | "hr" | "hour" | "hours" => HOUR,
        "d" | "day" | "days" => DAY,
        "w" | "week" | "weeks" => WEEK,
        _ => return Err(QuotaError::Unit),
    };
    if number.is_empty() {
        return Ok(unit);
    }
    let number: u64 = number.parse().map_err(|_| QuotaError::TooLarge)?;
    let nanos = unit.as_nanos().checked_mul(number.into());
    // 64 bits hold 584 years; the limit is 100.
    let nanos = nanos.and_then(|nanos| u64::try_from(nanos).ok());
    match nanos {
        Some(0) => Err(QuotaError::NoPeriod),
        Some(nanos) => Ok(Duration::from_nanos(nanos)),
        None => Err(QuotaError::TooSlow),
    }
}

#[cfg(feature = "serde")]
mod serde_impls {
    use super::Quota;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    /// As text: `"600/min burst 50"`.
    impl Serialize for Quota {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }

    impl<'de> Deserialize<'de> for Quota {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Text;
            impl de::Visitor<'_> for Text {
                type Value = Quota;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("a quota such as \"600/min burst 50\"")
                }
                fn visit_str<E: de::Error>(self, text: &str) -> Result<Quota, E> {
                    text.parse().map_err(E::custom)
                }
            }
            deserializer.deserialize_str(Text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_reads_the_common_notations() {
        for (text, quota) in [
            ("10/s", Quota::per_second(10)),
            (" 600/min burst 50 ", Quota::per_minute(600).burst(50)),
            ("1000/h", Quota::per_hour(1000)),
            ("50000/day", Quota::per_day(50_000)),
            ("5 per 30s", Quota::new(5, Duration::from_secs(30))),
            ("5 per minute", Quota::per_minute(5)),
            ("1/250ms", Quota::new(1, Duration::from_millis(250))),
            (
                "7 per 14285714286ns",
                Quota::new(7, Duration::from_nanos(14_285_714_286)),
            ),
            (
                "1 per 4294967297ms",
                Quota::new(1, Duration::from_millis(4_294_967_297)),
            ),
            ("0/s", Quota::off()),
            ("0", Quota::off()),
            ("off", Quota::off()),
            ("deny all", Quota::deny_all()),
            ("0/s burst 20", Quota::off()),
            ("0/s sliding", Quota::off()),
            ("10/s burst 10", Quota::per_second(10).burst(10)),
            ("60/min sliding", Quota::per_minute(60).sliding()),
            (
                "60/min burst 10  sliding ",
                Quota::per_minute(60).burst(10).sliding(),
            ),
            ("5 per 30s sliding", "5/30s sliding".parse().unwrap()),
            (
                "1/day burst 4294967294 sliding",
                Quota::per_day(1).sliding().burst(u32::MAX - 1),
            ),
            // Notations of other systems.
            ("10r/s", Quota::per_second(10)),
            ("10 req/s", Quota::per_second(10)),
            ("10 requests per minute", Quota::per_minute(10)),
            ("10rps", Quota::per_second(10)),
            ("600 rpm burst 1k", Quota::per_minute(600).burst(1000)),
            ("600rph sliding", Quota::per_hour(600).sliding()),
            ("600rpd", Quota::per_day(600)),
            ("1_000/h", Quota::per_hour(1000)),
            ("1k/min", Quota::per_minute(1000)),
            ("2Mr/day", Quota::per_day(2_000_000)),
            ("10/week", Quota::new(10, 7 * DAY)),
            ("0 rps", Quota::off()),
        ] {
            assert_eq!(text.parse(), Ok(quota), "{text}");
            assert_eq!(quota.to_string().parse(), Ok(quota), "{quota}");
        }
    }

    #[test]
    fn a_quota_is_shown_in_the_largest_exact_unit() {
        for text in [
            "10/s",
            "600/min burst 50",
            "1000/h sliding",
            "50000/day",
            "50000/week",
            "5 per 30s",
            "5 per 90s burst 2 sliding",
            "1 per 1500ms",
            "7 per 14285714286ns",
            "1 per 1000001us",
            "off",
            "deny all",
        ] {
            let quota: Quota = text.parse().unwrap();
            let shown = text.replace("1000001us", "1000001000ns");
            assert_eq!(quota.to_string(), shown);
        }
    }

    #[test]
    fn every_unit_is_read() {
        for (units, nanos) in [
            (&["ns"][..], 1),
            (&["us", "µs"], 1_000),
            (&["ms"], 1_000_000),
            (&["s", "sec", "second", "seconds"], 1_000_000_000),
            (&["m", "min", "minute", "minutes"], 60_000_000_000),
            (&["h", "hr", "hour", "hours"], 3_600_000_000_000),
            (&["d", "day", "days"], 86_400_000_000_000),
            (&["w", "week", "weeks"], 7 * 86_400_000_000_000),
        ] {
            for unit in units {
                let period = |text| parse_period(text).map(|period| period.as_nanos());
                assert_eq!(period(unit), Ok(nanos), "{unit}");
                assert_eq!(period(&format!("3 {unit}")), Ok(3 * nanos), "{unit}");
            }
        }
    }

    #[test]
    fn an_invalid_quota_is_an_error() {
        use QuotaError::*;
        for (text, error) in [
            ("", Syntax),
            ("10", Syntax),
            ("ten", Syntax),
            ("/s", Count),
            ("10/", Unit),
            ("10/fortnight", Unit),
            ("10/S", Unit),
            ("-5/s", Count),
            ("+1/s", Count),
            ("1.5/s", Count),
            ("_1/s", Count),
            ("1__0/s", Count),
            ("1_/s", Count),
            ("k/s", Count),
            ("1kk/s", Count),
            ("1K/s", Count),
            ("r/s", Count),
            ("rps", Count),
            ("5 000/s", Count),
            ("4294968k/day", TooLarge),
            ("10/s burst", Count),
            ("10/s burst 0", NoBurst),
            ("sliding", Syntax),
            ("10/ssliding", Unit),
            ("10/s sliding burst 5", Unit),
            ("10/s sliding sliding", Unit),
            ("10/s burst sliding", Count),
            ("1/s burst 4294967295 sliding", TooLarge),
            ("4294967296/s", TooLarge),
            ("4294967295/ns", TooFast),
            ("4294967295/s", TooFast),
            ("1/0s", NoPeriod),
            ("0/0s", NoPeriod),
            ("1 per 0ms", NoPeriod),
            ("1/4294967295d", TooSlow),
            ("1/day burst 4294967295", TooSlow),
        ] {
            assert_eq!(text.parse::<Quota>(), Err(error), "{text}");
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_quota_serialises_as_text() {
        let quota = Quota::per_minute(600).burst(50);
        let json = serde_json::to_string(&quota).unwrap();
        assert_eq!(json, "\"600/min burst 50\"");
        assert_eq!(serde_json::from_str::<Quota>(&json).unwrap(), quota);
        let error = serde_json::from_str::<Quota>("10").unwrap_err();
        assert!(error.to_string().contains("a quota such as"), "{error}");
        let sliding = Quota::per_minute(60).burst(10).sliding();
        let json = serde_json::to_string(&sliding).unwrap();
        assert_eq!(json, "\"60/min burst 10 sliding\"");
        assert_eq!(serde_json::from_str::<Quota>(&json).unwrap(), sliding);
    }
}
