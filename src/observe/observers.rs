//! The observers of one layer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Observer, Subject};
use crate::extract::ClientIp;
use crate::key::Key;

/// The observers of one layer.
#[derive(Clone, Default)]
pub struct Observers {
    all: Vec<Arc<dyn Observer>>,
    counts_requests: bool,
    /// Default: the peer.
    pub(super) client_ip: Option<Arc<ClientIp>>,
}

impl Observers {
    /// Adds an observer.
    pub fn add(&mut self, observer: impl Observer) {
        self.counts_requests |= observer.counts_requests();
        self.all.push(Arc::new(observer));
    }

    pub(crate) fn set_client_ip(&mut self, client_ip: ClientIp) {
        self.client_ip = Some(Arc::new(client_ip));
    }

    /// Whether there are no observers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether to mark a request with [`DecidedMark`](super::DecidedMark).
    pub(crate) fn mark_requests(&self) -> bool {
        self.counts_requests
    }

    /// Reports that a limiter with these quotas is ready to decide.
    pub fn attached<'a>(
        &self,
        limit_type: &'static str,
        limiter: &str,
        policies: impl IntoIterator<Item = &'a str>,
    ) {
        if self.is_empty() {
            return;
        }
        for policy in policies {
            let subject = Subject::new(limit_type, limiter, policy, None);
            self.tell(|observer| observer.attached(&subject));
        }
    }

    /// The time at which a decision begins, for [`decided`](Self::decided). Without observers the
    /// clock is not read.
    #[inline]
    #[must_use]
    pub fn begin(&self) -> Option<Instant> {
        (!self.is_empty()).then(Instant::now)
    }

    /// Reports a decision with `report`, and then its duration.
    #[inline]
    pub fn decided(
        &self,
        begun: Option<Instant>,
        subject: &Subject<'_>,
        tell: impl Fn(&dyn Observer),
    ) {
        let Some(begun) = begun else {
            return;
        };
        self.decided_in(begun.elapsed(), subject, tell);
    }

    /// As [`decided`](Self::decided), with a duration that was measured earlier.
    #[inline]
    pub(crate) fn decided_in(
        &self,
        took: Duration,
        subject: &Subject<'_>,
        tell: impl Fn(&dyn Observer),
    ) {
        self.tell(|observer| {
            tell(observer);
            observer.decided(subject, took);
        });
    }

    #[inline]
    pub(crate) fn tell(&self, tell: impl Fn(&dyn Observer)) {
        for observer in &self.all {
            tell(&**observer);
        }
    }
}

/// Forwards the hooks of a limiter to each observer.
impl Observer for Observers {
    fn acquired(&self, limiter: &str, in_flight: u64) {
        self.tell(|observer| observer.acquired(limiter, in_flight));
    }

    fn limit(&self, limiter: &str, limit: Option<u64>) {
        self.tell(|observer| observer.limit(limiter, limit));
    }

    fn reclaimed(&self, limiter: &str, key: Option<&Key>, stalled: Duration) {
        self.tell(|observer| observer.reclaimed(limiter, key, stalled));
    }

    fn released(&self, limiter: &str) {
        self.tell(|observer| observer.released(limiter));
    }

    fn held(&self, limiter: &str, held: Duration) {
        self.tell(|observer| observer.held(limiter, held));
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} observers", self.all.len())
    }
}
