//! The guard against made-up credentials.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::layer::RateLimitLayer;
use super::shared::Settings;
use super::shared::{Rejected, Shared};
use crate::enforce::Enforcement;
use crate::extract::{ClientIp, Extractor, KeyExtractor, RequestHead};
use crate::key::Key;
use crate::limiter::RateLimiter;
use crate::policy::Policy;
use crate::rejection::Reason;
use crate::respond::is_denied;
use crate::store::MemoryStore;

/// Charges addresses for credentials that are not accepted.
#[derive(Clone)]
pub(super) struct Guard {
    client_ip: Extractor,
    limiter: RateLimiter,
    /// Which headers hold a credential, besides `Authorization`.
    credentials: Vec<HeaderName>,
    /// The layer that it is of, where several are decided as one.
    owner: Option<(Arc<str>, Enforcement)>,
}

impl<K: KeyExtractor> RateLimitLayer<K> {
    /// Rejects addresses that keep sending credentials that the application does not accept.
    ///
    /// The rate limit charges a token without checking it, and a made-up token has a full bucket.
    /// So each answer of 401 or 403 is charged to the client's address if the request *carried a
    /// credential*. An address that has used up `quota` gets 429 for such requests, before its
    /// token is looked at.
    ///
    /// A request carries a credential if it has an `Authorization` header, or a
    /// [header](KeyExtractor::credential_headers) that one of the layer's keys reads, such as
    /// `X-Api-Key`; whether it is well-formed does not matter. Other requests are neither charged
    /// nor rejected by the guard: limit them by address, see [`and_by`](Self::and_by). For a login
    /// form, whose credentials are in the body, use [`count_if`](Self::count_if).
    ///
    /// In gRPC the answers are UNAUTHENTICATED and PERMISSION_DENIED, where the service answers
    /// with nothing else (trailers-only).
    ///
    /// A client that hangs up before its answer is charged as well; an error or a panic of the inner
    /// service costs nothing. An answer is charged when it
    /// is known, so requests in flight at one time can exceed the quota by their number. The guard
    /// does nothing where no address is known, because one client could lock out all others. It
    /// counts in memory, per replica, whatever the layer's store is. A quota without a name is
    /// called `guard`.
    ///
    /// The address is the connection's peer; behind a proxy use [`guard_by`](Self::guard_by).
    /// Default: no guard.
    ///
    /// ```
    /// # use tower_admission::{Quota, RateLimitByTokenLayer};
    /// let layer = RateLimitByTokenLayer::new(Quota::per_second(10))
    ///     .guard_by_ip(Quota::per_minute(20));
    /// ```
    pub fn guard_by_ip(self, quota: impl Into<Policy>) -> Self {
        self.guard_by(ClientIp::peer(), quota)
    }

    /// As [`guard_by_ip`](Self::guard_by_ip), with the address found as `client_ip` says.
    pub fn guard_by(self, client_ip: impl KeyExtractor, quota: impl Into<Policy>) -> Self {
        let store = MemoryStore::new();
        self.guard_in(&store, client_ip, quota)
    }

    /// As [`guard_by`](Self::guard_by), counting in `store`, which has to answer at once.
    pub fn guard_in(
        self,
        store: &MemoryStore,
        client_ip: impl KeyExtractor,
        quota: impl Into<Policy>,
    ) -> Self {
        let policy = quota.into().with_default_name("guard");
        let limiter = RateLimiter::with_store(policy, store);
        self.guard_resumed(client_ip, limiter)
    }

    /// Guards with a limiter that exists already, and that answers at once.
    pub(crate) fn guard_resumed(self, client_ip: impl KeyExtractor, limiter: RateLimiter) -> Self {
        self.with(|settings| {
            let guard = (!limiter.is_off()).then(|| Guard {
                client_ip: Extractor::new(client_ip),
                limiter,
                credentials: Vec::new(),
                owner: None,
            });
            settings.guards = guard.into_iter().collect();
        })
    }
}

impl Guard {
    /// Learns which headers hold a credential for these keys.
    pub(super) fn settle(&mut self, keys: &[Extractor]) {
        self.credentials.clear();
        for header in keys.iter().flat_map(Extractor::credential_headers) {
            if header != AUTHORIZATION && !self.credentials.contains(&header) {
                self.credentials.push(header);
            }
        }
    }

    fn has_credential(&self, head: RequestHead<'_>) -> bool {
        let has = |header: &HeaderName| head.headers.contains_key(header);
        has(&AUTHORIZATION) || self.credentials.iter().any(has)
    }
}

impl Shared {
    /// The address to charge if the credentials are not accepted, unless it has used up its
    /// quota of those.
    #[inline]
    pub(super) fn guarded(&self, head: RequestHead<'_>) -> Result<Option<Key>, Rejected> {
        // Guards of several layers find the same address.
        let mut suspect = None;
        for guard in &self.guards {
            suspect = self.guarded_by(guard, head)?.or(suspect);
        }
        Ok(suspect)
    }

    fn guarded_by(&self, guard: &Guard, head: RequestHead<'_>) -> Result<Option<Key>, Rejected> {
        if !guard.has_credential(head) {
            return Ok(None);
        }
        // Without an address, one client that guesses tokens would lock out all others.
        let Some(address) = guard.client_ip.known_key(head) else {
            return Ok(None);
        };
        // A guard counts in memory, so the answer is there.
        let Some(decision) = guard.limiter.peek(&address).now() else {
            return Ok(Some(address));
        };
        if decision.is_admitted() {
            return Ok(Some(address));
        }
        let (name, enforce) = match &guard.owner {
            Some((name, enforce)) => (name, enforce),
            None => (&self.name, &self.enforce),
        };
        let reason = Reason::AbnormalUsage;
        let rejected = Rejected {
            rejection: guard.limiter.rejection_for(reason, name, decision),
            key: address,
        };
        if enforce.is_enforced(Some(&rejected.key)) {
            return Err(rejected);
        }
        // Without a duration, because the limit itself has not decided yet.
        self.would_reject(&rejected, None, Some(head));
        Ok(Some(address))
    }

    /// Charges an address for credentials that were not accepted.
    pub(super) fn charge_suspect(&self, address: &Key) {
        for guard in &self.guards {
            let _ = guard.limiter.check(address);
        }
    }
}

impl Settings {
    /// The guards of this layer, for one that is joined with it.
    pub(super) fn owned_guards(&self) -> impl Iterator<Item = Guard> {
        self.guards.iter().map(|guard| Guard {
            owner: Some((self.name.clone(), self.enforce.clone())),
            ..guard.clone()
        })
    }
}

/// 401 and 403, or UNAUTHENTICATED (16) and PERMISSION_DENIED (7) of gRPC, which are in the header
/// of a response without a message.
pub(super) fn rejects_credentials<RB>(response: &Response<RB>) -> bool {
    let grpc_status = || {
        response
            .headers()
            .get("grpc-status")
            .map(HeaderValue::as_bytes)
    };
    let is_rejected = matches!(
        response.status(),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
    ) || matches!(grpc_status(), Some(b"16" | b"7"));
    // A limit further in that denies everything to a key says nothing of the credential.
    is_rejected && !is_denied(response)
}
