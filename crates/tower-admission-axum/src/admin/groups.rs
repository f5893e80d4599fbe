//! The limits of a request, as the application knows them.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use tower_admission::provider::{Enforcement, RateLimiterInternals};
use tower_admission::{
    ClientIp, Key, LimitExplanation, LimitVerdict, Limits, RateLimiter, Reason, RequestHead,
};

/// The name and the type of the guard against made-up credentials.
pub(super) const GUARD: &str = "guard";

/// Finds the limits of a request, for [`POST /explain`](super::AdminRouter::groups). `Admission` of the crate
/// `tower-admission-config` implements it, and so does a closure.
#[diagnostic::on_unimplemented(
    note = "use a closure `|head: RequestHead<'_>| -> Vec<RequestGroup>`, or `Admission::admin`"
)]
pub trait RequestGroups: Send + Sync + 'static {
    /// The groups whose limits the request passes, in order.
    fn groups(&self, head: RequestHead<'_>) -> Vec<RequestGroup>;

    /// The key of a client address. Default: like [`ClientIp`], which charges an IPv6 address as its /64.
    fn address_key(&self, address: IpAddr) -> Key {
        Key::ip_network(address, ClientIp::DEFAULT_V6_PREFIX)
    }

    /// The limits whose allow and deny lists apply, given the limits of the router. Default: these.
    fn lists(&self, limits: &Limits) -> Vec<Limits> {
        vec![limits.clone()]
    }
}

impl<F> RequestGroups for F
where
    F: Fn(RequestHead<'_>) -> Vec<RequestGroup> + Send + Sync + 'static,
{
    fn groups(&self, head: RequestHead<'_>) -> Vec<RequestGroup> {
        self(head)
    }
}

/// A group of limits that a request passes.
#[derive(Clone)]
pub struct RequestGroup {
    name: Arc<str>,
    limits: Vec<RequestLimit>,
    guard: Option<RateLimiter>,
    enforce: u8,
    is_excluded: bool,
}

#[derive(Clone)]
struct RequestLimit {
    name: Arc<str>,
    place: usize,
    charges_address: bool,
}

impl RequestGroup {
    /// A group without limits.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            limits: Vec::new(),
            guard: None,
            enforce: Enforcement::ALL,
            is_excluded: false,
        }
    }

    /// Adds a limit on the key of the request: the name of a quota or of a limiter.
    #[must_use]
    pub fn limit(self, name: &str) -> Self {
        self.with(name, 0, false)
    }

    /// Adds a limit on the address of the client. `place` is the index of the address among the keys of the limiter, from 0.
    #[must_use]
    pub fn address_limit(self, name: &str, place: usize) -> Self {
        self.with(name, place, true)
    }

    /// Adds the guard against made-up credentials, which limits failed authentications per address.
    #[must_use]
    pub fn guard(mut self, limiter: &RateLimiter) -> Self {
        self.guard = Some(limiter.clone());
        self
    }

    fn with(mut self, name: &str, place: usize, charges_address: bool) -> Self {
        self.limits.push(RequestLimit {
            name: name.into(),
            place,
            charges_address,
        });
        self
    }

    /// Sets the percentage of keys for which the limits are enforced; 0 is a dry run. Default: 100.
    ///
    /// # Panics
    ///
    /// If the percentage is above 100.
    #[must_use]
    #[track_caller]
    pub fn enforce(mut self, percent: u8) -> Self {
        let _ = Enforcement::new(percent);
        self.enforce = percent;
        self
    }

    /// Sets whether the request is excluded from the limits of the group. Default: not excluded.
    #[must_use]
    pub fn excluded(mut self, is_excluded: bool) -> Self {
        self.is_excluded = is_excluded;
        self
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn percent(&self) -> u8 {
        self.enforce
    }

    pub(super) fn is_excluded(&self) -> bool {
        self.is_excluded
    }

    /// Whether a rejection of this key would be enforced.
    pub(super) fn enforces(&self, key: &Key) -> bool {
        Enforcement::new(self.enforce).is_enforced(Some(key))
    }

    /// Whether the group has an explained limit. `is_address` says whether it was explained for an address.
    pub(super) fn has(&self, limit: &LimitExplanation, is_address: bool) -> bool {
        self.limits.iter().any(|own| {
            let is_place = own.place == limit.place && own.charges_address == is_address;
            own.name == limit.name && (is_place || limit.is_total && !is_address)
        })
    }

    /// The limits on addresses, with the guard.
    pub(super) fn address_limits(&self) -> impl Iterator<Item = &str> {
        let limits = self.limits.iter().filter(|limit| limit.charges_address);
        let guard = self.guard.as_ref().map(|_| GUARD);
        limits.map(|limit| &*limit.name).chain(guard)
    }

    /// Explains the guard for an address.
    pub(super) async fn explain_guard(&self, address: &Key) -> Vec<LimitExplanation> {
        let Some(guard) = &self.guard else {
            return Vec::new();
        };
        let mut explained = guard.explain_key(*address).await;
        for limit in &mut explained {
            limit.name = GUARD.into();
            limit.sort = GUARD;
            if let LimitVerdict::Rejected { reason, .. } = &mut limit.verdict {
                *reason = Reason::AbnormalUsage;
            }
        }
        explained
    }
}

impl fmt::Debug for RequestGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestGroup")
            .field("name", &self.name)
            .field("is_excluded", &self.is_excluded)
            .finish_non_exhaustive()
    }
}
