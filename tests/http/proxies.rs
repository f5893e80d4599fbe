//! Addresses and identities forwarded by proxies.

use std::net::SocketAddr;

use axum::routing::get as route;
use axum::{Extension, Router};
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::server::UdsConnectInfo;
use tower_admission::extract::{ForwardingHeader, IpNet, TrustedHeader};
use tower_admission::{
    ClientIp, Extracted, Key, KeyExtractor, PeerAddr, Policy, Quota, RateLimitLayer, RequestHead,
    UnixPeer,
};

use crate::common::{Counting, from_peer, peer, status};
use tower::Layer;

fn head(ip: &str, headers: &[(&str, &str)]) -> Request<()> {
    with_headers(Request::builder().extension(peer(ip)), headers)
}

fn over_unix(headers: &[(&str, &str)]) -> Request<()> {
    with_headers(Request::builder().extension(UnixPeer), headers)
}

fn with_headers(mut builder: http::request::Builder, headers: &[(&str, &str)]) -> Request<()> {
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap()
}

fn key(extractor: &impl KeyExtractor, request: &Request<()>) -> Option<Key> {
    extractor.extract(RequestHead::from(request)).key()
}

fn ip(ip: &str) -> Option<Key> {
    Some(Key::ip(ip.parse().unwrap()))
}

fn networks<const N: usize>(networks: [&str; N]) -> [IpNet; N] {
    networks.map(|network| network.parse().unwrap())
}

#[test]
fn hops_count_from_the_right_and_the_peer_is_charged_when_there_are_fewer() {
    for (hops, list, client) in [
        (0, "198.51.100.7", "192.0.2.1"),
        (1, "198.51.100.7", "198.51.100.7"),
        (1, "made-up, 198.51.100.7", "198.51.100.7"),
        (2, "203.0.113.5, 198.51.100.7", "203.0.113.5"),
        (2, "made-up, 203.0.113.5, 198.51.100.7:80", "203.0.113.5"),
        (2, "198.51.100.7", "192.0.2.1"),
        (1, "", "192.0.2.1"),
        (1, "198.51.100.7, unknown", "192.0.2.1"),
        (2, "unknown, 198.51.100.7", "192.0.2.1"),
        (255, "198.51.100.7", "192.0.2.1"),
    ] {
        let by = ClientIp::forwarded_hops(hops);
        let request = head("192.0.2.1", &[("x-forwarded-for", list)]);
        assert_eq!(key(&by, &request), ip(client), "{hops} {list:?}");
    }
    let lines = [
        ("x-forwarded-for", "203.0.113.5"),
        ("x-forwarded-for", "198.51.100.7"),
    ];
    let by = ClientIp::forwarded_hops(2);
    assert_eq!(key(&by, &head("192.0.2.1", &lines)), ip("203.0.113.5"));
    assert_eq!(key(&by, &head("192.0.2.1", &[])), ip("192.0.2.1"));
    let by = ClientIp::forwarded_hops(1).header(ForwardingHeader::Forwarded);
    let forwarded = [("forwarded", "for=made-up, for=198.51.100.7")];
    assert_eq!(key(&by, &head("192.0.2.1", &forwarded)), ip("198.51.100.7"));
}

#[test]
fn a_single_address_counts_only_from_a_trusted_proxy() {
    let header = || ForwardingHeader::single_address("cf-connecting-ip");
    let by = ClientIp::forwarded_by(networks(["192.0.2.0/24"])).header(header());
    let name = "cf-connecting-ip";
    for (headers, client) in [
        (&[(name, "198.51.100.7")][..], "198.51.100.7"),
        (&[(name, " 198.51.100.7 ")], "198.51.100.7"),
        // Trusted addresses are not skipped: there is a single entry.
        (&[(name, "192.0.2.9")], "192.0.2.9"),
        (&[(name, "64:ff9b::198.51.100.7")], "198.51.100.7"),
        (&[], "192.0.2.1"),
        (&[(name, "")], "192.0.2.1"),
        (&[(name, "unknown")], "192.0.2.1"),
        (&[(name, "198.51.100.7, 198.51.100.8")], "192.0.2.1"),
        (
            &[(name, "198.51.100.7"), (name, "198.51.100.7")],
            "192.0.2.1",
        ),
        (&[("x-forwarded-for", "198.51.100.7")], "192.0.2.1"),
    ] {
        let request = head("192.0.2.1", headers);
        assert_eq!(key(&by, &request), ip(client), "{headers:?}");
    }
    let made_up = head("203.0.113.5", &[(name, "198.51.100.7")]);
    assert_eq!(key(&by, &made_up), ip("203.0.113.5"));
    for (hops, client) in [(0, "203.0.113.5"), (1, "198.51.100.7")] {
        let by = ClientIp::forwarded_hops(hops).header(header());
        assert_eq!(key(&by, &made_up), ip(client));
    }
}

#[test]
fn a_peer_on_a_unix_socket_is_a_proxy_only_when_that_is_declared() {
    let xff = [("x-forwarded-for", "198.51.100.7, 10.0.0.2")];
    let untrusted = ClientIp::forwarded_by(networks(["10.0.0.0/8"]));
    let trusted = untrusted.clone().trust_unix_socket();
    assert_eq!(key(&untrusted, &over_unix(&xff)), None);
    assert_eq!(key(&trusted, &over_unix(&xff)), ip("198.51.100.7"));
    assert_eq!(key(&trusted, &over_unix(&[])), None);
    let only_unix = ClientIp::forwarded_by([]).trust_unix_socket();
    assert_eq!(key(&only_unix, &over_unix(&xff)), ip("10.0.0.2"));
    assert_eq!(
        key(&ClientIp::peer().trust_unix_socket(), &over_unix(&xff)),
        None
    );
    let single = only_unix
        .clone()
        .header(ForwardingHeader::single_address("x-real-ip"));
    let real_ip = [("x-real-ip", "198.51.100.7")];
    assert_eq!(key(&single, &over_unix(&real_ip)), ip("198.51.100.7"));
    assert_eq!(
        key(&ClientIp::forwarded_hops(1), &over_unix(&xff)),
        ip("10.0.0.2")
    );

    // A server that passes on no address at all does not look like a Unix socket.
    let unknown = with_headers(Request::builder(), &xff);
    assert_eq!(key(&trusted, &unknown), None);
    // An address takes precedence over the mark.
    let mut both = over_unix(&xff);
    both.extensions_mut().insert(peer("192.0.2.1"));
    assert_eq!(key(&trusted, &both), ip("192.0.2.1"));
    let mut tonic = with_headers(Request::builder(), &xff);
    tonic.extensions_mut().insert(UdsConnectInfo {
        peer_addr: None,
        peer_cred: None,
    });
    assert_eq!(key(&trusted, &tonic), ip("198.51.100.7"));
}

#[tokio::test]
async fn clients_behind_a_unix_socket_have_separate_budgets() {
    let path = std::env::temp_dir().join(format!("tower-admission-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let client = ClientIp::forwarded_by([]).trust_unix_socket();
    let app = Router::new()
        .route("/", route(|| async { "ok" }))
        .layer(RateLimitLayer::by(client, Quota::per_hour(1)))
        .layer(Extension(UnixPeer));
    tokio::spawn(async move { axum::serve(listener, app).await });
    let mut answers = Vec::new();
    for client in ["198.51.100.7", "198.51.100.8", "198.51.100.7"] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let request = format!(
            "GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: {client}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answers.push(answer["HTTP/1.1 ".len()..][..3].to_owned());
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(answers, ["200", "200", "429"]);
}

#[test]
fn an_embedded_ipv4_address_is_not_a_trusted_proxy() {
    let by = ClientIp::forwarded_by(networks(["10.0.0.0/8"]));
    let xff = [("x-forwarded-for", "198.51.100.7")];
    for (address, inside) in [
        ("64:ff9b::10.0.0.1", "10.0.0.1"),
        ("2002:a00:1::1", "10.0.0.1"),
        ("2001:0:4136:e378:8000:63bf:f5ff:fffe", "10.0.0.1"),
    ] {
        assert_eq!(key(&by, &head(address, &xff)), ip(inside), "{address}");
    }
    let listed = ClientIp::forwarded_by(networks(["64:ff9b::10.0.0.0/104"]));
    let request = head("64:ff9b::10.0.0.1", &xff);
    assert_eq!(key(&listed, &request), ip("198.51.100.7"));
}

#[test]
fn an_embedded_ipv4_address_is_charged() {
    let by = ClientIp::peer().v6_prefix(48);
    let client = ip("192.0.2.33");
    for address in [
        "192.0.2.33",
        "64:ff9b::192.0.2.33",
        "2002:c000:221:1::1",
        "2002:c000:221:ffff::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdde",
        "2001:0:1111:1111:8000:63bf:3fff:fdde",
    ] {
        assert_eq!(key(&by, &head(address, &[])), client, "{address}");
        let xff = [("x-forwarded-for", address)];
        let behind = ClientIp::forwarded_hops(1);
        assert_eq!(key(&behind, &head("192.0.2.1", &xff)), client, "{address}");
    }
    let local = |n: u16| head(&format!("64:ff9b:1::192.0.2.{n}"), &[]);
    assert_eq!(key(&by, &local(1)), key(&by, &local(2)));
    assert_ne!(key(&by, &local(1)), ip("192.0.2.1"));
}

#[tokio::test]
async fn a_6to4_host_has_one_budget() {
    let layer = RateLimitLayer::by(ClientIp::peer(), Quota::per_hour(2));
    let service = layer.layer(Counting::default());
    let mut admitted = 0;
    for network in 0..20 {
        let request = from_peer(&format!("2002:c000:221:{network:x}::1"));
        admitted += usize::from(status(&service, request).await == 200);
    }
    assert_eq!(admitted, 2);
}

#[tokio::test]
async fn a_second_limit_bounds_the_networks_of_one_customer() {
    let layer = RateLimitLayer::by(ClientIp::peer(), Policy::new("address", Quota::per_hour(2)))
        .and_by(
            ClientIp::peer().v6_prefix(48),
            Policy::new("network", Quota::per_hour(5)),
        );
    let service = layer.layer(Counting::default());
    let mut admitted = 0;
    for network in 0..20 {
        let request = from_peer(&format!("2001:db8:0:{network:x}::1"));
        admitted += usize::from(status(&service, request).await == 200);
    }
    assert_eq!(admitted, 5);
}

#[test]
fn an_identity_in_a_header_counts_only_from_a_trusted_proxy() {
    let trusted = networks(["192.0.2.0/24"]);
    let user = || TrustedHeader::new("x-user", trusted);
    let by = user().or(ClientIp::forwarded_by(trusted));
    let alice = Some(Key::id("x-user", "alice"));
    let from = |ip, headers: &[(&str, &str)]| key(&by, &head(ip, headers));
    let client = ("x-forwarded-for", "198.51.100.7");
    assert_eq!(from("192.0.2.1", &[("x-user", "alice"), client]), alice);
    assert_eq!(from("192.0.2.1", &[("x-user", " alice "), client]), alice);
    assert_eq!(from("::ffff:192.0.2.1", &[("x-user", "alice")]), alice);
    assert_eq!(from("192.0.2.1", &[client]), ip("198.51.100.7"));
    // Unusable: the address is charged, and no other header is read.
    let chain = user()
        .or(TrustedHeader::new("x-other", trusted))
        .or(ClientIp::forwarded_by(trusted));
    for unusable in [
        &[("x-user", ""), client][..],
        &[("x-user", " "), client],
        &[("x-user", "alice"), ("x-user", "alice"), client],
    ] {
        let headers = [unusable, &[("x-other", "bob")]].concat();
        let request = head("192.0.2.1", &headers);
        assert_eq!(key(&chain, &request), ip("198.51.100.7"), "{unusable:?}");
        let extracted = user().extract(RequestHead::from(&request));
        assert_eq!(extracted, Extracted::Unusable);
    }
    // From another peer the header is ignored, whatever its value.
    for made_up in [
        &[("x-user", "alice")][..],
        &[("x-user", "")],
        &[("x-user", "a"), ("x-user", "b")],
    ] {
        assert_eq!(from("203.0.113.5", made_up), ip("203.0.113.5"));
    }
    let nobody = with_headers(Request::builder(), &[("x-user", "alice")]);
    assert_eq!(key(&by, &nobody), None);
    let unix = over_unix(&[("x-user", "alice")]);
    assert_eq!(key(&by, &unix), None);
    assert_eq!(key(&user().trust_unix_socket(), &unix), alice);
}

#[tokio::test]
async fn made_up_identities_from_one_address_share_its_budget() {
    let proxies = networks(["10.0.0.0/8"]);
    let by = TrustedHeader::new("x-user", proxies).or(ClientIp::forwarded_by(proxies));
    let service = RateLimitLayer::by(by, Quota::per_hour(3)).layer(Counting::default());
    let address: SocketAddr = "203.0.113.5:1".parse().unwrap();
    let mut admitted = 0;
    for number in 0..50 {
        let mut request = Request::new(());
        request.extensions_mut().insert(PeerAddr(address));
        request.headers_mut().insert("x-user", number.into());
        admitted += usize::from(status(&service, request).await == 200);
    }
    assert_eq!(admitted, 3);
}
