//! What happens, as server-sent events.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use http_body::Frame;
use serde::Serialize;

use super::answer::too_many_listeners;
use super::api::Api;
use super::now::Store;
use super::recorder::{Counted, Listener, SECONDS, Sample};
use super::replica::Replica;
use crate::endpoint::Failed;
use crate::key::KeyName;

/// Keys of those refused most that are told.
const MOST_KEYS: usize = 10;

/// What limiters decided in each of some seconds.
#[derive(Serialize)]
struct History<'a> {
    replica: &'a Replica,
    /// The last of them; each follows the one before.
    second: i64,
    limiters: Vec<LimiterHistory<'a>>,
}

#[derive(Serialize)]
pub(super) struct LimiterHistory<'a> {
    name: &'a str,
    limit_type: &'static str,
    admitted: &'a [u32],
    refused: &'a [u32],
    would_refuse: &'a [u32],
}

/// What there is to say of a second.
#[derive(Serialize)]
struct Second<'a> {
    replica: &'a Replica,
    store: Option<Store>,
    second: u32,
    limiters: Vec<Limiter<'a>>,
    in_flight: Vec<InFlight<'a>>,
    refused_keys: Vec<RefusedKey>,
}

#[derive(Serialize)]
struct Limiter<'a> {
    name: &'a str,
    limit_type: &'static str,
    admitted: u32,
    refused: u32,
    would_refuse: u32,
}

#[derive(Serialize)]
struct InFlight<'a> {
    name: &'a str,
    used: u64,
    limit: Option<u64>,
}

/// A key, and the limit that refused it.
#[derive(Serialize)]
pub(super) struct RefusedKey {
    #[serde(serialize_with = "as_text")]
    key: KeyName,
    name: Box<str>,
    limit_type: &'static str,
    policy: Box<str>,
    count: u64,
}

pub(super) fn refused_most(api: &Api) -> Vec<RefusedKey> {
    let refused = api.recorder.refused_most(MOST_KEYS).into_iter();
    let told = refused.map(|refused| RefusedKey {
        key: api.limits.name_of(&refused.key),
        name: refused.source.limiter.clone(),
        limit_type: refused.source.limit_type,
        policy: refused.source.policy.clone(),
        count: refused.count,
    });
    told.collect()
}

#[derive(Serialize)]
struct Decision<'a> {
    name: &'a str,
    limit_type: &'static str,
    policy: &'a str,
    outcome: &'static str,
    reason: Option<&'static str>,
    #[serde(serialize_with = "as_some_text")]
    key: Option<KeyName>,
}

fn as_text<S: serde::Serializer>(key: &KeyName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(key.as_str())
}

fn as_some_text<S: serde::Serializer>(
    key: &Option<KeyName>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    key.as_ref().map(KeyName::as_str).serialize(serializer)
}

pub(super) async fn events(State(api): State<Arc<Api>>) -> Result<Response, Failed> {
    let listener = api.recorder.listen().ok_or_else(too_many_listeners)?;
    let watch = Watch {
        second: api.recorder.second(),
        begins: true,
        listener,
        api,
    };
    let events = Events(Box::pin(watch.next()));
    let mut response = Response::new(Body::new(events));
    for (name, value) in [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-store"),
        // For nginx, which would hold events back.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

/// A listener and what it was told.
struct Watch {
    api: Arc<Api>,
    listener: Listener,
    /// The second that it is told of next.
    second: u32,
    begins: bool,
}

impl Watch {
    /// The next event.
    async fn next(mut self) -> (Bytes, Self) {
        if std::mem::take(&mut self.begins) {
            return (self.history(), self);
        }
        let recorder = &self.api.recorder;
        let event = tokio::select! {
            // In this order, so that decisions put no second off.
            biased;
            () = Listener::over(recorder, self.second) => {
                // The one that was over last: a client that is slow misses some.
                self.second = recorder.second().max(self.second + 1);
                self.second_that_is_over()
            }
            sample = self.listener.decision() => self.decision(&sample),
        };
        (event, self)
    }

    fn history(&self) -> Bytes {
        let seconds = self.second.saturating_sub(SECONDS - 1)..self.second;
        let counted = self.api.recorder.counted(seconds);
        let history = History {
            replica: self.api.recorder.replica(),
            second: i64::from(self.second) - 1,
            limiters: counted.iter().map(LimiterHistory::from).collect(),
        };
        event("history", &history)
    }

    fn second_that_is_over(&self) -> Bytes {
        let over = self.second - 1;
        let recorder = &self.api.recorder;
        let counted = recorder.counted(over..self.second);
        let in_flight = recorder.in_flight();
        let told = Second {
            replica: recorder.replica(),
            store: self.api.limits.store_status().map(Store::from),
            second: over,
            limiters: counted.iter().map(Limiter::from).collect(),
            in_flight: in_flight
                .iter()
                .map(|held| InFlight {
                    name: &held.limiter,
                    used: held.used,
                    limit: held.limit,
                })
                .collect(),
            refused_keys: refused_most(&self.api),
        };
        event("second", &told)
    }

    fn decision(&self, sample: &Sample) -> Bytes {
        let decision = Decision {
            name: &sample.limiter,
            limit_type: sample.limit_type,
            policy: &sample.policy,
            outcome: sample.outcome.as_str(),
            reason: sample.reason.map(|reason| reason.as_str()),
            key: sample.key.map(|key| self.api.limits.name_of(&key)),
        };
        event("decision", &decision)
    }
}

impl<'a> From<&'a Counted> for LimiterHistory<'a> {
    fn from(counted: &'a Counted) -> Self {
        Self {
            name: &counted.limiter,
            limit_type: counted.limit_type,
            admitted: &counted.admitted,
            refused: &counted.refused,
            would_refuse: &counted.would_refuse,
        }
    }
}

impl<'a> From<&'a Counted> for Limiter<'a> {
    fn from(counted: &'a Counted) -> Self {
        Self {
            name: &counted.limiter,
            limit_type: counted.limit_type,
            admitted: counted.admitted.iter().sum(),
            refused: counted.refused.iter().sum(),
            would_refuse: counted.would_refuse.iter().sum(),
        }
    }
}

/// One event. JSON has no line breaks of its own, which would end it.
fn event(name: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).expect("strings and numbers serialise");
    format!("event: {name}\ndata: {data}\n\n").into()
}

type Next = dyn Future<Output = (Bytes, Watch)> + Send;

/// Events one after another, for as long as somebody reads them.
struct Events(Pin<Box<Next>>);

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let (event, watch) = ready!(self.0.as_mut().poll(context));
        self.0 = Box::pin(watch.next());
        Poll::Ready(Some(Ok(Frame::data(event))))
    }
}
