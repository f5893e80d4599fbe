//! Lookups of addresses against a naive model, with changes in any order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use tower::Layer;
use tower_admission::extract::IpNet;
use tower_admission::{AccessLayer, ClientIp, Limits, Quota, RateLimitLayer};

use crate::{Counting, from, name, now, set, status};

/// Addresses that share many prefixes.
fn addresses() -> impl Strategy<Value = IpAddr> {
    let bits = prop::collection::vec(prop::sample::select(vec![0_u8, 1, 0x80, 0xff]), 4);
    (bits, any::<bool>()).prop_map(|(bits, is_v4)| {
        let bits = u32::from_be_bytes([bits[0], bits[1], bits[2], bits[3]]);
        if is_v4 {
            Ipv4Addr::from_bits(bits).into()
        } else {
            // Half of the bits at the other end, so that prefixes of all lengths distinguish some
            // addresses.
            let (high, low) = (u128::from(bits >> 16), u128::from(bits & 0xffff));
            Ipv6Addr::from_bits((0xfd << 120) | (high << 96) | low).into()
        }
    })
}

fn networks() -> impl Strategy<Value = IpNet> {
    (addresses(), any::<prop::sample::Index>()).prop_map(|(address, prefix)| {
        let most = if address.is_ipv4() { 33 } else { 129 };
        IpNet::new(address, prefix.index(most) as u8).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn the_longest_network_decides(
        steps in prop::collection::vec((networks(), prop::option::of(any::<bool>())), 1..40),
        asked in prop::collection::vec(addresses(), 1..40),
    ) {
        let limits = Limits::new();
        let mut model: Vec<(IpNet, bool)> = Vec::new();
        for (network, exempts) in steps {
            let key = format!("ip:{network}");
            model.retain(|(other, _)| *other != network);
            match exempts {
                Some(exempts) => {
                    set(&limits, &key, if exempts { "unlimited" } else { "deny all" });
                    model.push((network, exempts));
                }
                None => _ = now(limits.delete(&name(&key))).unwrap(),
            }
        }
        let nothing = RateLimitLayer::by(ClientIp::peer(), Quota::per_hour(1)).cost(|_| 2);
        let service = AccessLayer::new(&limits).layer(nothing.layer(Counting::default()));
        for address in asked {
            let within = model.iter().filter(|(network, _)| network.contains(address));
            let expected = match within.max_by_key(|(network, _)| network.prefix()) {
                None => 429,
                Some((_, true)) => 200,
                Some((_, false)) => 403,
            };
            prop_assert_eq!(status(&service, from(&address.to_string())), expected, "{}", address);
        }
    }
}
