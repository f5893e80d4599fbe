//! A network of IP addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network of IP addresses, such as `10.0.0.0/8` or `2001:db8::/32`.
///
/// ```
/// use tower_admission::extract::IpNet;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let network: IpNet = "10.0.0.0/8".parse()?;
/// assert!(network.contains([10, 1, 2, 3].into()));
/// assert_eq!(IpNet::new([10, 1, 2, 3].into(), 8)?, network);
/// let host: std::net::IpAddr = "192.0.2.1".parse()?;
/// assert_eq!(IpNet::from(host).to_string(), "192.0.2.1/32");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpNet {
    /// The first address.
    address: IpAddr,
    prefix: u8,
}

impl IpNet {
    /// Makes the network of addresses that share their first `prefix` bits with `address`.
    ///
    /// # Errors
    ///
    /// Returns [`IpNetError`] when `prefix` is above 32 for IPv4, or above 128 for IPv6.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, IpNetError> {
        let address = match address {
            IpAddr::V4(v4) if prefix <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) if prefix <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
            _ => return Err(IpNetError(())),
        };
        Ok(Self { address, prefix })
    }

    /// Whether the network contains `address`. IPv4 networks never contain IPv6 addresses, nor the
    /// reverse.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new(address, self.prefix).is_ok_and(|network| network == *self)
    }

    /// The first address of the network.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The number of leading bits that all addresses of the network share.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether the network has a single address.
    pub(crate) fn is_one_address(&self) -> bool {
        *self == Self::from(self.address)
    }

    /// Converts a network of IPv4-mapped addresses, such as `::ffff:10.0.0.0/104`, to the IPv4
    /// network.
    pub(crate) fn unmapped(self) -> Self {
        let v4 = match self.address {
            IpAddr::V6(v6) => v6.to_ipv4_mapped(),
            IpAddr::V4(_) => None,
        };
        let unmapped = v4.zip(self.prefix.checked_sub(96));
        let unmapped = unmapped.map(|(v4, prefix)| Self::new(v4.into(), prefix));
        unmapped.and_then(Result::ok).unwrap_or(self)
    }
}

/// The network of this single address.
impl From<IpAddr> for IpNet {
    fn from(address: IpAddr) -> Self {
        let prefix = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        Self { address, prefix }
    }
}

/// Reads an address, a slash and a prefix. Address bits beyond the prefix are ignored.
impl FromStr for IpNet {
    type Err = IpNetError;

    fn from_str(text: &str) -> Result<Self, IpNetError> {
        let error = IpNetError(());
        let (address, prefix) = text.split_once('/').ok_or(error)?;
        // `u8::from_str` also accepts a plus sign.
        if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(error);
        }
        let prefix = prefix.parse().map_err(|_| error)?;
        Self::new(address.parse().map_err(|_| error)?, prefix)
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Debug for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text or a prefix that is not a valid [`IpNet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpNetError(());

impl fmt::Display for IpNetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected an address and a prefix, such as 10.0.0.0/8 or 2001:db8::/32")
    }
}

impl std::error::Error for IpNetError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_contains_the_addresses_with_its_prefix() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("10.9.9.9/8", "10.0.0.0", "9.255.255.255"),
            ("192.0.2.1/32", "192.0.2.1", "192.0.2.0"),
            ("192.0.2.0/31", "192.0.2.1", "192.0.2.2"),
            ("0.0.0.0/0", "255.255.255.255", "::"),
            ("::/0", "ffff::", "0.0.0.0"),
            ("::/0", "::ffff:10.0.0.1", "10.0.0.1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("2001:db8::1/128", "2001:db8::1", "2001:db8::"),
        ] {
            assert!(network(text).contains(inside.parse().unwrap()), "{text}");
            assert!(!network(text).contains(outside.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn the_text_of_a_network_reads_back() {
        for (text, shown) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.0.0.0/08", "10.0.0.0/8"),
            ("2001:DB8::1/32", "2001:db8::/32"),
            ("::ffff:10.0.0.0/104", "::ffff:10.0.0.0/104"),
        ] {
            assert_eq!(network(text).to_string(), shown);
            assert_eq!(network(shown), network(text));
        }
    }

    #[test]
    fn an_invalid_network_is_an_error() {
        for text in [
            "",
            "/",
            "10.0.0.0",
            "10.0.0.0/",
            "/8",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/-8",
            "10.0.0.0/8/8",
            "10.0.0.0/256",
            " 10.0.0.0/8",
            "10.0.0/8",
            "010.0.0.0/8",
            "2001:db8::/129",
            "nowhere/8",
        ] {
            assert!(text.parse::<IpNet>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_mapped_network_becomes_an_ipv4_network() {
        for (text, unmapped) in [
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.1/128", "10.0.0.1/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::ffff:0:0/95", "::fffe:0:0/95"),
            ("::/0", "::/0"),
            ("10.0.0.0/8", "10.0.0.0/8"),
        ] {
            assert_eq!(network(text).unmapped(), network(unmapped), "{text}");
        }
    }
}
