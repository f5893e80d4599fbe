//! What stands in a configuration as text.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tower_admission::extract::IpNet;
use tower_admission::{Quota, QuotaError};

/// Something that is written as text.
pub(super) trait FromText: Sized {
    fn read(text: &str) -> Result<Self, String>;
}

/// What stands in a field. Nothing is made of anything else: a number is no text, and no boolean.
enum Plain<T> {
    Text(String),
    Whole(u64),
    Truth(bool),
    List(Vec<Scalar>),
    Table(T),
    Other,
}

/// What is no table that is to be read.
type Scalar = Plain<IgnoredAny>;

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Plain<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(PlainVisitor(PhantomData))
    }
}

struct PlainVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for PlainVisitor<T> {
    type Value = Plain<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Plain<T>, E> {
        Ok(Plain::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Plain<T>, E> {
        Ok(Plain::Truth(truth))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Plain<T>, E> {
        Ok(u64::try_from(number).map_or(Plain::Other, Plain::Whole))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Plain<T>, E> {
        Ok(Plain::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Plain<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(part) = parts.next_element()? {
            list.push(part);
        }
        Ok(Plain::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Plain<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields)).map(Plain::Table)
    }
}

/// A list, or in the environment its parts with commas between them.
pub(super) fn list<'de, D: Deserializer<'de>, T: FromText>(from: D) -> Result<Vec<T>, D::Error> {
    let read = |part: &str| T::read(part).map_err(Error::custom);
    match Scalar::deserialize(from)? {
        Plain::Text(text) => {
            let parts = text.split(',').map(str::trim);
            parts.filter(|part| !part.is_empty()).map(read).collect()
        }
        Plain::List(parts) => {
            let parts = parts.iter().map(|part| match part {
                Plain::Text(part) => read(part),
                _ => Err(Error::custom("expected text or a list of texts")),
            });
            parts.collect()
        }
        _ => Err(Error::custom("expected text or a list of texts")),
    }
}

/// As [`list`], with something in it.
pub(super) fn non_empty_list<'de, D: Deserializer<'de>, T: FromText>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    let list: Vec<T> = list(from)?;
    if list.is_empty() {
        // As one that is empty.
        return T::read("").map(|part| vec![part]).map_err(Error::custom);
    }
    Ok(list)
}

/// As [`some_list`], or none with the word `off`.
pub(super) fn list_or_off<'de, D: Deserializer<'de>, T: FromText>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    let list: Vec<OrOff<T>> = non_empty_list(from)?;
    match &*list {
        [OrOff(None)] => Ok(Vec::new()),
        _ => list
            .into_iter()
            .map(|part| {
                part.0
                    .ok_or_else(|| Error::custom("`off` cannot be in a list with others"))
            })
            .collect(),
    }
}

pub(super) fn text<'de, D: Deserializer<'de>, T: FromText>(from: D) -> Result<T, D::Error> {
    match Scalar::deserialize(from)? {
        Plain::Text(text) => T::read(&text).map_err(Error::custom),
        _ => Err(Error::custom("expected text")),
    }
}

pub(super) fn optional_text<'de, D: Deserializer<'de>, T: FromText>(
    from: D,
) -> Result<Option<T>, D::Error> {
    text(from).map(Some)
}

/// A number, which is text in the environment.
pub(super) fn integer<'de, D: Deserializer<'de>, T: TryFrom<u64>>(from: D) -> Result<T, D::Error> {
    let number = match Scalar::deserialize(from)? {
        Plain::Whole(number) => Some(number),
        // Not with a sign, which `parse` would take.
        Plain::Text(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    };
    let number = number.filter(|number| i64::try_from(*number).is_ok());
    number.and_then(|n| T::try_from(n).ok()).ok_or_else(|| {
        // As in TOML.
        let most = (u64::MAX >> (64 - 8 * size_of::<T>())).min(i64::MAX as u64);
        Error::custom(format!("expected a whole number from 0 to {most}"))
    })
}

pub(super) fn optional_integer<'de, D: Deserializer<'de>, T: TryFrom<u64>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    integer(from).map(Some)
}

/// A boolean, which is text in the environment.
pub(super) fn boolean<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    match Scalar::deserialize(from)? {
        Plain::Truth(truth) => Ok(truth),
        Plain::Text(text) if text == "true" => Ok(true),
        Plain::Text(text) if text == "false" => Ok(false),
        _ => Err(Error::custom("expected `true` or `false`")),
    }
}

pub(super) fn optional_boolean<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<bool>, D::Error> {
    boolean(from).map(Some)
}

/// A table, and nothing that could be taken for one, as a list is by what is derived.
pub(super) fn table<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Table::deserialize(from).map(|table| table.0)
}

/// A table of tables.
pub(super) fn tables<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<BTreeMap<String, T>, D::Error> {
    let tables: BTreeMap<String, Table<T>> = table(from)?;
    Ok(tables
        .into_iter()
        .map(|(key, table)| (key, table.0))
        .collect())
}

/// A table of texts.
pub(super) fn texts<'de, D: Deserializer<'de>, T: FromText>(
    from: D,
) -> Result<BTreeMap<String, T>, D::Error> {
    let texts: BTreeMap<String, Read<T>> = table(from)?;
    Ok(texts.into_iter().map(|(key, text)| (key, text.0)).collect())
}

struct Read<T>(T);

impl<'de, T: FromText> Deserialize<'de> for Read<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text(from).map(Self)
    }
}

struct Table<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Plain::deserialize(from)? {
            Plain::Table(table) => Ok(Self(table)),
            // What is there is not told, as there may be a secret in it.
            _ => Err(Error::custom("expected a table")),
        }
    }
}

/// What was written, unless it may be a URL with a password in it.
pub(super) fn shown(text: &str) -> String {
    if text.contains("://") || text.contains('@') {
        "this value".to_owned()
    } else {
        format!("{text:?}")
    }
}

impl FromText for String {
    fn read(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl FromText for Quota {
    fn read(text: &str) -> Result<Self, String> {
        let quota = text.parse();
        quota.map_err(|error: QuotaError| format!("{} is not a valid quota: {error}", shown(text)))
    }
}

/// A setting that can be switched off with the word `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OrOff<T>(pub(super) Option<T>);

impl<T: FromText> FromText for OrOff<T> {
    fn read(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let value = T::read(text).map_err(|error| format!("{error}; or \"off\""))?;
        Ok(Self(Some(value)))
    }
}

/// A time with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimeSpan(pub(super) Duration);

impl FromText for TimeSpan {
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
                "{} is not a duration, such as \"25ms\" or \"2s\"",
                shown(text)
            )),
        }
    }
}

/// A network, or one address.
impl FromText for IpNet {
    fn read(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(address.into());
        }
        let network = Self::from_str(text);
        let network = network
            .map_err(|_| format!("{} is not a network, such as \"10.0.0.0/8\"", shown(text)))?;
        let address = text
            .split('/')
            .next()
            .and_then(|address| address.parse().ok());
        // A slip in either number would be another network.
        if address != Some(network.address()) {
            let text = shown(text);
            return Err(format!(
                "{text}: the address has bits after the prefix: the network is \"{network}\""
            ));
        }
        Ok(network)
    }
}

/// 128 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct SecretBits(pub(super) [u8; 16]);

impl FromText for SecretBits {
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
pub(super) struct Redacted(pub(super) String);

impl FromText for Redacted {
    fn read(text: &str) -> Result<Self, String> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redacted(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, millis) in [
            ("25ms", 25),
            ("2s", 2_000),
            ("1 min", 60_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(TimeSpan::read(text).unwrap().0.as_millis(), millis);
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
            assert!(TimeSpan::read(text).is_err(), "{text}");
        }
    }
}
