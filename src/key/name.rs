//! Names of keys in configuration, commands and stores.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Identity, IpNet, Key, percent};

/// The name of a [`Key`] in commands, in configuration, and in stored limits.
///
/// | text | key |
/// |---|---|
/// | `org:acme` | [`Key::id("org", "acme")`](Key::id); the name stays readable |
/// | `ip:192.0.2.1`, `ip:2001:db8::/64` | an address; an IPv6 address without a prefix means its /64, as in [`ClientIp`](crate::extract::ClientIp) |
/// | `ip:203.0.113.0/24`, `ip:2001:db8::/32` | a network, only for [`deny all` and `unlimited`](crate::access); IPv4 `/32` and IPv6 `/128` mean the address |
/// | `bearer:<token>`, `api-key:<key>` | the credential's fingerprint; the credential is not kept |
/// | `bearer#<32 digits>` | a fingerprint, shown for keys without a known name |
/// | `unknown`, `shared` | [`Key::UNKNOWN`], [`Key::SHARED`] |
///
/// Fingerprints are comparable only between processes with the same [`Secret`](super::Secret).
///
/// ```
/// use tower_admission::{Key, KeyName};
///
/// let acme: KeyName = "org:acme".parse().unwrap();
/// assert_eq!(acme.key(), Key::id("org", "acme"));
/// assert_eq!(acme.to_string(), "org:acme");
///
/// let token: KeyName = "bearer:hunter2".parse().unwrap();
/// assert_eq!(token, KeyName::from(Key::new("bearer", b"hunter2")));
/// assert!(!token.to_string().contains("hunter2"));
/// ```
#[derive(Clone)]
pub struct KeyName {
    text: Arc<str>,
    key: Key,
    /// Whether the name was written as an IPv6 address that embeds the key's IPv4 address.
    is_embedded: bool,
}

/// Kinds whose text is a credential, which must not be kept.
const CREDENTIALS: [&str; 2] = ["bearer", "api-key"];

/// Common misspellings of credential kinds. Such a kind is an error, because the text after it may
/// be a secret and would be kept as a name.
const LIKE_CREDENTIALS: [&str; 9] = [
    "apikey",
    "api_key",
    "x-api-key",
    "authorization",
    "proxy-authorization",
    "basic",
    "cookie",
    "jwt",
    "token",
];

/// Kinds of the keys that this crate makes.
const KINDS_OF_THIS_CRATE: [&str; 3] = ["ip", "bearer", "api-key"];

/// The maximum length of a name, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// The maximum number of kinds read from text. They are never freed.
const MAX_KINDS: usize = 1024;

/// The prefix of an IPv6 address that is written without one.
const V6_PREFIX: u8 = 64;

impl KeyName {
    /// Makes the name of a key that the application makes with [`Key::id`].
    ///
    /// # Errors
    ///
    /// - [`KeyNameError::Name`]: the id is empty, has control characters, has spaces at an end, or
    ///   is longer than 256 bytes together with its kind.
    /// - [`KeyNameError::Kind`], [`KeyNameError::TooManyKinds`]: as for the text `kind:id`; also
    ///   for `ip`, the kind of addresses.
    pub fn id(kind: &str, id: &str) -> Result<Self, KeyNameError> {
        if kind == "ip" {
            return Err(KeyNameError::Kind);
        }
        let kind = encoded(kind);
        Self::named(intern_kind(&kind)?, id)
    }

    fn named(kind: &'static str, id: &str) -> Result<Self, KeyNameError> {
        let key = Key::id(kind, id);
        if CREDENTIALS.contains(&kind) {
            return Ok(key.into());
        }
        let text = format!("{}:{id}", encoded(kind));
        check(id)?;
        if text.len() > MAX_NAME_BYTES {
            return Err(KeyNameError::Name);
        }
        Ok(Self {
            text: text.into(),
            key,
            is_embedded: false,
        })
    }

    /// The key with this name.
    #[must_use]
    pub fn key(&self) -> Key {
        self.key
    }

    /// Whether the name was written as a NAT64, 6to4 or Teredo address, whose key is that of the
    /// IPv4 address inside. Such a name cannot be exempted, because the IPv4 address may belong to
    /// another client.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        self.is_embedded
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Names a key that has no other name: by its address, or by its fingerprint.
impl From<Key> for KeyName {
    fn from(key: Key) -> Self {
        let mut text = encoded(key.kind());
        match key.identity {
            Identity::Shared => {}
            Identity::Fingerprint => text.push('#'),
            Identity::V4(_) | Identity::V6(_) => text.push(':'),
        }
        key.write_text(&mut text);
        Self {
            text: text.into(),
            key,
            is_embedded: false,
        }
    }
}

impl FromStr for KeyName {
    type Err = KeyNameError;

    fn from_str(text: &str) -> Result<Self, KeyNameError> {
        // Intern the kind last: intern_kind kinds are never freed, so an invalid name must not add
        // one.
        match ParsedName::read(text)? {
            ParsedName::Key(key) => Ok(Self {
                is_embedded: is_embedded(text, &key),
                ..key.into()
            }),
            ParsedName::Fingerprint { kind, bits } => {
                Ok(Key::from_fingerprint(intern(kind)?, bits).into())
            }
            ParsedName::Named { kind, name } => Self::named(intern_kind(kind)?, name),
        }
    }
}

/// The parts of a name.
enum ParsedName<'a> {
    Key(Key),
    Fingerprint { kind: &'a str, bits: [u64; 2] },
    Named { kind: &'a str, name: &'a str },
}

impl<'a> ParsedName<'a> {
    fn read(text: &'a str) -> Result<Self, KeyNameError> {
        let text = text.trim();
        if text.len() > MAX_NAME_BYTES || text.chars().any(is_invisible) {
            return Err(KeyNameError::Name);
        }
        let Some(at) = text.find([':', '#']) else {
            return match text {
                "unknown" => Ok(Self::Key(Key::UNKNOWN)),
                "shared" => Ok(Self::Key(Key::SHARED)),
                _ => Err(KeyNameError::Shape),
            };
        };
        let (kind, name) = (&text[..at], text[at + 1..].trim());
        if name.is_empty() {
            return Err(KeyNameError::Name);
        }
        let is_fingerprint = text[at..].starts_with('#');
        if kind == "ip" && !is_fingerprint {
            return address(name).map(Self::Key);
        }
        if is_fingerprint {
            let bits = fingerprint(name)?;
            return Ok(Self::Fingerprint { kind, bits });
        }
        check(name)?;
        Ok(Self::Named { kind, name })
    }
}

/// Percent-encodes the characters of a kind that would be read back differently, such as the
/// separators.
fn encoded(kind: &str) -> String {
    percent::encode(kind, |byte| {
        byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
    })
}

/// Checks that a name reads back as it is shown.
fn check(name: &str) -> Result<(), KeyNameError> {
    let is_plain = name.trim() == name && !name.chars().any(is_invisible);
    if name.is_empty() || !is_plain || name.len() > MAX_NAME_BYTES {
        return Err(KeyNameError::Name);
    }
    Ok(())
}

/// Whether a character is invisible, or changes how the text around it is displayed.
pub(crate) fn is_invisible(char: char) -> bool {
    let is_format = matches!(char,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    char.is_control() || is_format
}

fn address(text: &str) -> Result<Key, KeyNameError> {
    let Some((address, prefix)) = text.split_once('/') else {
        let address = text.parse().map_err(|_| KeyNameError::Address)?;
        return Ok(Key::ip_network(address, V6_PREFIX));
    };
    let address: IpAddr = address.parse().map_err(|_| KeyNameError::Address)?;
    let network: IpNet = text.parse().map_err(|_| KeyNameError::Address)?;
    let is_address = prefix == if address.is_ipv4() { "32" } else { "128" };
    if is_address {
        return Ok(Key::ip(address));
    }
    let network = network.unmapped();
    // Ignoring the host bits could ban other clients after a typing error in either number.
    if network.address() != address.to_canonical() {
        return Err(KeyNameError::HostBits { network });
    }
    Ok(Key::network(network))
}

/// Whether the key of this text is the IPv4 address embedded in an IPv6 address.
fn is_embedded(text: &str, key: &Key) -> bool {
    let written = text.trim().strip_prefix("ip:").map(str::trim);
    let address = written.and_then(|text| text.split('/').next()?.parse().ok());
    // An IPv4-mapped address is the IPv4 address itself and has no other owner.
    let has_v4 = address.is_some_and(|ip: IpAddr| Key::embedded_v4(ip.to_canonical()).is_some());
    has_v4 && matches!(key.identity, Identity::V4(_))
}

fn fingerprint(digits: &str) -> Result<[u64; 2], KeyNameError> {
    let hexadecimal = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let half = |digits| u64::from_str_radix(digits, 16).map_err(|_| KeyNameError::Fingerprint);
    if !hexadecimal {
        return Err(KeyNameError::Fingerprint);
    }
    Ok([half(&digits[..16])?, half(&digits[16..])?])
}

/// Whether the text after this kind is a credential, in any spelling of the kind.
#[must_use]
pub fn is_credential_kind(kind: &str) -> bool {
    let mut kinds = CREDENTIALS.iter().chain(&LIKE_CREDENTIALS);
    kinds.any(|known| known.eq_ignore_ascii_case(kind.trim()))
}

/// Checks that a text is a valid name, without making a fingerprint. The secret of the process can then still be
/// installed later.
///
/// # Errors
///
/// The text is no valid name.
pub fn check_key_name(text: &str) -> Result<(), KeyNameError> {
    match ParsedName::read(text)? {
        ParsedName::Key(_) => Ok(()),
        ParsedName::Fingerprint { kind, .. } | ParsedName::Named { kind, .. } => {
            intern_kind(kind).map(|_| ())
        }
    }
}

/// Interns the kind of a key with a readable name.
///
/// # Errors
///
/// The kind is invalid, is the kind of a credential in another spelling, or too many kinds are interned.
pub fn intern_kind(kind: &str) -> Result<&'static str, KeyNameError> {
    let decoded = percent::decode(kind).map_err(|_| KeyNameError::Kind)?;
    if is_credential_kind(&decoded) && !CREDENTIALS.contains(&&*decoded) {
        return Err(KeyNameError::Kind);
    }
    intern(kind)
}

/// Interns a kind. Interned kinds are never freed, so their number is bounded.
fn intern(kind: &str) -> Result<&'static str, KeyNameError> {
    static KINDS: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
    let kind = percent::decode(kind).map_err(|_| KeyNameError::Kind)?;
    if kind.is_empty() || kind.len() > 64 || kind.trim() != kind {
        return Err(KeyNameError::Kind);
    }
    let is_meant = |known: &&&str| known.eq_ignore_ascii_case(&kind);
    // A different spelling of a built-in kind matches no key of this crate.
    if KINDS_OF_THIS_CRATE
        .iter()
        .find(is_meant)
        .is_some_and(|known| *known != kind)
    {
        return Err(KeyNameError::Kind);
    }
    if let Some(known) = CREDENTIALS.into_iter().find(|known| *known == kind) {
        return Ok(known);
    }
    // Not `crate::sync`: a loom mutex cannot be a static.
    let mut kinds = KINDS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = kinds.iter().find(|known| **known == kind) {
        return Ok(known);
    }
    if kinds.len() == MAX_KINDS {
        return Err(KeyNameError::TooManyKinds);
    }
    let kind = &*Box::leak(kind.into_boxed_str());
    kinds.push(kind);
    Ok(kind)
}

// Compares the text: a name and the fingerprint of the same key are two names.
impl PartialEq for KeyName {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for KeyName {}

impl PartialOrd for KeyName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for KeyName {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl Hash for KeyName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyName({})", self.text)
    }
}

/// A text that is not a valid [`KeyName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyNameError {
    /// It contains neither `:` nor `#`.
    Shape,
    /// The kind is empty, longer than 64 bytes, surrounded by spaces, or a different spelling of a
    /// built-in kind, such as `Bearer` or `x-api-key`.
    Kind,
    /// The name is empty, longer than 256 bytes, or contains control characters.
    Name,
    /// The text after `ip:` is neither an address nor a network.
    Address,
    /// The address of a network has bits after its prefix.
    HostBits {
        /// The network that contains the address.
        network: IpNet,
    },
    /// The text after `#` is not 32 hexadecimal digits.
    Fingerprint,
    /// The process has already read 1,024 kinds of keys from text. Kinds are never freed.
    TooManyKinds,
}

impl fmt::Display for KeyNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HostBits { network } => {
                return write!(
                    f,
                    "the address has bits after its prefix: the network is ip:{network}"
                );
            }
            Self::Shape => "a key is written as kind:name, such as org:acme or ip:192.0.2.1",
            Self::Kind => "a key's kind is 1 to 64 bytes, such as org, ip, bearer or api-key",
            Self::Name => "a key's name is 1 to 256 bytes without control characters",
            Self::Address => "an address is written as ip:192.0.2.1 or ip:2001:db8::/64, a network as ip:192.0.2.0/24",
            Self::Fingerprint => "a fingerprint is 32 hexadecimal digits",
            Self::TooManyKinds => "too many kinds of keys: this process has already read 1,024",
        })
    }
}

impl std::error::Error for KeyNameError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> KeyName {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_maps_to_its_key() {
        for (text, key) in [
            ("org:acme", Key::id("org", "acme")),
            (" org: acme ", Key::id("org", "acme")),
            ("user:a:b#c", Key::id("user", "a:b#c")),
            ("ip:192.0.2.1", Key::ip([192, 0, 2, 1].into())),
            ("ip:192.0.2.1/32", Key::ip([192, 0, 2, 1].into())),
            ("ip:::ffff:192.0.2.1", Key::ip([192, 0, 2, 1].into())),
            ("ip:64:ff9b::192.0.2.1", Key::ip([192, 0, 2, 1].into())),
            ("ip:2002:c000:201::1", Key::ip([192, 0, 2, 1].into())),
            (
                "ip:2001:db8::1",
                Key::ip_network("2001:db8::".parse().unwrap(), 64),
            ),
            (
                "ip:2001:db8::1/128",
                Key::ip("2001:db8::1".parse().unwrap()),
            ),
            ("bearer:x", Key::new("bearer", b"x")),
            ("unknown", Key::UNKNOWN),
            ("shared", Key::SHARED),
            ("a%3Ab:c", Key::id("a:b", "c")),
        ] {
            assert_eq!(name(text).key(), key, "{text}");
            // The displayed text reads back as the same name.
            assert_eq!(name(name(text).as_str()), name(text), "{text}");
            assert_eq!(name(KeyName::from(key).as_str()).key(), key, "{text}");
        }
        assert_eq!(KeyName::id("a:b", "c"), Ok(name("a%3Ab:c")));
        // A fingerprint reveals no secret.
        let token = KeyName::from(Key::new("token", b"hunter2"));
        assert_eq!(name(token.as_str()), token);
        let odd = Key::id("ip", "x");
        assert_eq!(name(KeyName::from(odd).as_str()).key(), odd);
        for (kind, id) in [("org", "a b"), ("bearer", " x "), ("org", "ä")] {
            assert_eq!(KeyName::id(kind, id).unwrap().key(), Key::id(kind, id));
        }
        for id in [" a", "a ", "", "a\u{a0}"] {
            assert_eq!(KeyName::id("org", id), Err(KeyNameError::Name), "{id:?}");
        }
        assert_eq!(KeyName::id("ip", "x"), Err(KeyNameError::Kind));
    }

    #[test]
    fn an_embedded_ipv4_address_is_detected() {
        for (text, is_embedded) in [
            ("ip:2002:cb00:7107::1", true),
            ("ip: 2002:cb00:7107::1/128 ", true),
            ("ip:64:ff9b::203.0.113.7", true),
            ("ip:2001:0:4136:e378:8000:63bf:3fff:fdde", true),
            // The same client.
            ("ip:::ffff:203.0.113.7", false),
            ("ip:203.0.113.7", false),
            ("ip:2001:db8::1", false),
            ("ip:2002::/16", false),
            ("ip:203.0.113.0/24", false),
            ("org:2002:cb00:7107::1", false),
        ] {
            assert_eq!(name(text).is_embedded(), is_embedded, "{text}");
        }
    }

    #[test]
    fn credentials_are_not_kept() {
        for text in ["bearer:hunter2", "api-key:hunter2"] {
            let shown = format!("{0} {0:?}", name(text));
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn a_name_can_be_a_network() {
        for (text, shown) in [
            ("ip:203.0.113.0/24", "ip:203.0.113.0/24"),
            ("ip:0.0.0.0/0", "ip:0.0.0.0/0"),
            ("ip:::/0", "ip:::/0"),
            ("ip:203.0.113.7/32", "ip:203.0.113.7"),
            ("ip:2001:DB8::/32", "ip:2001:db8::/32"),
            ("ip:2001:db8::7/128", "ip:2001:db8::7/128"),
            // IPv4-mapped.
            ("ip:::ffff:203.0.113.0/120", "ip:203.0.113.0/24"),
            ("ip:::ffff:203.0.113.7/128", "ip:203.0.113.7"),
            // All of 6to4 is not one IPv4 address.
            ("ip:2002::/16", "ip:2002::/16"),
        ] {
            assert_eq!(name(text).to_string(), shown, "{text}");
            assert_eq!(name(shown).key(), name(text).key(), "{text}");
            assert_eq!(KeyName::from(name(text).key()), name(text), "{text}");
        }
        assert_ne!(
            name("ip:0.0.0.0/0").key().bits(),
            name("ip:::/0").key().bits()
        );
        for (text, network) in [
            ("ip:203.0.113.7/24", "ip:203.0.113.0/24"),
            ("ip:2001:db8::1/32", "ip:2001:db8::/32"),
            ("ip:2001:db8::1/64", "ip:2001:db8::/64"),
            ("ip:::ffff:203.0.113.7/120", "ip:203.0.113.0/24"),
        ] {
            let error = text.parse::<KeyName>().unwrap_err().to_string();
            assert!(error.ends_with(&format!("is {network}")), "{text}: {error}");
        }
    }

    #[test]
    fn only_networks_of_one_client_are_charged() {
        let network = |text| name(text).key().uncharged_network().is_some();
        for text in [
            "ip:203.0.113.0/24",
            "ip:0.0.0.0/0",
            "ip:2001:db8::/32",
            "ip:2001:db8::/47",
            "ip:2001:db8::/65",
            "ip:2002:c000:201::/48",
        ] {
            assert!(network(text), "{text}");
        }
        for text in [
            "ip:203.0.113.7",
            "ip:2001:db8::1",
            "ip:2001:db8::/48",
            "ip:2001:db8::/56",
            "ip:2001:db8::1/128",
            "org:acme",
            "shared",
        ] {
            assert!(!network(text), "{text}");
        }
    }

    #[test]
    fn an_invalid_name_is_an_error() {
        use KeyNameError::*;
        for (text, error) in [
            ("", Shape),
            ("acme", Shape),
            (":acme", Kind),
            ("org:", Name),
            ("org: ", Name),
            ("org:a\nb", Name),
            ("org:\u{202e}a", Name),
            (&*format!("org:{}", "x".repeat(300)), Name),
            (&*format!("{}:a", "x".repeat(65)), Kind),
            ("%ff:a", Kind),
            ("Bearer:hunter2", Kind),
            ("x-api-key:hunter2", Kind),
            ("token:hunter2", Kind),
            ("Basic:hunter2", Kind),
            (&*format!("Bearer#{}", "1".repeat(32)), Kind),
            ("IP:192.0.2.1", Kind),
            ("ip:nowhere", Address),
            ("ip:192.0.2.0/33", Address),
            ("ip:192.0.2.0/+8", Address),
            ("ip:192.0.2.0/", Address),
            ("ip:2001:db8::/129", Address),
            ("bearer#12", Fingerprint),
            (&*format!("bearer#+{}", "1".repeat(31)), Fingerprint),
        ] {
            assert_eq!(text.parse::<KeyName>(), Err(error), "{text}");
        }
    }
}
