//! The guard against guessed credentials.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Request, Response, StatusCode};
use tower::{Layer, ServiceExt};
use tower_admission::extract::KeyExtractor;
use tower_admission::{
    ApiKey, BearerToken, ByToken, ClientIp, Key, Quota, RateLimitByTokenLayer, RateLimitLayer,
    RequestHead,
};

use crate::common::{
    Counting, LaterStore, Ok200, SECOND, Seen, answering, header, ok, peer, retry_after, send,
    status, store, text, timed,
};

fn from(ip: &str, token: &str) -> Request<()> {
    Request::builder()
        .extension(peer(ip))
        .header("authorization", format!("Bearer {token}"))
        .body(())
        .unwrap()
}

/// Accepts the token `good`; `code` for all others.
fn accepting_good(
    code: u16,
) -> impl Fn(Request<()>) -> Response<http_body_util::Full<bytes::Bytes>> + Clone {
    move |request| {
        let mut response = ok();
        if request.headers()["authorization"] != "Bearer good" {
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
        }
        response
    }
}

#[tokio::test]
async fn made_up_tokens_use_up_the_quota_of_their_address() {
    for code in [401, 403] {
        let layer =
            RateLimitByTokenLayer::new(Quota::per_hour(1000)).guard_by_ip(Quota::per_hour(5));
        let service = layer.layer(answering(accepting_good(code)));
        for n in 0..5 {
            assert_eq!(
                status(&service, from("192.0.2.1", &format!("t{n}"))).await,
                code
            );
        }
        for n in 5..20 {
            let refused = send(&service, from("192.0.2.1", &format!("t{n}"))).await;
            assert_eq!(refused.status(), 429);
            assert!(retry_after(&refused).is_some());
        }
        assert_eq!(status(&service, from("192.0.2.2", "t0")).await, code);
        assert_eq!(status(&service, from("192.0.2.2", "good")).await, 200);
    }
}

#[tokio::test]
async fn the_token_of_a_rejected_address_is_not_read() {
    let extractions = Arc::new(AtomicUsize::new(0));
    let counted = {
        let extractions = extractions.clone();
        move |head: RequestHead<'_>| {
            extractions.fetch_add(1, Ordering::SeqCst);
            BearerToken.extract(head)
        }
    };
    let inner = Arc::new(AtomicUsize::new(0));
    let calls = inner.clone();
    let layer = RateLimitLayer::by(counted, Quota::per_hour(2)).guard_by_ip(Quota::per_hour(1));
    let answer = accepting_good(401);
    let service = layer.layer(answering(move |request| {
        calls.fetch_add(1, Ordering::SeqCst);
        answer(request)
    }));
    assert_eq!(status(&service, from("192.0.2.1", "bad")).await, 401);
    for n in 0..10 {
        let token = format!("bad-{n}");
        assert_eq!(status(&service, from("192.0.2.1", &token)).await, 429);
        let bucket = layer
            .limiter()
            .peek(&Key::new("bearer", token.as_bytes()))
            .now()
            .unwrap();
        assert_eq!(bucket.remaining(), Some(2));
    }
    assert_eq!(inner.load(Ordering::SeqCst), 1);
    assert_eq!(extractions.load(Ordering::SeqCst), 1);
}

/// Answers 401 to every request.
fn unauthorized(_: Request<()>) -> Ok200 {
    let mut response = ok();
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    response
}

fn with(header: Option<(&str, &[u8])>) -> Request<()> {
    let mut request = Request::builder().extension(peer("192.0.2.1"));
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    request.body(()).unwrap()
}

/// A page that requires a login answers 401 to each first request.
#[tokio::test]
async fn a_request_without_a_credential_is_neither_charged_nor_rejected() {
    let layer = RateLimitByTokenLayer::new(Quota::off()).guard_by_ip(Quota::per_hour(1));
    let service = layer.layer(answering(unauthorized));
    for _ in 0..10 {
        assert_eq!(status(&service, with(None)).await, 401);
        assert_eq!(
            status(&service, with(Some(("cookie", b"session=1")))).await,
            401
        );
    }
    assert_eq!(status(&service, from("192.0.2.1", "bad")).await, 401);
    assert_eq!(status(&service, from("192.0.2.1", "bad")).await, 429);
    assert_eq!(status(&service, with(None)).await, 401);
}

#[tokio::test]
async fn a_malformed_credential_is_charged_as_well() {
    for (name, value) in [
        ("authorization", &b"Bearer "[..]),
        ("authorization", b"Bearer\ttoken"),
        ("authorization", b"Bearer tok, Bearer tok"),
        ("authorization", b"Basic dXNlcjpwYXNz"),
        ("authorization", b"\xff"),
        ("authorization", b""),
        ("x-api-key", b"made-up"),
        ("x-api-key", b""),
    ] {
        let layer = RateLimitByTokenLayer::new(Quota::off()).guard_by_ip(Quota::per_hour(1));
        let service = layer.layer(answering(unauthorized));
        let request = || with(Some((name, value)));
        assert_eq!(status(&service, request()).await, 401, "{name}: {value:?}");
        assert_eq!(status(&service, request()).await, 429, "{name}: {value:?}");
    }
}

/// UNAUTHENTICATED and PERMISSION_DENIED, with the HTTP status 200.
#[tokio::test]
async fn a_grpc_answer_is_charged_by_its_code() {
    for (code, charged) in [("16", true), ("7", true), ("0", false), ("5", false)] {
        let layer = RateLimitByTokenLayer::new(Quota::off()).guard_by_ip(Quota::per_hour(1));
        let service = layer.layer(answering(move |_: Request<()>| {
            let mut response = ok();
            let code = http::HeaderValue::from_static(code);
            response.headers_mut().insert("grpc-status", code);
            response
        }));
        assert_eq!(status(&service, with(None)).await, 200);
        assert_eq!(status(&service, from("192.0.2.1", "bad")).await, 200);
        let again = status(&service, from("192.0.2.1", "bad")).await;
        assert_eq!(again == 429, charged, "{code}");
    }
}

/// The headers of all keys count, whether a key was added before the guard or after it.
#[tokio::test]
async fn the_api_key_headers_of_every_key_are_credentials() {
    let by_team = || ApiKey::header("x-team").or(ApiKey::header("x-partner"));
    let by_ip = || RateLimitLayer::by(ClientIp::peer(), Quota::per_hour(1000));
    for layer in [
        by_ip()
            .and_by(by_team(), Quota::per_hour(1000))
            .guard_by_ip(Quota::per_hour(1)),
        by_ip()
            .guard_by_ip(Quota::per_hour(1))
            .and_by(by_team(), Quota::per_hour(1000)),
    ] {
        let service = layer.layer(answering(unauthorized));
        // The layer does not read this one.
        for _ in 0..3 {
            assert_eq!(status(&service, with(Some(("x-api-key", b"a")))).await, 401);
        }
        assert_eq!(status(&service, with(Some(("x-partner", b"a")))).await, 401);
        assert_eq!(status(&service, with(Some(("x-team", b"b")))).await, 429);
    }
}

#[tokio::test]
async fn accepted_requests_and_other_answers_are_not_charged() {
    for code in [200, 204, 302, 400, 404, 407, 429, 500, 503] {
        let layer = RateLimitByTokenLayer::new(Quota::off()).guard_by_ip(Quota::per_hour(1));
        let service = layer.layer(answering(accepting_good(code)));
        for _ in 0..10 {
            assert_eq!(status(&service, from("192.0.2.1", "bad")).await, code);
            assert_eq!(status(&service, from("192.0.2.1", "good")).await, 200);
        }
    }
}

#[tokio::test]
async fn rejections_by_the_rate_limit_are_not_charged_to_the_address() {
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(1)).guard_by_ip(Quota::per_hour(1));
    let service = layer.layer(answering(accepting_good(401)));
    assert_eq!(status(&service, from("192.0.2.1", "good")).await, 200);
    for _ in 0..10 {
        assert_eq!(status(&service, from("192.0.2.1", "good")).await, 429);
    }
    assert_eq!(status(&service, from("192.0.2.1", "bad")).await, 401);
}

#[tokio::test]
async fn the_answer_is_abnormal_usage_without_numbers() {
    let (seen, _) = Seen::new();
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(100))
        .guard_by_ip(Quota::per_hour(1))
        .observe(seen.clone());
    let service = layer.layer(answering(accepting_good(401)));
    assert_eq!(status(&service, from("192.0.2.1", "bad")).await, 401);
    seen.take();
    let refused = send(&service, from("192.0.2.1", "good")).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(header(&refused, "cache-control"), Some("no-store"));
    assert_eq!(header(&refused, "ratelimit"), None);
    assert_eq!(header(&refused, "ratelimit-policy"), None);
    assert_eq!(seen.take(), ["rejected http abnormal_usage"]);
    let problem: serde_json::Value = serde_json::from_str(&text(refused).await).unwrap();
    assert_eq!(
        problem["type"],
        "https://iana.org/assignments/http-problem-types#abnormal-usage-detected"
    );
    assert_eq!(problem["status"], 429);
}

#[tokio::test]
async fn an_address_regains_its_quota() {
    let (layer, clock) = timed(ByToken::default(), Quota::per_hour(100));
    let layer = layer.guard_in(&store(&clock), ClientIp::peer(), Quota::per_minute(1));
    let service = layer.layer(answering(accepting_good(401)));
    assert_eq!(status(&service, from("192.0.2.1", "bad")).await, 401);
    let refused = send(&service, from("192.0.2.1", "good")).await;
    assert_eq!(retry_after(&refused), Some(60));
    clock.advance(60 * SECOND);
    assert_eq!(status(&service, from("192.0.2.1", "good")).await, 200);
}

#[tokio::test]
async fn behind_a_proxy_the_guard_charges_the_client() {
    let client = ClientIp::forwarded_by(["10.0.0.0/8".parse().unwrap()]);
    let layer =
        RateLimitByTokenLayer::new(Quota::per_hour(100)).guard_by(client, Quota::per_hour(1));
    let service = layer.layer(answering(accepting_good(401)));
    let via_proxy = |client: &str| {
        let mut request = from("10.0.0.1", "bad");
        request
            .headers_mut()
            .insert("x-forwarded-for", client.parse().unwrap());
        request
    };
    assert_eq!(status(&service, via_proxy("192.0.2.1")).await, 401);
    assert_eq!(status(&service, via_proxy("192.0.2.1")).await, 429);
    assert_eq!(status(&service, via_proxy("192.0.2.2")).await, 401);
}

#[tokio::test]
async fn a_guard_of_zero_is_off_and_deny_all_rejects() {
    let off = RateLimitByTokenLayer::new(Quota::per_hour(100)).guard_by_ip(Quota::per_hour(0));
    let service = off.layer(answering(accepting_good(401)));
    for _ in 0..50 {
        assert_eq!(status(&service, from("192.0.2.1", "bad")).await, 401);
    }
    let deny = RateLimitByTokenLayer::new(Quota::off()).guard_by_ip(Quota::deny_all());
    let inner = Counting::default();
    assert_eq!(
        status(&deny.layer(inner.clone()), from("192.0.2.1", "good")).await,
        429
    );
    assert_eq!(inner.calls(), 0);
}

#[tokio::test]
async fn a_dry_run_of_a_guard_only_informs_observers() {
    let (seen, _) = Seen::new();
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(100))
        .guard_by_ip(Quota::per_hour(1))
        .dry_run(true)
        .observe(seen.clone());
    let service = layer.layer(answering(accepting_good(401)));
    assert_eq!(status(&service, from("192.0.2.1", "bad")).await, 401);
    seen.take();
    assert_eq!(status(&service, from("192.0.2.1", "bad")).await, 401);
    assert_eq!(
        seen.take(),
        ["would reject http abnormal_usage", "admitted http"]
    );
}

#[tokio::test]
async fn a_guard_works_with_a_store_that_replies_later() {
    let (layer, clock) = timed(ByToken::default(), Quota::per_hour(100));
    let later = LaterStore::new(&clock);
    let layer = layer.store(later.clone()).guard_by_ip(Quota::per_hour(1));
    let service = layer.layer(answering(accepting_good(401)));
    later.answer(10);
    assert_eq!(status(&service, from("192.0.2.1", "bad")).await, 401);
    assert_eq!(status(&service, from("192.0.2.1", "good")).await, 429);
    assert_eq!(status(&service, from("192.0.2.2", "good")).await, 200);
}

#[tokio::test]
async fn a_table_full_of_denied_addresses_keeps_the_guard_working() {
    let (layer, clock) = timed(ByToken::default(), Quota::per_hour(10_000));
    let store = store(&clock).max_keys(1);
    let layer = layer.guard_in(&store, ClientIp::peer(), Quota::per_hour(2));
    let service = layer.layer(answering(accepting_good(401)));
    while status(&service, from("192.0.2.1", "bad")).await == 401 {}
    // There is no room for this address; it shares an overflow bucket, which must be used up first.
    let mut answers = Vec::new();
    for _ in 0..10 {
        answers.push(status(&service, from("192.0.2.2", "bad")).await);
    }
    assert_eq!(answers.last(), Some(&429), "{answers:?}");
}

/// A client that disconnects before the answer could otherwise guess on without being counted.
#[tokio::test]
async fn a_client_that_disconnects_is_charged() {
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(1000)).guard_by_ip(Quota::per_hour(2));
    let never = tower::service_fn(|_: Request<()>| async {
        std::future::pending::<Result<Response<http_body_util::Full<bytes::Bytes>>, Infallible>>()
            .await
    });
    let guessing = layer.layer(never);
    for n in 0..2 {
        let request = from("192.0.2.1", &format!("t{n}"));
        let mut call = tokio_test::task::spawn(guessing.clone().oneshot(request));
        tokio_test::assert_pending!(call.poll());
    }
    let answers = layer.layer(answering(accepting_good(401)));
    assert_eq!(status(&answers, from("192.0.2.1", "good")).await, 429);
    assert_eq!(status(&answers, from("192.0.2.2", "good")).await, 200);
}

/// A failing inner service does not show that the credentials are wrong.
#[tokio::test]
async fn an_error_of_the_inner_service_is_not_charged() {
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(1000)).guard_by_ip(Quota::per_hour(2));
    let failing = layer.layer(tower::service_fn(|_: Request<()>| async {
        Err::<Response<http_body_util::Full<bytes::Bytes>>, _>("broken")
    }));
    for _ in 0..5 {
        let failed = failing.clone().oneshot(from("192.0.2.1", "good")).await;
        assert_eq!(failed.err(), Some("broken"));
    }
    let answers = layer.layer(answering(accepting_good(401)));
    assert_eq!(status(&answers, from("192.0.2.1", "good")).await, 200);
}

/// Without addresses, one client that guesses credentials would lock out all others.
#[tokio::test]
async fn a_panic_of_the_inner_service_is_not_charged() {
    let panics = |poll: bool| {
        let layer = RateLimitByTokenLayer::new(Quota::per_second(1000));
        let layer = layer.guard_by_ip(Quota::per_hour(1));
        layer.layer(tower::service_fn(move |_: Request<()>| {
            assert!(poll, "panics when it is called");
            async { panic!("panics when it is polled") as Result<Ok200, Infallible> }
        }))
    };
    for poll in [false, true] {
        let service = panics(poll);
        for _ in 0..3 {
            let service = service.clone();
            let asked = async move { status(&service, from("192.0.2.1", "good")).await };
            let asked = tokio::spawn(asked);
            assert!(asked.await.unwrap_err().is_panic());
        }
    }
}

#[tokio::test]
async fn requests_without_an_address_are_not_guarded() {
    let layer = RateLimitByTokenLayer::new(Quota::per_hour(1000)).guard_by_ip(Quota::per_hour(2));
    let service = layer.layer(answering(accepting_good(401)));
    for n in 0..5 {
        let guess = crate::common::bearer(&format!("t{n}"));
        assert_eq!(status(&service, guess).await, 401);
    }
    assert_eq!(status(&service, crate::common::bearer("good")).await, 200);
}
