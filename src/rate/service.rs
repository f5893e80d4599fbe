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
use super::future::{PendingDecision, ResponseFuture, ResponseReport};
use super::layer::MAX_KEYS;
use super::state::{DecisionContext, LayerState, Verdict};
use super::status::RateLimitStatus;
use crate::access::is_exempt;
use crate::body::ResponseBody;
use crate::decision::Decision;
use crate::extract::{Extracted, RequestHead};
use crate::key::Key;
use crate::nesting::CountedRequest;
use crate::store::Reply;

/// A service with a rate limit. Made by [`RateLimitLayer`](super::RateLimitLayer).
#[derive(Clone, Debug)]
pub struct RateLimit<S> {
    inner: S,
    shared: Arc<LayerState>,
}

impl<S> RateLimit<S> {
    pub(super) fn new(inner: S, shared: Arc<LayerState>) -> Self {
        Self { inner, shared }
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The inner service.
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
        // The common case: a bearer token or an address, and one quota. All other cases are
        // separate functions, so that the request is not moved before it is passed on: a move costs
        // as much as the compare-and-swap of the decision.
        let found = shared.keys[0].find_inlined(RequestHead::from(&request));
        // By reference: a copy so soon after the parts were written would stall on the store
        // buffer.
        let Extracted::Key(key) = &found else {
            return self.call_uncommon(request, counted_request);
        };
        if shared.needs_numbers {
            return self.call_and_report(request, key, counted_request);
        }
        if !shared.limiter.take_one(None, key) {
            return self.call_and_report(request, key, counted_request);
        }
        let report = ResponseReport::default();
        if counted_request == CountedRequest::NOT_LISTED {
            // In one expression, so that the future is constructed in place.
            return ResponseFuture::calling(self.inner.call(request), report, counted_request);
        }
        let listed = counted_request.list();
        let future = self.inner.call(request);
        drop(listed);
        ResponseFuture::calling(future, report, counted_request)
    }
}

impl<S> RateLimit<S> {
    /// Calls with an exempt request, whose handler may ask for its status.
    #[cold]
    #[inline(never)]
    fn call_exempt<B, RB>(&mut self, mut request: Request<B>) -> ResponseFuture<S, B, RB>
    where
        S: Service<Request<B>, Response = Response<RB>>,
    {
        if self.shared.reports_to_handlers {
            request.extensions_mut().insert(RateLimitStatus::UNLIMITED);
        }
        call(
            &mut self.inner,
            request,
            ResponseReport::default(),
            CountedRequest::NOT_LISTED,
        )
    }

    /// Calls with a request whose key was not found inline.
    #[inline(never)]
    fn call_uncommon<B, RB>(
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
        if !shared.needs_numbers && shared.limiter.take_one(None, &key) {
            return call(
                &mut self.inner,
                request,
                ResponseReport::default(),
                counted_request,
            );
        }
        self.call_and_report(request, &key, counted_request)
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
        if !shared.needs_numbers && shared.limiter.take_one(tier, &key) {
            return call(
                &mut self.inner,
                request,
                ResponseReport::default(),
                counted_request,
            );
        }
        let context = shared.context_in_tier(tier);
        let keys = slice::from_ref(&key);
        let reply = shared.limiter.decide_in_tier(tier, keys, 1);
        apply_decision(&mut self.inner, &self.shared, request, keys, context, reply)
    }

    /// Decides with numbers, then calls or rejects.
    #[inline(never)]
    fn call_and_report<B, RB>(
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
                let context = DecisionContext::PLAIN;
                let report =
                    LayerState::report_later(&self.shared, &mut request, keys, context, decision);
                let listed = counted_request.list();
                let future = self.inner.call(request);
                drop(listed);
                ResponseFuture::calling(future, report, counted_request)
            }
            reply => {
                let context = DecisionContext::PLAIN;
                apply_decision(&mut self.inner, &self.shared, request, keys, context, reply)
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
    call(inner, request, ResponseReport::default(), counted_request)
}

#[inline(never)]
fn call_with_options<S, B, RB>(
    inner: &mut S,
    shared: &Arc<LayerState>,
    request: Request<B>,
) -> ResponseFuture<S, B, RB>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    RB: Body,
{
    let counted_request = shared.nesting.counted_request();
    if counted_request.take_counted() {
        return call(inner, request, ResponseReport::default(), counted_request);
    }
    let head = RequestHead::from(&request);
    if shared.passes(head) {
        return call(
            inner,
            request,
            ResponseReport::default(),
            CountedRequest::NOT_LISTED,
        );
    }
    let begun = shared.observers.begin();
    let suspect = match shared.check_guards(head) {
        Ok(suspect) => suspect,
        Err(rejected) => {
            let response = shared.reject(&rejected, begun, head);
            drop_ready(inner);
            return ResponseFuture::rejected(response, request.into_body());
        }
    };
    let tier = shared.tier(head);
    let cost = shared.cost.as_ref().map_or(1, |cost| cost(head));
    let context = DecisionContext {
        cost,
        suspect,
        begun,
        excluded: shared.skipping(head),
        ..shared.context_in_tier(tier)
    };
    let key = shared.keys[0].key(head);
    if !shared.parts.is_empty() {
        let keys: SmallVec<[Key; MAX_KEYS]> = shared.keys.iter().map(|key| key.key(head)).collect();
        let reply = shared.decide(&keys, &context);
        return apply_decision(inner, shared, request, &keys, context, reply);
    }
    match &shared.keys[1..] {
        [] => {
            let keys = slice::from_ref(&key);
            let reply = shared.limiter.decide_in_tier(tier, keys, cost);
            apply_decision(inner, shared, request, keys, context, reply)
        }
        more => {
            let mut keys: SmallVec<[Key; MAX_KEYS]> = smallvec![key];
            keys.extend(more.iter().map(|key| key.key(head)));
            let reply = shared.limiter.decide_in_tier(tier, &keys, cost);
            apply_decision(inner, shared, request, &keys, context, reply)
        }
    }
}

#[inline(never)]
fn apply_decision<S, B, RB>(
    inner: &mut S,
    shared: &Arc<LayerState>,
    mut request: Request<B>,
    keys: &[Key],
    context: DecisionContext,
    reply: Reply<Decision>,
) -> ResponseFuture<S, B, RB>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    RB: Body,
{
    let decision = match reply {
        Reply::Ready(decision) => decision,
        Reply::Pending(decision) => {
            return await_decision(inner, shared, request, keys, context, decision);
        }
    };
    match LayerState::verdict(shared, &mut request, keys, context, decision) {
        Verdict::Admitted(report) => call(inner, request, report, shared.nesting.counted_request()),
        Verdict::Rejected(response) => {
            drop_ready(inner);
            ResponseFuture::rejected(response, request.into_body())
        }
        Verdict::Later(context, decision) => {
            await_decision(inner, shared, request, keys, context, decision)
        }
    }
}

fn await_decision<S, B, RB>(
    inner: &mut S,
    shared: &Arc<LayerState>,
    request: Request<B>,
    keys: &[Key],
    context: DecisionContext,
    decision: Pin<Box<dyn Future<Output = Decision> + Send>>,
) -> ResponseFuture<S, B, RB>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
{
    // The service that was made ready is the one to call, so it moves into the future, and a clone
    // that is not ready stays here.
    let unready = inner.clone();
    let service = std::mem::replace(inner, unready);
    ResponseFuture::deciding(PendingDecision {
        decision,
        service,
        request,
        keys: Keys::copy(keys),
        context,
        shared: shared.clone(),
    })
}

/// Calls the inner service with a request that was counted, or that must not be counted.
fn call<S, B, RB>(
    inner: &mut S,
    request: Request<B>,
    mut report: ResponseReport,
    mut counted_request: CountedRequest,
) -> ResponseFuture<S, B, RB>
where
    S: Service<Request<B>, Response = Response<RB>>,
{
    let listed = counted_request.list();
    let future = report.without_charge_on_panic(|| inner.call(request));
    drop(listed);
    ResponseFuture::calling(future, report, counted_request)
}

/// Replaces the ready service, which is not called, by a clone that is not ready.
///
/// The ready service may hold a reservation, such as a slot of a `tower::buffer::Buffer`. Kept
/// without a call, it would block the slot for all other clones.
#[cold]
fn drop_ready<S: Clone>(inner: &mut S) {
    *inner = inner.clone();
}

#[cfg(feature = "tonic")]
impl<S: tonic::server::NamedService> tonic::server::NamedService for RateLimit<S> {
    const NAME: &'static str = S::NAME;
}
