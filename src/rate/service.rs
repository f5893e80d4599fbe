//! The service: decides in `call`, then calls the inner service or rejects.

use std::pin::Pin;
use std::slice;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use smallvec::{SmallVec, smallvec};
use tower_service::Service;

use super::account::Keys;
use super::future::{Deciding, ResponseFuture, Told};
use super::layer::MAX_KEYS;
use super::shared::{Asked, Shared, Verdict};
use super::status::RateLimitStatus;
use crate::access::is_exempt;
use crate::body::ResponseBody;
use crate::decision::Decision;
use crate::extract::{Extracted, RequestHead};
use crate::key::Key;
use crate::nesting::CountedRequest;
use crate::store::Reply;

/// A service with a limit on the rate of requests; made by
/// [`RateLimitLayer`](super::RateLimitLayer).
#[derive(Clone, Debug)]
pub struct RateLimit<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> RateLimit<S> {
    pub(super) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
    }

    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The service inside.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The service inside.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, B, RB> Service<Request<B>> for RateLimit<S>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    RB: Body,
{
    type Response = Response<ResponseBody<RB>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B, RB>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        let shared = &*self.shared;
        if is_exempt(request.extensions()) {
            return self.call_exempt(request);
        }
        if !shared.is_plain {
            return call_with_options(&mut self.inner, &self.shared, request);
        }
        let mut counted_request = shared.nesting.counted_request();
        if counted_request.take_counted() {
            return pass_on(&mut self.inner, request, counted_request);
        }
        if shared.tier_by.is_some() {
            return self.call_in_tier(request, counted_request);
        }
        // The usual: a key of a usual sort, and a quota. All else is apart, so that here the request
        // stays where it is until it is passed on: a move of it costs as much as the decision's
        // compare-and-swap.
        let found = shared.keys[0].find_inlined(RequestHead::from(&request));
        // By reference: to copy it as a whole so soon after it was written in parts would wait
        // for the writes to reach the cache.
        let Extracted::Key(key) = &found else {
            return self.call_unusual(request, counted_request);
        };
        if shared.tells {
            return self.call_and_tell(request, key, counted_request);
        }
        if !shared.limiter.take_one(None, key) {
            return self.call_and_tell(request, key, counted_request);
        }
        let told = Told::default();
        if counted_request == CountedRequest::NOT_LISTED {
            // In one expression, so that the future is written to its place.
            return ResponseFuture::calling(self.inner.call(request), told, counted_request);
        }
        let listed = counted_request.list();
        let future = self.inner.call(request);
        drop(listed);
        ResponseFuture::calling(future, told, counted_request)
    }
}

impl<S> RateLimit<S> {
    /// Calls with a request that is not counted, whose handler may ask for its status.
    #[cold]
    #[inline(never)]
    fn call_exempt<B, RB>(&mut self, mut request: Request<B>) -> ResponseFuture<S, B, RB>
    where
        S: Service<Request<B>, Response = Response<RB>>,
    {
        if self.shared.tells_handlers {
            request.extensions_mut().insert(RateLimitStatus::UNLIMITED);
        }
        call(
            &mut self.inner,
            request,
            Told::default(),
            CountedRequest::NOT_LISTED,
        )
    }

    /// Calls with a request whose key is to be looked for further.
    #[inline(never)]
    fn call_unusual<B, RB>(
        &mut self,
        request: Request<B>,
        counted_request: CountedRequest,
    ) -> ResponseFuture<S, B, RB>
    where
        S: Service<Request<B>, Response = Response<RB>> + Clone,
        RB: Body,
    {
        let shared = &*self.shared;
        let key = shared.keys[0].key(RequestHead::from(&request));
        if !shared.tells && shared.limiter.take_one(None, &key) {
            return call(&mut self.inner, request, Told::default(), counted_request);
        }
        self.call_and_tell(request, &key, counted_request)
    }

    /// Calls with a request whose tier is selected.
    #[inline(never)]
    fn call_in_tier<B, RB>(
        &mut self,
        request: Request<B>,
        counted_request: CountedRequest,
    ) -> ResponseFuture<S, B, RB>
    where
        S: Service<Request<B>, Response = Response<RB>> + Clone,
        RB: Body,
    {
        let shared = &*self.shared;
        let head = RequestHead::from(&request);
        let tier = shared.tier(head);
        let key = shared.keys[0].key(head);
        if !shared.tells && shared.limiter.take_one(tier, &key) {
            return call(&mut self.inner, request, Told::default(), counted_request);
        }
        let asked = shared.asked_in(tier);
        let keys = slice::from_ref(&key);
        let reply = shared.limiter.decide_in_tier(tier, keys, 1);
        decided(&mut self.inner, &self.shared, request, keys, asked, reply)
    }

    /// Decides with numbers, and calls or rejects.
    #[inline(never)]
    fn call_and_tell<B, RB>(
        &mut self,
        mut request: Request<B>,
        key: &Key,
        mut counted_request: CountedRequest,
    ) -> ResponseFuture<S, B, RB>
    where
        S: Service<Request<B>, Response = Response<RB>> + Clone,
        RB: Body,
    {
        let keys = slice::from_ref(key);
        match self.shared.limiter.decide_in_tier(None, keys, 1) {
            Reply::Ready(decision) if decision.is_admitted() => {
                let asked = Asked::PLAIN;
                let told = Shared::tell_later(&self.shared, &mut request, keys, asked, decision);
                let listed = counted_request.list();
                let future = self.inner.call(request);
                drop(listed);
                ResponseFuture::calling(future, told, counted_request)
            }
            reply => {
                let asked = Asked::PLAIN;
                decided(&mut self.inner, &self.shared, request, keys, asked, reply)
            }
        }
    }
}

/// Calls with a request that an outer service of the limit has counted.
#[cold]
#[inline(never)]
fn pass_on<S, B, RB>(
    inner: &mut S,
    request: Request<B>,
    counted_request: CountedRequest,
) -> ResponseFuture<S, B, RB>
where
    S: Service<Request<B>, Response = Response<RB>>,
{
    call(inner, request, Told::default(), counted_request)
}

#[inline(never)]
fn call_with_options<S, B, RB>(
    inner: &mut S,
    shared: &Arc<Shared>,
    request: Request<B>,
) -> ResponseFuture<S, B, RB>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    RB: Body,
{
    let counted_request = shared.nesting.counted_request();
    if counted_request.take_counted() {
        return call(inner, request, Told::default(), counted_request);
    }
    let head = RequestHead::from(&request);
    if shared.passes(head) {
        return call(inner, request, Told::default(), CountedRequest::NOT_LISTED);
    }
    let begun = shared.observers.begin();
    let guarded = match shared.guarded(head) {
        Ok(guarded) => guarded,
        Err(rejected) => {
            let response = shared.reject(&rejected, begun, head);
            drop_ready(inner);
            return ResponseFuture::rejected(response, request.into_body());
        }
    };
    let tier = shared.tier(head);
    let cost = shared.cost.as_ref().map_or(1, |cost| cost(head));
    let asked = Asked {
        cost,
        guarded,
        begun,
        excluded: shared.skipping(head),
        ..shared.asked_in(tier)
    };
    let key = shared.keys[0].key(head);
    if !shared.parts.is_empty() {
        let keys: SmallVec<[Key; MAX_KEYS]> = shared.keys.iter().map(|key| key.key(head)).collect();
        let reply = shared.decide(&keys, &asked);
        return decided(inner, shared, request, &keys, asked, reply);
    }
    match &shared.keys[1..] {
        [] => {
            let keys = slice::from_ref(&key);
            let reply = shared.limiter.decide_in_tier(tier, keys, cost);
            decided(inner, shared, request, keys, asked, reply)
        }
        more => {
            let mut keys: SmallVec<[Key; MAX_KEYS]> = smallvec![key];
            keys.extend(more.iter().map(|key| key.key(head)));
            let reply = shared.limiter.decide_in_tier(tier, &keys, cost);
            decided(inner, shared, request, &keys, asked, reply)
        }
    }
}

#[inline(never)]
fn decided<S, B, RB>(
    inner: &mut S,
    shared: &Arc<Shared>,
    mut request: Request<B>,
    keys: &[Key],
    asked: Asked,
    reply: Reply<Decision>,
) -> ResponseFuture<S, B, RB>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    RB: Body,
{
    let decision = match reply {
        Reply::Ready(decision) => decision,
        Reply::Pending(decision) => {
            return decided_later(inner, shared, request, keys, asked, decision);
        }
    };
    match Shared::verdict(shared, &mut request, keys, asked, decision) {
        Verdict::Admitted(told) => call(inner, request, told, shared.nesting.counted_request()),
        Verdict::Rejected(response) => {
            drop_ready(inner);
            ResponseFuture::rejected(response, request.into_body())
        }
        Verdict::Later(asked, decision) => {
            decided_later(inner, shared, request, keys, asked, decision)
        }
    }
}

fn decided_later<S, B, RB>(
    inner: &mut S,
    shared: &Arc<Shared>,
    request: Request<B>,
    keys: &[Key],
    asked: Asked,
    decision: Pin<Box<dyn Future<Output = Decision> + Send>>,
) -> ResponseFuture<S, B, RB>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
{
    // The service that was made ready is the one to be called, so it goes along and
    // a clone that is not ready stays here.
    let unready = inner.clone();
    let service = std::mem::replace(inner, unready);
    ResponseFuture::deciding(Deciding {
        decision,
        service,
        request,
        keys: Keys::copy(keys),
        asked,
        shared: shared.clone(),
    })
}

/// Calls the inner service with a request that was counted, or that is not to be.
fn call<S, B, RB>(
    inner: &mut S,
    request: Request<B>,
    mut told: Told,
    mut counted_request: CountedRequest,
) -> ResponseFuture<S, B, RB>
where
    S: Service<Request<B>, Response = Response<RB>>,
{
    let listed = counted_request.list();
    let future = told.unless_it_panics(|| inner.call(request));
    drop(listed);
    ResponseFuture::calling(future, told, counted_request)
}

/// Drops the service that was made ready and is not called.
///
/// It may hold a place of the inner service, such as one of a `tower::buffer::Buffer`: as long as
/// this service is kept without a further call, no other clone could use that place.
#[cold]
fn drop_ready<S: Clone>(inner: &mut S) {
    *inner = inner.clone();
}

#[cfg(feature = "tonic")]
impl<S: tonic::server::NamedService> tonic::server::NamedService for RateLimit<S> {
    const NAME: &'static str = S::NAME;
}
