//! IPv6 addresses count by a prefix of every length, to the bit.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::Request;
use tower_admission::extract::{KeyExtractor, PeerAddr, RequestHead};
use tower_admission::{ClientIp, Key, KeyName};

/// Addresses that contain no IPv4 address: neither they, nor the edges of their networks, nor what is one
/// bit away from them.
const ADDRESSES: [&str; 4] = [
    "3fff:db8:5a5a:a5a5:1234:5678:9abc:def0",
    "fd00:aaaa:5555:aaaa:5555:aaaa:5555:aaaa",
    "8000::1",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
];

fn addresses() -> impl Iterator<Item = Ipv6Addr> {
    ADDRESSES.iter().map(|address| address.parse().unwrap())
}

/// Bit `at` of an address, counted from its first.
fn bit(at: u32) -> u128 {
    1 << (127 - at)
}

fn key(bits: u128, prefix: u8) -> Key {
    Key::ip_network(Ipv6Addr::from_bits(bits).into(), prefix)
}

/// The lowest and the highest address that have their first bits in common with this one, bit by bit.
fn edges(address: Ipv6Addr, prefix: u8) -> (u128, u128) {
    let (mut lowest, mut highest) = (address.to_bits(), address.to_bits());
    for at in u32::from(prefix)..128 {
        lowest &= !bit(at);
        highest |= bit(at);
    }
    (lowest, highest)
}

#[test]
fn the_last_bit_of_a_prefix_counts_and_the_next_bit_does_not() {
    for address in addresses() {
        let bits = address.to_bits();
        for prefix in 0..=128_u8 {
            let network = key(bits, prefix);
            for at in 0..128 {
                let counts = at < u32::from(prefix);
                let is_other = key(bits ^ bit(at), prefix) != network;
                assert_eq!(is_other, counts, "bit {at} of {address}/{prefix}");
            }
        }
    }
}

#[test]
fn a_network_ends_at_its_lowest_and_its_highest_address() {
    for address in addresses() {
        for prefix in 0..=128_u8 {
            let network = key(address.to_bits(), prefix);
            let (lowest, highest) = edges(address, prefix);
            assert_eq!(key(lowest, prefix), network, "{address}/{prefix}");
            assert_eq!(key(highest, prefix), network, "{address}/{prefix}");
            let beyond = [lowest.checked_sub(1), highest.checked_add(1)];
            for other in beyond.into_iter().flatten() {
                assert_ne!(key(other, prefix), network, "{address}/{prefix}");
            }
        }
    }
}

#[test]
fn a_network_is_named_by_its_lowest_address_and_read_back() {
    for address in addresses() {
        for prefix in 0..=128_u8 {
            let network = key(address.to_bits(), prefix);
            let lowest = Ipv6Addr::from_bits(edges(address, prefix).0);
            let name = KeyName::from(network).to_string();
            assert_eq!(name, format!("ip:{lowest}/{prefix}"));
            let read: KeyName = name.parse().unwrap();
            assert_eq!(KeyName::from(network), read);
            if address != lowest {
                let error = format!("ip:{address}/{prefix}").parse::<KeyName>();
                let error = error.unwrap_err().to_string();
                assert!(
                    error.ends_with(&format!("is ip:{lowest}/{prefix}")),
                    "{error}"
                );
            }
        }
    }
}

#[test]
fn a_client_counts_by_the_prefix_that_its_layer_sets() {
    for address in addresses() {
        let mut request = Request::new(());
        let peer = SocketAddr::new(IpAddr::V6(address), 4711);
        request.extensions_mut().insert(PeerAddr(peer));
        for prefix in 0..=128_u8 {
            let client = ClientIp::peer().v6_prefix(prefix);
            let extracted = client.extract(RequestHead::from(&request)).key();
            let network = key(address.to_bits(), prefix);
            assert_eq!(extracted, Some(network), "{address}/{prefix}");
        }
    }
}
