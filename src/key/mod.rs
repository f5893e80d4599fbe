//! Identifies the caller that a request is charged to. Raw credentials are not kept beyond this module.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::OnceLock;

mod address;
mod map;
mod name;
mod network;
pub(crate) mod percent;
mod siphash;

pub(crate) use self::map::KeyMap;
pub use self::name::is_credential_kind;
pub(crate) use self::name::is_invisible;
pub use self::name::{KeyName, KeyNameError};
pub use self::name::{check_key_name, intern_kind};
pub use self::network::{IpNet, IpNetError};
pub use self::siphash::siphash128;

/// Identifies the caller that a request is charged to: a kind and 128 bits.
///
/// An IP address stays readable. Any other input becomes a *fingerprint* when the key is made: a
/// SipHash-1-3 of 128 bits under the [`Secret`] of the process. The credential is not kept, and it
/// cannot be read back from a key, a log line or a store. Two different inputs share a fingerprint
/// with a probability of 2⁻¹²⁸, and finding such a pair requires the secret.
///
/// ```
/// use tower_admission::Key;
///
/// let alice = Key::new("bearer", b"alice's token");
/// assert_eq!(alice, Key::new("bearer", b"alice's token"));
/// assert_ne!(alice, Key::new("api-key", b"alice's token"));
/// assert_eq!(format!("{alice:?}"), "Key(bearer)");
/// assert_eq!(format!("{:?}", Key::ip([192, 0, 2, 1].into())), "Key(ip 192.0.2.1)");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    kind: &'static str,
    identity: Identity,
    bits: [u64; 2],
}

/// How to read the bits of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Identity {
    /// Unused: all requests share this key.
    Shared,
    Fingerprint,
    /// An IPv4 network with a prefix of this length, in the low bits.
    V4(u8),
    /// An IPv6 network with a prefix of this length.
    V6(u8),
}

impl Key {
    /// The key for requests whose caller cannot be identified.
    ///
    /// A limiter charges this key when the extractor finds none. Leaving out a credential or hiding
    /// an address therefore never makes a client unlimited.
    pub const UNKNOWN: Self = Self {
        kind: "unknown",
        identity: Identity::Shared,
        bits: [0; 2],
    };

    /// The key that [`Shared`](crate::extract::Shared) extracts from every request.
    pub const SHARED: Self = Self {
        kind: "shared",
        identity: Identity::Shared,
        bits: [0; 2],
    };

    /// Makes a key from a secret, such as an access token. The secret is fingerprinted and not
    /// kept.
    ///
    /// `kind` names the sort of secret, such as `"bearer"`. Equal secrets of different kinds have
    /// different keys.
    #[inline]
    #[must_use]
    pub fn new(kind: &'static str, secret: &[u8]) -> Self {
        Self {
            kind,
            identity: Identity::Fingerprint,
            bits: fingerprint(kind, secret),
        }
    }

    /// Makes a key from an identifier of the application, such as a user or an organisation.
    /// Equivalent to [`Key::new`] with the bytes of the identifier.
    #[must_use]
    pub fn id(kind: &'static str, id: &str) -> Self {
        Self::new(kind, id.as_bytes())
    }

    /// Makes the key of one address.
    ///
    /// An IPv6 address that contains an IPv4 address has the key of that IPv4 address: IPv4-mapped
    /// (`::ffff:192.0.2.1`), NAT64 (`64:ff9b::/96`, RFC 6052), 6to4 (`2002::/16`, RFC 3056) and
    /// Teredo (`2001::/32`, RFC 4380). The local NAT64 prefix `64:ff9b:1::/48` (RFC 8215) and
    /// ISATAP addresses stay IPv6. This method does not group IPv6 addresses by prefix;
    /// [`ClientIp`](crate::extract::ClientIp) does.
    #[must_use]
    pub fn ip(address: IpAddr) -> Self {
        Self::ip_network(address, 128)
    }

    /// Makes the key of the network that contains `address`. An IPv6 address is cut to its first
    /// `v6_prefix` bits (at most 128); an IPv4 address always counts in full. An IPv4 address
    /// inside an IPv6 address is handled as in [`Key::ip`].
    #[must_use]
    pub fn ip_network(address: IpAddr, v6_prefix: u8) -> Self {
        // Extract the IPv4 address before masking: masking ::ffff:192.0.2.1 to a /64 would put
        // every IPv4 client of a dual-stack socket into one bucket.
        let (identity, bits) = match address::charged(address) {
            IpAddr::V4(v4) => (Identity::V4(32), u128::from(v4.to_bits())),
            IpAddr::V6(v6) => {
                let prefix = v6_prefix.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                (Identity::V6(prefix), v6.to_bits() & mask)
            }
        };
        Self {
            kind: "ip",
            identity,
            bits: [bits as u64, (bits >> 64) as u64],
        }
    }

    /// Returns the kind: `"bearer"`, `"api-key"`, `"ip"`, or the `kind` passed to [`Key::new`].
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Makes the key of a whole network, without looking for an embedded IPv4 address. Only entries
    /// of [`Limits`](crate::Limits) use such keys; no request is charged to them.
    pub(crate) fn network(network: IpNet) -> Self {
        let (identity, bits) = match network.address() {
            IpAddr::V4(v4) => (Identity::V4(network.prefix()), u128::from(v4.to_bits())),
            IpAddr::V6(v6) => (Identity::V6(network.prefix()), v6.to_bits()),
        };
        Self {
            kind: "ip",
            identity,
            bits: [bits as u64, (bits >> 64) as u64],
        }
    }

    /// The network that an address key or a network key covers.
    pub(crate) fn as_network(&self) -> Option<IpNet> {
        let (address, prefix) = match self.identity {
            Identity::V4(prefix) => (Ipv4Addr::from_bits(self.bits[0] as u32).into(), prefix),
            Identity::V6(prefix) => (Ipv6Addr::from_bits(self.address_bits()).into(), prefix),
            Identity::Fingerprint | Identity::Shared => return None,
        };
        IpNet::new(address, prefix).ok()
    }

    /// The IPv4 address embedded in a NAT64, 6to4 or Teredo address.
    pub(crate) fn embedded_v4(address: IpAddr) -> Option<IpAddr> {
        let charged = address::charged(address);
        (address.is_ipv6() && charged.is_ipv4()).then_some(charged)
    }

    /// Returns the network of this key if [`ClientIp`](crate::extract::ClientIp) never charges a
    /// network of that size.
    ///
    /// `ClientIp` charges single IPv4 addresses, single IPv6 addresses, and the IPv6 prefixes that
    /// providers assign to one customer: /48 to /64.
    pub(crate) fn uncharged_network(&self) -> Option<IpNet> {
        let network = self.as_network()?;
        let is_charged = match network.address() {
            IpAddr::V4(_) => network.prefix() == 32,
            IpAddr::V6(v6) => {
                matches!(network.prefix(), 48..=64 | 128) && Self::embedded_v4(v6.into()).is_none()
            }
        };
        (!is_charged).then_some(network)
    }

    /// Whether this is an address or a network. A client cannot make these up.
    #[must_use]
    pub fn is_ip(&self) -> bool {
        matches!(self.identity, Identity::V4(_) | Identity::V6(_))
    }

    /// 128 bits that cannot be predicted without the secret, for hash tables.
    #[inline]
    pub(crate) fn hash_words(&self) -> [u64; 2] {
        let prefix = match self.identity {
            Identity::Fingerprint => return self.bits,
            Identity::Shared => return fingerprint(self.kind, b""),
            Identity::V4(32) => 32,
            // A range apart from IPv6 prefixes: 0.0.0.0/0 is not ::/0.
            Identity::V4(prefix) => 200 + prefix,
            Identity::V6(prefix) => prefix,
        };
        let mut bytes = [prefix; 17];
        bytes[..16].copy_from_slice(&self.address_bits().to_le_bytes());
        fingerprint(self.kind, &bytes)
    }

    /// The bits of [`hash_words`](Self::hash_words) as one number.
    #[inline]
    pub(crate) fn bits(&self) -> u128 {
        let [low, high] = self.hash_words();
        u128::from(high) << 64 | u128::from(low)
    }

    /// Restores a key from its fingerprint, which is valid in processes with the same secret.
    fn from_fingerprint(kind: &'static str, bits: [u64; 2]) -> Self {
        Self {
            kind,
            identity: Identity::Fingerprint,
            bits,
        }
    }

    /// Appends the key as text: an address in its usual notation, a fingerprint in hexadecimal
    /// digits. The text is the same in every process with the same secret.
    /// For the names of a store; it does not contain the [kind](Self::kind).
    pub fn write_text(&self, text: &mut String) {
        use fmt::Write;
        // Writing to a `String` cannot fail.
        let _ = match self.identity {
            Identity::Shared => Ok(()),
            Identity::Fingerprint => write!(text, "{:016x}{:016x}", self.bits[0], self.bits[1]),
            Identity::V4(prefix) => {
                let address = Ipv4Addr::from_bits(self.bits[0] as u32);
                let written = write!(text, "{address}");
                if prefix < 32 {
                    written.and_then(|()| write!(text, "/{prefix}"))
                } else {
                    written
                }
            }
            Identity::V6(prefix) => {
                let address = Ipv6Addr::from_bits(self.address_bits());
                write!(text, "{address}/{prefix}")
            }
        };
    }

    fn address_bits(&self) -> u128 {
        u128::from(self.bits[1]) << 64 | u128::from(self.bits[0])
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.identity {
            // An IPv4 address occupies only 32 of the bits.
            Identity::V4(prefix) => {
                let address = Ipv4Addr::from_bits(self.bits[0] as u32);
                write_ip(f, address.into(), (prefix < 32).then_some(prefix))
            }
            Identity::V6(prefix) => {
                let address = Ipv6Addr::from_bits(self.address_bits());
                write_ip(f, address.into(), (prefix < 128).then_some(prefix))
            }
            Identity::Fingerprint | Identity::Shared => write!(f, "Key({})", self.kind),
        }
    }
}

fn write_ip(f: &mut fmt::Formatter<'_>, address: IpAddr, prefix: Option<u8>) -> fmt::Result {
    write!(f, "Key(ip {address}")?;
    if let Some(prefix) = prefix {
        write!(f, "/{prefix}")?;
    }
    f.write_str(")")
}

/// The secret that fingerprints are keyed with.
///
/// Default: a random secret, drawn when the process makes its first key. This fits limits in
/// memory. Replicas that share a store must agree on keys, so each of them must
/// [install](Secret::install) the same secret at startup.
#[derive(Clone, Copy)]
pub struct Secret([u64; 2]);

static SECRET: OnceLock<Secret> = OnceLock::new();

impl Secret {
    /// Makes a secret from 128 bits. Use a secure source of randomness.
    #[must_use]
    pub fn new(bits: [u8; 16]) -> Self {
        let bits = u128::from_le_bytes(bits);
        Self([bits as u64, (bits >> 64) as u64])
    }

    /// Makes this the secret of the process, for every key made from now on. Call it before the
    /// first [`Key`] is made.
    ///
    /// # Errors
    ///
    /// Returns an error when the process already uses a different secret, because one was installed
    /// or because a key was made. Keys made before and after would not match.
    pub fn install(self) -> Result<(), SecretInstalled> {
        let Self(installed) = SECRET.get_or_init(|| self);
        if *installed == self.0 {
            Ok(())
        } else {
            Err(SecretInstalled)
        }
    }

    /// A check value of the secret, so that tools can detect that theirs differs. It has 32 of the
    /// 128 bits of a fingerprint, so it reveals less of the secret than the fingerprint of one
    /// known credential does.
    pub(crate) fn check_value() -> String {
        let [_, bits] = fingerprint("check value of the secret", b"tower-admission");
        format!("{:08x}", bits as u32)
    }

    /// # Panics
    ///
    /// Panics when the operating system returns no random bytes.
    fn random() -> Self {
        let mut bits = [0; 16];
        getrandom::fill(&mut bits).expect("the operating system returns random bytes");
        Self::new(bits)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A different fingerprint secret is already in use; see [`Secret::install`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SecretInstalled;

impl fmt::Display for SecretInstalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "this process has drawn a random secret already, or another one is installed; install \
             the secret before the first `Key` is made",
        )
    }
}

impl std::error::Error for SecretInstalled {}

/// SipHash-1-3 of `bytes` under a key derived from the secret and the kind. Kinds are chosen by the
/// program, not by a client, so a client cannot search for two kinds that collide.
#[inline]
fn fingerprint(kind: &str, bytes: &[u8]) -> [u64; 2] {
    let Secret([k0, k1]) = *SECRET.get_or_init(Secret::random);
    siphash128::<1, 3>([k0 ^ fold(kind), k1], bytes)
}

/// FNV-1a. The compiler evaluates it for a constant kind.
#[inline(always)]
const fn fold(kind: &str) -> u64 {
    let kind = kind.as_bytes();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut at = 0;
    while at < kind.len() {
        hash = (hash ^ kind[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_cannot_be_read_back() {
        let key = Key::new("bearer", b"hunter2");
        let shown = format!("{key:?} {key:#?} {}", key.kind());
        assert!(!shown.contains("hunter2"));
        assert!(!shown.contains(&format!("{:x}", key.bits[0])));
        assert!(!shown.contains(&key.bits[0].to_string()));
    }

    #[test]
    fn the_check_value_has_fewer_bits_than_a_fingerprint() {
        let check = Secret::check_value();
        assert_eq!(check, Secret::check_value());
        assert_eq!(check.len(), 8);
        let Secret([k0, k1]) = *SECRET.get().unwrap();
        let other = siphash128::<1, 3>([k0, k1], b"tower-admission");
        assert_ne!(check, format!("{:08x}", other[1] as u32));
    }

    #[test]
    fn a_kind_is_kept_apart_from_its_secret() {
        assert_ne!(
            Key::new("ab", b"c").hash_words(),
            Key::new("a", b"bc").hash_words()
        );
        assert_ne!(Key::UNKNOWN.hash_words(), Key::SHARED.hash_words());
    }

    #[test]
    fn a_mapped_ipv4_address_is_not_masked() {
        let one = Key::ip_network("::ffff:192.0.2.1".parse().unwrap(), 64);
        let two = Key::ip_network("::ffff:192.0.2.2".parse().unwrap(), 64);
        assert_ne!(one, two);
        assert_eq!(one, Key::ip("192.0.2.1".parse().unwrap()));
        assert_eq!(
            one.hash_words(),
            Key::ip("192.0.2.1".parse().unwrap()).hash_words()
        );
    }

    #[test]
    fn ipv6_addresses_are_grouped_by_prefix() {
        let key = |s: &str, prefix| Key::ip_network(s.parse().unwrap(), prefix);
        assert_eq!(key("2001:db8::1", 64), key("2001:db8::ffff:2", 64));
        assert_ne!(key("2001:db8::1", 64), key("2001:db8:0:1::1", 64));
        assert_eq!(key("2001:db8::1", 0), key("::1", 0));
        assert_ne!(key("2001:db8::1", 128), key("2001:db8::2", 128));
        assert_ne!(
            key("2001:db8::", 64).hash_words(),
            key("2001:db8::", 56).hash_words()
        );
        assert_eq!(
            format!("{:?}", key("2001:db8::1", 64)),
            "Key(ip 2001:db8::/64)"
        );
    }

    #[test]
    fn a_secret_in_use_is_not_replaced() {
        let before = Key::new("bearer", b"x");
        assert_eq!(Secret::new([7; 16]).install(), Err(SecretInstalled));
        assert_eq!(before.hash_words(), Key::new("bearer", b"x").hash_words());
    }
}
