//! What one request is charged, shared by its handler and its response.

use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::slice;
use std::sync::{Arc, OnceLock};

use http::{HeaderMap, Response};
use smallvec::SmallVec;

use super::guard::rejects_credentials;
use super::shared::{Asked, Shared};
use crate::decision::Decision;
use crate::extract::ResponseHead;
use crate::key::Key;
use crate::limiter::{Charged, RateLimiter};
use crate::rejection::Rejection;
use crate::store::Reply;
use crate::sync::{Mutex, lock};

/// The keys of a request, one for each policy of its layer.
pub(super) enum Keys {
    /// The usual case, which is cheap to copy.
    One(Key),
    Several(SmallVec<[Key; 2]>),
}

/// A refund that the store has not answered yet.
pub(super) type Refund = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What one request is charged, and the numbers that its response reports.
pub(super) struct Account {
    shared: Arc<Shared>,
    keys: Keys,
    charged: Charged,
    cost: u32,
    /// The decision that the request was passed on after.
    decision: Decision,
    /// What its handler or its response changed. Empty for most requests, which need no lock.
    changed: OnceLock<Box<Mutex<Balance>>>,
    /// The address to charge if the answer rejects the request's credentials.
    suspect: Option<Box<Key>>,
}

struct Balance {
    /// The cost that was taken and not given back.
    charged: u32,
    /// With the numbers after the last change by this request.
    decision: Decision,
}

impl Keys {
    #[inline]
    pub(super) fn copy(keys: &[Key]) -> Self {
        match keys {
            [key] => Self::One(*key),
            keys => Self::Several(SmallVec::from_slice(keys)),
        }
    }
}

impl Deref for Keys {
    type Target = [Key];

    #[inline]
    fn deref(&self) -> &[Key] {
        match self {
            Self::One(key) => slice::from_ref(key),
            Self::Several(keys) => keys,
        }
    }
}

impl Account {
    #[inline]
    pub(super) fn new(
        shared: &Arc<Shared>,
        keys: &[Key],
        asked: Asked,
        decision: Decision,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared: shared.clone(),
            keys: Keys::copy(keys),
            charged: shared.limiter.charged(asked.tier, keys),
            cost: asked.cost,
            decision,
            changed: OnceLock::new(),
            suspect: asked.guarded.map(Box::new),
        })
    }

    pub(super) fn limiter(&self) -> &RateLimiter {
        &self.shared.limiter
    }

    /// Reads the decision with the numbers of now.
    #[inline]
    pub(super) fn read<T>(&self, read: impl FnOnce(&Decision) -> T) -> T {
        match self.changed.get() {
            None => read(&self.decision),
            Some(balance) => read(&lock(balance).decision),
        }
    }

    fn balance(&self) -> impl DerefMut<Target = Balance> + '_ {
        let balance = || {
            Box::new(Mutex::new(Balance {
                charged: taken(&self.decision, self.cost),
                decision: self.decision.clone(),
            }))
        };
        lock(self.changed.get_or_init(balance))
    }

    /// Adds the rate-limit fields of the response.
    #[inline]
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        if self.shared.tells_clients {
            self.read(|decision| self.shared.headers.tell(decision, headers));
        }
    }

    /// Judges the credentials by the answer, and gives everything back if it does not count: then
    /// the response may have to wait for what is returned.
    #[inline]
    pub(super) fn answered<RB>(self: &Arc<Self>, response: &Response<RB>) -> Option<Refund> {
        if self.suspect.is_some() && rejects_credentials(response) {
            self.charge_suspect();
        }
        let count_if = self.shared.count_if.as_ref()?;
        if count_if(ResponseHead::from(response)) {
            return None;
        }
        match self.refund(u32::MAX) {
            Reply::Ready(()) => None,
            Reply::Pending(refund) => Some(refund),
        }
    }

    /// Charges the address for credentials that were not accepted, or whose answer is unknown.
    #[cold]
    pub(super) fn charge_suspect(&self) {
        if let Some(address) = &self.suspect {
            self.shared.charge_suspect(address);
        }
    }

    /// Gives back a part of what was taken, at most all of it.
    pub(super) fn refund(self: &Arc<Self>, cost: u32) -> Reply<()> {
        let mut balance = self.balance();
        let cost = cost.min(balance.charged);
        if cost == 0 {
            return Reply::Ready(());
        }
        // At once, so that two refunds at the same time do not give back the same.
        balance.charged -= cost;
        let limiter = self.limiter();
        let refund = limiter.give_back(&self.charged, &self.keys, cost);
        if let Reply::Ready(()) = refund
            && let Reply::Ready(decision) = limiter.peek_at(&self.charged, &self.keys)
        {
            balance.update(decision);
            return Reply::Ready(());
        }
        let account = self.clone();
        Reply::Pending(Box::pin(async move {
            refund.await;
            let peeked = account.limiter().peek_at(&account.charged, &account.keys);
            let decision = peeked.await;
            account.balance().update(decision);
        }))
    }

    /// Takes more, if it fits.
    pub(super) fn charge(self: &Arc<Self>, cost: u32) -> Reply<Result<(), Rejection>> {
        // Locked before the store decides, so that the numbers of a later decision stay.
        let mut balance = self.balance();
        let limiter = self.limiter();
        match limiter.decide_more(&self.charged, &self.keys, cost) {
            Reply::Ready(decision) => {
                let charged = balance.charge(decision, cost);
                drop(balance);
                Reply::Ready(charged.or_else(|decision| self.rejected(decision)))
            }
            Reply::Pending(decision) => {
                let account = self.clone();
                Reply::Pending(Box::pin(async move {
                    let decision = decision.await;
                    let charged = account.balance().charge(decision, cost);
                    charged.or_else(|decision| account.rejected(decision))
                }))
            }
        }
    }

    #[cold]
    fn rejected(&self, decision: Decision) -> Result<(), Rejection> {
        let rejected = self.shared.rejected(&self.keys, decision);
        if self.shared.enforces(&self.keys, &rejected) {
            Err(self.shared.report(rejected))
        } else {
            self.shared.would_reject(&rejected, None, None);
            Ok(())
        }
    }
}

impl Balance {
    /// Adds what was taken in addition.
    fn charge(&mut self, decision: Decision, cost: u32) -> Result<(), Decision> {
        if !decision.is_admitted() {
            return Err(decision);
        }
        let taken = taken(&decision, cost);
        self.charged = self.charged.saturating_add(taken);
        self.update(decision);
        Ok(())
    }

    /// Keeps the numbers as they are if the store did not count.
    fn update(&mut self, decision: Decision) {
        if !decision.usages().is_empty() {
            self.decision = decision;
        }
    }
}

/// What a decision took of a cost: nothing when it rejects, or when the store did not count.
fn taken(decision: &Decision, cost: u32) -> u32 {
    if decision.is_admitted() && !decision.usages().is_empty() {
        cost
    } else {
        0
    }
}
