//! The gateway as a process, and what its tests ask of it.
// Each test that has this file uses a part of it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// A stream that goes on for as long as any test.
pub(crate) const LONG_STREAM: &str = "/api/stream?chunks=1000&ms=1000";

/// A file in the folder of this process, gone at the end.
pub(crate) struct File(PathBuf);

impl File {
    pub(crate) fn new(name: &str, text: &str) -> Self {
        let name = format!("tower-admission-{}-{name}", std::process::id());
        let file = Self(std::env::temp_dir().join(name));
        file.write(text);
        file
    }

    pub(crate) fn write(&self, text: &str) {
        std::fs::write(&self.0, text).unwrap();
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A gateway that runs until this is dropped.
pub(crate) struct Gateway {
    child: Child,
    // Open as long as it runs, though all that is read of it is the address.
    _stdout: BufReader<ChildStdout>,
    log: Option<JoinHandle<String>>,
    pub(crate) address: String,
    pub(crate) client: Client<HttpConnector, Full<Bytes>>,
}

impl Gateway {
    pub(crate) fn start(flags: &[&str]) -> Self {
        let mut command = command();
        command.args(flags);
        Self::spawn(command)
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command
            .args(["--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let log = thread::spawn(move || {
            let mut log = String::new();
            stderr.read_to_string(&mut log).unwrap();
            log
        });
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let Some(address) = line.trim_end().strip_prefix("Listening on http://") else {
            panic!("{line:?}, and {}", log.join().unwrap());
        };
        Self {
            child,
            _stdout: stdout,
            log: Some(log),
            address: address.to_owned(),
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    /// Sends a signal: `TERM`, as a service manager does, or `INT`.
    #[cfg(unix)]
    pub(crate) fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), &id])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Its exit code, and all that it logged, when it ends.
    pub(crate) async fn ended(mut self) -> (Option<i32>, String) {
        let ended = tokio::task::spawn_blocking(move || {
            let code = self.child.wait().unwrap().code();
            (code, self.log.take().unwrap().join().unwrap())
        });
        soon(ended).await.unwrap()
    }

    /// Ends it, and returns all that it logged.
    pub(crate) fn stop(mut self) -> String {
        self.child.kill().unwrap();
        self.log.take().unwrap().join().unwrap()
    }

    pub(crate) fn request(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: &str,
    ) -> Request<Full<Bytes>> {
        Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header(AUTHORIZATION, format!("Bearer {token}"))
            .body(Bytes::copy_from_slice(body.as_bytes()).into())
            .unwrap()
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: &str,
    ) -> Response<Incoming> {
        let request = self.request(method, path, token, body);
        soon(self.client.request(request)).await.unwrap()
    }

    /// The status of a response that is read to its end.
    pub(crate) async fn get(&self, path: &str, token: &str) -> StatusCode {
        let response = self.send(Method::GET, path, token, "").await;
        let status = response.status();
        text(response).await;
        status
    }

    /// The path of a key's limit. The key may be a credential, which is in no URL, so the answer of a body has its name.
    pub(crate) async fn limit_path(&self, key: &str, operator: &str) -> String {
        let body = serde_json::json!({ "key": key }).to_string();
        let mut request = self.request(Method::POST, "/admin/keys/resolve", operator, &body);
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(CONTENT_TYPE, json);
        let answer = soon(self.client.request(request)).await.unwrap();
        let found: serde_json::Value = serde_json::from_str(&text(answer).await).unwrap();
        let name = found["keys"][0]["key"].as_str().unwrap();
        format!("/admin/limits/{}", name.replace('#', "%23"))
    }

    /// A response of which something was read, and something was not.
    pub(crate) async fn begin(&self, path: &str, token: &str) -> Response<Incoming> {
        let mut response = self.send(Method::GET, path, token, "").await;
        assert_eq!(response.status(), 200);
        soon(response.frame()).await.unwrap().unwrap();
        response
    }

    /// The health check, by gRPC.
    pub(crate) async fn check(&self, token: &str) -> Result<ServingStatus, tonic::Status> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let mut request = tonic::Request::new(HealthCheckRequest::default());
        let authorization = format!("Bearer {token}").parse().unwrap();
        request
            .metadata_mut()
            .insert("authorization", authorization);
        let mut client = HealthClient::new(endpoint.connect_lazy());
        let response = soon(client.check(request)).await?;
        Ok(response.into_inner().status())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The example that cargo built next to this test, with nothing from the environment.
pub(crate) fn command() -> Command {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.extend(["examples", "gateway"]);
    path.set_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        path.exists(),
        "`cargo test --test gateway` builds no examples; \
         run `cargo build --all-features --example gateway` before it"
    );
    let mut command = Command::new(path);
    for flag in [
        "CONFIG",
        "LISTEN",
        "MAX_CONCURRENCY",
        "RATE",
        "BURST",
        "STORE",
        "SECRET",
        "REPLICAS",
        "GRACE_SECONDS",
    ] {
        command.env_remove(flag);
    }
    command
}

/// Bounds how long a test that fails hangs.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("it happens at all")
}

pub(crate) fn header<'a>(response: &'a Response<Incoming>, name: &str) -> &'a str {
    let value = response.headers().get(name);
    value.expect(name).to_str().unwrap()
}

/// What is left of the body.
pub(crate) async fn text(response: Response<Incoming>) -> String {
    let body = soon(response.into_body().collect()).await.unwrap();
    String::from_utf8(body.to_bytes().into()).unwrap()
}
