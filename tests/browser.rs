//! The page of the WebSocket example, in a real browser.
#![cfg(feature = "ws")]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// A process that ends with the test, and the first line it prints that has this in it.
struct Process(Child);

impl Process {
    fn start(command: &mut Command, has: &str, otherwise: &str) -> (Self, String) {
        // The browser writes to the one, the example to the other.
        let (from, to) = std::io::pipe().unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(to.try_clone().unwrap())
            .stderr(to)
            .spawn()
            .unwrap_or_else(|error| panic!("{otherwise}: {error}"));
        let process = Self(child);
        let mut lines = BufReader::new(from);
        loop {
            let mut line = String::new();
            let read = lines.read_line(&mut line).unwrap();
            assert!(read > 0, "it ended before it said {has:?}");
            if line.contains(has) {
                // Read on, or it would be held up when the pipe is full.
                std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
                return (process, line);
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn example(name: &str) -> (Process, String) {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.extend(["examples", name]);
    path.set_extension(std::env::consts::EXE_EXTENSION);
    let (process, line) = Process::start(
        Command::new(path).env("LISTEN", "127.0.0.1:0"),
        "Listening on ",
        "build the examples first: `cargo build --all-features --examples`",
    );
    let address = line.trim_end().strip_prefix("Listening on ");
    (process, address.unwrap().to_owned())
}

/// A page in headless Chromium, over the DevTools protocol.
struct Page {
    protocol: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// Of the page, once it is there.
    session: Option<String>,
    calls: u64,
    /// What the page wrote to the console as an error, or threw.
    errors: Vec<String>,
    profile: PathBuf,
    browser: Process,
}

const FLAGS: [&str; 11] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-port=0",
    "about:blank",
];

impl Page {
    async fn open(url: &str) -> Self {
        let name = ["chromium", "chromium-browser", "google-chrome"]
            .into_iter()
            .find(|name| Command::new(name).arg("--version").output().is_ok())
            .expect("this test needs Chromium: `apt-get install chromium`");
        let profile = std::env::temp_dir().join(format!("admission-{}", std::process::id()));
        let (browser, line) = Process::start(
            Command::new(name)
                .arg(format!("--user-data-dir={}", profile.display()))
                .args(FLAGS),
            "DevTools listening on ",
            "Chromium does not start",
        );
        let endpoint = line.trim_end().rsplit(' ').next().unwrap();
        let (protocol, _) = connect_async(endpoint).await.unwrap();
        let mut page = Self {
            protocol,
            session: None,
            calls: 0,
            errors: Vec::new(),
            profile,
            browser,
        };
        let blank = json!({ "url": "about:blank" });
        let target = page.call("Target.createTarget", blank).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = page.call("Target.attachToTarget", attach).await;
        page.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Runtime.enable", "Log.enable", "Page.enable"] {
            page.call(domain, json!({})).await;
        }
        page.call("Page.navigate", json!({ "url": url })).await;
        page.until("document.readyState", "complete").await;
        page
    }

    /// Calls a method, and takes note of errors that are told in the meantime.
    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let mut call = json!({ "id": self.calls, "method": method, "params": params });
        if let Some(session) = &self.session {
            call["sessionId"] = session.as_str().into();
        }
        let call = Message::text(call.to_string());
        self.protocol.send(call).await.unwrap();
        loop {
            let message = self.protocol.next().await.unwrap().unwrap();
            let Message::Text(text) = message else {
                continue;
            };
            let message: Value = serde_json::from_str(&text).unwrap();
            if message["id"] == self.calls {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            let params = &message["params"];
            let is_error = match message["method"].as_str() {
                Some("Runtime.exceptionThrown") => true,
                Some("Runtime.consoleAPICalled") => params["type"] == "error",
                Some("Log.entryAdded") => params["entry"]["level"] == "error",
                _ => false,
            };
            if is_error {
                self.errors.push(params.to_string());
            }
        }
    }

    async fn evaluate(&mut self, expression: &str) -> String {
        let expression = json!({ "expression": format!("String({expression})") });
        let result = self.call("Runtime.evaluate", expression).await;
        result["result"]["value"].as_str().unwrap().to_owned()
    }

    async fn until(&mut self, expression: &str, expected: &str) {
        let mut value = String::new();
        for _ in 0..1500 {
            value = self.evaluate(expression).await;
            if value == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{expression} is {value:?} and not {expected:?}");
    }

    async fn click(&mut self, selector: &str) {
        let click = format!("document.querySelector({selector:?}).click()");
        self.evaluate(&click).await;
    }

    /// The numbers that the page shows.
    async fn until_shows(&mut self, expected: [u32; 4]) {
        let numbers = "['open', 'refused', 'echoed', 'over'].map(id => at(id).textContent)";
        let expected = expected.map(|number| number.to_string()).join(",");
        self.until(numbers, &expected).await;
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = self.browser.0.kill();
        let _ = self.browser.0.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

#[tokio::test]
async fn the_page_shows_connections_and_messages_being_refused() {
    let (_server, address) = example("websocket");
    let mut page = Page::open(&address).await;
    page.until_shows([0, 0, 0, 0]).await;

    for open in 1..=3 {
        page.click("#connect").await;
        page.until_shows([open, 0, 0, 0]).await;
    }
    page.click("#connect").await;
    page.until_shows([3, 1, 0, 0]).await;
    let last = "document.querySelector('#sockets li:last-child').textContent";
    let told = page.evaluate(last).await;
    assert!(
        told.contains("1008 policy violation key_at_capacity"),
        "{told}"
    );

    // Eight messages on a connection that may send five; then eight more, of which six are
    // answered before the tenth violation closes it.
    let eight = "[aria-label='Send eight: connection 1']";
    page.click(eight).await;
    page.until_shows([3, 1, 5, 3]).await;
    let log = page.evaluate("at('log').textContent").await;
    assert!(log.contains("Rate limit exceeded."), "{log}");
    page.click(eight).await;
    page.until_shows([2, 1, 5, 9]).await;

    // There is room again for one.
    page.click("#connect").await;
    page.until_shows([3, 1, 5, 9]).await;
    page.click("[aria-label='Close: connection 2']").await;
    page.until_shows([2, 1, 5, 9]).await;
    assert!(page.errors.is_empty(), "{:?}", page.errors);

    // Down to the width of a phone nothing is cut off.
    let phone = json!({ "width": 360, "height": 640, "deviceScaleFactor": 1, "mobile": true });
    page.call("Emulation.setDeviceMetricsOverride", phone).await;
    page.until("document.documentElement.scrollWidth <= innerWidth", "true")
        .await;
}
