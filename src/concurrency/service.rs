//! The service: takes a permit in `call`, or rejects.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use smallvec::SmallVec;
use tokio::time::Instant;
use tower_service::Service;

use super::body::PermitBody;
use super::future::{Admitted, QueuedRequest, ResponseFuture};
use super::layer::LayerState;
use super::upgrade::{Upgrade, asks_for_upgrade};
use crate::access::is_exempt;
use crate::extract::RequestHead;
use crate::key::Key;
use crate::limiter::{KeyedRejection, Permit, PermitReply};
use crate::nesting::CountedRequest;
use crate::observe::{DecidedMark, Subject};

/// A service with a concurrency limit. Made by
/// [`ConcurrencyLimitLayer`](super::ConcurrencyLimitLayer).
#[derive(Clone, Debug)]
pub struct ConcurrencyLimit<S> {
    inner: S,
    pub(super) shared: Arc<LayerState>,
}

/// The keys that a request is charged to.
pub(super) type Keys = SmallVec<[Key; 2]>;

impl<S> ConcurrencyLimit<S> {
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

impl<S, B, RB> Service<Request<B>> for ConcurrencyLimit<S>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    RB: Body,
{
    type Response = Response<PermitBody<RB>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B, RB>;

    /// Polls the inner service. A permit is taken in `call`, so that an idle connection that is
    /// ready holds none.
    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        let shared = &*self.shared;
        // The request is not moved before it is passed on: a move costs as much as the permit.
        if shared.is_plain && !asks_for_upgrade(&request) {
            let mut counted_request = shared.limiter.nesting().counted_request();
            if counted_request.take_counted() {
                return self.pass(request, counted_request);
            }
            if let Some(permit) = shared.limiter.try_permit() {
                let until = shared.hold_until;
                if counted_request == CountedRequest::NOT_LISTED {
                    return ResponseFuture::calling(self.inner.call(request), permit, until);
                }
                let listed = counted_request.list();
                let future = self.inner.call(request);
                drop(listed);
                let admitted = Admitted {
                    permit,
                    until,
                    counted_request,
                    upgrade: None,
                };
                return ResponseFuture::calling_with(future, admitted);
            }
        }
        self.call_with_options(request)
    }
}

impl<S> ConcurrencyLimit<S> {
    #[inline(never)]
    fn call_with_options<B, RB>(&mut self, mut request: Request<B>) -> ResponseFuture<S, B, RB>
    where
        S: Service<Request<B>, Response = Response<RB>> + Clone,
        RB: Body,
    {
        let shared = &*self.shared;
        let head = RequestHead::from(&request);
        let nesting = shared.limiter.nesting();
        if nesting.take_counted() {
            return self.pass(request, nesting.counted_request());
        }
        if shared.skip.as_ref().is_some_and(|skip| skip(head)) {
            return self.pass(request, CountedRequest::NOT_LISTED);
        }
        let begun = shared.observers.begin();
        if !shared.others.is_empty() {
            return self.call_jointly(request, begun);
        }
        let keys = shared.charged_keys(head);
        let wait = shared.wait.filter(|_| !shared.enforce.is_dry_run());
        let tier = shared.tier_by.as_ref().and_then(|tier_by| tier_by(head));
        match shared.limiter.acquire(&keys, tier, wait) {
            PermitReply::Admitted(permit) => {
                let mut admitted = shared.admit(&mut request, permit, keys.first(), begun);
                let listed = admitted.counted_request.list();
                let future = self.inner.call(request);
                drop(listed);
                ResponseFuture::calling_with(future, admitted)
            }
            PermitReply::Rejected(rejected)
                if !shared.enforces(&rejected, &mut request, &keys, begun) =>
            {
                self.pass(request, nesting.counted_request())
            }
            PermitReply::Rejected(rejected) => {
                let head = RequestHead::from(&request);
                let response = shared.reject(&rejected, head, &keys, begun);
                // Release what the ready service reserved, such as a buffer slot: this clone may
                // not be called again for a long time.
                drop(self.take_ready());
                ResponseFuture::rejected(response, request.into_body())
            }
            PermitReply::Pending(acquiring) => {
                let service = self.take_ready();
                ResponseFuture::queued(QueuedRequest {
                    acquiring,
                    service,
                    request,
                    keys,
                    begun,
                    shared: self.shared.clone(),
                    taken: None,
                })
            }
        }
    }

    /// Passes a request on without counting it.
    fn pass<B, RB>(
        &mut self,
        request: Request<B>,
        counted_request: CountedRequest,
    ) -> ResponseFuture<S, B, RB>
    where
        S: Service<Request<B>, Response = Response<RB>>,
    {
        let mut admitted = Admitted::uncounted(counted_request);
        let listed = admitted.counted_request.list();
        let future = self.inner.call(request);
        drop(listed);
        ResponseFuture::calling_with(future, admitted)
    }

    /// Takes the service that was made ready, and leaves a clone that is not ready.
    pub(super) fn take_ready(&mut self) -> S
    where
        S: Clone,
    {
        let unready = self.inner.clone();
        std::mem::replace(&mut self.inner, unready)
    }
}

impl LayerState {
    /// The keys that a request is charged to. An exempt request has none, but still counts in the
    /// capacity.
    #[inline]
    pub(super) fn charged_keys(&self, head: RequestHead<'_>) -> Keys {
        if is_exempt(head.extensions) {
            return Keys::new();
        }
        self.keys.iter().map(|key| key.key(head)).collect()
    }

    /// Builds the state of an admitted request.
    #[inline]
    pub(super) fn admit<B>(
        &self,
        request: &mut Request<B>,
        permit: Permit,
        key: Option<&Key>,
        begun: Option<Instant>,
    ) -> Admitted {
        if begun.is_some() {
            let subject = self.subject(key, RequestHead::from(&*request));
            self.observers
                .decided(begun, &subject, |observer| observer.admitted(&subject));
            self.mark(request);
        }
        Admitted {
            permit,
            until: self.hold_until,
            counted_request: self.limiter.nesting().counted_request(),
            upgrade: Upgrade::offer(request),
        }
    }

    /// Marks the request as decided, if an observer counts requests.
    fn mark<B>(&self, request: &mut Request<B>) {
        if self.observers.mark_requests() {
            request.extensions_mut().insert(DecidedMark);
        }
    }

    /// Whether to enforce a rejection. If not, reports the rejection to observers.
    #[cold]
    pub(super) fn enforces<B>(
        &self,
        rejected: &KeyedRejection,
        request: &mut Request<B>,
        keys: &[Key],
        begun: Option<Instant>,
    ) -> bool {
        let key = rejected.key_place.and_then(|place| keys.get(place));
        let enforces = self.enforce.is_enforced(key);
        if !enforces {
            let subject = self.subject(key.or(keys.first()), RequestHead::from(&*request));
            (self.observers).decided(begun, &subject, |observer| {
                observer.would_reject(&subject, &rejected.rejection);
            });
            self.mark(request);
        }
        enforces
    }

    #[cold]
    pub(super) fn reject<B>(
        &self,
        rejected: &KeyedRejection,
        head: RequestHead<'_>,
        keys: &[Key],
        begun: Option<Instant>,
    ) -> Response<PermitBody<B>> {
        let rejection = &rejected.rejection;
        let took = begun.map(|begun| begun.elapsed());
        let response = self.answers.answer(rejection, head);
        if let Some(took) = took {
            let mut subject = self.subject(keys.get(rejected.key_place.unwrap_or(0)), head);
            subject.status = Some(response.status().as_u16());
            (self.observers).decided_in(took, &subject, |observer| {
                observer.rejected(&subject, rejection);
            });
        }
        response.map(PermitBody::rejection)
    }

    fn subject<'a>(&'a self, key: Option<&'a Key>, head: RequestHead<'a>) -> Subject<'a> {
        Subject::new("concurrency", self.limiter.name(), "", key).of(head, &self.observers)
    }
}

#[cfg(feature = "tonic")]
impl<S: tonic::server::NamedService> tonic::server::NamedService for ConcurrencyLimit<S> {
    const NAME: &'static str = S::NAME;
}
