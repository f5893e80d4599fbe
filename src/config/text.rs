//! What stands in a configuration as text.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

/// Something that is written as text.
pub(super) trait Text: Sized {
    fn read(text: &str) -> Result<Self, String>;
}

/// A list, or in the environment its parts with commas between them.
pub(super) fn list<'de, D: Deserializer<'de>, T: Text>(from: D) -> Result<Vec<T>, D::Error> {
    struct Parts<T>(std::marker::PhantomData<T>);
    impl<'de, T: Text> Visitor<'de> for Parts<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of texts")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Vec<T>, E> {
            let parts = text
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty());
            parts.map(|part| T::read(part).map_err(E::custom)).collect()
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(part) = parts.next_element::<String>()? {
                list.push(T::read(&part).map_err(Error::custom)?);
            }
            Ok(list)
        }
    }
    from.deserialize_any(Parts(std::marker::PhantomData))
}

pub(super) fn text<'de, D: Deserializer<'de>, T: Text>(from: D) -> Result<T, D::Error> {
    T::read(&String::deserialize(from)?).map_err(Error::custom)
}

pub(super) fn some_text<'de, D: Deserializer<'de>, T: Text>(
    from: D,
) -> Result<Option<T>, D::Error> {
    text(from).map(Some)
}

/// A whole number, as it is or, in the environment, as text.
pub(super) fn whole<'de, D: Deserializer<'de>, T: TryFrom<u64>>(from: D) -> Result<T, D::Error> {
    struct Whole<T>(std::marker::PhantomData<T>);
    impl<T: TryFrom<u64>> Visitor<'_> for Whole<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number that is not negative and not too large")
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
            let wrong = || E::invalid_value(Unexpected::Unsigned(number), &self);
            T::try_from(number).map_err(|_| wrong())
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
            match u64::try_from(number) {
                Ok(number) => self.visit_u64(number),
                Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
            }
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            match text.parse().ok().filter(|_| digits) {
                Some(number) => self.visit_u64(number),
                None => Err(E::custom("this is no whole number")),
            }
        }
    }
    from.deserialize_any(Whole(std::marker::PhantomData))
}

pub(super) fn some_whole<'de, D: Deserializer<'de>, T: TryFrom<u64>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    whole(from).map(Some)
}

/// `true` or `false`, in the environment as text.
pub(super) fn boolean<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    struct Boolean;
    impl Visitor<'_> for Boolean {
        type Value = bool;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("`true` or `false`")
        }

        fn visit_bool<E: Error>(self, value: bool) -> Result<bool, E> {
            Ok(value)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<bool, E> {
            match text {
                "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(E::custom("this is neither `true` nor `false`")),
            }
        }
    }
    from.deserialize_any(Boolean)
}

/// What was written, unless it could be a secret in the wrong place.
pub(super) fn shown(text: &str) -> String {
    if text.contains("://") || text.len() > 64 {
        "this".to_owned()
    } else {
        format!("{text:?}")
    }
}

/// A path that requests may begin with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix(String);

impl Prefix {
    /// Whether a path is this one or below it.
    pub(super) fn covers(&self, path: &str) -> bool {
        let rest = path.strip_prefix(&*self.0);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Text for Prefix {
    fn read(text: &str) -> Result<Self, String> {
        // As requests have it: escaped, and without patterns.
        let is_plain = text.bytes().all(|b| b.is_ascii_graphic());
        let is_path = text.starts_with('/') && is_plain && !text.contains("//");
        if !is_path || text.contains(['?', '#', '*', '{', '}']) {
            return Err(format!("{} is no path, such as \"/api\"", shown(text)));
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}

/// A time with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Time(pub(super) Duration);

impl Text for Time {
    fn read(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = match unit.trim() {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "min" | "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => Duration::ZERO,
        };
        let time = number
            .parse()
            .ok()
            .and_then(|number| unit.checked_mul(number));
        match time {
            Some(time) if !time.is_zero() => Ok(Self(time)),
            _ => Err(format!(
                "{} is no time, such as \"25ms\" or \"2s\"",
                shown(text)
            )),
        }
    }
}

/// A network, or one address.
impl Text for ipnet::IpNet {
    fn read(text: &str) -> Result<Self, String> {
        let network = Self::from_str(text).or_else(|_| text.parse().map(std::net::IpAddr::into));
        network.map_err(|_| format!("{} is no network, such as \"10.0.0.0/8\"", shown(text)))
    }
}

/// 128 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct SecretBits(pub(super) [u8; 16]);

impl Text for SecretBits {
    fn read(text: &str) -> Result<Self, String> {
        let is_hexadecimal = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let bits = u128::from_str_radix(text, 16).ok();
        // What was written is not told: it may be a secret with a slip in it.
        let bits = bits.filter(|_| is_hexadecimal);
        let bits =
            bits.ok_or("a secret is 32 hexadecimal digits, as `openssl rand -hex 16` makes")?;
        Ok(Self(bits.to_be_bytes()))
    }
}

impl fmt::Debug for SecretBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBits(..)")
    }
}

/// A text that is not shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Hidden(pub(super) String);

impl Text for Hidden {
    fn read(text: &str) -> Result<Self, String> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_cover_whole_segments() {
        let prefix = |text| Prefix::read(text).unwrap();
        for (text, path, covers) in [
            ("/api", "/api", true),
            ("/api", "/api/chat", true),
            ("/api/", "/api", true),
            ("/api", "/apis", false),
            ("/api", "/", false),
            ("/", "/anything", true),
            ("/", "/", true),
            ("/", "*", false),
        ] {
            assert_eq!(prefix(text).covers(path), covers, "{text} {path}");
        }
        for text in [
            "",
            "api",
            "/a?b",
            "/a/*",
            "http://x/",
            "//",
            "/a//b",
            "/ä",
            "/users/{id}",
        ] {
            assert!(Prefix::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_have_units() {
        for (text, millis) in [
            ("25ms", 25),
            ("2s", 2_000),
            ("1 min", 60_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(Time::read(text).unwrap().0.as_millis(), millis);
        }
        for text in [
            "",
            "5",
            "ms",
            "0s",
            "-1s",
            "1.5s",
            "1 fortnight",
            "99999999999h",
        ] {
            assert!(Time::read(text).is_err(), "{text}");
        }
    }
}
