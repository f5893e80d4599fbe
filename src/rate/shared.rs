//! What the services of a layer have in common, and what they decide with it.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use tokio::time::Instant;

use super::future::Told;
use super::status::RateLimitStatus;
use crate::body::ResponseBody;
use crate::decision::Decision;
use crate::extract::{Extractor, RequestHead};
use crate::headers::Headers;
use crate::key::Key;
use crate::limiter::RateLimiter;
use crate::observe::{Observers, Subject};
use crate::rejection::{Reason, Rejection};
use crate::respond::{Answers, is_denied};

/// What the services of a layer have in common.
#[derive(Clone)]
pub(super) struct Shared {
    // What follows from the rest; see `settle`.
    /// Whether a request has one key and costs 1, and nobody watches.
    pub(super) is_plain: bool,
    /// Whether anybody is told what a decision left.
    pub(super) tells: bool,
    pub(super) tells_clients: bool,
    pub(super) tells_handlers: bool,
    /// One for each of the limiter's policies.
    pub(super) keys: Vec<Extractor>,
    pub(super) limiter: RateLimiter,
    pub(super) headers: Headers,
    pub(super) status: Option<bool>,
    pub(super) cost: Option<Cost>,
    pub(super) skip: Option<Skip>,
    pub(super) tier_by: Option<TierBy>,
    pub(super) dry_run: bool,
    pub(super) guard: Option<Guard>,
    pub(super) name: Arc<str>,
    pub(super) answers: Answers,
    pub(super) observers: Observers,
    /// The same for each tier of the policies, but for what it limits to. Follows from the rest as well.
    pub(super) tiers: Vec<(Arc<str>, Arc<Shared>)>,
}

type TierBy = Arc<dyn for<'a> Fn(RequestHead<'a>) -> Option<&'a str> + Send + Sync>;
type Cost = Arc<dyn Fn(RequestHead<'_>) -> u32 + Send + Sync>;
type Skip = Arc<dyn Fn(RequestHead<'_>) -> bool + Send + Sync>;

/// Charges addresses for credentials that are not accepted.
#[derive(Clone)]
pub(super) struct Guard {
    pub(super) client_ip: Extractor,
    pub(super) limiter: RateLimiter,
}

impl Shared {
    /// Works out what does not change from request to request.
    pub(super) fn settle(&mut self) {
        self.is_plain = self.keys.len() == 1
            && !self.limiter.is_off()
            && self.cost.is_none()
            && self.skip.is_none()
            && self.tier_by.is_none()
            && self.guard.is_none()
            && self.observers.is_empty();
        let limits = !self.limiter.is_off();
        self.tells_clients = limits && !self.headers.are_off() && !self.dry_run;
        self.tells_handlers = limits && self.status.unwrap_or(!self.headers.are_off());
        self.tells = self.tells_clients || self.tells_handlers;
        self.tiers.clear();
        if self.tier_by.is_some() {
            let tiers = self.limiter.tiers().map(|(name, limiter)| {
                let tier = Self {
                    headers: self.headers.of(limiter),
                    limiter: limiter.clone(),
                    ..self.clone()
                };
                (name.into(), Arc::new(tier))
            });
            self.tiers = tiers.collect();
        }
    }

    /// What counts for the tier of a request.
    #[inline]
    pub(super) fn in_tier<'a>(shared: &'a Arc<Self>, head: RequestHead<'_>) -> &'a Arc<Self> {
        let Some(tier_by) = &shared.tier_by else {
            return shared;
        };
        let tier = tier_by(head).and_then(|name| {
            let mut tiers = shared.tiers.iter();
            tiers.find(|(tier, _)| **tier == *name)
        });
        tier.map_or(shared, |(_, tier)| tier)
    }

    /// Whether a request is none of this layer's business.
    #[inline]
    pub(super) fn passes(&self, head: RequestHead<'_>) -> bool {
        (self.limiter.is_off() && self.guard.is_none())
            || self.skip.as_ref().is_some_and(|skip| skip(head))
    }

    /// The address to charge if the credentials are not accepted, unless it has used up its
    /// quota of those.
    #[inline]
    pub(super) fn guarded(&self, head: RequestHead<'_>) -> Result<Option<Key>, Refused> {
        let Some(guard) = &self.guard else {
            return Ok(None);
        };
        // Without an address nobody can be told from the others, and one who guesses tokens
        // would lock out all.
        let Some(address) = guard.client_ip.known_key(head) else {
            return Ok(None);
        };
        let decision = guard.limiter.peek(&address);
        if decision.is_admitted() {
            return Ok(Some(address));
        }
        let reason = Reason::AbnormalUsage;
        let refused = Refused {
            rejection: guard.limiter.rejection_for(reason, &self.name, decision),
            key: address,
        };
        if self.dry_run {
            self.would_refuse(&refused);
            return Ok(Some(address));
        }
        Err(refused)
    }

    /// What follows from a decision, for a request and for its handler.
    pub(super) fn verdict<B, RB: Body>(
        shared: &Arc<Self>,
        request: &mut Request<B>,
        asked: Asked,
        decision: Decision,
    ) -> Verdict<RB> {
        let Asked {
            key,
            guarded,
            begun,
        } = asked;
        if decision.is_admitted() {
            if begun.is_some() {
                shared.tell_admitted(&key, begun, &decision);
            }
        } else {
            let refused = shared.refused(key, decision.clone());
            if !shared.dry_run {
                let head = RequestHead::from(&*request);
                return Verdict::Refused(shared.refuse(&refused, begun, head));
            }
            let subject = shared.subject(&refused.key, refused.policy());
            (shared.observers).decided(begun, &subject, |observer| {
                observer.would_reject(&subject, &refused.rejection);
            });
        }
        Verdict::Admitted(Self::tell_later(shared, request, guarded, decision))
    }

    /// Tells the handler of an admitted request, and keeps what the response is to tell.
    pub(super) fn tell_later<B>(
        shared: &Arc<Self>,
        request: &mut Request<B>,
        guarded: Option<Key>,
        decision: Decision,
    ) -> Option<Told> {
        if shared.tells_handlers {
            let status = RateLimitStatus::new(shared.limiter.clone(), decision.clone());
            request.extensions_mut().insert(status);
        }
        (shared.tells_clients || guarded.is_some()).then(|| Told {
            decision: shared.tells_clients.then_some(decision),
            guarded: guarded.map(Box::new),
            shared: shared.clone(),
        })
    }

    fn tell_admitted(&self, key: &Key, begun: Option<Instant>, decision: &Decision) {
        let subject = self.subject(key, self.limiter.binding(decision));
        self.observers
            .decided(begun, &subject, |observer| observer.admitted(&subject));
    }

    #[cold]
    fn refused(&self, key: Key, decision: Decision) -> Refused {
        Refused {
            rejection: self.limiter.rejection(&self.name, decision),
            key,
        }
    }

    #[cold]
    pub(super) fn refuse<RB: Body>(
        &self,
        refused: &Refused,
        begun: Option<Instant>,
        head: RequestHead<'_>,
    ) -> Response<ResponseBody<RB>> {
        let Refused { rejection, key } = refused;
        let subject = self.subject(key, refused.policy());
        (self.observers).decided(begun, &subject, |observer| {
            observer.rejected(&subject, rejection);
        });
        let mut response = self.answers.answer(rejection, head);
        // A guard's numbers are nothing to tell to whoever guesses credentials.
        if rejection.reason() != Reason::AbnormalUsage
            && let Some(decision) = rejection.decision()
        {
            self.headers.tell(decision, response.headers_mut());
        }
        response.map(ResponseBody::refusal)
    }

    /// Tells of what a guard would refuse; the limit itself has not decided yet.
    #[cold]
    fn would_refuse(&self, refused: &Refused) {
        let Refused { rejection, key } = refused;
        let subject = self.subject(key, refused.policy());
        self.observers
            .tell(|observer| observer.would_reject(&subject, rejection));
    }

    /// Adds to the response of an admitted request what is to be told.
    pub(super) fn tell(&self, decision: &Decision, headers: &mut HeaderMap) {
        self.headers.tell(decision, headers);
    }

    /// Charges an address for credentials that were not accepted.
    pub(super) fn charge(&self, address: &Key) {
        if let Some(guard) = &self.guard {
            let _ = guard.limiter.check(address);
        }
    }

    fn subject<'a>(&'a self, key: &'a Key, policy: &'a str) -> Subject<'a> {
        Subject {
            limit_type: "http",
            limiter: &self.name,
            policy,
            key: Some(key),
        }
    }
}

/// 401 and 403, or UNAUTHENTICATED (16) and PERMISSION_DENIED (7) of gRPC, which are in the header
/// of a response without a message.
pub(super) fn refuses_credentials<RB>(response: &Response<RB>) -> bool {
    let grpc_status = || {
        response
            .headers()
            .get("grpc-status")
            .map(HeaderValue::as_bytes)
    };
    let is_refused = matches!(
        response.status(),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
    ) || matches!(grpc_status(), Some(b"16" | b"7"));
    is_refused && !is_denied(response)
}

/// What becomes of a request.
pub(super) enum Verdict<RB> {
    /// It is passed on, and this is told with its response.
    Admitted(Option<Told>),
    Refused(Response<ResponseBody<RB>>),
}

/// What is known of a request whose decision is asked for.
pub(super) struct Asked {
    pub(super) key: Key,
    pub(super) guarded: Option<Key>,
    /// When that began, if observers are to be told how long it took.
    pub(super) begun: Option<Instant>,
}

impl Asked {
    /// Of a key, without anything else.
    pub(super) fn plain(key: Key) -> Self {
        Self {
            key,
            guarded: None,
            begun: None,
        }
    }
}

/// A refusal, and who it was charged to.
pub(super) struct Refused {
    rejection: Rejection,
    key: Key,
}

impl Refused {
    fn policy(&self) -> &str {
        self.rejection.policy()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("limiter", &self.limiter)
            .field("dry_run", &self.dry_run)
            .finish_non_exhaustive()
    }
}
