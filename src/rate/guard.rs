//! The guard against guessed credentials.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::layer::RateLimitLayer;
use super::state::Settings;
use super::state::{LayerState, Rejected};
use crate::enforce::Enforcement;
use crate::extract::{ClientIp, Extractor, KeyExtractor, RequestHead};
use crate::key::Key;
use crate::limiter::RateLimiter;
use crate::policy::Policy;
use crate::rejection::Reason;
use crate::respond::is_denied;
use crate::store::MemoryStore;

/// Charges addresses for rejected credentials.
#[derive(Clone)]
pub(super) struct Guard {
    client_ip: Extractor,
    limiter: RateLimiter,
    /// The headers, besides `Authorization`, that hold a credential.
    credential_headers: Vec<HeaderName>,
    /// The layer to which the guard belongs, if several layers are joined.
    owner: Option<(Arc<str>, Enforcement)>,
}

impl<K: KeyExtractor> RateLimitLayer<K> {
    /// Rejects addresses that keep sending invalid credentials.
    ///
    /// The rate limit charges a token without verifying it, and each made-up token has a full
    /// bucket. The guard therefore charges the client's address for each 401 or 403 response, if
    /// the request *carried a credential*. An address that has used up `quota` gets 429 for further
    /// such requests, before its token is looked at.
    ///
    /// A request carries a credential if it has an `Authorization` header, or a
    /// [header](KeyExtractor::credential_headers) that one of the layer's keys reads, such as
    /// `X-Api-Key`, even if it is malformed. The guard neither charges nor rejects other requests:
    /// limit them by address, see [`and_by`](Self::and_by). For a login form, whose credentials are
    /// in the body, use [`count_if`](Self::count_if).
    ///
    /// In gRPC the guard counts UNAUTHENTICATED and PERMISSION_DENIED, if the service answers
    /// without a message (trailers-only).
    ///
    /// A client that disconnects before the answer is charged as well. An error or a panic of the
    /// inner service is not charged. The charge is made when the answer is known, so concurrent
    /// requests can exceed the quota by their number. The guard ignores requests without a known
    /// address, because one client could lock out all others. It counts in memory, per replica,
    /// even if the layer uses a shared store. A quota without a name is named `guard`.
    ///
    /// The address is the peer of the connection; behind a proxy use [`guard_by`](Self::guard_by).
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

    /// As [`guard_by_ip`](Self::guard_by_ip), with another extractor for the address.
    pub fn guard_by(self, client_ip: impl KeyExtractor, quota: impl Into<Policy>) -> Self {
        let store = MemoryStore::new();
        self.guard_in(&store, client_ip, quota)
    }

    /// As [`guard_by`](Self::guard_by), counting in `store`.
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

    /// Adds a guard with an existing limiter, which must reply at once.
    pub(crate) fn guard_resumed(self, client_ip: impl KeyExtractor, limiter: RateLimiter) -> Self {
        self.with(|settings| {
            let guard = (!limiter.is_off()).then(|| Guard {
                client_ip: Extractor::new(client_ip),
                limiter,
                credential_headers: Vec::new(),
                owner: None,
            });
            settings.guards = guard.into_iter().collect();
        })
    }
}

impl Guard {
    /// Sets the headers that hold a credential for these keys.
    pub(super) fn set_credential_headers(&mut self, keys: &[Extractor]) {
        self.credential_headers.clear();
        for header in keys.iter().flat_map(Extractor::credential_headers) {
            if header != AUTHORIZATION && !self.credential_headers.contains(&header) {
                self.credential_headers.push(header);
            }
        }
    }

    fn has_credential(&self, head: RequestHead<'_>) -> bool {
        let has = |header: &HeaderName| head.headers.contains_key(header);
        has(&AUTHORIZATION) || self.credential_headers.iter().any(has)
    }
}

impl LayerState {
    /// The address to charge if the credentials are rejected. Fails if it has used up its quota of
    /// rejected credentials.
    #[inline]
    pub(super) fn check_guards(&self, head: RequestHead<'_>) -> Result<Option<Key>, Rejected> {
        // The guards of joined layers find the same address.
        let mut suspect = None;
        for guard in &self.guards {
            suspect = self.check_guard(guard, head)?.or(suspect);
        }
        Ok(suspect)
    }

    fn check_guard(&self, guard: &Guard, head: RequestHead<'_>) -> Result<Option<Key>, Rejected> {
        if !guard.has_credential(head) {
            return Ok(None);
        }
        // Without an address, one client that guesses tokens would lock out all others.
        let Some(address) = guard.client_ip.known_key(head) else {
            return Ok(None);
        };
        // A guard counts in memory, so the reply is ready.
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

    /// Charges an address for rejected credentials.
    pub(super) fn charge_suspect(&self, address: &Key) {
        for guard in &self.guards {
            let _ = guard.limiter.check(address);
        }
    }
}

impl Settings {
    /// The guards of this layer, for a layer that joins it.
    pub(super) fn owned_guards(&self) -> impl Iterator<Item = Guard> {
        self.guards.iter().map(|guard| Guard {
            owner: Some((self.name.clone(), self.enforce.clone())),
            ..guard.clone()
        })
    }
}

/// Whether the status is 401 or 403, or UNAUTHENTICATED (16) or PERMISSION_DENIED (7) of gRPC,
/// which a response without a message has in its headers.
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
    // A 403 of an inner limit that denies the key is unrelated to the credential.
    is_rejected && !is_denied(response)
}
