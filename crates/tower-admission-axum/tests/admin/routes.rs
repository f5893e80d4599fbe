//! Each endpoint and each of its responses.

use axum::Router;
use axum::body::Body;
use http::Request;
use serde_json::{Value, json};
use tower::{Layer, ServiceExt};
use tower_admission::{
    AccessLayer, Key, Limits, MemoryStore, Policy, Quota, RateLimiter, RequestHead,
};
use tower_admission_axum::admin::{self, Recorder};

use super::{Service, TOKEN, operator, untimed};

const ENDPOINTS: [(&str, &str); 14] = [
    ("GET", "/limits"),
    ("GET", "/limits/org:acme"),
    ("PUT", "/limits/org:acme"),
    ("DELETE", "/limits/org:acme"),
    ("GET", "/changes"),
    ("GET", "/usage"),
    ("GET", "/usage/org:acme"),
    ("POST", "/keys/resolve"),
    ("POST", "/explain"),
    ("POST", "/cache/clear"),
    ("POST", "/loss/accept"),
    ("GET", "/now"),
    ("POST", "/search"),
    ("GET", "/openapi.json"),
];

#[tokio::test]
async fn a_request_without_the_token_is_rejected() {
    let service = Service::new();
    service.put("org:acme", "5/h").await;
    for (method, path) in ENDPOINTS {
        for credentials in [
            "",
            "Bearer",
            "Bearer the-token-of-operator",
            "Bearer the-token-of-operators2",
            "Bearer the-token-of-Operators",
            "Basic the-token-of-operators",
            "the-token-of-operators",
        ] {
            let mut request = operator(method, path, "{\"limit\":\"1/h\"}");
            let value = credentials.parse().unwrap();
            request.headers_mut().insert("authorization", value);
            if credentials.is_empty() {
                request.headers_mut().remove("authorization");
            }
            let answer = service.answer(request).await;
            assert_eq!(answer.status, 401, "{method} {path} {credentials}");
            let challenge = answer.headers["www-authenticate"].to_str().unwrap();
            assert!(challenge.starts_with("Bearer realm="), "{challenge}");
            assert_eq!(answer.headers["cache-control"], "no-store");
            assert_eq!(answer.json["title"], "Unauthorized");
        }
        // A second token is not accepted.
        let mut request = operator(method, path, "");
        let other = "Bearer other".parse().unwrap();
        request.headers_mut().append("authorization", other);
        assert_eq!(service.answer(request).await.status, 401);
    }
    let limit = service.ask("GET", "/limits/org:acme", "").await;
    assert_eq!(limit.json["limit"], "5/h", "nothing was changed");
}

#[tokio::test]
async fn a_closure_authenticates_operators() {
    #[derive(Clone)]
    struct Operator;

    let auth = |head: RequestHead<'_>| head.extensions.get::<Operator>().is_some();
    let app: Router = admin::router(&Limits::new(), &Recorder::new(), auth);
    let mut request = Request::get("/usage").body(Body::empty()).unwrap();
    let refused = app.clone().oneshot(request).await.unwrap();
    assert_eq!(refused.status(), 401);
    request = Request::get("/usage").body(Body::empty()).unwrap();
    request.extensions_mut().insert(Operator);
    assert_eq!(app.oneshot(request).await.unwrap().status(), 200);
}

#[tokio::test]
async fn an_override_is_set_changed_deleted_and_enforced() {
    let service = Service::new();
    let path = "/limits/org:acme";
    assert_eq!(service.ask("GET", path, "").await.status, 404);
    assert_eq!(service.ask("DELETE", path, "").await.status, 404);
    assert!(service.calls("acme").await && service.calls("acme").await);
    assert!(!service.calls("acme").await);

    let set = service.put("org:acme", " 3/h,calls = 3/h burst 3").await;
    assert_eq!(set.status, 200);
    let limit = "3/h, calls=3/h burst 3";
    let expected = json!({
        "key": "org:acme", "limit": limit, "author": "admin", "source": "override", "before": null,
    });
    assert_eq!(untimed(&set.json), expected);
    assert!(service.calls("acme").await);
    assert!(!service.calls("acme").await);

    let set = service.put("org:acme", "4/h").await;
    let expected = json!({
        "key": "org:acme", "limit": "4/h", "author": "admin", "source": "override",
        "before": { "limit": limit, "author": "admin" },
    });
    assert_eq!((set.status, untimed(&set.json)), (200, expected));
    assert!(service.calls("acme").await);
    let read = service.ask("GET", path, "").await;
    let expected =
        json!({ "key": "org:acme", "limit": "4/h", "author": "admin", "source": "override" });
    assert_eq!((read.status, untimed(&read.json)), (200, expected));

    let deleted = service.ask("DELETE", path, "").await;
    let expected = json!({
        "key": "org:acme", "source": "override", "before": { "limit": "4/h", "author": "admin" },
    });
    assert_eq!((deleted.status, untimed(&deleted.json)), (200, expected));
    assert!(!service.calls("acme").await);
    assert_eq!(service.ask("GET", path, "").await.status, 404);
    assert_eq!(service.ask("DELETE", path, "").await.status, 404);
}

#[tokio::test]
async fn keys_are_percent_encoded() {
    let service = Service::new();
    for (key, shown) in [
        ("ip:192.0.2.1", "ip:192.0.2.1"),
        ("ip:2001:db8::1", "ip:2001:db8::/64"),
        ("org:a/b c?d#e%2F", "org:a/b c?d#e%2F"),
        ("a%3Ab:c", "a%3Ab:c"),
        ("org:Zoë", "org:Zoë"),
        ("org:..", "org:.."),
        ("unknown", "unknown"),
    ] {
        let set = service.put(key, "1/h").await;
        assert_eq!((set.status, &set.json["key"]), (200, &json!(shown)));
        let path = format!("/limits/{}", super::encoded(key));
        assert_eq!(
            service.ask("GET", &path, "").await.json["key"],
            json!(shown)
        );
        let path = format!("/usage/{}", super::encoded(shown));
        assert_eq!(
            service.ask("GET", &path, "").await.json["limit"],
            json!("1/h")
        );
        let path = format!("/limits/{}", super::encoded(shown));
        assert_eq!(service.ask("DELETE", &path, "").await.status, 200, "{key}");
    }
    assert!(service.limits.is_empty());
}

#[tokio::test]
async fn errors_name_the_reason() {
    let service = Service::new();
    for key in [
        "acme",
        ":acme",
        "org:",
        "ip:nowhere",
        "bearer#12",
        "%ff",
        "org:%00",
    ] {
        // The key is sent without encoding.
        for (method, folder) in [
            ("GET", "limits"),
            ("PUT", "limits"),
            ("DELETE", "limits"),
            ("GET", "usage"),
        ] {
            let path = format!("/{folder}/{}", key.replace('#', "%23"));
            let answer = service.ask(method, &path, "{\"limit\":\"1/h\"}").await;
            assert_eq!(answer.status, 422, "{method} {path} {}", answer.text);
            assert_eq!(answer.json["title"], "Unprocessable Entity");
        }
    }
    for (limit, says) in [
        ("", "expected a quota such as"),
        ("many", "expected a quota such as"),
        ("0 concurrent", "write `unlimited` or `deny all`"),
        ("-1 concurrent", "needs a number before it"),
        ("1/h, 2/h", "set the same limit"),
        ("=1/h", "1 to 64 bytes"),
        (
            "call=1/h",
            "No limit has the name call: the names are calls, chat.",
        ),
        ("calls=1/h, Chat=1 concurrent", "No limit has the name Chat"),
    ] {
        let answer = service.put("org:acme", limit).await;
        assert_eq!(answer.status, 422, "{limit}");
        let detail = answer.json["detail"].as_str().unwrap();
        assert!(detail.contains(says), "{limit}: {detail}");
    }
    for (key, limit, says) in [
        (
            "ip:203.0.113.0/24",
            "1/h",
            "takes `deny all` or `unlimited` only",
        ),
        (
            "ip:203.0.113.7/24",
            "deny all",
            "the network is ip:203.0.113.0/24",
        ),
        (
            "ip:203.0.113.0/24",
            "deny all",
            "No service applies allow and deny lists",
        ),
        (
            "ip:2002:cb00:7107::1",
            "unlimited",
            "to exempt that client, write ip:203.0.113.7",
        ),
    ] {
        let answer = service.put(key, limit).await;
        assert_eq!(answer.status, 422, "{key}");
        let detail = answer.json["detail"].as_str().unwrap();
        assert!(detail.contains(says), "{key}: {detail}");
    }
    assert!(service.limits.is_empty());
    let lists = AccessLayer::new(&service.limits);
    let _service = lists.layer(service.app.clone());
    let banned = service.put("ip:203.0.113.0/24", "deny all").await;
    assert_eq!(
        (banned.status, &banned.json["key"]),
        (200, &json!("ip:203.0.113.0/24"))
    );
    service
        .limits
        .delete(&"ip:203.0.113.0/24".parse().unwrap())
        .await
        .unwrap();
    for limit in [
        "calls=1/h",
        "chat=1 concurrent",
        "1 concurrent",
        "unlimited",
        "deny all",
    ] {
        assert_eq!(service.put("org:acme", limit).await.status, 200, "{limit}");
    }
}

#[tokio::test]
async fn invalid_requests_get_a_4xx() {
    let service = Service::new();
    let path = "/limits/org:acme";
    for junk in [
        "{",
        "[]",
        "null",
        "{}",
        "\"1/h\"",
        "[\"1/h\"]",
        "{\"limit\":1}",
        "{\"limit\":null}",
        "{\"limit\":[\"1/h\"]}",
        "{\"Limit\":\"1/h\"}",
        "\u{0}",
    ] {
        assert_eq!(service.ask("PUT", path, junk).await.status, 400, "{junk}");
    }
    // No body.
    assert_eq!(service.ask("PUT", path, "").await.status, 400);
    let long = json!({ "limit": "x".repeat(5000) }).to_string();
    assert_eq!(service.ask("PUT", path, &long).await.status, 413);
    for content_type in ["text/plain", "", "application/jsonx"] {
        let mut request = operator("PUT", path, "{\"limit\":\"1/h\"}");
        let value = content_type.parse().unwrap();
        request.headers_mut().insert("content-type", value);
        let answer = service.answer(request).await;
        assert_eq!(answer.status, 415, "{content_type}");
    }
    for (method, path) in [
        ("POST", "/limits"),
        ("PATCH", path),
        ("GET", "/cache/clear"),
    ] {
        let response = service.send(operator(method, path, "")).await;
        assert_eq!(response.status(), 405, "{method} {path}");
    }
    let response = service.send(operator("GET", "/other", "")).await;
    assert_eq!(response.status(), 404);
    assert!(service.limits.is_empty());
}

#[tokio::test]
async fn the_list_has_pages() {
    let service = Service::new();
    let list = service.ask("GET", "/limits", "").await;
    let expected = json!({
        "limits": [], "names": ["calls", "chat"], "tiers": [], "total": 0, "next": null,
    });
    assert_eq!((list.status, list.json), (200, expected));

    for n in 0..1_234 {
        let key = format!("org:a/{n:04}").parse().unwrap();
        let limit = format!("{}/h", n + 1).parse().unwrap();
        service.limits.set(&key, limit).await.unwrap();
    }
    let entries = |answer: &Value| answer["limits"].as_array().unwrap().clone();
    let first = service.ask("GET", "/limits", "").await.json;
    assert_eq!(
        (entries(&first).len(), &first["next"]),
        (1_000, &json!("org:a/0999"))
    );
    for count in [1, 100, 617, 1_233, 1_234, 1_235, 10_000] {
        let (mut found, mut pages, mut after) = (Vec::new(), 0, String::new());
        loop {
            let path = format!("/limits?count={count}{after}");
            let page = service.ask("GET", &path, "").await.json;
            pages += 1;
            found.extend(entries(&page));
            match page["next"].as_str() {
                Some(next) => after = format!("&after={}", super::encoded(next)),
                None => break,
            }
            if count == 1 && pages == 5 {
                break;
            }
        }
        let expected = if count == 1 { 5 } else { 1_234 };
        assert_eq!(found.len(), expected);
        assert_eq!(pages, expected.div_ceil(count));
        for (n, entry) in found.iter().enumerate() {
            let expected = json!({
                "key": format!("org:a/{n:04}"), "limit": format!("{}/h", n + 1), "source": "override",
            });
            assert_eq!(untimed(entry), expected);
        }
    }
    for query in [
        "count=0",
        "count=10001",
        "count=-1",
        "count=x",
        "count=",
        "after=acme",
        "after=%ff",
        "after=bearer:hunter2",
        "q=acme",
    ] {
        let path = format!("/limits?{query}");
        let answer = service.ask("GET", &path, "").await;
        assert_eq!(answer.status, 422, "{query} {}", answer.text);
    }
}

#[tokio::test]
async fn usage_is_reported_per_key_and_in_total() {
    let service = Service::new();
    let held: Vec<_> = (0..3)
        .map(|_| service.chat.try_acquire().unwrap())
        .collect();
    let all = service.ask("GET", "/usage", "").await;
    let replica = &all.json["replica"];
    assert_eq!(replica["pid"], std::process::id());
    let chat = json!({
        "name": "chat", "sort": "concurrency", "used": 3, "here": 3, "counted_in": "this process",
        "limit": 10,
    });
    let expected = json!({ "replica": replica, "store": null, "usage": [chat] });
    assert_eq!((all.status, &all.json), (200, &expected));
    drop(held);

    assert!(service.calls("acme").await);
    let usage = service.ask("GET", "/usage/org:acme", "").await;
    assert_eq!(usage.status, 200);
    assert_eq!(usage.json["key"], "org:acme");
    assert_eq!(usage.json["limit"], json!(null));
    let mut calls = json!({
        "name": "calls", "sort": "rate", "used": 1, "here": 1, "counted_in": "this process",
        "limit": 2, "is_override": false,
    });
    assert_eq!(usage.json["usage"][0], calls);

    service.put("org:acme", "5/h").await;
    let usage = service.ask("GET", "/usage/org:acme", "").await;
    calls["limit"] = json!(5);
    calls["is_override"] = json!(true);
    assert_eq!(usage.json["limit"], "5/h");
    assert_eq!(usage.json["usage"][0], calls);
}

#[tokio::test]
async fn usage_is_reported_by_tier() {
    let service = Service::new();
    let policy = Policy::new("plan", Quota::per_hour(3)).tier("pro", Quota::per_hour(10));
    let limiter = RateLimiter::with_limits(policy, &MemoryStore::new(), &service.limits);
    let pro = limiter.tier("pro").unwrap();
    assert!(
        pro.check_n(&Key::id("org", "acme"), 5)
            .now()
            .unwrap()
            .is_admitted()
    );
    let usage = service.ask("GET", "/usage/org:acme", "").await;
    let used = usage.json["usage"].as_array().unwrap();
    let plan = |name, used, limit| {
        json!({
            "name": name, "sort": "rate", "used": used, "here": used,
            "counted_in": "this process", "limit": limit, "is_override": false,
        })
    };
    assert!(used.contains(&plan("plan", 0, 3)), "{used:?}");
    let mut of_tier = plan("plan", 5, 10);
    of_tier["tier"] = json!("pro");
    assert!(used.contains(&of_tier), "{used:?}");
    assert_eq!(service.put("org:acme", "plan=4/h").await.status, 200);
    assert_eq!(service.put("org:acme", "tier=pro").await.status, 200);
    let unknown = service.put("org:acme", "tier=gold").await;
    assert_eq!(unknown.status, 422);
    assert!(unknown.text.contains("pro"), "{}", unknown.text);
}

#[tokio::test]
async fn caches_are_cleared_and_the_description_is_served() {
    let service = Service::new();
    let cleared = service.ask("POST", "/cache/clear", "").await;
    assert_eq!((cleared.status, &*cleared.text), (204, ""));
    let description = service.ask("GET", "/openapi.json", "").await;
    assert_eq!(description.headers["content-type"], "application/json");
    assert_eq!(description.json["openapi"], "3.1.0");
}

#[tokio::test]
async fn the_page_needs_no_token_and_runs_only_its_own_script() {
    let service = Service::new();
    for (path, content_type) in [
        ("/admin", "text/html; charset=utf-8"),
        ("/admin/", "text/html; charset=utf-8"),
        ("/admin/admin.css", "text/css; charset=utf-8"),
        ("/admin/admin.js", "text/javascript; charset=utf-8"),
    ] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = service.answer(request).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.headers["content-type"], content_type);
        assert_eq!(
            answer.headers["content-security-policy"],
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
             img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        assert!(!answer.text.contains(TOKEN));
        if path == "/admin/" {
            assert!(answer.text.contains("\"./admin.js\""), "{}", answer.text);
        }
        if path == "/admin" {
            assert!(
                answer.text.contains("\"admin/admin.js\""),
                "{}",
                answer.text
            );
        }
    }
}

/// URLs are logged, and a rejection does not echo the input.
#[tokio::test]
async fn a_credential_in_a_url_is_rejected() {
    const CREDENTIAL: &str = "hunter2-hunter2";
    let service = Service::new();
    let body = json!({ "limit": "1/h" }).to_string();
    for written in [
        "bearer:hunter2-hunter2",
        "Bearer:hunter2-hunter2",
        "Bearer hunter2-hunter2",
        "api-key:hunter2-hunter2",
        "api-key:hunter2-hunter2\n",
        "x-api-key: hunter2-hunter2",
        "Authorization: Basic hunter2-hunter2",
        "token:hunter2-hunter2",
    ] {
        let key = super::encoded(written);
        for (method, path) in [
            ("GET", format!("/limits/{key}")),
            ("PUT", format!("/limits/{key}")),
            ("DELETE", format!("/limits/{key}")),
            ("GET", format!("/usage/{key}")),
            ("GET", format!("/limits?after={key}")),
            ("GET", format!("/limits?q={key}")),
        ] {
            let answer = service.ask(method, &path, &body).await;
            assert_eq!(answer.status, 422, "{method} {path}");
            assert!(!answer.text.contains(CREDENTIAL), "{}", answer.text);
            assert!(!format!("{:?}", answer.headers).contains(CREDENTIAL));
        }
    }
    assert!(service.limits.is_empty());
    let rejected = service.ask("GET", "/usage/bearer:hunter2", "").await;
    assert!(
        rejected.text.contains("POST /keys/resolve"),
        "{}",
        rejected.text
    );
    // An invalid limit may contain a credential too.
    for limit in [CREDENTIAL, "hunter2-hunter2/h", "hunter2-hunter2=1/h/h"] {
        let answer = service.put("org:acme", limit).await;
        assert_eq!(answer.status, 422);
        assert!(!answer.text.contains(CREDENTIAL), "{}", answer.text);
    }
}

/// Nothing listens on the port of the store.
#[tokio::test]
async fn an_unavailable_store_is_503() {
    use tower_admission_redis::RedisStore;

    let store = RedisStore::connect("redis://127.0.0.1:1").unwrap();
    let service = Service::with(Limits::in_store(&store));
    for (method, path, body) in [
        ("PUT", "/limits/org:acme", "{\"limit\":\"1/h\"}"),
        ("DELETE", "/limits/org:acme", ""),
        ("POST", "/cache/clear", ""),
        ("POST", "/loss/accept", ""),
        ("GET", "/changes", ""),
    ] {
        let answer = service.ask(method, path, body).await;
        assert_eq!(answer.status, 503, "{method} {path}");
        assert_eq!(answer.headers["retry-after"], "1");
    }
    // Local data is still served.
    assert_eq!(service.ask("GET", "/limits", "").await.status, 200);
    assert_eq!(service.ask("GET", "/limits/org:acme", "").await.status, 404);
    assert_eq!(service.ask("GET", "/usage/org:acme", "").await.status, 200);
}

/// An outer router may have its own parameters.
#[tokio::test]
async fn keys_are_found_below_other_parameters() {
    let router = admin::router(&Limits::new(), &Recorder::new(), |_: RequestHead<'_>| true);
    let app = Router::new().nest("/admin/of/{tenant}", router);
    for (method, path, status) in [
        ("PUT", "/limits/org:acme", 200),
        ("GET", "/limits/org%3Aacme", 200),
        ("GET", "/usage/org:acme", 200),
        ("DELETE", "/limits/org:acme", 200),
        ("DELETE", "/limits/org:acme", 404),
    ] {
        let path = format!("/of/x{path}");
        let request = operator(method, &path, "{\"limit\":\"1/h\"}");
        let answer = app.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), status, "{method} {path}");
    }
}
