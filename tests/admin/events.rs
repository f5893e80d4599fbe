//! What listeners are told. The clock stands still until everybody waits for it.

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower_admission::admin::{self, Recorder, Token};
use tower_admission::{
    ClientIp, ConcurrencyLimitLayer, Key, Limits, PeerAddr, Policy, Quota, RateLimitLayer,
    RequestHead,
};

use super::{Service, operator};

/// Events, one after another.
struct Events {
    body: Body,
    text: String,
}

impl Events {
    async fn open(service: &Service) -> Self {
        let response = service.send(operator("GET", "/events", "")).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Self {
            body: response.into_body(),
            text: String::new(),
        }
    }

    async fn next(&mut self) -> (String, Value) {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (name, data) = event.split_once('\n').unwrap();
                let name = name.strip_prefix("event: ").unwrap().to_owned();
                let data = data.strip_prefix("data: ").unwrap();
                let data = serde_json::from_str(data).unwrap();
                self.text = rest.to_owned();
                return (name, data);
            }
            let frame = self.body.frame().await.unwrap().unwrap();
            let data = frame.into_data().unwrap();
            self.text.push_str(std::str::from_utf8(&data).unwrap());
        }
    }

    /// The next of this name, and how many decisions came before it.
    async fn until(&mut self, expected: &str) -> (Value, usize) {
        let mut decisions = 0;
        loop {
            let (name, data) = self.next().await;
            if name == expected {
                return (data, decisions);
            }
            assert_eq!(name, "decision");
            decisions += 1;
        }
    }
}

async fn call(service: &Service, path: &str, header: &str, value: &str) -> u16 {
    let request = Request::get(path).header(header, value);
    let response = service.send(request.body(Body::empty()).unwrap()).await;
    response.status().as_u16()
}

/// A key that the limiter of calls has refused.
fn refused_key(key: &str, count: u64) -> Value {
    json!({ "key": key, "name": "api", "limit_type": "http", "policy": "calls", "count": count })
}

fn limiter<'a>(data: &'a Value, name: &str) -> &'a Value {
    let limiters = data["limiters"].as_array().unwrap();
    limiters
        .iter()
        .find(|limiter| limiter["name"] == name)
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn each_second_is_told() {
    let service = Service::new();
    let mut events = Events::open(&service).await;
    let (history, _) = events.until("history").await;
    let replica = &history["replica"];
    assert_eq!(replica["pid"], std::process::id());
    assert!(!replica["host"].as_str().unwrap().is_empty(), "{history}");
    let expected = json!({ "replica": replica, "second": -1, "limiters": [] });
    assert_eq!(history, expected);

    for _ in 0..5 {
        service.calls("acme").await;
    }
    call(&service, "/dry", "org", "acme").await;
    assert_eq!(call(&service, "/dry", "org", "acme").await, 200);
    let held = service.chat.try_acquire().unwrap();
    let (second, _) = events.until("second").await;
    assert_eq!(second["second"], 0);
    assert_eq!(second["replica"], *replica);
    assert_eq!(second["store"], json!(null));
    let api = json!({
        "name": "api", "limit_type": "http", "admitted": 2, "refused": 3, "would_refuse": 0,
    });
    assert_eq!(*limiter(&second, "api"), api);
    let tried = json!({
        "name": "tried", "limit_type": "http", "admitted": 1, "refused": 0, "would_refuse": 1,
    });
    assert_eq!(*limiter(&second, "tried"), tried);
    let in_flight = json!([{ "name": "chat", "used": 1, "limit": 10 }]);
    assert_eq!(second["in_flight"], in_flight);
    let [refused] = &second["refused_keys"].as_array().unwrap()[..] else {
        panic!("{second}")
    };
    assert_eq!(refused["count"], 3);
    let fingerprint = refused["key"].as_str().unwrap().to_owned();
    assert!(fingerprint.starts_with("org#"), "{fingerprint}");

    // A key that has limits of its own has a name.
    service.put("org:acme", "1/h").await;
    drop(held);
    let (second, _) = events.until("second").await;
    assert_eq!(second["second"], 1);
    assert_eq!(limiter(&second, "api")["refused"], 0);
    assert_eq!(second["in_flight"][0]["used"], 0);
    assert_eq!(second["refused_keys"], json!([refused_key("org:acme", 3)]));

    // Who comes later is told what was.
    let (history, _) = Events::open(&service).await.until("history").await;
    assert_eq!(history["second"], 1);
    assert_eq!(limiter(&history, "api")["admitted"], json!([2, 0]));
    assert_eq!(limiter(&history, "api")["refused"], json!([3, 0]));
    assert_eq!(limiter(&history, "tried")["would_refuse"], json!([1, 0]));
}

#[tokio::test(start_paused = true)]
async fn some_decisions_are_told() {
    let service = Service::new();
    let mut events = Events::open(&service).await;
    events.until("history").await;
    call(&service, "/call", "org", "acme").await;
    let (name, mut decision) = events.next().await;
    assert_eq!(name, "decision");
    let key = decision["key"].take();
    assert!(key.as_str().unwrap().starts_with("org#"), "{key}");
    let expected = json!({
        "name": "api", "limit_type": "http", "policy": "calls", "outcome": "admitted",
        "reason": null, "key": null,
    });
    assert_eq!(decision, expected);

    service.put("org:acme", "calls=1/h").await;
    call(&service, "/call", "org", "acme").await;
    let (_, decision) = events.next().await;
    let expected = json!({
        "name": "api", "limit_type": "http", "policy": "calls", "outcome": "refused",
        "reason": "quota_exceeded", "key": "org:acme",
    });
    assert_eq!(decision, expected);

    // No more than ten of each sort in a second, however many there are, and none of who has no token.
    events.until("second").await;
    for n in 0..100 {
        call(&service, "/call", "org", "acme").await;
        call(&service, "/call", "secret", &format!("hunter2-{n}")).await;
    }
    let mut told = Vec::new();
    let second = loop {
        match events.next().await {
            (name, second) if name == "second" => break second,
            (_, decision) => told.push(decision),
        }
    };
    assert_eq!(told.len(), 20);
    let refused = told.iter().filter(|one| one["outcome"] == "refused");
    assert_eq!(refused.count(), 10);
    assert_eq!(limiter(&second, "api")["admitted"], 100);
    assert_eq!(limiter(&second, "api")["refused"], 100);
    let text = format!("{told:?}{second}");
    assert!(
        text.contains("bearer#") && !text.contains("hunter2"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn addresses_and_other_keys_refused_most_are_told_in_order() {
    let service = Service::new();
    let mut events = Events::open(&service).await;
    for (org, refusals) in [("a", 1), ("b", 5), ("c", 3)] {
        service.put(&format!("org:{org}"), "calls=1/h").await;
        for _ in 0..=refusals {
            service.calls(org).await;
        }
    }
    events.until("history").await;
    let (second, _) = events.until("second").await;
    let expected = json!([
        refused_key("org:b", 5),
        refused_key("org:c", 3),
        refused_key("org:a", 1),
    ]);
    assert_eq!(second["refused_keys"], expected);
}

/// An attack with made-up tokens comes from an address.
#[tokio::test(start_paused = true)]
async fn the_key_of_an_event_is_the_one_whose_limit_rejected() {
    let recorder = Recorder::new();
    let by_token = |head: RequestHead<'_>| {
        let token = head.headers.get("secret")?;
        Some(Key::new("bearer", token.as_bytes()))
    };
    let calls = RateLimitLayer::by(by_token, Policy::new("token", Quota::per_hour(100)))
        .and_by(ClientIp::peer(), Policy::new("ip", Quota::per_hour(2)))
        .name("api")
        .observe(recorder.clone());
    let limits = Limits::new();
    let token = Token::new(super::TOKEN).unwrap();
    let service = Service {
        app: Router::new()
            .route("/call", get(|| async { "hello" }).layer(calls))
            .nest_service("/admin", admin::router(&limits, &recorder, token)),
        limits,
        chat: ConcurrencyLimitLayer::new(1).limiter(),
    };
    let mut events = Events::open(&service).await;
    for n in 0..5 {
        let peer = std::net::SocketAddr::from(([192, 0, 2, 1], 1));
        let request = Request::get("/call")
            .header("secret", format!("made-up-{n}"))
            .extension(PeerAddr(peer));
        service.send(request.body(Body::empty()).unwrap()).await;
    }
    events.until("history").await;
    for outcome in ["admitted", "admitted", "refused", "refused", "refused"] {
        let (_, decision) = events.next().await;
        assert_eq!(decision["outcome"], outcome);
        assert_eq!(decision["policy"], "ip");
        assert_eq!(decision["key"], "ip:192.0.2.1");
    }
    let (second, _) = events.until("second").await;
    let mut refused = refused_key("ip:192.0.2.1", 3);
    refused["policy"] = json!("ip");
    assert_eq!(second["refused_keys"], json!([refused]));
}

#[tokio::test(start_paused = true)]
async fn sixteen_may_listen() {
    let service = Service::new();
    let mut listeners = Vec::new();
    for _ in 0..16 {
        listeners.push(Events::open(&service).await);
    }
    let refused = service.answer(operator("GET", "/events", "")).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.headers["retry-after"], "1");
    // All others are told.
    for listener in &mut listeners {
        listener.until("history").await;
        assert_eq!(listener.until("second").await.0["second"], 0);
    }
    listeners.pop();
    Events::open(&service).await.until("history").await;
}

/// On a real server, where a client that goes says nothing.
#[tokio::test]
async fn who_has_gone_makes_room() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    let service = Service::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = service.app.clone();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let mut streams = Vec::new();
    for _ in 0..16 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET /admin/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n",
            super::TOKEN
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");
        streams.push(stream);
    }
    let status = async || service.send(operator("GET", "/events", "")).await.status();
    assert_eq!(status().await, 503);
    drop(streams);
    while status().await == 503 {
        tokio::task::yield_now().await;
    }
}
