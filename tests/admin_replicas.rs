//! The admin page of two gateways on one Redis, behind a load balancer that sends each request to the next gateway.
#![cfg(all(feature = "metrics", feature = "tonic", feature = "tracing"))]

mod chromium;
#[path = "../crates/tower-admission-redis/tests/redis/server.rs"]
#[allow(dead_code)] // not everything is needed here
mod server;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use self::chromium::Page;
use self::server::{Server, until};

const TOKEN: &str = "the-token-of-operators";

type HttpClient = Client<HttpConnector, Body>;

async fn serve(app: Router, address: &str) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (address, server)
}

async fn sign_in(page: &mut Page) {
    page.until("at('token-dialog').open", "true").await;
    page.evaluate(&format!(
        "(document.querySelector('#token').value = {TOKEN:?})"
    ))
    .await;
    let event = "new Event('input', { bubbles: true })";
    page.evaluate(&format!(
        "document.querySelector('#token').dispatchEvent({event})"
    ))
    .await;
    page.click("#token-form button").await;
    page.until("at('state').textContent", "Live").await;
}

/// The example gateway as a process. Dropping it stops the process.
struct Gateway {
    process: Child,
    address: String,
    // Keeps the pipe open, so that the gateway can write.
    _stdout: BufReader<ChildStdout>,
}

impl Gateway {
    fn start(file: &str) -> Self {
        let mut path = std::env::current_exe().unwrap();
        path.pop();
        path.pop();
        path.extend(["examples", "gateway"]);
        path.set_extension(std::env::consts::EXE_EXTENSION);
        let mut process = Command::new(path)
            .args(["--listen", "127.0.0.1:0", "--config", file])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("build the examples first: `cargo build --all-features --examples`");
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("Listening on http://");
        Self {
            address: address.expect("the address it listens on").to_owned(),
            process,
            _stdout: stdout,
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A configuration file for gateways. Dropping it deletes the file.
struct Config(PathBuf);

impl Config {
    fn write(server: &Server) -> Self {
        let file = std::env::temp_dir().join(format!("admin-gateway-{}.toml", server.port));
        let text = format!(
            "[store]\nurl = '{}'\nsecret = '00112233445566778899aabbccddeeff'\nprefix = 'gateway'\n\
             deadline = '2s'\non_failure = 'closed'\n[admin]\ntoken = '{TOKEN}'\n\
             [groups.api]\npath = '/api'\nname = 'Gateway'\nconcurrency = 50\nrate = '10/h burst 10'\n",
            server.url()
        );
        std::fs::write(&file, text).unwrap();
        Self(file)
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Two gateways, their Redis, and a load balancer.
struct Fleet {
    gateways: [Gateway; 2],
    server: Server,
    client: HttpClient,
    balancer: SocketAddr,
    _config: Config,
}

async fn forward(client: &HttpClient, to: &str, mut request: Request) -> Response<Body> {
    let path = request.uri().path_and_query().unwrap().as_str();
    *request.uri_mut() = format!("http://{to}{path}").parse().unwrap();
    match client.request(request).await {
        Ok(response) => response.map(Body::new),
        Err(_) => {
            let mut gone = Response::new(Body::empty());
            *gone.status_mut() = StatusCode::BAD_GATEWAY;
            gone
        }
    }
}

impl Fleet {
    async fn start() -> Self {
        let server = Server::start().await;
        let config = Config::write(&server);
        let gateways = [0, 1].map(|_| Gateway::start(config.0.to_str().unwrap()));
        let client: HttpClient = Client::builder(TokioExecutor::new()).build_http();
        let next = Arc::new(AtomicUsize::new(0));
        let addresses = gateways.each_ref().map(|gateway| gateway.address.clone());
        let forwarding = client.clone();
        let app = Router::new().fallback(move |request: Request| {
            let at = next.fetch_add(1, Ordering::Relaxed) % addresses.len();
            let (client, to) = (forwarding.clone(), addresses[at].clone());
            async move { forward(&client, &to, request).await }
        });
        let (balancer, _) = serve(app, "127.0.0.1:0").await;
        Self {
            gateways,
            server,
            client,
            balancer,
            _config: config,
        }
    }

    async fn get(&self, address: &str, path: &str, token: &str) -> Response<Body> {
        let request = http::Request::get(path).header("authorization", format!("Bearer {token}"));
        forward(&self.client, address, request.body(Body::empty()).unwrap()).await
    }

    /// The response to an operator through the load balancer.
    async fn ask(&self, path: &str) -> Value {
        let path = format!("/admin{path}");
        let answer = self.get(&self.balancer.to_string(), &path, TOKEN).await;
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&body).unwrap_or_default()
    }

    /// The path of the usage of a token, by the name of its key.
    async fn usage_of(&self, token: &str) -> String {
        let uri = format!("http://{}/admin/keys/resolve", self.balancer);
        let request = http::Request::post(uri)
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("content-type", "application/json");
        let body = json!({ "key": format!("bearer:{token}") }).to_string();
        let answer = self.client.request(request.body(Body::from(body)).unwrap());
        let body = answer.await.unwrap().into_body();
        let body = body.collect().await.unwrap().to_bytes();
        let found: Value = serde_json::from_slice(&body).unwrap();
        let key = found["keys"][0]["key"].as_str().unwrap();
        format!("/usage/{}", utf8_percent_encode(key, NON_ALPHANUMERIC))
    }

    /// A stream that a gateway serves until it is dropped.
    async fn hold(&self, gateway: usize, token: &str) -> Body {
        let path = "/api/stream?chunks=1000&ms=1000";
        let response = self.get(&self.gateways[gateway].address, path, token).await;
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        body.frame().await.unwrap().unwrap();
        body
    }
}

fn used<'a>(answer: &'a Value, name: &str, sort: &str) -> &'a Value {
    let mut usage = answer["usage"].as_array().into_iter().flatten();
    usage
        .find(|used| used["name"] == name && used["sort"] == sort)
        .unwrap_or(&Value::Null)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_replica_shows_the_count_of_the_store_and_its_own_part() {
    let fleet = Fleet::start().await;
    let _held = (
        fleet.hold(0, "alice").await,
        fleet.hold(0, "alice").await,
        fleet.hold(1, "alice").await,
    );
    // Both replicas answer in turn, with the same count of the store.
    let (mut hosts, mut here) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let totals = fleet.ask("/usage").await;
        assert_eq!(totals["store"], json!({ "status": "ok" }));
        let total = used(&totals, "Gateway", "concurrency");
        assert_eq!(
            (&total["used"], &total["counted_in"]),
            (&json!(3), &json!("store")),
            "{totals}"
        );
        assert_eq!(total["limit"], 50);
        hosts.push(totals["replica"]["id"].clone());
        here.push(total["here"].as_u64().unwrap());
    }
    here.sort_unstable();
    assert_eq!(here, [1, 2]);
    assert_ne!(hosts[0], hosts[1]);
    let path = fleet.usage_of("alice").await;
    for _ in 0..2 {
        let usage = fleet.ask(&path).await;
        let rates = usage["usage"].as_array().unwrap();
        let rate = rates.iter().find(|used| used["sort"] == "rate").unwrap();
        assert_eq!(
            (&rate["used"], &rate["limit"]),
            (&json!(3), &json!(10)),
            "{usage}"
        );
        assert_eq!(
            (&rate["counted_in"], &rate["here"]),
            (&json!("store"), &Value::Null)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_behind_a_balancer_shows_all_replicas_and_whether_the_store_decides() {
    let mut fleet = Fleet::start().await;
    let _held = (fleet.hold(0, "alice").await, fleet.hold(1, "bob").await);
    let mut page = Page::open(&format!("http://{}/admin", fleet.balancer)).await;
    sign_in(&mut page).await;
    let replicas = "at('replicas').textContent.split(', ').length";
    page.until(replicas, "2").await;
    let of = "[...at('in-flight').querySelectorAll('.of')].map((one) => one.textContent).join()";
    page.until(of, "2 of 50").await;
    let note = "at('in-flight').querySelector('.note').textContent.replace(/[^ ]+ [(]pid [0-9]+[)]/g, 'X')";
    page.until(note, "in the store: 1 in X, 1 in X").await;
    // The page adds up the decisions of both replicas.
    for gateway in [0, 1] {
        for _ in 0..8 {
            let address = &fleet.gateways[gateway].address;
            fleet.get(address, "/api/slow?ms=0", "carol").await;
        }
    }
    let sums = "[...at('limiters').rows].map((row) => [...row.cells].map((cell) => cell.textContent))\
        .filter(([name]) => name.includes('http')).map((cells) => cells.slice(3, 5).join('|')).join()";
    page.until(sums, "12|6").await;
    page.until("at('rejected-keys').rows[0]?.cells[2].textContent", "6")
        .await;
    // The sums are the same, whichever replica answers.
    for _ in 0..4 {
        let before = page.evaluate("lastAnswerAt").await;
        page.until(&format!("lastAnswerAt > {before}"), "true")
            .await;
        assert_eq!(page.evaluate(sums).await, "12|6");
        assert_eq!(page.evaluate(of).await, "2 of 50");
    }

    // A change of one replica is shown, whichever replica answers.
    page.evaluate(
        "void resolve('bearer:carol').then(({ key }) => \
         ask('PUT', pathOf('limits', key), { body: { limit: '99/h' } }))",
    )
    .await;
    page.until(
        "at('limits').rows[0]?.cells[1].firstChild.textContent",
        "99/h",
    )
    .await;

    // Without the store the state is not green, and the page names the failure mode.
    assert_eq!(page.evaluate("at('store').hidden").await, "true");
    fleet.server.kill();
    page.until("at('state').className", "failing").await;
    let text = "at('store').textContent.includes('requests are rejected (closed)')";
    page.until(text, "true").await;
    until("the JSON has it", async || {
        let store = fleet.ask("/usage").await["store"].clone();
        store["status"] == "failing" && store["failure_mode"] == "closed"
    })
    .await;
    let failing = fleet.ask("/usage").await;
    let cause = failing["store"]["cause"].as_str().unwrap();
    assert!(
        !cause.is_empty() && failing["store"]["since"].as_u64() > Some(0),
        "{failing}"
    );
    let total = used(&failing, "Gateway", "concurrency");
    assert_eq!(
        (&total["counted_in"], &total["used"]),
        (&json!("this process"), &total["here"])
    );
    fleet.server.restart().await;
    page.until("at('state').className", "live").await;
    page.until("at('store').hidden", "true").await;

    // One of the two replicas is gone.
    let [gone, _] = &mut fleet.gateways;
    gone.process.kill().unwrap();
    page.until(replicas, "1").await;
}

/// A replica that has not read a change of another replica still decides by the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preconditions_hold_for_the_override_in_the_store() {
    let fleet = Fleet::start().await;
    let put = async |gateway: usize, limit: &str, tag: Option<&str>| {
        let request = http::Request::put("/admin/limits/org:acme")
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("content-type", "application/json")
            .header("if-match", tag.unwrap_or("*"));
        let mut request = request
            .body(Body::from(json!({ "limit": limit }).to_string()))
            .unwrap();
        if tag.is_none() {
            request.headers_mut().remove("if-match");
        }
        let address = &fleet.gateways[gateway].address;
        let answer = forward(&fleet.client, address, request).await;
        let tag = answer.headers().get("etag").cloned();
        let tag = tag.map(|tag| tag.to_str().unwrap().to_owned());
        (answer.status().as_u16(), tag.unwrap_or_default())
    };
    let (status, mut tag) = put(0, "1/h", None).await;
    assert_eq!(status, 200);
    // Alternating between the replicas, faster than they read changes.
    for n in 2..10 {
        let (gateway, limit) = (n % 2, format!("{n}/h"));
        let (status, new) = put(gateway, &limit, Some(&tag)).await;
        assert_eq!(status, 200, "{limit}");
        let (status, current) = put(1 - gateway, "99/h", Some(&tag)).await;
        assert_eq!((status, &current), (412, &new), "{limit}");
        tag = new;
    }
}

/// A Redis without persistence restarts: each replica keeps its overrides, and reports the loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_overrides_are_shown_until_an_operator_accepts_the_loss() {
    let fleet = Fleet::start().await;
    let send = async |method: &str, path: &str, body: &'static str| {
        let request = http::Request::builder().method(method).uri(path);
        let request = request
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("content-type", "application/json");
        let request = request.body(Body::from(body)).unwrap();
        let answer = forward(&fleet.client, &fleet.gateways[0].address, request).await;
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
    };
    send("PUT", "/admin/limits/org:acme", "{\"limit\":\"5/h\"}").await;
    let lost = async |expected: u64| {
        for gateway in &fleet.gateways {
            let answer = fleet.get(&gateway.address, "/admin/now", TOKEN).await;
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            let now: Value = serde_json::from_slice(&body).unwrap();
            if now["lost_overrides"] != expected {
                return false;
            }
        }
        true
    };
    until("both know the limit", async || {
        let mut known = 0;
        for gateway in &fleet.gateways {
            let answer = fleet
                .get(&gateway.address, "/admin/limits/org:acme", TOKEN)
                .await;
            known += usize::from(answer.status().is_success());
        }
        known == 2
    })
    .await;
    fleet.server.clear().await;
    until("both have seen the loss", async || lost(1).await).await;
    let kept = fleet
        .get(&fleet.gateways[1].address, "/admin/limits/org:acme", TOKEN)
        .await;
    assert!(kept.status().is_success());
    send("POST", "/admin/loss/accept", "").await;
    until("both go by what is there", async || lost(0).await).await;
}

/// The undo works through any replica, with the override that the store has recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_another_replica_is_undone_with_its_end_and_note() {
    let fleet = Fleet::start().await;
    let mut page = Page::open(&format!("http://{}/admin", fleet.balancer)).await;
    sign_in(&mut page).await;
    let put = |body: Value| format!("ask('PUT', pathOf('limits', 'org:acme'), {{ body: {body} }})");
    let plan = json!({ "limit": "5/h", "for_seconds": 86_400, "note": "trial" });
    let ban = json!({ "limit": "deny all" });
    page.evaluate(&format!("void {}.then(() => {})", put(plan), put(ban)))
        .await;
    let last = "[...at('changes').rows[0]?.cells ?? []].slice(1, 4).map((cell) => cell.firstChild.textContent).join('|')";
    page.until(last, "org:acme|5/h|deny all").await;
    let before = fleet.ask("/changes").await["changes"][0]["before"].clone();
    page.click("#changes button").await;
    page.until("at('undo-dialog').open", "true").await;
    page.click("#undo-form .danger").await;
    page.until(last, "org:acme|deny all|5/h").await;
    let members = ["limit", "end", "note"];
    assert!(
        members.iter().all(|member| !before[member].is_null()),
        "{before}"
    );
    // The other replica reads the change shortly after.
    until("both replicas have it", async || {
        let both = [
            fleet.ask("/limits/org:acme").await,
            fleet.ask("/limits/org:acme").await,
        ];
        let is_before = |now: &Value| members.iter().all(|member| now[member] == before[member]);
        both.iter().all(is_before)
    })
    .await;
    assert!(page.errors.is_empty(), "{:?}", page.errors);
}
