//! Rejected requests are answered with the JSON of your own API, in place of problem details.
//!
//! ```sh
//! cargo run --example custom_body
//! for i in 1 2 3; do curl -si http://127.0.0.1:3000/ -H 'authorization: Bearer alice'; echo; done
//! ```
//!
//! The third answer is a 429 with this body. The layer adds `Retry-After`, the rate-limit fields and
//! `Cache-Control: no-store` to what the responder returns.
//!
//! ```json
//! {"error":{"code":"quota_exceeded","limits":["requests"],"message":"Rate limit exceeded. Please try again later.","retry_after_seconds":30}}
//! ```

use std::net::SocketAddr;

use axum::Router;
use axum::http::{HeaderValue, Response, header::CONTENT_TYPE};
use axum::routing::get;
use bytes::Bytes;
use serde_json::json;
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_admission::{
    ConcurrencyLimitLayer, Policy, Quota, RateLimitByTokenLayer, Rejection, RequestHead, Responder,
};

/// The errors of this API. A closure `|rejection: &Rejection, head: RequestHead<'_>| -> Response<String>` is a
/// responder as well; a type can be given to several layers.
#[derive(Clone, Copy)]
struct ApiError;

impl Responder for ApiError {
    fn respond(&self, rejection: &Rejection, _: RequestHead<'_>) -> Response<Bytes> {
        let error = json!({
            "error": {
                // Stable words for programs, such as `quota_exceeded` and `at_capacity`.
                "code": rejection.reason().as_str(),
                "message": rejection.to_string(),
                "retry_after_seconds": rejection.retry_after_seconds(),
                "limits": rejection.violated_policies().collect::<Vec<_>>(),
            }
        });
        let mut response = Response::new(Bytes::from(error.to_string()));
        // 503 at capacity, 429 over a rate, 403 for a denied key.
        *response.status_mut() = rejection.reason().status();
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        response
    }
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let service = app().into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).await
}

fn app() -> Router {
    let policy = Policy::new("requests", Quota::per_minute(2));
    let limits = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(64).respond(ApiError))
        .layer(RateLimitByTokenLayer::new(policy).respond(ApiError));
    Router::new()
        .route("/", get(|| async { "hello\n" }))
        .layer(limits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::extract::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    #[tokio::test]
    async fn a_rejection_has_the_body_of_the_api_and_the_fields_of_the_layer() {
        let app = app();
        let request = || {
            let alice = Request::get("/").header("authorization", "Bearer alice");
            app.clone().oneshot(alice.body(Body::empty()).unwrap())
        };
        assert_eq!(request().await.unwrap().status(), 200);
        assert_eq!(request().await.unwrap().status(), 200);

        let rejected = request().await.unwrap();
        assert_eq!(rejected.status(), 429);
        assert_eq!(rejected.headers()["content-type"], "application/json");
        assert_eq!(rejected.headers()["retry-after"], "30");
        assert!(rejected.headers().contains_key("ratelimit"));
        let body = rejected.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["code"], "quota_exceeded");
        assert_eq!(body["error"]["retry_after_seconds"], 30);
        assert_eq!(body["error"]["limits"], json!(["requests"]));
    }
}
