//! The keys that requests are charged to.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use axum::extract::connect_info::{ConnectInfo, MockConnectInfo};
use http::Request;
use http::header::HeaderValue;
use tonic::transport::server::TcpConnectInfo;
use tower::{Layer, Service};
use tower_admission::extract::{ForwardingHeader, IpNet, KeyExtractor};
use tower_admission::{
    ApiKey, BearerToken, ByToken, ClientIp, ConcurrencyLimitLayer, Extracted, Key, Quota,
    RateLimitByTokenLayer, RateLimitLayer, RequestHead, Shared,
};

use crate::common::{Counting, bearer, from_peer, ok, peer, request, status, with_header};

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
    extractor.extract(RequestHead::from(&request)).key()
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
fn a_bearer_token_is_charged_first() {
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
fn an_api_key_is_charged_without_a_bearer_token() {
    let by = ByToken::default;
    assert_eq!(key(by(), &[("x-api-key", "k")]), api_key("k"));
    assert_eq!(key(by(), &[("x-api-key", " k ")]), api_key("k"));
    let custom = by().api_key(ApiKey::header("x-client-token"));
    let both = [("x-client-token", "c"), ("x-api-key", "k")];
    assert_eq!(key(custom, &both), api_key("c"));
}

#[test]
fn the_address_is_charged_without_credentials() {
    assert_eq!(key(ByToken::default(), &[]), ip("192.0.2.1"));
    assert_eq!(key(BearerToken, &[]), None);
    assert_eq!(key(ApiKey::default(), &[]), None);
}

/// Values of `Authorization` that are not exactly one bearer token.
const UNUSABLE: [&str; 14] = [
    "Basic dXNlcjpwYXNz",
    "Bearer",
    "Bearer ",
    "Bearer a b",
    "Bearer a,b",
    "Bearer tok, Bearer tok",
    "Bearer =",
    "Bearer \"quoted\"",
    "Bearer\tabc",
    "Token abc",
    "abc",
    "",
    "Bearerabc",
    "Bearer a=b",
];

/// Extractors that prefer a bearer token, then an API key, then the address.
fn by_token_chains() -> [Arc<dyn KeyExtractor>; 3] {
    [
        Arc::new(ByToken::default()),
        Arc::new(BearerToken.or(ApiKey::default()).or(ClientIp::peer())),
        Arc::new(BearerToken.or(ApiKey::default().or(ClientIp::peer()))),
    ]
}

#[test]
fn an_unusable_authorization_is_charged_to_the_address() {
    for extractor in by_token_chains() {
        for value in UNUSABLE {
            let headers = [("authorization", value), ("x-api-key", "k")];
            let found = [&headers[..], &headers[..1]].map(|headers| {
                let extractor = extractor.clone();
                key(
                    move |head: RequestHead<'_>| extractor.extract(head),
                    headers,
                )
            });
            assert_eq!(found, [ip("192.0.2.1"); 2], "{value:?}");
        }
        let twice = [
            ("authorization", "Bearer a"),
            ("authorization", "Bearer a"),
            ("x-api-key", "k"),
        ];
        let extractor = move |head: RequestHead<'_>| extractor.extract(head);
        assert_eq!(key(extractor, &twice), ip("192.0.2.1"));
    }
}

#[test]
fn a_repeated_or_empty_api_key_is_charged_to_the_address() {
    let keys = [("x-api-key", "a"), ("x-api-key", "b")];
    assert_eq!(key(ByToken::default(), &keys), ip("192.0.2.1"));
    for value in ["", " "] {
        let empty = [("x-api-key", value)];
        assert_eq!(key(ByToken::default(), &empty), ip("192.0.2.1"));
        let made_up = ApiKey::default()
            .or(ApiKey::header("x-other"))
            .or(ClientIp::peer());
        let headers = [("x-api-key", value), ("x-other", "k")];
        assert_eq!(key(made_up, &headers), ip("192.0.2.1"));
    }
}

#[test]
fn an_extractor_without_an_address_reports_an_unusable_credential() {
    let head = with_header("authorization", "Basic dXNlcjpwYXNz");
    let extract = |extractor: &dyn KeyExtractor| extractor.extract(RequestHead::from(&head));
    assert_eq!(extract(&BearerToken), Extracted::Unusable);
    assert_eq!(extract(&BearerToken.or(Shared)), Extracted::Unusable);
    assert_eq!(extract(&ByToken::default()), Extracted::Unusable);
    assert_eq!(extract(&ByToken::default().or(Shared)), Extracted::Unusable);
    assert_eq!(extract(&ByToken::api_key_only()), Extracted::Absent);
    let closure = |_: RequestHead<'_>| Extracted::Unusable;
    assert_eq!(extract(&closure.or(Shared)), Extracted::Unusable);
    let last = (|_: RequestHead<'_>| None::<Key>).or(ClientIp::peer().or(closure));
    assert_eq!(extract(&last), Extracted::Unusable);
}

#[test]
fn a_credential_that_the_application_does_not_accept_is_ignored() {
    let both = [("authorization", "Bearer abc"), ("x-api-key", "k")];
    assert_eq!(key(ByToken::bearer_only(), &both), token("abc"));
    assert_eq!(key(ByToken::bearer_only(), &both[1..]), ip("192.0.2.1"));
    assert_eq!(key(ByToken::api_key_only(), &both), api_key("k"));
    assert_eq!(key(ByToken::api_key_only(), &both[..1]), ip("192.0.2.1"));
    for value in UNUSABLE {
        let unusable = [("authorization", value), ("x-api-key", "k")];
        assert_eq!(key(ByToken::bearer_only(), &unusable), ip("192.0.2.1"));
        assert_eq!(key(ByToken::api_key_only(), &unusable), api_key("k"));
    }
}

/// A request from 192.0.2.1 with an `Authorization` header for each value, and an API key that no
/// other request has.
fn made_up(authorization: &[&[u8]], number: usize) -> Request<()> {
    let mut request = from_peer("192.0.2.1");
    for value in authorization {
        let value = HeaderValue::from_bytes(value).unwrap();
        request.headers_mut().append("authorization", value);
    }
    request.headers_mut().insert("x-api-key", number.into());
    request
}

fn unusable_headers() -> Vec<Vec<&'static [u8]>> {
    let mut headers: Vec<_> = UNUSABLE.map(|value| vec![value.as_bytes()]).into();
    headers.push(vec![b"Bearer valid", b"Bearer valid"]);
    headers.push(vec![b"Bearer \xff"]);
    headers
}

#[tokio::test]
async fn made_up_api_keys_do_not_evade_a_rate_limit() {
    for authorization in unusable_headers() {
        let layer =
            RateLimitByTokenLayer::new(Quota::per_minute(10)).guard_by_ip(Quota::per_minute(100));
        let service = layer.layer(Counting::default());
        let mut admitted = 0;
        for number in 0..100 {
            let request = made_up(&authorization, number);
            admitted += usize::from(status(&service, request).await == 200);
        }
        assert_eq!(admitted, 10, "{authorization:?}");
    }
}

#[tokio::test]
async fn made_up_api_keys_do_not_evade_a_concurrency_limit() {
    let (held, _waiting) = tokio::sync::watch::channel(());
    for authorization in unusable_headers() {
        let layer = ConcurrencyLimitLayer::new(0).per_key(ByToken::default(), 2);
        let waits = held.subscribe();
        let mut service = layer.layer(tower::service_fn(move |_: Request<()>| {
            let mut waits = waits.clone();
            async move {
                let _ = waits.changed().await;
                Ok::<_, Infallible>(ok())
            }
        }));
        let mut calls: Vec<_> = (0..10)
            .map(|number| tokio_test::task::spawn(service.call(made_up(&authorization, number))))
            .collect();
        let mut rejected = 0;
        for call in &mut calls {
            let answered = call.poll();
            let is_rejected =
                matches!(answered, Poll::Ready(Ok(response)) if response.status() == 429);
            rejected += usize::from(is_rejected);
        }
        assert_eq!(rejected, 8, "{authorization:?}");
    }
}

#[test]
fn equal_secrets_of_different_kinds_are_different_keys() {
    assert_ne!(token("x"), api_key("x"));
    assert_ne!(token("x"), token("X"));
}

#[test]
fn an_extractor_can_be_a_closure_or_a_chain() {
    let by_path = |head: RequestHead<'_>| {
        let path = head.uri.path().strip_prefix("/org/")?;
        Some(Key::id("org", path))
    };
    let chain = by_path.or(BearerToken).or(Shared);
    let org = Request::get("/org/acme").body(()).unwrap();
    let extracted = chain.extract(RequestHead::from(&org));
    assert_eq!(extracted, Extracted::Key(Key::id("org", "acme")));
    let extracted = chain.extract(RequestHead::from(&bearer("t")));
    assert_eq!(extracted, token("t").into());
    let extracted = chain.extract(RequestHead::from(&request()));
    assert_eq!(extracted, Extracted::Key(Key::SHARED));
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
fn trusted_hops_are_skipped_from_right_to_left() {
    let by = || behind(&["192.0.2.0/24", "10.0.0.0/8"]);
    for (chain, client) in [
        ("198.51.100.7", "198.51.100.7"),
        ("1.1.1.1, 198.51.100.7, 10.0.0.2", "198.51.100.7"),
        ("10.9.9.9, 198.51.100.7", "198.51.100.7"),
        ("198.51.100.7,10.0.0.2 ,\t10.0.0.3", "198.51.100.7"),
        ("198.51.100.7:8080, 10.0.0.2:1", "198.51.100.7"),
        ("10.0.0.2, 10.0.0.3", "10.0.0.2"),
        // The walk ends at an entry that is not an address: entries further left may be made up.
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
fn several_forwarding_lines_are_one_list() {
    let by = behind(&["192.0.2.0/24", "10.0.0.0/8"]);
    let lines = [
        ("x-forwarded-for", "1.1.1.1"),
        ("x-forwarded-for", "198.51.100.7, 10.0.0.2"),
        ("x-forwarded-for", "10.0.0.3"),
    ];
    assert_eq!(key(by, &lines), ip("198.51.100.7"));
}

#[test]
fn the_forwarded_header_is_read_by_rfc_7239() {
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
fn a_mapped_ipv4_address_is_ipv4_everywhere() {
    let by = || behind(&["10.0.0.0/8"]);
    let key = |ip, headers: &[_]| key_from(ip, by(), headers);
    assert_eq!(key("::ffff:192.0.2.1", &[]), ip("192.0.2.1"));
    assert_ne!(key("::ffff:192.0.2.1", &[]), key("::ffff:192.0.2.2", &[]));
    let mapped = [("x-forwarded-for", "::ffff:198.51.100.7, ::ffff:10.0.0.2")];
    assert_eq!(key("::ffff:10.0.0.1", &mapped), ip("198.51.100.7"));
}

#[test]
fn ipv6_clients_are_grouped_by_their_64() {
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
fn the_peer_is_found_in_the_extensions_of_each_server() {
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
        assert_eq!(key.key(), ip("192.0.2.1"));
    }
}

#[tokio::test]
async fn requests_without_an_address_share_one_key() {
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(2));
    let service = layer.layer(Counting::default());
    assert_eq!(status(&service, request()).await, 200);
    assert_eq!(status(&service, request()).await, 200);
    assert_eq!(status(&service, request()).await, 429);
    assert_eq!(status(&service, bearer("t")).await, 200);
    assert_eq!(status(&service, from_peer("192.0.2.1")).await, 200);
    assert_eq!(
        layer
            .limiter()
            .peek(&Key::UNKNOWN)
            .now()
            .unwrap()
            .remaining(),
        Some(0)
    );

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
