//! Who a request is charged to.

use std::net::SocketAddr;

use axum::extract::connect_info::{ConnectInfo, MockConnectInfo};
use http::Request;
use http::header::HeaderValue;
use tonic::transport::server::TcpConnectInfo;
use tower::Layer;
use tower_admission::extract::{ForwardingHeader, IpNet, KeyExtractor};
use tower_admission::{
    ApiKey, BearerToken, ByToken, ClientIp, Key, Quota, RateLimitByTokenLayer, RateLimitLayer,
    RequestHead, Shared,
};

use crate::common::{Counting, bearer, from_peer, peer, request, status};

/// The key of a request from 192.0.2.1 with these headers.
fn key(extractor: impl KeyExtractor, headers: &[(&str, &str)]) -> Option<Key> {
    key_from("192.0.2.1", extractor, headers)
}

fn key_from(ip: &str, extractor: impl KeyExtractor, headers: &[(&str, &str)]) -> Option<Key> {
    let mut builder = Request::builder().extension(peer(ip));
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    let request = builder.body(()).unwrap();
    extractor.extract(RequestHead::from(&request))
}

fn token(token: &str) -> Option<Key> {
    Some(Key::new("bearer", token.as_bytes()))
}

fn api_key(value: &str) -> Option<Key> {
    Some(Key::new("api-key", value.as_bytes()))
}

fn ip(ip: &str) -> Option<Key> {
    Some(Key::ip(ip.parse().unwrap()))
}

#[test]
fn a_bearer_token_comes_first() {
    let by = ByToken::default;
    let both = [("authorization", "Bearer abc"), ("x-api-key", "k")];
    assert_eq!(key(by(), &both), token("abc"));
    assert_eq!(key(by(), &[("authorization", "bEaReR abc")]), token("abc"));
    assert_eq!(
        key(by(), &[("authorization", "Bearer   abc  ")]),
        token("abc")
    );
}

#[test]
fn then_an_api_key() {
    let by = ByToken::default;
    assert_eq!(key(by(), &[("x-api-key", "k")]), api_key("k"));
    assert_eq!(key(by(), &[("x-api-key", " k ")]), api_key("k"));
    let custom = by().api_key(ApiKey::header("x-client-token"));
    let both = [("x-client-token", "c"), ("x-api-key", "k")];
    assert_eq!(key(custom, &both), api_key("c"));
}

#[test]
fn then_the_address() {
    assert_eq!(key(ByToken::default(), &[]), ip("192.0.2.1"));
    assert_eq!(key(BearerToken, &[]), None);
    assert_eq!(key(ApiKey::default(), &[]), None);
}

#[test]
fn what_is_no_bearer_token_falls_through() {
    for value in [
        "Basic dXNlcjpwYXNz",
        "Bearer",
        "Bearer ",
        "Bearer a b",
        "Bearer a,b",
        "Bearer =",
        "Bearer \"quoted\"",
        "Bearer\tabc",
        "Token abc",
        "abc",
        "",
        "Bearerabc",
        "Bearer a=b",
    ] {
        let headers = [("authorization", value), ("x-api-key", "k")];
        assert_eq!(key(ByToken::default(), &headers), api_key("k"), "{value:?}");
        assert_eq!(
            key(ByToken::default(), &headers[..1]),
            ip("192.0.2.1"),
            "{value:?}"
        );
    }
}

#[test]
fn several_credentials_of_a_kind_are_none() {
    let twice = [("authorization", "Bearer a"), ("authorization", "Bearer b")];
    assert_eq!(key(ByToken::default(), &twice), ip("192.0.2.1"));
    let with_key = [twice[0], twice[1], ("x-api-key", "k")];
    assert_eq!(key(ByToken::default(), &with_key), api_key("k"));
    let keys = [("x-api-key", "a"), ("x-api-key", "b")];
    assert_eq!(key(ByToken::default(), &keys), ip("192.0.2.1"));
    assert_eq!(
        key(ByToken::default(), &[("x-api-key", " ")]),
        ip("192.0.2.1")
    );
}

#[test]
fn equal_secrets_of_different_kinds_are_different_keys() {
    assert_ne!(token("x"), api_key("x"));
    assert_ne!(token("x"), token("X"));
}

#[test]
fn extractors_are_closures_and_chains() {
    let by_path = |head: RequestHead<'_>| {
        let path = head.uri.path().strip_prefix("/org/")?;
        Some(Key::id("org", path))
    };
    let chain = by_path.or(BearerToken).or(Shared);
    let org = Request::get("/org/acme").body(()).unwrap();
    let extracted = chain.extract(RequestHead::from(&org));
    assert_eq!(extracted, Some(Key::id("org", "acme")));
    assert_eq!(chain.extract(RequestHead::from(&bearer("t"))), token("t"));
    assert_eq!(
        chain.extract(RequestHead::from(&request())),
        Some(Key::SHARED)
    );
}

fn behind(trusted: &[&str]) -> ClientIp {
    ClientIp::forwarded_by(trusted.iter().map(|net| net.parse::<IpNet>().unwrap()))
}

#[test]
fn forwarding_headers_count_only_from_trusted_proxies() {
    let xff = [
        ("x-forwarded-for", "198.51.100.7"),
        ("forwarded", "for=198.51.100.8"),
    ];
    assert_eq!(key(ClientIp::peer(), &xff), ip("192.0.2.1"));
    assert_eq!(key(behind(&["10.0.0.0/8"]), &xff), ip("192.0.2.1"));
    assert_eq!(key(behind(&[]), &xff), ip("192.0.2.1"));
    assert_eq!(key(behind(&["192.0.2.0/24"]), &xff), ip("198.51.100.7"));
    let mapped = |length: u8| behind(&[&format!("::ffff:192.0.2.0/{length}")]);
    assert_eq!(key(mapped(120), &xff), ip("198.51.100.7"));
    assert_eq!(key(mapped(128), &xff), ip("192.0.2.1"));
    // Some other network of IPv6.
    assert_eq!(key(mapped(90), &xff), ip("192.0.2.1"));
    let forwarded = behind(&["192.0.2.0/24"]).header(ForwardingHeader::Forwarded);
    assert_eq!(key(forwarded, &xff), ip("198.51.100.8"), "one header only");
}

#[test]
fn the_walk_is_from_the_right_past_trusted_hops() {
    let by = || behind(&["192.0.2.0/24", "10.0.0.0/8"]);
    for (chain, client) in [
        ("198.51.100.7", "198.51.100.7"),
        ("1.1.1.1, 198.51.100.7, 10.0.0.2", "198.51.100.7"),
        ("10.9.9.9, 198.51.100.7", "198.51.100.7"),
        ("198.51.100.7,10.0.0.2 ,\t10.0.0.3", "198.51.100.7"),
        ("198.51.100.7:8080, 10.0.0.2:1", "198.51.100.7"),
        ("10.0.0.2, 10.0.0.3", "10.0.0.2"),
        // At what is no address the walk ends: left of it anything may be made up.
        ("198.51.100.7, unknown, 10.0.0.3", "10.0.0.3"),
        ("198.51.100.7, , 10.0.0.3", "10.0.0.3"),
        ("198.51.100.7, 10.0.0.256, 10.0.0.3", "10.0.0.3"),
        ("198.51.100.7, junk", "192.0.2.1"),
        ("", "192.0.2.1"),
        (",", "192.0.2.1"),
    ] {
        assert_eq!(
            key(by(), &[("x-forwarded-for", chain)]),
            ip(client),
            "{chain:?}"
        );
    }
}

#[test]
fn several_lines_are_one_chain() {
    let by = behind(&["192.0.2.0/24", "10.0.0.0/8"]);
    let lines = [
        ("x-forwarded-for", "1.1.1.1"),
        ("x-forwarded-for", "198.51.100.7, 10.0.0.2"),
        ("x-forwarded-for", "10.0.0.3"),
    ];
    assert_eq!(key(by, &lines), ip("198.51.100.7"));
}

#[test]
fn forwarded_is_read_as_rfc_7239_writes_it() {
    let by = || behind(&["192.0.2.0/24", "10.0.0.0/8"]).header(ForwardingHeader::Forwarded);
    for (chain, client) in [
        ("for=198.51.100.7", "198.51.100.7"),
        (
            "For=\"198.51.100.7:4711\";proto=https;by=10.0.0.1",
            "198.51.100.7",
        ),
        (
            "for=1.1.1.1, for=198.51.100.7, for=10.0.0.2;host=\"a,b;c\"",
            "198.51.100.7",
        ),
        ("for=198.51.100.7, for=_hidden, for=10.0.0.2", "10.0.0.2"),
        ("for=198.51.100.7, for=unknown", "192.0.2.1"),
        ("for=198.51.100.7;for=1.1.1.1", "192.0.2.1"),
        ("for=198.51.100.7, for=\"10.0.0.2", "192.0.2.1"),
        ("proto=https", "192.0.2.1"),
        ("198.51.100.7", "192.0.2.1"),
    ] {
        assert_eq!(key(by(), &[("forwarded", chain)]), ip(client), "{chain:?}");
    }
    let v6 = key(by(), &[("forwarded", "for=\"[2001:db8:cafe::17]:4711\"")]);
    let network = "2001:db8:cafe::".parse().unwrap();
    assert_eq!(v6, Some(Key::ip_network(network, 64)));
}

#[test]
fn mapped_ipv4_is_ipv4_everywhere() {
    let by = || behind(&["10.0.0.0/8"]);
    let key = |ip, headers: &[_]| key_from(ip, by(), headers);
    assert_eq!(key("::ffff:192.0.2.1", &[]), ip("192.0.2.1"));
    assert_ne!(key("::ffff:192.0.2.1", &[]), key("::ffff:192.0.2.2", &[]));
    let mapped = [("x-forwarded-for", "::ffff:198.51.100.7, ::ffff:10.0.0.2")];
    assert_eq!(key("::ffff:10.0.0.1", &mapped), ip("198.51.100.7"));
}

#[test]
fn ipv6_counts_by_its_64() {
    let by = ClientIp::peer;
    let key = |ip, by| key_from(ip, by, &[]);
    assert_eq!(key("2001:db8::1", by()), key("2001:db8::ffff:2", by()));
    assert_ne!(key("2001:db8::1", by()), key("2001:db8:0:1::1", by()));
    let whole = || by().v6_prefix(128);
    assert_ne!(key("2001:db8::1", whole()), key("2001:db8::2", whole()));
    let wide = || by().v6_prefix(48);
    assert_eq!(key("2001:db8::1", wide()), key("2001:db8:0:1::1", wide()));
    assert_eq!(key("192.0.2.1", by().v6_prefix(0)), ip("192.0.2.1"));
    let absurd = by().v6_prefix(255);
    assert_eq!(key("2001:db8::1", absurd), key("2001:db8::1", whole()));
}

#[test]
fn an_ipv6_proxy_can_be_trusted() {
    let by = behind(&["2001:db8::/32"]);
    let headers = [("x-forwarded-for", "198.51.100.7, 2001:db8:1::1")];
    assert_eq!(key_from("2001:db8::1", by, &headers), ip("198.51.100.7"));
}

#[test]
fn the_peer_is_found_where_the_servers_put_it() {
    let address: SocketAddr = "192.0.2.1:4711".parse().unwrap();
    let mut axum = request();
    axum.extensions_mut().insert(ConnectInfo(address));
    let mut mock = request();
    mock.extensions_mut().insert(MockConnectInfo(address));
    let mut tonic = request();
    tonic.extensions_mut().insert(TcpConnectInfo {
        local_addr: None,
        remote_addr: Some(address),
    });
    for request in [axum, mock, tonic, from_peer("192.0.2.1")] {
        let key = ClientIp::peer().extract(RequestHead::from(&request));
        assert_eq!(key, ip("192.0.2.1"));
    }
}

#[tokio::test]
async fn without_an_address_all_share_one_key_and_none_is_a_500() {
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(2));
    let service = layer.layer(Counting::default());
    assert_eq!(status(&service, request()).await, 200);
    assert_eq!(status(&service, request()).await, 200);
    assert_eq!(status(&service, request()).await, 429);
    assert_eq!(status(&service, bearer("t")).await, 200);
    assert_eq!(status(&service, from_peer("192.0.2.1")).await, 200);
    assert_eq!(layer.limiter().peek(&Key::UNKNOWN).remaining(), Some(0));

    let nobody = |_: RequestHead<'_>| None;
    let service = RateLimitLayer::by(nobody, Quota::per_hour(1)).layer(Counting::default());
    assert_eq!(status(&service, from_peer("192.0.2.1")).await, 200);
    assert_eq!(status(&service, bearer("t")).await, 429);
}

#[tokio::test]
async fn different_tokens_do_not_affect_each_other() {
    let service = RateLimitByTokenLayer::new(Quota::per_hour(1)).layer(Counting::default());
    for token in ["a", "b", "c"] {
        let from_one_ip = || {
            let mut request = from_peer("192.0.2.1");
            let value = HeaderValue::try_from(format!("Bearer {token}")).unwrap();
            request.headers_mut().insert("authorization", value);
            request
        };
        assert_eq!(status(&service, from_one_ip()).await, 200);
        assert_eq!(status(&service, from_one_ip()).await, 429);
    }
}

#[test]
fn no_key_shows_a_credential() {
    for key in [token("hunter2"), api_key("hunter2")] {
        let shown = format!("{key:?} {:#?} {}", key, key.unwrap().kind());
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
