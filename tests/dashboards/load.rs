//! Requests to the gateways of a test, and how they were answered.

use std::collections::BTreeMap;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use crate::process::{File, Gateway, soon, text};

/// Of the operators of the gateways.
pub(crate) const ADMIN_TOKEN: &str = "b5b0ea1ed0924ab5";

/// A gateway, and how many requests of each limiter it admitted and rejected.
pub(crate) struct Loaded {
    pub(crate) gateway: Gateway,
    _config: File,
    /// The number of requests for each limiter and status.
    answers: BTreeMap<(&'static str, u16), usize>,
}

impl Loaded {
    pub(crate) fn start(name: &str, config: &str) -> Self {
        let config = File::new(name, config);
        Self {
            gateway: Gateway::start(&["--config", config.path()]),
            _config: config,
            answers: BTreeMap::new(),
        }
    }

    /// How many requests of a limiter, or of all of them, had such a status.
    pub(crate) fn count(&self, limiter: Option<&str>, status: impl Fn(u16) -> bool) -> usize {
        let matching = self.answers.iter().filter(|((of, answered), _)| {
            limiter.is_none_or(|limiter| *of == limiter) && status(*answered)
        });
        matching.map(|(_, count)| count).sum()
    }

    pub(crate) async fn send(
        &mut self,
        limiter: &'static str,
        method: Method,
        path: &str,
        token: &str,
    ) -> u16 {
        let response = self.gateway.send(method, path, token, "").await;
        let status = response.status().as_u16();
        text(response).await;
        *self.answers.entry((limiter, status)).or_default() += 1;
        status
    }

    /// Sets the limit of a key at the admin endpoints.
    pub(crate) async fn set_limit(&self, key: &str, limit: &str) {
        let path = self.gateway.limit_path(key, ADMIN_TOKEN).await;
        let body = format!(r#"{{"limit": "{limit}"}}"#);
        let mut request = (self.gateway).request(Method::PUT, &path, ADMIN_TOKEN, &body);
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(CONTENT_TYPE, json);
        let set = soon(self.gateway.client.request(request)).await.unwrap();
        assert_eq!(set.status(), 200);
    }

    /// Of each of 100 tokens as many as the quota holds, and two more.
    pub(crate) async fn spend(&mut self, round: &str) {
        for token in 0..100 {
            let token = format!("{round}-{token}");
            for expected in [200, 200, 200, 429, 429] {
                let status = self
                    .send("api", Method::GET, "/api/slow?ms=1", &token)
                    .await;
                assert_eq!(status, expected);
            }
        }
    }

    /// A client that does not read, which holds the only permit until another request gets it.
    pub(crate) async fn stall(&mut self) {
        let narrow = Client::builder(TokioExecutor::new())
            .http2_only(true)
            .http2_initial_stream_window_size(16)
            .build_http();
        let request = self
            .gateway
            .request(Method::GET, LONG_STREAM_AT_ONCE, "mallory", "");
        let mut stalled = soon(narrow.request(request)).await.unwrap();
        assert_eq!(stalled.status(), 200);
        *self.answers.entry(("stream", 200)).or_default() += 1;
        soon(stalled.frame()).await.unwrap().unwrap();
        let path = "/api/stream?chunks=1&ms=0";
        while self.send("stream", Method::GET, path, "alice").await != 200 {}
    }
}

/// More than a client takes that does not read.
const LONG_STREAM_AT_ONCE: &str = "/api/stream?chunks=1000&ms=0";
