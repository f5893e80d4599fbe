//! The state that the services of one layer share, and the decisions that they make with it.

use std::fmt;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;

use http::{HeaderMap, Request, Response};
use http_body::Body;
use tokio::time::Instant;

use super::account::Account;
use super::future::ResponseReport;
use super::guard::Guard;
use super::joint::{JoinedLimit, JointRejection};
use super::status::RateLimitStatus;
use crate::body::ResponseBody;
use crate::decision::Decision;
use crate::enforce::Enforcement;
use crate::extract::{Extractor, RequestHead, ResponseHead};
use crate::headers::{Headers, RateLimitHeaders};
use crate::key::Key;
use crate::limiter::{LimiterSet, RateLimiter};
use crate::nesting::Nesting;
use crate::observe::{DecidedMark, Observers};
use crate::per_thread::PerThread;
use crate::rejection::{Reason, Rejection};
use crate::respond::Answers;
use crate::store::Reply;

/// The configuration of a layer, without its limiter.
#[derive(Clone)]
pub(super) struct Settings {
    /// One extractor for each of the limiter's policies.
    pub(super) keys: Vec<Extractor>,
    pub(super) dialect: RateLimitHeaders,
    pub(super) status: Option<bool>,
    pub(super) cost: Option<Cost>,
    pub(super) skip: Option<Skip>,
    pub(super) tier_by: Option<TierBy>,
    pub(super) count_if: Option<CountIf>,
    pub(super) enforce: Enforcement,
    pub(super) guards: Vec<Guard>,
    /// The individual limits, if several are decided jointly.
    pub(super) parts: Arc<[JoinedLimit]>,
    pub(super) name: Arc<str>,
    pub(super) answers: Answers,
    pub(super) observers: Observers,
}

/// The state that the services of one layer share.
pub(super) struct LayerState {
    settings: Settings,
    pub(super) limiter: RateLimiter,
    /// All layers of one limiter share it.
    pub(super) nesting: Arc<Nesting>,
    pub(super) headers: Headers,
    /// Whether each request has one key and costs 1, and there are no observers and no guard.
    pub(super) is_plain: bool,
    /// Whether the numbers of an admitted request are needed.
    pub(super) needs_numbers: bool,
    pub(super) reports_to_clients: bool,
    pub(super) reports_to_handlers: bool,
    /// One copy per thread, to which requests keep a reference, so that threads do not contend for
    /// one reference count. `None` in a copy.
    per_thread: Option<PerThread<Arc<Self>>>,
}

type TierBy = Arc<dyn for<'a> Fn(RequestHead<'a>) -> Option<&'a str> + Send + Sync>;
type Cost = Arc<dyn Fn(RequestHead<'_>) -> u32 + Send + Sync>;
pub(super) type CountIf = Arc<dyn Fn(ResponseHead<'_>) -> bool + Send + Sync>;
pub(super) type Skip = Arc<dyn Fn(RequestHead<'_>) -> bool + Send + Sync>;

impl Settings {
    pub(super) fn new(key: Extractor) -> Self {
        Self {
            keys: vec![key],
            dialect: RateLimitHeaders::default(),
            status: None,
            cost: None,
            skip: None,
            tier_by: None,
            count_if: None,
            enforce: Enforcement::default(),
            guards: Vec::new(),
            parts: Arc::default(),
            name: "".into(),
            answers: Answers::default(),
            observers: Observers::default(),
        }
    }

    /// Builds the shared state around a limiter.
    pub(super) fn with_limiter(&self, limiter: RateLimiter) -> LayerState {
        let mut shared = self.copy_with(limiter.clone());
        if shared.needs_numbers {
            let copy = || Arc::new(self.copy_with(limiter.clone()));
            shared.per_thread = Some(PerThread::new(copy));
        }
        shared
    }

    fn copy_with(&self, limiter: RateLimiter) -> LayerState {
        let mut settings = self.clone();
        let limits = !limiter.is_off();
        let headers = Headers::new(settings.dialect, &limiter);
        let reports_to_clients = limits && !headers.are_off() && !settings.is_dry_run();
        let reports_to_handlers = limits && settings.status.unwrap_or(!headers.are_off());
        let refunds = limits && settings.refunds();
        for guard in &mut settings.guards {
            guard.set_credential_headers(&settings.keys);
        }
        LayerState {
            is_plain: settings.keys.len() == 1
                && limits
                && settings.cost.is_none()
                && settings.skip.is_none()
                && settings.guards.is_empty()
                && settings.parts.is_empty()
                && settings.observers.is_empty(),
            needs_numbers: reports_to_clients || reports_to_handlers || refunds,
            reports_to_clients,
            reports_to_handlers,
            headers,
            nesting: limiter.nesting(),
            limiter,
            settings,
            per_thread: None,
        }
    }
}

impl Deref for LayerState {
    type Target = Settings;

    #[inline]
    fn deref(&self) -> &Settings {
        &self.settings
    }
}

impl LayerState {
    /// The tier selected for a request.
    #[inline]
    pub(super) fn tier<'a>(&self, head: RequestHead<'a>) -> Option<&'a str> {
        self.tier_by.as_ref().and_then(|tier_by| tier_by(head))
    }

    /// The context of a request of cost 1 in a tier.
    #[inline]
    pub(super) fn context_in_tier(&self, tier: Option<&str>) -> DecisionContext {
        // Clone the tier name only if needed: all requests of the tier share its reference count.
        let tier = tier.filter(|_| self.needs_numbers || !self.parts.is_empty());
        DecisionContext {
            tier: tier.and_then(|tier| self.limiter.tier_name(tier)),
            ..DecisionContext::PLAIN
        }
    }

    /// Whether the layer ignores a request.
    #[inline]
    pub(super) fn passes(&self, head: RequestHead<'_>) -> bool {
        (self.limiter.is_off() && self.guards.is_empty())
            || self.skip.as_ref().is_some_and(|skip| skip(head))
    }

    /// Applies a decision to a request.
    pub(super) fn verdict<B, RB: Body>(
        shared: &Arc<Self>,
        request: &mut Request<B>,
        keys: &[Key],
        mut context: DecisionContext,
        mut decision: Decision,
    ) -> Verdict<RB> {
        let begun = context.begun;
        while !decision.is_admitted() && !shared.parts.is_empty() {
            match shared.resolve_joint_rejection(Some(request), keys, &decision, context.excluded) {
                JointRejection::Enforced(rejected) => {
                    let head = RequestHead::from(&*request);
                    return Verdict::Rejected(shared.reject(&rejected, begun, head));
                }
                JointRejection::Without(parts) => context.excluded = context.excluded.with(parts),
            }
            decision = match shared.decide(keys, &context) {
                Reply::Ready(decision) => decision,
                Reply::Pending(decision) => return Verdict::Later(context, decision),
            };
        }
        if decision.is_admitted() {
            if begun.is_some() && !shared.has_left_out_all(context.excluded) {
                shared.report_admitted(keys, begun, &decision, RequestHead::from(&*request));
            }
        } else {
            let rejected = shared.rejected(keys, decision.clone());
            if shared.enforces(keys, &rejected) {
                let head = RequestHead::from(&*request);
                return Verdict::Rejected(shared.reject(&rejected, begun, head));
            }
            shared.would_reject(&rejected, begun, Some(RequestHead::from(&*request)));
        }
        shared.mark(request);
        let report = Self::report_later(shared, request, keys, context, decision);
        Verdict::Admitted(report)
    }

    /// Marks the request as decided, if an observer counts requests.
    pub(super) fn mark<B>(&self, request: &mut Request<B>) {
        if self.observers.mark_requests() {
            request.extensions_mut().insert(DecidedMark);
        }
    }

    /// Gives the status of an admitted request to its handler, and keeps what its response needs.
    #[inline]
    pub(super) fn report_later<B>(
        shared: &Arc<Self>,
        request: &mut Request<B>,
        keys: &[Key],
        context: DecisionContext,
        decision: Decision,
    ) -> ResponseReport {
        if !shared.needs_numbers && context.suspect.is_none() {
            return ResponseReport::default();
        }
        let own = shared.per_thread.as_ref().map_or(shared, PerThread::get);
        let account = Account::new(own, keys, context, decision);
        if shared.reports_to_handlers {
            let status = RateLimitStatus::new(account.clone());
            request.extensions_mut().insert(status);
        }
        ResponseReport::new(account)
    }

    #[cold]
    pub(super) fn rejected(&self, keys: &[Key], decision: Decision) -> Rejected {
        Rejected {
            key: *self.limiter.deciding_key(keys, &decision),
            rejection: (self.limiter).rejection(self.rejecting_name(&decision), decision.clone()),
        }
    }

    /// Whether the layer enforces a rejection. Call it once per rejection.
    ///
    /// One enforced key is enough. Otherwise a client could escape the limit of its address with a
    /// used-up token whose limit is not enforced.
    pub(super) fn enforces(&self, keys: &[Key], rejected: &Rejected) -> bool {
        if self.enforce.is_full() {
            return true;
        }
        let decision = rejected.rejection.decision();
        let mut rejecting = decision
            .into_iter()
            .flat_map(|decision| self.limiter.rejecting_keys(keys, decision))
            .peekable();
        if rejecting.peek().is_none() {
            // An unavailable store reports no numbers.
            return self.enforces_for(&rejected.key);
        }
        rejecting.any(|key| self.enforces_for(key))
    }

    /// Whether the layer enforces rejections of this key.
    pub(super) fn enforces_for(&self, key: &Key) -> bool {
        self.enforce.is_enforced(Some(key))
    }

    #[cold]
    pub(super) fn reject<RB: Body>(
        &self,
        rejected: &Rejected,
        begun: Option<Instant>,
        head: RequestHead<'_>,
    ) -> Response<ResponseBody<RB>> {
        let Rejected { rejection, key } = rejected;
        let took = begun.map(|begun| begun.elapsed());
        let mut response = self.answers.answer(rejection, head);
        if let Some(took) = took {
            let mut subject = self.rejection_subject(rejection, key, Some(head));
            subject.status = Some(response.status().as_u16());
            (self.observers).decided_in(took, &subject, |observer| {
                observer.rejected(&subject, rejection);
            });
        }
        // The numbers of the guard would help a client that guesses credentials.
        if rejection.reason() != Reason::AbnormalUsage
            && let Some(decision) = rejection.decision()
        {
            self.report(decision, response.headers_mut());
        }
        response.map(ResponseBody::rejection)
    }

    /// Adds the rate-limit fields.
    #[inline]
    pub(super) fn report(&self, decision: &Decision, headers: &mut HeaderMap) {
        match self.reportable(decision) {
            Some(report) => self.headers.write(&report, headers),
            None => self.headers.write(decision, headers),
        }
    }
}

/// The outcome for a request.
pub(super) enum Verdict<RB> {
    /// The request is passed on, with this report for its response.
    Admitted(ResponseReport),
    Rejected(Response<ResponseBody<RB>>),
    /// The store must decide again, without the limits that are not enforced.
    Later(
        DecisionContext,
        Pin<Box<dyn Future<Output = Decision> + Send>>,
    ),
}

/// The properties of a request, besides its keys, that its decision depends on.
pub(super) struct DecisionContext {
    pub(super) cost: u32,
    pub(super) tier: Option<Arc<str>>,
    /// The address to charge if the response rejects the request's credentials.
    pub(super) suspect: Option<Key>,
    /// The time at which the decision began, if there are observers.
    pub(super) begun: Option<Instant>,
    /// The jointly decided limits that do not apply to the request.
    pub(super) excluded: LimiterSet,
}

impl DecisionContext {
    /// Cost 1, no tier, and nothing else.
    pub(super) const PLAIN: Self = Self {
        cost: 1,
        tier: None,
        suspect: None,
        begun: None,
        excluded: LimiterSet::NONE,
    };
}

/// A rejection, and the key whose limit rejects.
pub(super) struct Rejected {
    pub(super) rejection: Rejection,
    pub(super) key: Key,
}

impl fmt::Debug for LayerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerState")
            .field("limiter", &self.limiter)
            .field("enforce", &self.enforce)
            .finish_non_exhaustive()
    }
}
