//! TLS with certificates that the tests create.

use std::cell::Cell;
use std::path::Path;

use rcgen::date_time_ymd;
use rustls::crypto::{CryptoProvider, GetRandomFailed, SecureRandom, ring};
use tower_admission::Quota;
use tower_admission::store::FailureKind;
use tower_admission::store::RateStore;
use tower_admission_redis::{RedisStore, RedisTls};

use super::certificates::Authority;
use super::server::{Server, store, until};
use super::user;

/// Why there is no connection. A busy machine may only find out on another try.
async fn refusal(store: RedisStore) -> String {
    loop {
        let error = store.ping().await.expect_err("no connection");
        if error.kind() != FailureKind::Timeout {
            assert_eq!(error.kind(), FailureKind::Tls, "{error}");
            return error.to_string();
        }
    }
}

/// Admits one request of a user, and no second one.
async fn decides(store: &RedisStore, name: &str) {
    let buckets = store.open(&[Quota::per_hour(1).into()]);
    let user = user(name);
    let first = buckets.take(&user, 1).await;
    assert!(first.is_admitted() && !first.is_unavailable(), "{first:?}");
    let second = buckets.take(&user, 1).await;
    assert!(
        !second.is_admitted() && !second.is_unavailable(),
        "{second:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_is_made_over_tls() {
    let authority = Authority::new();
    let (_server, port) = authority
        .serve(&authority.issue("server", |_| {}), "no")
        .await;
    for (name, url) in [
        ("by name", format!("rediss://localhost:{port}")),
        ("by address", format!("rediss://127.0.0.1:{port}/1")),
        (
            "resp3",
            format!("rediss://localhost:{port}/2?protocol=resp3"),
        ),
    ] {
        let store = store(&url).tls(authority.trusted()).unwrap();
        store.ping().await.unwrap();
        decides(&store, name).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_untrusted_server_is_rejected_with_the_reason() {
    let authority = Authority::new();
    let (_server, port) = authority
        .serve(&authority.issue("server", |_| {}), "no")
        .await;
    let expired = authority.issue("expired", |params| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    });
    let (_expired, expired) = authority.serve(&expired, "no").await;
    let (right, wrong) = (authority.trusted(), Authority::new().trusted());
    for (port, certificates, cause) in [
        (port, wrong, "UnknownIssuer: the CA"),
        (
            port,
            right.clone().server_name("redis.internal"),
            "not valid for name",
        ),
        (expired, right, "expired"),
    ] {
        let store = store(&format!("rediss://localhost:{port}"));
        let words = refusal(store.tls(certificates).unwrap()).await;
        assert!(words.contains(cause), "{words}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configured_server_name_replaces_the_address() {
    let authority = Authority::new();
    let identity = authority.issue("named", |params| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName(
            "redis.internal".try_into().unwrap(),
        )];
    });
    let (_server, port) = authority.serve(&identity, "no").await;
    let certificates = authority.trusted().server_name("redis.internal");
    let store = store(&format!("rediss://127.0.0.1:{port}"));
    decides(&store.tls(certificates).unwrap(), "alice").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_gets_the_client_certificate() {
    let authority = Authority::new();
    let (_server, port) = authority
        .serve(&authority.issue("server", |_| {}), "yes")
        .await;
    let url = format!("rediss://localhost:{port}");
    let words = refusal(store(&url).tls(authority.trusted()).unwrap()).await;
    assert!(words.contains("CertificateRequired"), "{words}");

    let client = authority.issue("client", |_| {});
    let read = |path: &Path| std::fs::read(path).unwrap();
    let with = |key: &Path| {
        let tls = authority.trusted();
        tls.client_certificate(read(&client.certificate), read(key))
    };
    let certified = store(&url).tls(with(&client.key)).unwrap();
    decides(&certified, "alice").await;

    let other = authority.issue("other", |_| {});
    for unusable in [with(&other.key), with(&client.certificate)] {
        let error = store(&url).tls(unusable).unwrap_err();
        assert_eq!(error.kind(), FailureKind::Configuration);
        assert!(error.to_string().contains("key"), "{error:?}");
    }
}

/// Redis waits for the end of a line, and says nothing to one that is TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_on_a_port_without_tls_suggests_the_cause() {
    let server = Server::start().await;
    for scheme in ["rediss", "rediss+cluster", "rediss+sentinel"] {
        let url = format!("{scheme}://127.0.0.1:{}", server.port);
        let url = url
            + if scheme.ends_with("sentinel") {
                "/s"
            } else {
                ""
            };
        let store = store(&url).tls(Authority::new().trusted()).unwrap();
        let error = store.ping().await.unwrap_err();
        match error.kind() {
            FailureKind::Timeout => assert!(error.to_string().contains("port for TLS"), "{error}"),
            // A random byte was the end of a line.
            kind => assert_eq!(kind, FailureKind::Tls, "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_reached_over_tls() {
    let authority = Authority::new();
    let identity = authority.issue("server", |_| {});
    let cluster = ["--cluster-enabled", "yes", "--tls-cluster", "yes"];
    let (server, port) = authority.serve_with(&identity, "no", &cluster).await;
    server
        .word(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"])
        .await;
    until("the cluster is there", async || {
        let info = server.word(&["CLUSTER", "INFO"]).await;
        info.contains("cluster_state:ok")
    })
    .await;
    let store = store(&format!("rediss+cluster://localhost:{port}"));
    let store = store.tls(authority.trusted()).unwrap();
    store.ping().await.unwrap();
    decides(&store, "alice").await;
}

/// Over TLS the end of a connection is noticed without a call, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_connection_is_replaced_while_it_is_idle() {
    let authority = Authority::new();
    let identity = authority.issue("server", |_| {});
    let (server, port) = authority.serve(&identity, "no").await;
    for protocol in ["resp2", "resp3"] {
        let url = format!("rediss://localhost:{port}/?protocol={protocol}&client_name={protocol}");
        let store = store(&url).tls(authority.trusted()).unwrap();
        decides(&store, protocol).await;
        let connection = async || {
            let clients = server.word(&["CLIENT", "LIST"]).await;
            let name = format!(" name={protocol} ");
            let client = clients.lines().find(|client| client.contains(&name))?;
            let id = client.strip_prefix("id=")?.split(' ').next()?;
            Some(id.to_owned())
        };
        let first = connection().await.unwrap();
        server.word(&["CLIENT", "KILL", "ID", &first]).await;
        until("the store has another connection", async || {
            connection().await.is_some_and(|id| id != first)
        })
        .await;
    }
}

#[test]
fn certificates_need_tls() {
    let authority = Authority::new();
    for (url, reason) in [
        ("redis://localhost", "rediss://"),
        ("rediss://localhost/#insecure", "#insecure"),
    ] {
        let store = RedisStore::connect(url).and_then(|store| store.tls(authority.trusted()));
        let error = store.unwrap_err();
        assert_eq!(error.kind(), FailureKind::Configuration, "{url}");
        assert!(error.to_string().contains(reason), "{error:?}");
    }
    let no_certificate = RedisTls::new().ca("no PEM");
    let store = RedisStore::connect("rediss://localhost").unwrap();
    assert!(store.tls(no_certificate).is_err());
}

thread_local! {
    /// How often the application's provider was asked on this thread, by this test.
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

#[derive(Debug)]
struct Counting;

impl SecureRandom for Counting {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        ASKED.set(ASKED.get() + 1);
        ring::default_provider().secure_random.fill(bytes)
    }
}

// On one thread, as its runtime is.
#[tokio::test]
async fn an_application_can_install_its_crypto_provider_before_or_after() {
    let authority = Authority::new();
    let identity = authority.issue("server", |_| {});
    let (_server, port) = authority.serve(&identity, "no").await;
    let url = format!("rediss://localhost:{port}");
    let connected = || store(&url).tls(authority.trusted()).unwrap();
    let before = connected();
    decides(&before, "before").await;

    let provider = CryptoProvider {
        secure_random: &Counting,
        ..ring::default_provider()
    };
    provider.install_default().expect("no provider of ours");
    before.ping().await.unwrap();
    assert_eq!(ASKED.get(), 0);
    let after = connected();
    decides(&after, "after").await;
    assert!(ASKED.get() > 0);
}
