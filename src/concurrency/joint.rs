//! Layers of several limits as one: a request takes a permit of each, in order, or none.

use std::sync::Arc;

use http::{Request, Response};
use http_body::Body;
use tokio::time::Instant;
use tower_service::Service;

use super::future::{InLine, ResponseFuture};
use super::layer::ConcurrencyLimitLayer;
use super::layer::Shared;
use super::service::{ConcurrencyLimit, Keys};
use crate::extract::RequestHead;
use crate::limiter::{KeyedRejection, Permit, PermitFuture, PermitReply};

impl ConcurrencyLimitLayer {
    /// This layer, whose requests take a permit of each of `others` as well, after its own; all are given back together.
    /// How an upgrade and waiting go is this layer's; each limit keeps its name, its answers, how far it is enforced,
    /// and what it skips. What this layer skips passes all.
    pub(crate) fn joined(self, others: &[Self]) -> Self {
        let others: Vec<_> = others.iter().map(|other| other.shared().clone()).collect();
        self.with(|shared| shared.others = others)
    }
}

/// How far a request has come.
pub(super) struct Taken {
    /// The permits so far.
    held: Permit,
    /// Whether the first limit has given one.
    has_own: bool,
    /// The place of the next limit.
    next: usize,
}

/// What is next for a request.
enum Step {
    Admitted(Taken),
    Rejected {
        by: Arc<Shared>,
        keys: Keys,
        rejected: KeyedRejection,
    },
    Later {
        acquiring: PermitFuture,
        keys: Keys,
        taken: Taken,
    },
}

impl Taken {
    fn nothing() -> Self {
        Self {
            held: Permit::none(),
            has_own: false,
            next: 0,
        }
    }

    /// Goes on to the next limit, with the permit of this one.
    fn with(self, permit: Permit) -> Self {
        Self {
            held: self.held.and(permit),
            has_own: self.has_own || self.next == 0,
            next: self.next + 1,
        }
    }

    /// Goes on without a permit of this limit.
    fn without(self) -> Self {
        Self {
            next: self.next + 1,
            ..self
        }
    }
}

impl Shared {
    fn limit_at(self: &Arc<Self>, place: usize) -> Option<&Arc<Self>> {
        match place.checked_sub(1) {
            None => Some(self),
            Some(other) => self.others.get(other),
        }
    }

    /// Takes the permits that are missing.
    fn take_rest<B>(
        self: &Arc<Self>,
        mut taken: Taken,
        request: &mut Request<B>,
        begun: Option<Instant>,
    ) -> Step {
        while let Some(limit) = self.limit_at(taken.next) {
            let head = RequestHead::from(&*request);
            let skips = limit.skip.as_ref().filter(|_| taken.next > 0);
            if skips.is_some_and(|skip| skip(head)) {
                taken = taken.without();
                continue;
            }
            let keys = limit.charged_keys(head);
            let wait = limit.wait.filter(|_| !limit.enforce.is_dry_run());
            let tier = limit.tier_by.as_ref().and_then(|tier_by| tier_by(head));
            taken = match limit.limiter.acquire(&keys, tier, wait) {
                PermitReply::Admitted(permit) => taken.with(permit),
                PermitReply::Rejected(rejected)
                    if !limit.enforces(&rejected, request, &keys, begun) =>
                {
                    taken.without()
                }
                PermitReply::Rejected(rejected) => {
                    let by = limit.clone();
                    return Step::Rejected { by, keys, rejected };
                }
                PermitReply::Pending(acquiring) => {
                    return Step::Later {
                        acquiring,
                        keys,
                        taken,
                    };
                }
            };
        }
        Step::Admitted(taken)
    }
}

impl<S> ConcurrencyLimit<S> {
    /// Calls with a request that needs permits of several limits.
    #[inline(never)]
    pub(super) fn call_jointly<B, RB>(
        &mut self,
        mut request: Request<B>,
        begun: Option<Instant>,
    ) -> ResponseFuture<S, B, RB>
    where
        S: Service<Request<B>, Response = Response<RB>> + Clone,
        RB: Body,
    {
        let shared = self.shared.clone();
        let step = shared.take_rest(Taken::nothing(), &mut request, begun);
        // A service that is not called gives back what it reserved; see `take_ready`.
        advance(self.take_ready(), &shared, request, step, begun)
    }
}

impl<S, B> InLine<S, B>
where
    S: Service<Request<B>>,
{
    /// Goes on with the answer of a limit that was waited for.
    pub(super) fn decided_jointly<RB: Body>(
        self,
        mut taken: Taken,
        acquired: Result<Permit, KeyedRejection>,
    ) -> ResponseFuture<S, B, RB>
    where
        S: Service<Request<B>, Response = Response<RB>>,
    {
        let Self {
            service,
            mut request,
            keys,
            begun,
            shared,
            ..
        } = self;
        let limit = shared.limit_at(taken.next).unwrap_or(&shared);
        let step = match acquired {
            Err(rejected) if limit.enforces(&rejected, &mut request, &keys, begun) => {
                let by = limit.clone();
                Step::Rejected { by, keys, rejected }
            }
            acquired => {
                taken = match acquired {
                    Ok(permit) => taken.with(permit),
                    Err(_) => taken.without(),
                };
                shared.take_rest(taken, &mut request, begun)
            }
        };
        advance(service, &shared, request, step, begun)
    }
}

fn advance<S, B, RB>(
    mut service: S,
    shared: &Arc<Shared>,
    mut request: Request<B>,
    step: Step,
    begun: Option<Instant>,
) -> ResponseFuture<S, B, RB>
where
    S: Service<Request<B>, Response = Response<RB>>,
    RB: Body,
{
    match step {
        Step::Admitted(taken) => {
            // Of a request that only other limits count, the first has said what it would do.
            let begun = begun.filter(|_| taken.has_own);
            let key = begun.and_then(|_| {
                let head = RequestHead::from(&request);
                shared.keys.first().map(|key| key.key(head))
            });
            let mut admitted = shared.admit(&mut request, taken.held, key.as_ref(), begun);
            let listed = admitted.counted_request.list();
            let future = service.call(request);
            drop(listed);
            ResponseFuture::watching(future, admitted)
        }
        Step::Rejected { by, keys, rejected } => {
            let response = by.reject(&rejected, RequestHead::from(&request), &keys, begun);
            ResponseFuture::rejected(response, request.into_body())
        }
        Step::Later {
            acquiring,
            keys,
            taken,
        } => ResponseFuture::in_line(InLine {
            acquiring,
            service,
            request,
            keys,
            begun,
            shared: shared.clone(),
            taken: Some(taken),
        }),
    }
}
