//! What the services of a layer have in common, and what they decide with it.

use std::fmt;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;

use http::{HeaderMap, Request, Response};
use http_body::Body;
use tokio::time::Instant;

use super::account::Account;
use super::future::Told;
use super::guard::Guard;
use super::joint::{Joint, Part};
use super::status::RateLimitStatus;
use crate::body::ResponseBody;
use crate::decision::Decision;
use crate::enforce::Enforcement;
use crate::extract::{Extractor, RequestHead, ResponseHead};
use crate::headers::{Headers, RateLimitHeaders};
use crate::key::Key;
use crate::limiter::{LimiterSet, RateLimiter};
use crate::nesting::Nesting;
use crate::observe::{Decided, Observers};
use crate::per_thread::PerThread;
use crate::rejection::{Reason, Rejection};
use crate::respond::Answers;
use crate::store::Reply;

/// What is configured of a layer, without what it counts.
#[derive(Clone)]
pub(super) struct Settings {
    /// One for each of the limiter's policies.
    pub(super) keys: Vec<Extractor>,
    pub(super) dialect: RateLimitHeaders,
    pub(super) status: Option<bool>,
    pub(super) cost: Option<Cost>,
    pub(super) skip: Option<Skip>,
    pub(super) tier_by: Option<TierBy>,
    pub(super) count_if: Option<CountIf>,
    pub(super) enforce: Enforcement,
    pub(super) guards: Vec<Guard>,
    /// The limits, where several are decided as one.
    pub(super) parts: Arc<[Part]>,
    pub(super) name: Arc<str>,
    pub(super) answers: Answers,
    pub(super) observers: Observers,
}

/// What the services of a layer have in common.
pub(super) struct Shared {
    settings: Settings,
    pub(super) limiter: RateLimiter,
    /// The same for all layers of one limiter.
    pub(super) nesting: Arc<Nesting>,
    pub(super) headers: Headers,
    /// Whether a request has one key and costs 1, and there are no observers and no guard.
    pub(super) is_plain: bool,
    /// Whether anything needs the numbers of an admitted request.
    pub(super) tells: bool,
    pub(super) tells_clients: bool,
    pub(super) tells_handlers: bool,
    /// The same, for what goes with a request: a thread counts the references to its own. Empty in a copy.
    copies: Option<PerThread<Arc<Self>>>,
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

    /// The layer as its services have it.
    pub(super) fn with_limiter(&self, limiter: RateLimiter) -> Shared {
        let mut shared = self.copy_with(limiter.clone());
        if shared.tells {
            let copy = || Arc::new(self.copy_with(limiter.clone()));
            shared.copies = Some(PerThread::new(copy));
        }
        shared
    }

    fn copy_with(&self, limiter: RateLimiter) -> Shared {
        let mut settings = self.clone();
        let limits = !limiter.is_off();
        let headers = Headers::new(settings.dialect, &limiter);
        let tells_clients = limits && !headers.are_off() && !settings.is_dry_run();
        let tells_handlers = limits && settings.status.unwrap_or(!headers.are_off());
        let refunds = limits && settings.refunds();
        for guard in &mut settings.guards {
            guard.settle(&settings.keys);
        }
        Shared {
            is_plain: settings.keys.len() == 1
                && limits
                && settings.cost.is_none()
                && settings.skip.is_none()
                && settings.guards.is_empty()
                && settings.parts.is_empty()
                && settings.observers.is_empty(),
            tells: tells_clients || tells_handlers || refunds,
            tells_clients,
            tells_handlers,
            headers,
            nesting: limiter.nesting(),
            limiter,
            settings,
            copies: None,
        }
    }
}

impl Deref for Shared {
    type Target = Settings;

    #[inline]
    fn deref(&self) -> &Settings {
        &self.settings
    }
}

impl Shared {
    /// The tier that is selected for a request.
    #[inline]
    pub(super) fn tier<'a>(&self, head: RequestHead<'a>) -> Option<&'a str> {
        self.tier_by.as_ref().and_then(|tier_by| tier_by(head))
    }

    /// What is known of a request of cost 1 in a tier.
    #[inline]
    pub(super) fn asked_in(&self, tier: Option<&str>) -> Asked {
        // Copied only where it is needed later, as that writes a count that all requests of the tier share.
        let tier = tier.filter(|_| self.tells || !self.parts.is_empty());
        Asked {
            tier: tier.and_then(|tier| self.limiter.tier_name(tier)),
            ..Asked::PLAIN
        }
    }

    /// Whether a request is none of this layer's business.
    #[inline]
    pub(super) fn passes(&self, head: RequestHead<'_>) -> bool {
        (self.limiter.is_off() && self.guards.is_empty())
            || self.skip.as_ref().is_some_and(|skip| skip(head))
    }

    /// What follows from a decision, for a request and for its handler.
    pub(super) fn verdict<B, RB: Body>(
        shared: &Arc<Self>,
        request: &mut Request<B>,
        keys: &[Key],
        mut asked: Asked,
        mut decision: Decision,
    ) -> Verdict<RB> {
        let begun = asked.begun;
        while !decision.is_admitted() && !shared.parts.is_empty() {
            match shared.joint(Some(request), keys, &decision, asked.excluded) {
                Joint::Enforced(rejected) => {
                    let head = RequestHead::from(&*request);
                    return Verdict::Rejected(shared.reject(&rejected, begun, head));
                }
                Joint::Without(parts) => asked.excluded = asked.excluded.with(parts),
            }
            decision = match shared.decide(keys, &asked) {
                Reply::Ready(decision) => decision,
                Reply::Pending(decision) => return Verdict::Later(asked, decision),
            };
        }
        if decision.is_admitted() {
            if begun.is_some() && !shared.has_left_out_all(asked.excluded) {
                shared.tell_admitted(keys, begun, &decision, RequestHead::from(&*request));
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
        let told = Self::tell_later(shared, request, keys, asked, decision);
        Verdict::Admitted(told)
    }

    /// Notes on the request that it was decided about, if an observer goes by that.
    pub(super) fn mark<B>(&self, request: &mut Request<B>) {
        if self.observers.mark_requests() {
            request.extensions_mut().insert(Decided);
        }
    }

    /// Gives an admitted request's status to its handler, and keeps what its response needs.
    #[inline]
    pub(super) fn tell_later<B>(
        shared: &Arc<Self>,
        request: &mut Request<B>,
        keys: &[Key],
        asked: Asked,
        decision: Decision,
    ) -> Told {
        if !shared.tells && asked.guarded.is_none() {
            return Told::default();
        }
        let own = shared.copies.as_ref().map_or(shared, PerThread::get);
        let account = Account::new(own, keys, asked, decision);
        if shared.tells_handlers {
            let status = RateLimitStatus::new(account.clone());
            request.extensions_mut().insert(status);
        }
        Told::of(account)
    }

    #[cold]
    pub(super) fn rejected(&self, keys: &[Key], decision: Decision) -> Rejected {
        Rejected {
            key: *self.limiter.deciding_key(keys, &decision),
            rejection: (self.limiter).rejection(self.rejecting_name(&decision), decision.clone()),
        }
    }

    /// Whether a rejection is one of those that the layer enforces. To be asked once for each.
    ///
    /// One key that is enforced is enough: otherwise a client could hide the limit of its address behind
    /// a token that it has used up, and that is not enforced.
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
            // A store that cannot be reached has no numbers.
            return self.enforces_for(&rejected.key);
        }
        rejecting.any(|key| self.enforces_for(key))
    }

    /// Whether the layer enforces the rejections of this key.
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
            let mut subject = self.rejecting(rejection, key, Some(head));
            subject.status = Some(response.status().as_u16());
            (self.observers).decided_in(took, &subject, |observer| {
                observer.rejected(&subject, rejection);
            });
        }
        // The guard's numbers would help a client that guesses credentials.
        if rejection.reason() != Reason::AbnormalUsage
            && let Some(decision) = rejection.decision()
        {
            self.tell(decision, response.headers_mut());
        }
        response.map(ResponseBody::rejection)
    }

    /// Adds the rate-limit fields.
    #[inline]
    pub(super) fn tell(&self, decision: &Decision, headers: &mut HeaderMap) {
        match self.told(decision) {
            Some(told) => self.headers.tell(&told, headers),
            None => self.headers.tell(decision, headers),
        }
    }
}

/// What becomes of a request.
pub(super) enum Verdict<RB> {
    /// It is passed on, and this is done with its response.
    Admitted(Told),
    Rejected(Response<ResponseBody<RB>>),
    /// The store has been asked again, without limits that are not enforced.
    Later(Asked, Pin<Box<dyn Future<Output = Decision> + Send>>),
}

/// What is known of a request besides its keys when its decision is asked for.
pub(super) struct Asked {
    pub(super) cost: u32,
    pub(super) tier: Option<Arc<str>>,
    /// The address to charge if the answer rejects its credentials.
    pub(super) guarded: Option<Key>,
    /// When that began, if observers are to be told how long it took.
    pub(super) begun: Option<Instant>,
    /// The limits that the request is not under, of several that are decided as one.
    pub(super) excluded: LimiterSet,
}

impl Asked {
    /// Of cost 1 and no tier, without anything else.
    pub(super) const PLAIN: Self = Self {
        cost: 1,
        tier: None,
        guarded: None,
        begun: None,
        excluded: LimiterSet::NONE,
    };
}

/// A rejection, and the key whose limit rejects.
pub(super) struct Rejected {
    pub(super) rejection: Rejection,
    pub(super) key: Key,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("limiter", &self.limiter)
            .field("enforce", &self.enforce)
            .finish_non_exhaustive()
    }
}
