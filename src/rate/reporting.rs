//! Reports the decisions of a rate layer to observers.

use tokio::time::Instant;

use super::state::{LayerState, Rejected, Settings};
use crate::decision::Decision;
use crate::extract::RequestHead;
use crate::key::Key;
use crate::limiter::RateLimiter;
use crate::observe::{Observer, Subject};
use crate::policy::{NamedQuota, Policy};
use crate::rejection::Rejection;

impl Settings {
    /// Reports that a layer with these settings is ready to decide.
    pub(super) fn tell_attached(&self, limiter: &RateLimiter) {
        if !limiter.is_off() {
            let quotas = limiter.policies().iter().flat_map(Policy::quotas);
            let names = quotas.map(NamedQuota::name);
            self.observers.attached("http", &self.name, names);
        }
    }
}

impl LayerState {
    pub(super) fn report_admitted(
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

    /// Reports a rejection that the handler answers.
    pub(super) fn report_rejected(&self, rejected: Rejected) -> Rejection {
        let Rejected { rejection, key } = rejected;
        let subject = self.rejection_subject(&rejection, &key, None);
        self.observers
            .tell(|observer| observer.rejected(&subject, &rejection));
        rejection
    }

    /// Reports a rejection that is not enforced, with the duration of the decision if `begun` is
    /// known.
    #[cold]
    pub(super) fn would_reject(
        &self,
        rejected: &Rejected,
        begun: Option<Instant>,
        head: Option<RequestHead<'_>>,
    ) {
        let Rejected { rejection, key } = rejected;
        let subject = self.rejection_subject(rejection, key, head);
        let tell = |observer: &dyn Observer| observer.would_reject(&subject, rejection);
        match begun {
            Some(_) => self.observers.decided(begun, &subject, tell),
            None => self.observers.tell(tell),
        }
    }

    /// The subject of a rejection.
    pub(super) fn rejection_subject<'a>(
        &'a self,
        rejection: &'a Rejection,
        key: &'a Key,
        head: Option<RequestHead<'a>>,
    ) -> Subject<'a> {
        self.new_subject(rejection.limiter(), key, rejection.policy(), head)
    }

    fn subject<'a>(
        &'a self,
        key: &'a Key,
        policy: &'a str,
        head: Option<RequestHead<'a>>,
    ) -> Subject<'a> {
        self.new_subject(&self.name, key, policy, head)
    }

    fn new_subject<'a>(
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
