//! The entry that decides among several.

use tower::Layer;
use tower_admission::extract::ClientIp;
use tower_admission::{
    AccessLayer, ApiKey, BearerToken, ByToken, Limit, Limits, LimitsError, Quota, RateLimitLayer,
};

use crate::{Counting, bearer, from, name, now, send, set, status, with};

/// The treatment of a request. Its status shows it, because the inner limit admits nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Treated {
    Banned,
    Exempt,
    Unlisted,
}

use Treated::{Banned, Exempt, Unlisted};

fn treated(limits: &Limits, request: http::Request<()>) -> Treated {
    let layer = AccessLayer::new(limits)
        .key(BearerToken)
        .key(ApiKey::default());
    // The inner limit admits only exempt requests.
    let nothing = RateLimitLayer::by(ClientIp::peer(), Quota::per_hour(1)).cost(|_| 2);
    match status(&layer.layer(nothing.layer(Counting::default())), request) {
        403 => Banned,
        200 => Exempt,
        429 => Unlisted,
        other => panic!("{other}"),
    }
}

#[test]
fn the_most_specific_entry_decides_in_any_order() {
    let entries = [
        ("bearer:alice", "unlimited"),
        ("bearer:eve", "deny all"),
        ("ip:203.0.113.7", "unlimited"),
        ("ip:203.0.113.8", "deny all"),
        ("ip:203.0.113.0/24", "deny all"),
        ("ip:203.0.0.0/16", "unlimited"),
        ("ip:203.0.0.0/8", "deny all"),
        ("ip:2001:db8::/32", "deny all"),
        ("ip:2001:db8:1::/48", "unlimited"),
        ("ip:2001:db8:1:2::/64", "deny all"),
        ("ip:2001:db8:1:2::7/128", "unlimited"),
    ];
    let (forward, backward) = (Limits::new(), Limits::new());
    for (key, limit) in entries {
        set(&forward, key, limit);
    }
    for (key, limit) in entries.into_iter().rev() {
        set(&backward, key, limit);
    }
    for limits in [forward, backward] {
        for (ip, token, expected) in [
            ("198.51.100.1", "", Unlisted),
            ("198.51.100.1", "made-up", Unlisted),
            ("198.51.100.1", "alice", Exempt),
            ("198.51.100.1", "eve", Banned),
            ("203.0.113.7", "", Exempt),
            ("203.0.113.7", "eve", Banned),
            ("203.0.113.8", "", Banned),
            ("203.0.113.8", "made-up", Banned),
            ("203.0.113.8", "alice", Exempt),
            ("203.0.113.9", "", Banned),
            ("203.0.113.9", "alice", Exempt),
            ("203.0.114.1", "", Exempt),
            ("203.1.0.1", "", Banned),
            ("::ffff:203.0.113.7", "", Exempt),
            ("::ffff:203.0.113.9", "", Banned),
            ("2001:db8::1", "", Banned),
            ("2001:db8:1::1", "", Exempt),
            ("2001:db8:1:2::1", "", Banned),
            ("2001:db8:1:2::7", "", Exempt),
            ("2001:db9::1", "", Unlisted),
        ] {
            let request = match token {
                "" => from(ip),
                token => bearer(ip, token),
            };
            assert_eq!(treated(&limits, request), expected, "{ip} {token}");
        }
    }
}

#[test]
fn a_whole_address_family_is_a_network() {
    let limits = Limits::new();
    set(&limits, "ip:0.0.0.0/0", "deny all");
    assert_eq!(treated(&limits, from("198.51.100.1")), Banned);
    assert_eq!(treated(&limits, from("2001:db8::1")), Unlisted);
    set(&limits, "ip:::/0", "deny all");
    set(&limits, "ip:2000::/3", "unlimited");
    assert_eq!(treated(&limits, from("2001:db8::1")), Exempt);
    assert_eq!(treated(&limits, from("fd00::1")), Banned);
    for key in ["ip:::/0", "ip:2000::/3", "ip:0.0.0.0/0"] {
        now(limits.delete(&name(key))).unwrap();
    }
    assert_eq!(treated(&limits, from("198.51.100.1")), Unlisted);
    assert_eq!(treated(&limits, from("fd00::1")), Unlisted);
}

#[test]
fn an_ipv6_address_without_a_prefix_is_its_64() {
    let limits = Limits::new();
    set(&limits, "ip:2001:db8::7", "deny all");
    assert_eq!(treated(&limits, from("2001:db8::8")), Banned);
    assert_eq!(treated(&limits, from("2001:db8:0:1::7")), Unlisted);
}

#[test]
fn an_embedded_address_is_banned_and_not_exempt() {
    let limits = Limits::new();
    // NAT64, 6to4 and Teredo of 203.0.113.7.
    let inside = [
        "64:ff9b::203.0.113.7",
        "2002:cb00:7107::1",
        "2001:0:4136:e378:8000:63bf:34ff:8ef8",
    ];
    set(&limits, "ip:203.0.113.0/24", "unlimited");
    for ip in inside {
        assert_eq!(treated(&limits, from(ip)), Unlisted, "{ip}");
    }
    set(&limits, "ip:203.0.113.0/24", "deny all");
    for ip in inside {
        assert_eq!(treated(&limits, from(ip)), Banned, "{ip}");
    }
    now(limits.delete(&name("ip:203.0.113.0/24"))).unwrap();
    // The other way round, the exempt address would be the IPv4 address of another client.
    for ip in inside {
        let name = name(&format!("ip:{ip}"));
        let exempt = now(limits.set(&name, Limit::unlimited()));
        assert!(matches!(exempt, Err(LimitsError::Embedded { .. })), "{ip}");
        let error = exempt.unwrap_err().to_string();
        assert!(error.ends_with("write ip:203.0.113.7"), "{error}");
        now(limits.set(&name, Limit::deny_all())).unwrap();
        assert_eq!(treated(&limits, from(ip)), Banned, "{ip}");
        now(limits.delete(&name)).unwrap();
    }
    set(&limits, "ip:2002::/16", "unlimited");
    assert_eq!(treated(&limits, from("2002:cb00:7107::1")), Exempt);
    set(&limits, "ip:2002::/16", "deny all");
    assert_eq!(treated(&limits, from("2002:cb00:7107::1")), Banned);
    assert_eq!(treated(&limits, from("203.0.113.7")), Unlisted);
}

#[test]
fn a_denied_key_decides_over_an_exempt_key() {
    let limits = Limits::new();
    set(&limits, "bearer:alice", "unlimited");
    set(&limits, "api-key:stolen", "deny all");
    let request = with(bearer("192.0.2.1", "alice"), "x-api-key", "stolen");
    assert_eq!(treated(&limits, request), Banned);
    let request = with(bearer("192.0.2.1", "made-up"), "x-api-key", "stolen");
    assert_eq!(treated(&limits, request), Banned);
    assert_eq!(treated(&limits, bearer("192.0.2.1", "alice")), Exempt);
}

#[test]
fn an_entry_with_another_limit_is_on_no_list() {
    let limits = Limits::new();
    set(&limits, "ip:203.0.113.0/24", "deny all");
    for limit in [
        "10/s",
        "5 concurrent",
        "default=unlimited",
        "unlimited, a=1/s",
    ] {
        set(&limits, "ip:203.0.113.7", limit);
        assert_eq!(treated(&limits, from("203.0.113.7")), Banned, "{limit}");
        set(&limits, "ip:198.51.100.1", limit);
        let other = treated(&limits, from("198.51.100.1"));
        // The entry may be meant for the inner rate limit.
        assert_ne!(other, Banned, "{limit}");
    }
    // The entry moves from a list to another limit, and back.
    set(&limits, "ip:203.0.113.0/24", "unlimited");
    assert_eq!(treated(&limits, from("203.0.113.9")), Exempt);
    set(&limits, "ip:2001:db8::1", "deny all");
    set(&limits, "ip:2001:db8::1", "10/s");
    assert_eq!(treated(&limits, from("2001:db8::1")), Unlisted);
}

#[test]
fn a_network_accepts_only_list_entries() {
    let limits = Limits::new();
    for key in ["ip:203.0.113.0/24", "ip:2001:db8::/32"] {
        for limit in [
            "10/s",
            "5 concurrent",
            "tier=pro",
            "api=deny all",
            "api=unlimited",
        ] {
            let error = now(limits.set(&name(key), limit.parse().unwrap())).unwrap_err();
            assert!(matches!(error, LimitsError::Network { .. }), "{limit}");
            let expected =
                format!("{key} is a network, which takes `deny all` or `unlimited` only");
            assert_eq!(error.to_string(), expected);
        }
    }
    assert!(limits.is_empty());
    // The IPv6 networks of one client can be charged.
    set(&limits, "ip:2001:db8::/56", "10/s");
}

#[test]
fn a_forwarded_address_counts_only_from_a_trusted_proxy() {
    let limits = Limits::new();
    set(&limits, "ip:203.0.113.0/24", "deny all");
    set(&limits, "ip:198.51.100.7", "unlimited");
    let proxies = ClientIp::forwarded_by(["10.0.0.0/8".parse().unwrap()]);
    let inner = RateLimitLayer::by(ClientIp::peer(), Quota::per_hour(1)).cost(|_| 2);
    let service = AccessLayer::new(&limits)
        .client_ip(proxies)
        .layer(inner.layer(Counting::default()));
    let forwarded = |peer, list| status(&service, with(from(peer), "x-forwarded-for", list));
    assert_eq!(forwarded("10.0.0.1", "203.0.113.7"), 403);
    assert_eq!(forwarded("10.0.0.1", "::ffff:203.0.113.7"), 403);
    // The client wrote the entry further left.
    assert_eq!(forwarded("10.0.0.1", "198.51.100.7, 203.0.113.7"), 403);
    assert_eq!(forwarded("203.0.113.7", "198.51.100.7"), 403);
    assert_eq!(forwarded("192.0.2.1", "198.51.100.7"), 429);
    assert_eq!(forwarded("10.0.0.1", "198.51.100.7"), 200);
}

#[test]
fn without_a_peer_address_a_key_still_counts() {
    let limits = Limits::new();
    set(&limits, "ip:0.0.0.0/0", "deny all");
    set(&limits, "bearer:eve", "deny all");
    let service = AccessLayer::new(&limits)
        .key(ByToken::default())
        .layer(Counting::default());
    let eve = with(http::Request::new(()), "authorization", "Bearer eve");
    assert_eq!(send(&service, eve).status(), 403);
    assert_eq!(status(&service, http::Request::new(())), 200);
}

/// No request sees a gap, neither for an entry that stays nor for one that is replaced.
#[test]
fn a_ban_holds_while_others_change() {
    let limits = Limits::new();
    set(&limits, "ip:203.0.113.0/24", "deny all");
    set(&limits, "ip:2001:db8::7", "deny all");
    let service = AccessLayer::new(&limits).layer(Counting::default());
    let changing = limits.clone();
    let changes = std::thread::spawn(move || {
        for _ in 0..500 {
            for key in ["ip:203.0.113.7", "ip:203.0.113.0/25", "ip:203.0.112.0/23"] {
                set(&changing, key, "deny all");
                now(changing.delete(&name(key))).unwrap();
            }
            set(&changing, "ip:2001:db8::7", "deny all");
        }
    });
    while !changes.is_finished() {
        assert_eq!(status(&service, from("203.0.113.7")), 403);
        assert_eq!(status(&service, from("2001:db8::7")), 403);
    }
    changes.join().unwrap();
}
