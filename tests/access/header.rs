//! Exemption by a header.

use http::Request;
use tower::Layer;
use tower_admission::extract::{IpNet, TrustedHeader};
use tower_admission::{AccessLayer, ClientIp, Limits, Quota, RateLimitLayer, UnixPeer};

use crate::{Counting, Seen, from, set, status, with};

fn proxies() -> [IpNet; 1] {
    ["10.0.0.0/8".parse().unwrap()]
}

fn layer(limits: &Limits, header: TrustedHeader) -> AccessLayer {
    AccessLayer::new(limits)
        .client_ip(ClientIp::forwarded_by(proxies()))
        .allow_header(header, "probe")
}

fn nothing() -> RateLimitLayer<ClientIp> {
    RateLimitLayer::by(ClientIp::peer(), Quota::per_hour(1)).cost(|_| 2)
}

#[test]
fn a_header_exempts_only_from_a_trusted_proxy() {
    let limits = Limits::new();
    let header = TrustedHeader::new("x-internal", proxies());
    let service = layer(&limits, header).layer(nothing().layer(Counting::default()));
    let sent = |peer, value| status(&service, with(from(peer), "x-internal", value));
    assert_eq!(sent("10.0.0.1", "probe"), 200);
    assert_eq!(sent("::ffff:10.0.0.1", " probe "), 200);
    assert_eq!(sent("10.0.0.1", "other"), 429);
    assert_eq!(sent("192.0.2.1", "probe"), 429);
    assert_eq!(sent("2002:a00:1::1", "probe"), 429);
    // If the header is repeated, it is unclear which value the proxy wrote.
    let twice = with(from("10.0.0.1"), "x-internal", "probe");
    assert_eq!(status(&service, with(twice, "x-internal", "probe")), 429);
    assert_eq!(status(&service, from("10.0.0.1")), 429);
}

#[test]
fn a_ban_takes_precedence_over_the_header() {
    let limits = Limits::new();
    let seen = Seen::default();
    let header = TrustedHeader::new("x-internal", proxies());
    let service = layer(&limits, header)
        .observe(seen.clone())
        .layer(nothing().layer(Counting::default()));
    let probe = || {
        let request = with(from("10.0.0.1"), "x-internal", "probe");
        with(request, "x-forwarded-for", "203.0.113.7")
    };
    assert_eq!(status(&service, probe()), 200);
    assert_eq!(seen.take(), ["exempted access"]);
    set(&limits, "ip:203.0.113.0/24", "deny all");
    assert_eq!(status(&service, probe()), 403);
    assert_eq!(seen.take(), ["banned access  ip:203.0.113.0/24"]);
}

#[test]
fn a_trusted_proxy_can_be_on_a_unix_socket() {
    let limits = Limits::new();
    let header = TrustedHeader::new("x-internal", []);
    let over_unix = || {
        let request = Request::builder().extension(UnixPeer).body(()).unwrap();
        with(request, "x-internal", "probe")
    };
    let service = layer(&limits, header.clone()).layer(nothing().layer(Counting::default()));
    assert_eq!(status(&service, over_unix()), 429);
    let service = layer(&limits, header.trust_unix_socket());
    let service = service.layer(nothing().layer(Counting::default()));
    assert_eq!(status(&service, over_unix()), 200);
}
