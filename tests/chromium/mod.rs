//! Pages in headless Chromium, for tests.
#![allow(dead_code)] // not every test does everything with a page

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// A process that ends with the test, and the first line it prints that has this in it.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command, has: &str, otherwise: &str) -> (Self, String) {
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

/// A window of a browser.
pub(crate) struct Window(String);

/// A page in headless Chromium, over the DevTools protocol.
pub(crate) struct Page {
    protocol: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// Of the page that calls are about, once it is there.
    session: Option<String>,
    calls: u64,
    /// What the page wrote to the console as an error, or threw.
    pub(crate) errors: Vec<String>,
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
    pub(crate) async fn open(url: &str) -> Self {
        let name = ["chromium", "chromium-browser", "google-chrome"]
            .into_iter()
            .find(|name| Command::new(name).arg("--version").output().is_ok())
            .expect("this test needs Chromium: `apt-get install chromium`");
        static PAGES: AtomicU32 = AtomicU32::new(0);
        let page = PAGES.fetch_add(1, Ordering::Relaxed);
        let profile = format!("admission-{}-{page}", std::process::id());
        let profile = std::env::temp_dir().join(profile);
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
        page.open_window(url).await;
        page
    }

    /// Another page of the same browser, in a window of its own, so that both are visible. What follows is about it.
    pub(crate) async fn open_window(&mut self, url: &str) -> Window {
        self.session = None;
        let blank = json!({ "url": "about:blank", "newWindow": true });
        let target = self.call("Target.createTarget", blank).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = self.call("Target.attachToTarget", attach).await;
        let session = attached["sessionId"].as_str().unwrap().to_owned();
        self.session = Some(session.clone());
        for domain in ["Runtime.enable", "Log.enable", "Page.enable"] {
            self.call(domain, json!({})).await;
        }
        self.call("Page.navigate", json!({ "url": url })).await;
        self.until("document.readyState", "complete").await;
        Window(session)
    }

    /// What follows is about this window.
    pub(crate) fn look_at(&mut self, window: &Window) {
        self.session = Some(window.0.clone());
    }

    /// A key that is pressed, and the text that it types.
    pub(crate) async fn press(&mut self, key: &str, code: u32, text: &str) {
        for kind in ["keyDown", "keyUp"] {
            let mut press = json!({
                "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code,
            });
            if kind == "keyDown" && !text.is_empty() {
                press["text"] = text.into();
            }
            self.call("Input.dispatchKeyEvent", press).await;
        }
    }

    /// Text that is typed where the focus is.
    pub(crate) async fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text })).await;
    }

    pub(crate) async fn colours(&mut self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        let media = json!({ "features": features });
        self.call("Emulation.setEmulatedMedia", media).await;
    }

    /// Calls a method, and takes note of errors that are told in the meantime.
    pub(crate) async fn call(&mut self, method: &str, params: Value) -> Value {
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

    pub(crate) async fn evaluate(&mut self, expression: &str) -> String {
        let expression = json!({ "expression": format!("String({expression})") });
        let result = self.call("Runtime.evaluate", expression).await;
        // An error, such as that the page is not there yet, reads as what it is.
        let result = &result["result"];
        let text = result["value"].as_str().or(result["description"].as_str());
        text.unwrap_or_default().to_owned()
    }

    pub(crate) async fn until(&mut self, expression: &str, expected: &str) {
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

    pub(crate) async fn click(&mut self, selector: &str) {
        let click = format!("document.querySelector({selector:?}).click()");
        self.evaluate(&click).await;
    }

    /// A screen of this size, in CSS pixels.
    pub(crate) async fn resize(&mut self, width: u32, height: u32, mobile: bool) {
        let screen = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile,
        });
        self.call("Emulation.setDeviceMetricsOverride", screen)
            .await;
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = self.browser.0.kill();
        let _ = self.browser.0.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}
