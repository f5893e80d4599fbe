//! What the gateway does once a request is admitted.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Query;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use tokio::time::sleep;

/// Bounds of the parameters, so that no client holds a permit for days.
const MAX_SLEEP: Duration = Duration::from_secs(60);
const MAX_PAUSE: Duration = Duration::from_secs(1);
const MAX_CHUNKS: u32 = 1000;

pub(crate) async fn health() -> &'static str {
    "ok\n"
}

pub(crate) async fn echo(body: Bytes) -> Bytes {
    body
}

#[derive(Deserialize)]
pub(crate) struct Slow {
    #[serde(default = "half_a_second")]
    ms: u64,
}

/// Answers after `ms` milliseconds. A value that is not a number is answered 400.
pub(crate) async fn slow(Query(Slow { ms }): Query<Slow>) -> String {
    let time = Duration::from_millis(ms).min(MAX_SLEEP);
    sleep(time).await;
    format!("slept {} ms\n", time.as_millis())
}

#[derive(Deserialize)]
pub(crate) struct Chunks {
    #[serde(default = "ten")]
    chunks: u32,
    #[serde(default = "a_tenth_of_a_second")]
    ms: u64,
}

/// Sends chunks with a pause between them. The request is in flight until the last one is sent.
pub(crate) async fn stream(Query(Chunks { chunks, ms }): Query<Chunks>) -> Body {
    let pause = Duration::from_millis(ms).min(MAX_PAUSE);
    let chunks = stream::iter(1..=chunks.min(MAX_CHUNKS)).then(move |n| async move {
        if n > 1 {
            sleep(pause).await;
        }
        Ok::<_, Infallible>(format!("chunk {n}\n"))
    });
    Body::from_stream(chunks)
}

fn half_a_second() -> u64 {
    500
}

fn ten() -> u32 {
    10
}

fn a_tenth_of_a_second() -> u64 {
    100
}
