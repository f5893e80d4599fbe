//! Admits operators, and slows down addresses that keep sending wrong credentials.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::{AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use tower_admission::provider::Extractor;
use tower_admission::{
    ClientIp, Key, KeyExtractor, KeyName, MemoryStore, Policy, Quota, RateLimitLayer, RateLimiter,
    RequestHead, Shared,
};

use super::auth::{Auth, Operator, Role};
use crate::endpoint::Failed;

/// Addresses that are remembered at a time: about 2 MiB.
const MAX_ADDRESSES: usize = 16_384;

/// Log lines about failed sign-ins from all addresses together, a minute.
const MAX_LOGGED: u32 = 60;

/// The realm of challenges (RFC 9110 §11.5).
macro_rules! challenge {
    ($error:literal) => {
        concat!("Bearer realm=\"admission\"", $error)
    };
}

/// Who sends requests, and how often an address may be wrong about it.
pub(super) struct SignIns {
    auth: Box<dyn Auth>,
    client_ip: Extractor,
    /// The headers that credentials are sent in.
    credentials: Vec<HeaderName>,
    failures: RateLimiter,
    /// By address, and all together.
    logged: RateLimiter,
    /// Failures without a log line since the last line.
    unlogged: AtomicU64,
}

/// An operator, and from where.
#[derive(Clone, Debug)]
pub(super) struct SignedIn {
    pub(super) operator: Operator,
    /// `None` where the server passes on no addresses.
    pub(super) address: Option<KeyName>,
}

impl SignIns {
    /// Failed sign-ins of an address, unless configured otherwise. A person may mistype; a program that tries more
    /// than 14,400 tokens of at least 16 bytes a day is no closer to one.
    pub(super) const DEFAULT_FAILURES: u32 = 10;

    pub(super) fn new(auth: impl Auth) -> Self {
        #[cfg(feature = "metrics")]
        metrics::describe_counter!(
            "admission_admin_sign_in_failures_total",
            metrics::Unit::Count,
            "Requests to admin endpoints with wrong credentials, and those from an address that had too many."
        );
        // So that Prometheus sees the first failure as an increase.
        for outcome in [WRONG, SLOWED] {
            failures(outcome, 0);
        }
        Self {
            auth: Box::new(auth),
            client_ip: Extractor::new(ClientIp::peer()),
            credentials: vec![AUTHORIZATION],
            failures: limiter(Quota::per_minute(Self::DEFAULT_FAILURES)),
            logged: logged(),
            unlogged: AtomicU64::new(0),
        }
    }

    pub(super) fn set_client_ip(&mut self, client_ip: impl KeyExtractor) {
        self.client_ip = Extractor::new(client_ip);
    }

    pub(super) fn add_credentials(&mut self, header: HeaderName) {
        self.credentials.push(header);
    }

    pub(super) fn set_failures(&mut self, quota: Quota) {
        self.failures = limiter(quota);
    }

    /// The operator of a request who has at least this role, or the answer.
    pub(super) fn admit(&self, head: RequestHead<'_>, role: Role) -> Result<SignedIn, Failed> {
        let address = self.client_ip.known_key(head);
        // Only a credential can be guessed; a request without one is only unauthorised.
        let is_sent = |header| head.headers.contains_key(header);
        let guesses = self.credentials.iter().any(is_sent);
        // Without an address, one client that guesses would lock out all operators.
        let suspect = address.filter(|_| guesses);
        if let Some(address) = &suspect {
            self.slow_down(address)?;
        }
        let Some(operator) = self.auth.operator(head) else {
            if guesses {
                self.note_failure(suspect.as_ref());
            }
            return Err(unauthorized(head, guesses));
        };
        if operator.role() < role {
            return Err(not_allowed(&operator));
        }
        Ok(SignedIn {
            operator,
            address: address.map(KeyName::from),
        })
    }

    /// Rejects an address that has failed too often, before its credentials are looked at.
    fn slow_down(&self, address: &Key) -> Result<(), Failed> {
        // It counts in memory, so the answer is there.
        let wait = self.failures.peek(address).now();
        match wait.and_then(|decision| decision.retry_after()) {
            Some(wait) => {
                failures(SLOWED, 1);
                Err(too_many_failures(wait))
            }
            None => Ok(()),
        }
    }

    fn note_failure(&self, address: Option<&Key>) {
        failures(WRONG, 1);
        let key = address.copied().unwrap_or(Key::UNKNOWN);
        if address.is_some() {
            let _ = self.failures.check_now(&key);
        }
        let logs = self.logged.decide(&[key, Key::SHARED], 1).now();
        if logs.is_some_and(|decision| decision.is_admitted()) {
            let unlogged = self.unlogged.swap(0, Ordering::Relaxed);
            let address = KeyName::from(key);
            tracing::warn!(
                %address,
                unlogged,
                "a request to the admin endpoints has wrong credentials; more from there are not logged for a minute"
            );
        } else {
            self.unlogged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn limiter(quota: Quota) -> RateLimiter {
    let store = MemoryStore::new().max_keys(MAX_ADDRESSES);
    RateLimiter::with_store(Policy::new("sign-in failures", quota), &store)
}

fn logged() -> RateLimiter {
    let store = MemoryStore::new().max_keys(MAX_ADDRESSES);
    RateLimitLayer::by(
        ClientIp::peer(),
        Policy::new("address", Quota::per_minute(1)),
    )
    .and_by(Shared, Policy::new("all", Quota::per_minute(MAX_LOGGED)))
    .store(store)
    .limiter()
}

const WRONG: &str = "wrong";
const SLOWED: &str = "slowed";

fn failures(outcome: &'static str, more: u64) {
    #[cfg(feature = "metrics")]
    metrics::counter!("admission_admin_sign_in_failures_total", "outcome" => outcome)
        .increment(more);
    let _ = (outcome, more);
}

/// RFC 6750 §3: a request without credentials of this scheme is told of no error.
fn unauthorized(head: RequestHead<'_>, guesses: bool) -> Failed {
    let sent = head.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
    let scheme = sent.and_then(|value| value.split(|byte| *byte == b' ').next());
    let is_bearer = scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer"));
    let (detail, challenge) = match is_bearer {
        true => (
            "The token is not accepted: it is wrong, or was replaced.",
            challenge!(", error=\"invalid_token\""),
        ),
        false if guesses => ("The credentials are not accepted.", challenge!("")),
        false => ("Credentials are needed.", challenge!("")),
    };
    let challenge = HeaderValue::from_static(challenge);
    Failed::new(StatusCode::UNAUTHORIZED, detail).with_header(WWW_AUTHENTICATE, challenge)
}

fn not_allowed(operator: &Operator) -> Failed {
    let detail = format!(
        "{} may read and not write: use a token with the role `write`.",
        operator.name()
    );
    let challenge = HeaderValue::from_static(challenge!(", error=\"insufficient_scope\""));
    Failed::new(StatusCode::FORBIDDEN, detail).with_header(WWW_AUTHENTICATE, challenge)
}

fn too_many_failures(wait: Duration) -> Failed {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let detail = "Too many requests with wrong credentials came from this address.";
    Failed::new(StatusCode::TOO_MANY_REQUESTS, detail).with_header(RETRY_AFTER, seconds.into())
}
