//! Who a request is charged to; raw credentials stop here.

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
#[cfg(feature = "config")]
pub(crate) use self::name::interned;
pub(crate) use self::name::is_unseen;
pub use self::name::means_credential;
pub use self::name::{KeyName, KeyNameError};
pub use self::network::{IpNet, IpNetError};
pub use self::siphash::siphash128;

/// Who a request is charged to: a kind and 128 bits.
///
/// An IP address stays readable. Everything else becomes a *fingerprint*, a SipHash-1-3 of 128
/// bits under the process's [`Secret`], at the moment the key is made: a credential is not kept,
/// and cannot be read back from a key, a log line or a store. Two different inputs share a
/// fingerprint with a chance of 2⁻¹²⁸, and nobody without the secret can look for such a pair.
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

/// What the bits of a key are.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Identity {
    /// None: one key for everyone.
    Shared,
    Fingerprint,
    /// An IPv4 network with a prefix of this length, in the low bits.
    V4(u8),
    /// An IPv6 network with a prefix of this length.
    V6(u8),
}

impl Key {
    /// The key that everything shares which nobody in particular can be charged for.
    ///
    /// A limiter charges it when no key can be extracted, so that leaving out a credential or
    /// hiding an address never means being unlimited.
    pub const UNKNOWN: Self = Self {
        kind: "unknown",
        identity: Identity::Shared,
        bits: [0; 2],
    };

    /// The one key of [`Shared`](crate::extract::Shared).
    pub const SHARED: Self = Self {
        kind: "shared",
        identity: Identity::Shared,
        bits: [0; 2],
    };

    /// A key from a secret, such as an access token. The secret is fingerprinted and not kept.
    ///
    /// `kind` says what sort of secret it is and separates equal secrets of different kinds.
    #[inline]
    #[must_use]
    pub fn new(kind: &'static str, secret: &[u8]) -> Self {
        Self {
            kind,
            identity: Identity::Fingerprint,
            bits: fingerprint(kind, secret),
        }
    }

    /// A key from an identifier of the application's, such as a user or an organisation. The
    /// same as [`Key::new`] with the identifier's bytes.
    #[must_use]
    pub fn id(kind: &'static str, id: &str) -> Self {
        Self::new(kind, id.as_bytes())
    }

    /// The key of one address.
    ///
    /// An IPv6 address that contains an IPv4 address is the key of that address: IPv4-mapped
    /// (`::ffff:192.0.2.1`), NAT64 (`64:ff9b::/96`, RFC 6052), 6to4 (`2002::/16`, RFC 3056) and
    /// Teredo (`2001::/32`, RFC 4380). The local NAT64 prefix `64:ff9b:1::/48` (RFC 8215) and ISATAP
    /// count as IPv6. [`ClientIp`](crate::extract::ClientIp) groups IPv6 addresses by prefix; this
    /// method does not.
    #[must_use]
    pub fn ip(address: IpAddr) -> Self {
        Self::ip_network(address, 128)
    }

    /// The key of the network that an address is in: an IPv6 address counts with its first
    /// `v6_prefix` bits (at most 128), an IPv4 address always as a whole. An IPv4 address inside an
    /// IPv6 address counts as in [`Key::ip`].
    #[must_use]
    pub fn ip_network(address: IpAddr, v6_prefix: u8) -> Self {
        // The IPv4 address first: masking ::ffff:192.0.2.1 to a /64 would put every IPv4 client of
        // a dual-stack socket into one bucket.
        let (identity, bits) = match address::counted(address) {
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

    /// What sort of key this is: `"bearer"`, `"api-key"`, `"ip"`, or what [`Key::new`] was given.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The key of a whole network, as it is: no address inside of another one counts. It is the key of an entry
    /// of [`Limits`](crate::Limits), which no request is charged to.
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

    /// The addresses that an address or a network stands for.
    pub(crate) fn as_network(&self) -> Option<IpNet> {
        let (address, prefix) = match self.identity {
            Identity::V4(prefix) => (Ipv4Addr::from_bits(self.bits[0] as u32).into(), prefix),
            Identity::V6(prefix) => (Ipv6Addr::from_bits(self.address_bits()).into(), prefix),
            Identity::Fingerprint | Identity::Shared => return None,
        };
        IpNet::new(address, prefix).ok()
    }

    /// The IPv4 address that an IPv6 address stands for in NAT64, 6to4 or Teredo.
    pub(crate) fn embedded_v4(address: IpAddr) -> Option<IpAddr> {
        let counted = address::counted(address);
        (address.is_ipv6() && counted.is_ipv4()).then_some(counted)
    }

    /// The network that this is, if no request can be charged to it.
    ///
    /// [`ClientIp`](crate::extract::ClientIp) charges IPv4 addresses, and IPv6 addresses or what one customer
    /// has of them: providers give a /64, a /56 or a /48.
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

    /// Whether this is an address or a network, which a client cannot make up.
    #[must_use]
    pub fn is_ip(&self) -> bool {
        matches!(self.identity, Identity::V4(_) | Identity::V6(_))
    }

    /// 128 bits that nobody outside the process can predict, for a place in a table.
    #[inline]
    pub(crate) fn place_bits(&self) -> [u64; 2] {
        let prefix = match self.identity {
            Identity::Fingerprint => return self.bits,
            Identity::Shared => return fingerprint(self.kind, b""),
            Identity::V4(32) => 32,
            // Apart from those of IPv6: 0.0.0.0/0 is not ::/0.
            Identity::V4(prefix) => 200 + prefix,
            Identity::V6(prefix) => prefix,
        };
        let mut bytes = [prefix; 17];
        bytes[..16].copy_from_slice(&self.address_bits().to_le_bytes());
        fingerprint(self.kind, &bytes)
    }

    /// The same as one number.
    #[inline]
    pub(crate) fn bits(&self) -> u128 {
        let [low, high] = self.place_bits();
        u128::from(high) << 64 | u128::from(low)
    }

    /// A key by the fingerprint that it has in processes with the same secret.
    fn from_fingerprint(kind: &'static str, bits: [u64; 2]) -> Self {
        Self {
            kind,
            identity: Identity::Fingerprint,
            bits,
        }
    }

    /// The key as text, the same in every process with the same secret: an address as it is, a
    /// fingerprint in hexadecimal digits.
    pub(crate) fn write_text(&self, text: &mut String) {
        use fmt::Write;
        // Writing to a string does not fail.
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
            // Only 32 bits of it are set.
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
/// Without one of your own every process draws a random secret when the first key is made, which
/// is what a limit in memory needs. Replicas that count in one place have to agree on keys, so
/// each [installs](Secret::install) the same one when it starts.
#[derive(Clone, Copy)]
pub struct Secret([u64; 2]);

static SECRET: OnceLock<Secret> = OnceLock::new();

impl Secret {
    /// A secret from 128 bits, which should come from a secure source of randomness.
    #[must_use]
    pub fn new(bits: [u8; 16]) -> Self {
        let bits = u128::from_le_bytes(bits);
        Self([bits as u64, (bits >> 64) as u64])
    }

    /// Makes this the secret of the process, for every key made from now on.
    ///
    /// # Errors
    ///
    /// When the process has another secret already, because one was installed or because a key
    /// was made: keys from before and after would not match.
    pub fn install(self) -> Result<(), SecretInstalled> {
        let Self(installed) = SECRET.get_or_init(|| self);
        if *installed == self.0 {
            Ok(())
        } else {
            Err(SecretInstalled)
        }
    }

    /// A check value of the process's secret, by which tools find that theirs is another one. It has 32 of the 128 bits
    /// of a fingerprint, so it tells less of the secret than the fingerprint of one known credential.
    #[cfg(feature = "redis")]
    pub(crate) fn check_value() -> String {
        let [_, bits] = fingerprint("check value of the secret", b"tower-admission");
        format!("{:08x}", bits as u32)
    }

    /// # Panics
    ///
    /// When the operating system has no randomness to give.
    fn random() -> Self {
        let mut bits = [0; 16];
        getrandom::fill(&mut bits).expect("the operating system gives random bytes");
        Self::new(bits)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The process has another fingerprint secret already; see [`Secret::install`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SecretInstalled;

impl fmt::Display for SecretInstalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the process has another fingerprint secret already")
    }
}

impl std::error::Error for SecretInstalled {}

/// SipHash-1-3 of `bytes` under a key of the kind's own, which is the secret and the kind. Kinds
/// are the program's words, not a client's, so nobody picks two that agree.
#[inline]
fn fingerprint(kind: &str, bytes: &[u8]) -> [u64; 2] {
    let Secret([k0, k1]) = *SECRET.get_or_init(Secret::random);
    siphash128::<1, 3>([k0 ^ fold(kind), k1], bytes)
}

/// FNV-1a; of a constant the compiler makes it a constant.
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

    #[cfg(feature = "redis")]
    #[test]
    fn the_check_value_is_less_than_a_fingerprint() {
        let check = Secret::check_value();
        assert_eq!(check, Secret::check_value());
        assert_eq!(check.len(), 8);
        let Secret([k0, k1]) = *SECRET.get().unwrap();
        let other = siphash128::<1, 3>([k0, k1], b"tower-admission");
        assert_ne!(check, format!("{:08x}", other[1] as u32));
    }

    #[test]
    fn kind_and_secret_do_not_run_into_each_other() {
        assert_ne!(
            Key::new("ab", b"c").place_bits(),
            Key::new("a", b"bc").place_bits()
        );
        assert_ne!(Key::UNKNOWN.place_bits(), Key::SHARED.place_bits());
    }

    #[test]
    fn mapped_ipv4_is_ipv4_and_is_not_masked() {
        let one = Key::ip_network("::ffff:192.0.2.1".parse().unwrap(), 64);
        let two = Key::ip_network("::ffff:192.0.2.2".parse().unwrap(), 64);
        assert_ne!(one, two);
        assert_eq!(one, Key::ip("192.0.2.1".parse().unwrap()));
        assert_eq!(
            one.place_bits(),
            Key::ip("192.0.2.1".parse().unwrap()).place_bits()
        );
    }

    #[test]
    fn ipv6_groups_by_prefix() {
        let key = |s: &str, prefix| Key::ip_network(s.parse().unwrap(), prefix);
        assert_eq!(key("2001:db8::1", 64), key("2001:db8::ffff:2", 64));
        assert_ne!(key("2001:db8::1", 64), key("2001:db8:0:1::1", 64));
        assert_eq!(key("2001:db8::1", 0), key("::1", 0));
        assert_ne!(key("2001:db8::1", 128), key("2001:db8::2", 128));
        assert_ne!(
            key("2001:db8::", 64).place_bits(),
            key("2001:db8::", 56).place_bits()
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
        assert_eq!(before.place_bits(), Key::new("bearer", b"x").place_bits());
    }
}
