//! Which group a request is in, by method, host, gRPC method and path.

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use http::{Method, Request, Version};
use tower::ServiceExt;
use tower_admission_config::{Admission, Config};

use crate::config;

fn app(groups: &str) -> Router {
    let admission = Admission::new(&config(groups)).unwrap();
    let ok = any(|| async { "ok" });
    Router::new()
        .route("/", ok.clone())
        .route("/{*path}", ok)
        .layer(admission.layer())
}

/// The group of a request, which is what its quota is called.
async fn group(app: &Router, request: http::request::Builder) -> Option<String> {
    let peer = std::net::SocketAddr::from(([192, 0, 2, 1], 1));
    let request = request.extension(tower_admission::PeerAddr(peer));
    let request = request.body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let policy = response.headers().get("ratelimit-policy")?;
    let name = policy.to_str().unwrap().split('"').nth(1);
    name.map(str::to_owned)
}

async fn by_path(app: &Router, path: &str) -> Option<String> {
    group(app, Request::get(path)).await
}

/// Groups with these fields, each with a quota of its name.
fn groups(groups: &[(&str, &str)]) -> String {
    let groups = groups.iter();
    groups
        .map(|(name, fields)| format!("[groups.{name}]\nrate = '1000/h'\n{fields}\n"))
        .collect()
}

#[tokio::test]
async fn parameters_stand_for_segments() {
    let app = app(&groups(&[
        ("users", "path = '/users'"),
        ("user", "path = '/users/{id}'"),
        ("me", "path = '/users/me'"),
        ("orders", "path = '/users/{id}/orders'"),
        ("files", "path = '/files/{*rest}'"),
        ("readme", "path = '/files/readme'"),
    ]));
    for (path, expected) in [
        ("/users", Some("users")),
        ("/users/", Some("users")),
        ("/users/7", Some("user")),
        // As every path, one with parameters covers what is below it.
        ("/users/7/", Some("user")),
        ("/users/7/name", Some("user")),
        ("/users/7/orders", Some("orders")),
        ("/users/7/orders/1", Some("orders")),
        // From the left: a text goes before a parameter.
        ("/users/me", Some("me")),
        ("/users/me/orders", Some("me")),
        ("/users/meme/orders", Some("orders")),
        // A server may leave out what is empty.
        ("/users//orders", Some("users")),
        ("/files", None),
        ("/files/", None),
        ("/files/a", Some("files")),
        ("/files/a/b", Some("files")),
        ("/files/readme", Some("readme")),
        ("/files/readme/b", Some("readme")),
        ("/filesx/a", None),
        ("/", None),
    ] {
        assert_eq!(by_path(&app, path).await.as_deref(), expected, "{path}");
    }
}

#[tokio::test]
async fn a_search_goes_back_where_a_path_leads_nowhere() {
    let app = app(&groups(&[
        ("deep", "path = '/a/b/c'"),
        ("any", "path = '/a/{x}/d'"),
        ("rest", "path = '/a/{*rest}'"),
        ("post", "path = '/a/b'\nmethods = 'POST'"),
    ]));
    for (path, expected) in [
        ("/a/b/c", Some("deep")),
        ("/a/b/d", Some("any")),
        ("/a/b/e", Some("rest")),
        // Another method than what is more specific.
        ("/a/b", Some("rest")),
        ("/a", None),
    ] {
        assert_eq!(by_path(&app, path).await.as_deref(), expected, "{path}");
    }
    let posted = group(&app, Request::post("/a/b")).await;
    assert_eq!(posted.as_deref(), Some("post"));
}

#[tokio::test]
async fn methods_select() {
    let app = app(&groups(&[
        ("all", "path = '/api'"),
        ("write", "path = '/api'\nmethods = ['post', 'PUT']"),
        ("read", "path = '/api/read'\nmethods = 'GET'"),
        ("heads", "path = '/heads'\nmethods = 'HEAD'"),
        ("gets", "path = '/heads'\nmethods = 'GET'"),
        ("deletes", "methods = 'DELETE'"),
    ]));
    for (method, path, expected) in [
        (Method::GET, "/api", Some("all")),
        (Method::POST, "/api/x", Some("write")),
        (Method::PUT, "/api", Some("write")),
        (Method::GET, "/api/read", Some("read")),
        // A handler of GET answers HEAD.
        (Method::HEAD, "/api/read", Some("read")),
        (Method::HEAD, "/heads", Some("heads")),
        (Method::GET, "/heads", Some("gets")),
        (Method::POST, "/api/read", Some("write")),
        (Method::DELETE, "/api/read", Some("all")),
        (Method::DELETE, "/elsewhere", Some("deletes")),
        (Method::GET, "/elsewhere", None),
    ] {
        let request = Request::builder().method(&method).uri(path);
        let found = group(&app, request).await;
        assert_eq!(found.as_deref(), expected, "{method} {path}");
    }
}

const HOSTS: [(&str, &str); 5] = [
    ("api", "hosts = 'api.example.com'"),
    ("login", "hosts = 'api.example.com'\npath = '/login'"),
    ("tenants", "hosts = '*.example.com'"),
    ("eu", "hosts = '*.eu.example.com'"),
    ("rest", "path = '/login'"),
];

#[tokio::test]
async fn hosts_select() {
    let app = app(&groups(&HOSTS));
    for (host, path, expected) in [
        ("api.example.com", "/x", Some("api")),
        ("API.Example.COM:8443", "/x", Some("api")),
        ("api.example.com.", "/x", Some("api")),
        ("api.example.com", "/login", Some("login")),
        ("acme.example.com", "/login", Some("tenants")),
        ("a.b.example.com", "/x", Some("tenants")),
        ("a.eu.example.com", "/x", Some("eu")),
        ("example.com", "/x", None),
        ("example.com", "/login", Some("rest")),
        ("xapi.example.com.evil", "/x", None),
        ("badexample.com", "/x", None),
        ("", "/login", Some("rest")),
    ] {
        let request = Request::get(path).header("host", host);
        let found = group(&app, request).await;
        assert_eq!(found.as_deref(), expected, "{host} {path}");
    }
    // HTTP/2 has it in the URI.
    let request = Request::get("https://api.example.com/x").version(Version::HTTP_2);
    assert_eq!(group(&app, request).await.as_deref(), Some("api"));
    assert_eq!(by_path(&app, "/x").await, None);
    let long = "a".repeat(300) + ".example.com";
    let request = Request::get("/login").header("host", long);
    assert_eq!(group(&app, request).await.as_deref(), Some("rest"));
}

#[tokio::test]
async fn a_request_that_names_several_hosts_is_in_the_strictest_group() {
    let strict = "hosts = 'api.example.com'\nconcurrency = 9";
    let app = app(&groups(&[
        ("api", strict),
        ("other", "hosts = 'other.example.com'"),
    ]));
    let (api, other, none) = ("api.example.com", "other.example.com", "x.test");
    for (uri, hosts, expected) in [
        ("/x", &[api, other][..], "api"),
        ("/x", &[other, api], "api"),
        ("/x", &[none, none, api], "api"),
        ("/x", &["other.example.com, api.example.com"], "api"),
        ("/x", &[none, other], "other"),
        ("http://api.example.com/x", &[other], "api"),
        ("http://other.example.com/x", &[api], "api"),
        ("http://x.test/x", &["user@API.example.com:1"], "api"),
        (
            "http://user:api.example.com@other.example.com/x",
            &[],
            "other",
        ),
        ("/x/../y", &[none, api], "api"),
    ] {
        let request = hosts.iter().fold(Request::get(uri), |request, host| {
            request.header("host", *host)
        });
        let found = group(&app, request).await;
        assert_eq!(found.as_deref(), Some(expected), "{uri} {hosts:?}");
    }
}

/// However many hosts a request names, a few are looked at, and none of them hides a group.
#[tokio::test]
async fn many_hosts_are_in_the_strictest_group_of_all() {
    let text = groups(&[
        ("a", "hosts = 'a.example'"),
        ("b", "hosts = 'b.example'\npath = '/b'\nconcurrency = 9"),
    ]);
    let app = app(&text);
    let of =
        async |path: &str, host: String| group(&app, Request::get(path).header("host", host)).await;
    let same = |count| vec!["a.example"; count].join(",");
    assert_eq!(of("/", same(4)).await.as_deref(), Some("a"));
    assert_eq!(of("/b", same(4)).await.as_deref(), Some("a"));
    // The fifth may be another one.
    assert_eq!(of("/b", same(5)).await.as_deref(), Some("b"));
    assert_eq!(of("/c", same(5)).await.as_deref(), Some("a"));
    assert_eq!(of("/b", ",".repeat(400_000)).await.as_deref(), Some("b"));
    assert_eq!(
        of("/b/./c", ",".repeat(400_000)).await.as_deref(),
        Some("b")
    );
    // No host is as long.
    let long = format!("{}.a.example", "x".repeat(300));
    assert_eq!(of("/", long).await, None);
}

#[tokio::test]
async fn grpc_methods_select() {
    let app = app(&groups(&[
        ("send", "grpc = 'chat.v1.Chat/Send'"),
        ("chat", "grpc = ['chat.v1.Chat/*', 'Greeter/*']"),
        ("package", "grpc = 'chat.*'"),
        ("v2", "grpc = 'chat.v2.*'"),
        ("all", "path = '/'"),
    ]));
    for (path, expected) in [
        ("/chat.v1.Chat/Send", "send"),
        ("/chat.v1.Chat/Receive", "chat"),
        ("/chat.v1.Admin/Send", "package"),
        ("/chat.v2.Chat/Send", "v2"),
        ("/chat.v2.x.Chat/Send", "v2"),
        ("/chat.Chat/Send", "package"),
        ("/Greeter/Hello", "chat"),
        ("/chat/Send", "all"),
        ("/chats.v1.Chat/Send", "all"),
        // No path of a method.
        ("/chat.v1.Chat/Send/more", "all"),
        ("/chat.v1.Chat", "all"),
        ("/chat.v1.Chat/", "all"),
        ("/x/../chat.v1.Chat/Send", "send"),
    ] {
        let request = Request::post(path).header("content-type", "application/grpc");
        assert_eq!(
            group(&app, request).await.as_deref(),
            Some(expected),
            "{path}"
        );
        // A gRPC server may not look at the type, so a client could leave it out.
        let request = Request::post(path);
        assert_eq!(
            group(&app, request).await.as_deref(),
            Some(expected),
            "{path}"
        );
    }
}

#[tokio::test]
async fn dot_segments_lead_to_patterns() {
    let app = app(&groups(&[
        ("static", "path = '/static'"),
        ("user", "path = '/users/{id}'\nconcurrency = 9"),
        ("open", "path = '/open'\nmethods = 'GET'"),
    ]));
    for (path, expected) in [
        ("/static/../users/7", "user"),
        ("/users/7/%2e%2e/%2e%2e/static", "user"),
        ("/users/7/../8", "user"),
        ("/open/../users/7", "user"),
    ] {
        assert_eq!(
            by_path(&app, path).await.as_deref(),
            Some(expected),
            "{path}"
        );
    }
    // What is excluded by a pattern is not by what leads out of it.
    let app = self::app("[groups.api]\nrate = '9/h'\npath = '/api'\nexclude = '/api/{id}/status'");
    assert_eq!(by_path(&app, "/api/7/status").await, None);
    assert_eq!(by_path(&app, "/api/7/other").await.as_deref(), Some("api"));
    for path in [
        "/api/7/status/../chat",
        "/api/7/%2e%2e/7/status",
        "/api/../status",
    ] {
        assert_eq!(by_path(&app, path).await.as_deref(), Some("api"), "{path}");
    }
}

#[test]
fn groups_that_select_the_same_are_an_error() {
    for (one, other, field, problem) in [
        (
            "path = '/u/{a}'",
            "path = '/u/{b}/'",
            "path",
            "group `a` already has this path",
        ),
        (
            "path = '/u'\nmethods = ['GET', 'POST']",
            "path = '/u'\nmethods = 'post'",
            "path",
            "group `a` already has POST of this path",
        ),
        (
            "hosts = 'a.test'",
            "hosts = ['b.test', 'A.test']",
            "hosts",
            "group `a` already has this host",
        ),
        (
            "methods = 'PUT'",
            "methods = 'PUT'",
            "methods",
            "group `a` already has PUT of all paths",
        ),
        (
            "grpc = 'a.*'",
            "grpc = ['b.*', 'a.*']",
            "grpc",
            "group `a` already has this grpc",
        ),
    ] {
        let text = format!("[groups.a]\n{one}\n[groups.b]\n{other}");
        let error = Config::from_toml(&text).unwrap_err();
        assert_eq!(error.field(), Some(&*format!("groups.b.{field}")), "{text}");
        assert!(error.to_string().contains(problem), "{error}");
    }
    for (one, other) in [
        ("path = '/u'\nmethods = 'GET'", "path = '/u'"),
        (
            "path = '/u'\nmethods = 'GET'",
            "path = '/u'\nmethods = 'POST'",
        ),
        (
            "path = '/u'\nhosts = 'a.test'",
            "path = '/u'\nhosts = '*.test'",
        ),
        ("path = '/u/{id}'", "path = '/u/{*rest}'"),
        ("grpc = 'a.S/M'", "path = '/a.S/M'"),
    ] {
        config(&format!("[groups.a]\n{one}\n[groups.b]\n{other}"));
    }
    for (field, value, right) in [
        ("methods", "'GET POST'", "POST"),
        ("hosts", "'api.example.com:80'", "without a port"),
        ("hosts", "[]", "*.example.com"),
        ("grpc", "'*'", "package.Service/Method"),
        ("path", "'/files/*'", "{*rest}"),
        ("path", "'/u/:id/{x}y'", "/users/{id}"),
    ] {
        let error = Config::from_toml(&format!("[groups.a]\n{field} = {value}")).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(right) && error.contains(field), "{error}");
    }
}

#[tokio::test]
async fn thousands_of_groups_are_found_by_their_paths() {
    let mut text = String::new();
    for number in 0..2_000 {
        let fields = match number % 3 {
            0 => format!("path = '/tenants/{number}/{{id}}'"),
            1 => format!("hosts = 't{number}.example.com'"),
            _ => format!("grpc = 'pkg{number}.*'"),
        };
        text += &groups(&[(&format!("g{number}"), &fields)]);
    }
    let app = app(&text);
    let found = by_path(&app, "/tenants/1998/x").await;
    assert_eq!(found.as_deref(), Some("g1998"));
    let request = Request::get("/x").header("host", "t1999.example.com");
    assert_eq!(group(&app, request).await.as_deref(), Some("g1999"));
    assert_eq!(
        by_path(&app, "/pkg1997.S/M").await.as_deref(),
        Some("g1997")
    );
    assert_eq!(by_path(&app, "/tenants/1997/x").await, None);
}
