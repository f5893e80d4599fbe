//! Joint layers: a request takes a permit of each of several limits, in order, or none.

use std::sync::Arc;

use http::{Request, Response};
use http_body::Body;
use tokio::time::Instant;
use tower_service::Service;

use super::future::{QueuedRequest, ResponseFuture};
use super::layer::ConcurrencyLimitLayer;
use super::layer::LayerState;
use super::service::{ConcurrencyLimit, Keys};
use crate::extract::RequestHead;
use crate::limiter::{KeyedRejection, Permit, PermitFuture, PermitReply};

impl ConcurrencyLimitLayer {
    /// Joins `others` to this layer: a request takes a permit of this limit and then of each other
    /// one, and all are released together. Upgrades and waiting follow this layer's settings. Each
    /// limit keeps its name, its answers, its enforced percentage and `skip`. A request that this
    /// layer skips is not limited by any.
    pub(crate) fn joined(self, others: &[Self]) -> Self {
        let others: Vec<_> = others.iter().map(|other| other.shared().clone()).collect();
        self.with(|shared| shared.others = others)
    }
}

/// The permits that a request has taken so far.
pub(super) struct JointPermits {
    /// The combined permit.
    held: Permit,
    /// Whether the first limit has granted a permit.
    has_own: bool,
    /// The index of the next limit.
    next: usize,
}

/// The next step of a request.
enum JointStep {
    Admitted(JointPermits),
    Rejected {
        by: Arc<LayerState>,
        keys: Keys,
        rejected: KeyedRejection,
    },
    Later {
        acquiring: PermitFuture,
        keys: Keys,
        taken: JointPermits,
    },
}

impl JointPermits {
    fn nothing() -> Self {
        Self {
            held: Permit::none(),
            has_own: false,
            next: 0,
        }
    }

    /// Adds the permit of this limit and moves to the next one.
    fn with(self, permit: Permit) -> Self {
        Self {
            held: self.held.and(permit),
            has_own: self.has_own || self.next == 0,
            next: self.next + 1,
        }
    }

    /// Moves to the next limit without a permit of this one.
    fn without(self) -> Self {
        Self {
            next: self.next + 1,
            ..self
        }
    }
}

impl LayerState {
    fn limit_at(self: &Arc<Self>, place: usize) -> Option<&Arc<Self>> {
        match place.checked_sub(1) {
            None => Some(self),
            Some(other) => self.others.get(other),
        }
    }

    /// Takes the missing permits.
    fn take_rest<B>(
        self: &Arc<Self>,
        mut taken: JointPermits,
        request: &mut Request<B>,
        begun: Option<Instant>,
    ) -> JointStep {
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
                    return JointStep::Rejected { by, keys, rejected };
                }
                PermitReply::Pending(acquiring) => {
                    return JointStep::Later {
                        acquiring,
                        keys,
                        taken,
                    };
                }
            };
        }
        JointStep::Admitted(taken)
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
        let step = shared.take_rest(JointPermits::nothing(), &mut request, begun);
        // A ready service that is not called must release its reservations; see `take_ready`.
        advance(self.take_ready(), &shared, request, step, begun)
    }
}

impl<S, B> QueuedRequest<S, B>
where
    S: Service<Request<B>>,
{
    /// Continues after waiting for one of the limits.
    pub(super) fn decided_jointly<RB: Body>(
        self,
        mut taken: JointPermits,
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
                JointStep::Rejected { by, keys, rejected }
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
    shared: &Arc<LayerState>,
    mut request: Request<B>,
    step: JointStep,
    begun: Option<Instant>,
) -> ResponseFuture<S, B, RB>
where
    S: Service<Request<B>, Response = Response<RB>>,
    RB: Body,
{
    match step {
        JointStep::Admitted(taken) => {
            // If the first limit did not grant a permit, it has already reported its decision.
            let begun = begun.filter(|_| taken.has_own);
            let key = begun.and_then(|_| {
                let head = RequestHead::from(&request);
                shared.keys.first().map(|key| key.key(head))
            });
            let mut admitted = shared.admit(&mut request, taken.held, key.as_ref(), begun);
            let listed = admitted.counted_request.list();
            let future = service.call(request);
            drop(listed);
            ResponseFuture::calling_with(future, admitted)
        }
        JointStep::Rejected { by, keys, rejected } => {
            let response = by.reject(&rejected, RequestHead::from(&request), &keys, begun);
            ResponseFuture::rejected(response, request.into_body())
        }
        JointStep::Later {
            acquiring,
            keys,
            taken,
        } => ResponseFuture::queued(QueuedRequest {
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
