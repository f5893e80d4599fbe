//! What observers see of the decisions of a rate layer.

use tokio::time::Instant;

use super::shared::{Rejected, Settings, Shared};
use crate::decision::Decision;
use crate::extract::RequestHead;
use crate::key::Key;
use crate::limiter::RateLimiter;
use crate::observe::{Observer, Subject};
use crate::policy::{NamedQuota, Policy};
use crate::rejection::Rejection;

impl Settings {
    /// Tells observers that a layer with these settings is ready to decide.
    pub(super) fn tell_attached(&self, limiter: &RateLimiter) {
        if !limiter.is_off() {
            let quotas = limiter.policies().iter().flat_map(Policy::quotas);
            let names = quotas.map(NamedQuota::name);
            self.observers.attached("http", &self.name, names);
        }
    }
}

impl Shared {
    pub(super) fn tell_admitted(
        &self,
        keys: &[Key],
        begun: Option<Instant>,
        decision: &Decision,
        head: RequestHead<'_>,
    ) {
        let key = self.limiter.deciding_key(keys, decision);
        let subject = self.subject(key, self.limiter.binding_quota(decision), Some(head));
        self.observers
            .decided(begun, &subject, |observer| observer.admitted(&subject));
    }

    /// Tells observers of a rejection that the handler answers.
    pub(super) fn report(&self, rejected: Rejected) -> Rejection {
        let Rejected { rejection, key } = rejected;
        let subject = self.rejecting(&rejection, &key, None);
        self.observers
            .tell(|observer| observer.rejected(&subject, &rejection));
        rejection
    }

    /// Tells observers of a rejection that is not enforced; and how long the decision took, if it
    /// has a beginning.
    #[cold]
    pub(super) fn would_reject(
        &self,
        rejected: &Rejected,
        begun: Option<Instant>,
        head: Option<RequestHead<'_>>,
    ) {
        let Rejected { rejection, key } = rejected;
        let subject = self.rejecting(rejection, key, head);
        let tell = |observer: &dyn Observer| observer.would_reject(&subject, rejection);
        match begun {
            Some(_) => self.observers.decided(begun, &subject, tell),
            None => self.observers.tell(tell),
        }
    }

    /// What a rejection is about.
    pub(super) fn rejecting<'a>(
        &'a self,
        rejection: &'a Rejection,
        key: &'a Key,
        head: Option<RequestHead<'a>>,
    ) -> Subject<'a> {
        self.about(rejection.limiter(), key, rejection.policy(), head)
    }

    fn subject<'a>(
        &'a self,
        key: &'a Key,
        policy: &'a str,
        head: Option<RequestHead<'a>>,
    ) -> Subject<'a> {
        self.about(&self.name, key, policy, head)
    }

    fn about<'a>(
        &'a self,
        limiter: &'a str,
        key: &'a Key,
        policy: &'a str,
        head: Option<RequestHead<'a>>,
    ) -> Subject<'a> {
        let subject = Subject::new("http", limiter, policy, Some(key));
        match head {
            Some(head) => subject.of(head, &self.observers),
            None => subject,
        }
    }
}
