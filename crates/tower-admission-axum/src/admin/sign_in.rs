//! Authenticates operators, and slows down addresses that send wrong credentials.

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
use crate::endpoint::EndpointError;

/// The maximum number of addresses with counts: about 2 MiB.
const MAX_ADDRESSES: usize = 16_384;

/// The log lines per minute about failed sign-ins, for all addresses together.
const MAX_LOGGED: u32 = 60;

/// The realm of challenges (RFC 9110 §11.5).
macro_rules! challenge {
    ($error:literal) => {
        concat!("Bearer realm=\"admission\"", $error)
    };
}

/// Authenticates operators, and limits failed sign-ins per address.
pub(super) struct SignInGuard {
    auth: Box<dyn Auth>,
    client_ip: Extractor,
    /// The headers that may contain credentials.
    credentials: Vec<HeaderName>,
    failures: RateLimiter,
    /// Limits log lines per address, and in total.
    log_limiter: RateLimiter,
    /// The failures since the last log line.
    unlogged: AtomicU64,
}

/// An authenticated operator, with the address of the request.
#[derive(Clone, Debug)]
pub(super) struct SignedInOperator {
    pub(super) operator: Operator,
    /// `None` if the server does not pass addresses on.
    pub(super) address: Option<KeyName>,
}

impl SignInGuard {
    /// The default number of failed sign-ins per minute and address. A person may mistype a token a few times. A program
    /// can try 14,400 tokens per day, too few to find one of at least 16 bytes.
    pub(super) const DEFAULT_FAILURES_PER_MINUTE: u32 = 10;

    pub(super) fn new(auth: impl Auth) -> Self {
        #[cfg(feature = "metrics")]
        metrics::describe_counter!(
            "admission_admin_sign_in_failures_total",
            metrics::Unit::Count,
            "Requests to admin endpoints with wrong credentials (wrong), and rejected requests from addresses that sent too many (slowed)."
        );
        // Without a zero, Prometheus does not see the first failure as an increase.
        for outcome in [WRONG, SLOWED] {
            count_failures(outcome, 0);
        }
        Self {
            auth: Box::new(auth),
            client_ip: Extractor::new(ClientIp::peer()),
            credentials: vec![AUTHORIZATION],
            failures: failure_limiter(Quota::per_minute(Self::DEFAULT_FAILURES_PER_MINUTE)),
            log_limiter: log_limiter(),
            unlogged: AtomicU64::new(0),
        }
    }

    pub(super) fn set_client_ip(&mut self, client_ip: impl KeyExtractor) {
        self.client_ip = Extractor::new(client_ip);
    }

    pub(super) fn add_credentials(&mut self, header: HeaderName) {
        self.credentials.push(header);
    }

    pub(super) fn set_failure_quota(&mut self, quota: Quota) {
        self.failures = failure_limiter(quota);
    }

    /// The operator of a request, if the operator has at least this role.
    pub(super) fn authorize(
        &self,
        head: RequestHead<'_>,
        role: Role,
    ) -> Result<SignedInOperator, EndpointError> {
        let address = self.client_ip.known_key(head);
        // A request without a credential is no attempt to guess one.
        let is_sent = |header| head.headers.contains_key(header);
        let has_credentials = self.credentials.iter().any(is_sent);
        // Without a known address, one client with wrong credentials would lock out all operators.
        let suspect = address.filter(|_| has_credentials);
        if let Some(address) = &suspect {
            self.check_failures(address)?;
        }
        let Some(operator) = self.auth.operator(head) else {
            if has_credentials {
                self.record_failure(suspect.as_ref());
            }
            return Err(unauthorized(head, has_credentials));
        };
        if operator.role() < role {
            return Err(not_allowed(&operator));
        }
        Ok(SignedInOperator {
            operator,
            address: address.map(KeyName::from),
        })
    }

    /// Rejects an address with too many failures, before its credentials are checked.
    fn check_failures(&self, address: &Key) -> Result<(), EndpointError> {
        // The limiter counts in memory, so it decides at once.
        let wait = self.failures.peek(address).now();
        match wait.and_then(|decision| decision.retry_after()) {
            Some(wait) => {
                count_failures(SLOWED, 1);
                Err(too_many_failures(wait))
            }
            None => Ok(()),
        }
    }

    fn record_failure(&self, address: Option<&Key>) {
        count_failures(WRONG, 1);
        let key = address.copied().unwrap_or(Key::UNKNOWN);
        if address.is_some() {
            let _ = self.failures.check_now(&key);
        }
        let logs = self.log_limiter.decide(&[key, Key::SHARED], 1).now();
        if logs.is_some_and(|decision| decision.is_admitted()) {
            let unlogged = self.unlogged.swap(0, Ordering::Relaxed);
            let address = KeyName::from(key);
            tracing::warn!(
                %address,
                unlogged,
                "a request to the admin endpoints has wrong credentials; further failures of this address are not logged for a minute"
            );
        } else {
            self.unlogged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn failure_limiter(quota: Quota) -> RateLimiter {
    let store = MemoryStore::new().max_keys(MAX_ADDRESSES);
    RateLimiter::with_store(Policy::new("sign-in failures", quota), &store)
}

fn log_limiter() -> RateLimiter {
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

fn count_failures(outcome: &'static str, more: u64) {
    #[cfg(feature = "metrics")]
    metrics::counter!("admission_admin_sign_in_failures_total", "outcome" => outcome)
        .increment(more);
    let _ = (outcome, more);
}

/// RFC 6750 §3: the challenge has an error code only for a request with a bearer token.
fn unauthorized(head: RequestHead<'_>, has_credentials: bool) -> EndpointError {
    let sent = head.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
    let scheme = sent.and_then(|value| value.split(|byte| *byte == b' ').next());
    let is_bearer = scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer"));
    let (detail, challenge) = match is_bearer {
        true => (
            "The token is wrong, or was replaced.",
            challenge!(", error=\"invalid_token\""),
        ),
        false if has_credentials => ("The credentials are wrong.", challenge!("")),
        false => ("This endpoint requires credentials.", challenge!("")),
    };
    let challenge = HeaderValue::from_static(challenge);
    EndpointError::new(StatusCode::UNAUTHORIZED, detail).with_header(WWW_AUTHENTICATE, challenge)
}

fn not_allowed(operator: &Operator) -> EndpointError {
    let detail = format!(
        "{} may not change limits: use a token with the role `write`.",
        operator.name()
    );
    let challenge = HeaderValue::from_static(challenge!(", error=\"insufficient_scope\""));
    EndpointError::new(StatusCode::FORBIDDEN, detail).with_header(WWW_AUTHENTICATE, challenge)
}

fn too_many_failures(wait: Duration) -> EndpointError {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let detail = "This address has sent too many requests with wrong credentials. Try again later.";
    EndpointError::new(StatusCode::TOO_MANY_REQUESTS, detail)
        .with_header(RETRY_AFTER, seconds.into())
}
