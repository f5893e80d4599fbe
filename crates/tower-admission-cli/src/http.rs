//! A small HTTP client for the admin endpoints.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{
    AUTHORIZATION, CONTENT_TYPE, ETAG, HOST, HeaderValue, IF_MATCH, IF_NONE_MATCH,
};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::failure::Failure;

/// The maximum size of an answer, in bytes.
const LONGEST_ANSWER: usize = 16 << 20;

/// Opens a connection per request, because a command makes few.
pub(crate) struct Client {
    authority: String,
    host: String,
    port: u16,
    /// The prefix of all paths, without a slash at the end.
    base: String,
    authorization: Option<HeaderValue>,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// Whether it is a problem (RFC 9457). Another server does not answer with one.
    pub(crate) is_problem: bool,
    /// `Null` if the body is not JSON.
    pub(crate) body: Value,
    /// The entity tag.
    pub(crate) tag: Option<HeaderValue>,
}

/// The precondition of a change.
pub(crate) enum Condition {
    /// The override has this tag.
    Is(HeaderValue),
    /// The key has no override.
    IsNone,
}

impl Client {
    pub(crate) fn new(url: &str, token: Option<&str>) -> Result<Self, Failure> {
        let wrong = || Failure::usage("--admin cannot be used: write it as http://host:port/path");
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(Failure::usage(
                    "--admin does not support https: use the address of the service itself, or of a proxy on this \
                        machine",
                ));
            }
            _ => return Err(wrong()),
        }
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(wrong());
        }
        // The port comes after the last bracket of an IPv6 address.
        let after_host = authority.as_str().rsplit(']').next().unwrap_or_default();
        let port = match authority.port_u16() {
            Some(port) => port,
            None if after_host.contains(':') => return Err(wrong()),
            None => 80,
        };
        let token = token.map(str::trim).filter(|token| !token.is_empty());
        let authorization = token.map(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| Failure::usage("invalid token: it has control characters"))?;
            value.set_sensitive(true);
            Ok(value)
        });
        Ok(Self {
            // The address of a connection has no brackets.
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port,
            authority: authority.to_string(),
            base: uri.path().trim_end_matches('/').to_owned(),
            authorization: authorization.transpose()?,
        })
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Failure> {
        self.send_if(method, path, body, None).await
    }

    pub(crate) async fn send_if(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        condition: Option<Condition>,
    ) -> Result<Answer, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(HOST, &self.authority);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request = match condition {
            Some(Condition::Is(tag)) => request.header(IF_MATCH, tag),
            Some(Condition::IsNone) => request.header(IF_NONE_MATCH, "*"),
            None => request,
        };
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(body))).map_err(|_| {
            Failure::usage("--admin cannot be used: write it as http://host:port/path")
        })?;
        let address = (&*self.host, self.port);
        let stream = TcpStream::connect(address).await.map_err(|_| {
            Failure::unreachable(
                "the admin endpoints cannot be reached: check --admin, and that the service runs",
            )
        })?;
        exchange(stream, request).await.map_err(|_| {
            Failure::unanswered(
                "the admin endpoints do not answer: check --admin, and that the service runs",
            )
        })
    }
}

async fn exchange(
    stream: TcpStream,
    request: Request<Full<Bytes>>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // The task ends with the sender or with the runtime.
    tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, LONGEST_ANSWER).collect().await?;
    let content_type = head.headers.get(CONTENT_TYPE);
    let is_problem =
        content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/problem+json"));
    Ok(Answer {
        status: head.status,
        is_problem,
        body: serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null),
        tag: head.headers.get(ETAG).cloned(),
    })
}
