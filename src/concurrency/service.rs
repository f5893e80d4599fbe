//! The service: takes a permit in `call`, or refuses.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use smallvec::SmallVec;
use tokio::time::Instant;
use tower_service::Service;

use super::future::{InLine, ResponseFuture};
use super::layer::{HoldUntil, Shared};
use super::upgrade::{UpgradePermit, asks_for_upgrade};
use crate::body::ResponseBody;
use crate::extract::RequestHead;
use crate::key::Key;
use crate::limiter::{Acquire, Permit, Rejected};
use crate::observe::Subject;

/// A service with a limit on requests in flight; made by
/// [`ConcurrencyLimitLayer`](super::ConcurrencyLimitLayer).
#[derive(Clone, Debug)]
pub struct ConcurrencyLimit<S> {
    inner: S,
    shared: Arc<Shared>,
}

/// What a request is charged to.
pub(super) type Keys = SmallVec<[Key; 2]>;

impl<S> ConcurrencyLimit<S> {
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

impl<S, B, RB> Service<Request<B>> for ConcurrencyLimit<S>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    RB: Body,
{
    type Response = Response<ResponseBody<RB>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B, RB>;

    /// Asks the inner service. A permit is taken in `call`, so that a connection which is ready
    /// and idle holds none.
    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        let shared = &*self.shared;
        // The request stays where it is until it is passed on: a move of it costs as much as the
        // permit.
        if shared.is_plain
            && !asks_for_upgrade(&request)
            && let Some(permit) = shared.limiter.try_permit()
        {
            let until = shared.hold_until;
            return ResponseFuture::calling(self.inner.call(request), permit, until);
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
        if shared.skip.as_ref().is_some_and(|skip| skip(head)) {
            let future = self.inner.call(request);
            return ResponseFuture::calling(future, Permit::none(), HoldUntil::Headers);
        }
        let begun = shared.observers.begin();
        let keys: Keys = shared.keys.iter().map(|key| key.key(head)).collect();
        match shared.limiter.acquire(&keys, shared.wait) {
            Acquire::Admitted(permit) => {
                let until = shared.hold_until;
                let permit = shared.admit(&mut request, permit, keys.first(), begun);
                ResponseFuture::calling(self.inner.call(request), permit, until)
            }
            Acquire::Refused(rejected) => {
                ResponseFuture::refused(shared.refuse(&rejected, head, &keys, begun))
            }
            Acquire::Later(acquiring) => {
                // The service that was made ready is the one to be called, so it goes along and
                // a clone that is not ready stays here.
                let unready = self.inner.clone();
                let ready = std::mem::replace(&mut self.inner, unready);
                ResponseFuture::in_line(InLine {
                    acquiring,
                    service: ready,
                    request,
                    keys,
                    begun,
                    shared: self.shared.clone(),
                })
            }
        }
    }
}

impl Shared {
    /// What an admitted request holds. With an upgrade its handler holds the same.
    #[inline]
    pub(super) fn admit<B>(
        &self,
        request: &mut Request<B>,
        permit: Permit,
        key: Option<&Key>,
        begun: Option<Instant>,
    ) -> Permit {
        let subject = self.subject(key);
        self.observers
            .decided(begun, &subject, |observer| observer.admitted(&subject));
        if !asks_for_upgrade(request) {
            return permit;
        }
        let permit = Arc::new(permit);
        UpgradePermit::hand_over(permit.clone(), request);
        Permit::sharing(permit)
    }

    #[cold]
    pub(super) fn refuse<B>(
        &self,
        rejected: &Rejected,
        head: RequestHead<'_>,
        keys: &[Key],
        begun: Option<Instant>,
    ) -> Response<ResponseBody<B>>
    where
        B: Body,
    {
        let rejection = &rejected.rejection;
        let subject = self.subject(keys.get(rejected.key_place.unwrap_or(0)));
        (self.observers).decided(begun, &subject, |observer| {
            observer.rejected(&subject, rejection);
        });
        self.answers
            .answer(rejection, head)
            .map(ResponseBody::refusal)
    }

    fn subject<'a>(&'a self, key: Option<&'a Key>) -> Subject<'a> {
        Subject {
            limit_type: "concurrency",
            limiter: self.limiter.name(),
            policy: "",
            key,
        }
    }
}

#[cfg(feature = "tonic")]
impl<S: tonic::server::NamedService> tonic::server::NamedService for ConcurrencyLimit<S> {
    const NAME: &'static str = S::NAME;
}
