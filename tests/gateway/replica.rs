//! A process of the gateway example that shares a Redis server with others.
// Each test that has this file uses a part of it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::server::Server;

pub(crate) struct Replica {
    process: Child,
    address: String,
    client: Client<HttpConnector, Empty<Bytes>>,
    // The gateway would be told if nobody read it any more.
    _stdout: BufReader<ChildStdout>,
}

impl Replica {
    pub(crate) fn start(server: &Server, flags: &[&str]) -> Self {
        let url = server.url();
        let secret = "00112233445566778899aabbccddeeff";
        let store = ["--store", &url, "--secret", secret];
        Self::spawn(&[&store, flags].concat())
    }

    pub(crate) fn spawn(flags: &[&str]) -> Self {
        let mut path = std::env::current_exe().unwrap();
        path.pop();
        path.pop();
        path.extend(["examples", "gateway"]);
        path.set_extension(std::env::consts::EXE_EXTENSION);
        let mut process = Command::new(path)
            .args(["--listen", "127.0.0.1:0"])
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("build the examples first: `cargo build --all-features --examples`");
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("Listening on ");
        Self {
            address: address.expect("the address it listens on").to_owned(),
            client: Client::builder(TokioExecutor::new()).build_http(),
            process,
            _stdout: stdout,
        }
    }

    pub(crate) async fn get(&self, path: &str, token: &str) -> Response<Incoming> {
        let request = Request::builder()
            .uri(format!("{}{path}", self.address))
            .header("authorization", format!("Bearer {token}"))
            .body(Empty::new());
        self.client.request(request.unwrap()).await.unwrap()
    }

    pub(crate) async fn status(&self, path: &str, token: &str) -> u16 {
        self.get(path, token).await.status().as_u16()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A file for gateways, with a deadline that a busy machine keeps. Is removed when dropped.
pub(crate) struct Config(PathBuf);

impl Config {
    pub(crate) fn write(server: &Server, limits: &str) -> Self {
        let file = std::env::temp_dir().join(format!("gateway-{}.toml", server.port));
        let text = format!(
            "[store]\nurl = '{}'\nsecret = '00112233445566778899aabbccddeeff'\nprefix = 'gateway'\n\
             deadline = '2s'\n[groups.api]\npath = '/api'\n{limits}",
            server.url()
        );
        std::fs::write(&file, text).unwrap();
        Self(file)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
