//! What one request is charged, shared by its handler and its response.

use std::pin::Pin;
use std::sync::Arc;

use http::HeaderMap;
use smallvec::SmallVec;

use super::shared::Shared;
use crate::decision::Decision;
use crate::extract::ResponseHead;
use crate::key::Key;
use crate::limiter::RateLimiter;
use crate::rejection::Rejection;
use crate::store::Reply;
use crate::sync::{Mutex, lock};

/// The keys of a request, one for each policy of its layer.
pub(super) type Keys = SmallVec<[Key; 2]>;

/// A refund that the store has not answered yet.
pub(super) type Refund = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What one request is charged, and the numbers that its response reports.
pub(super) struct Account {
    shared: Arc<Shared>,
    keys: Keys,
    balance: Mutex<Balance>,
}

struct Balance {
    /// The cost that was taken and not given back.
    charged: u32,
    /// With the numbers after the last change by this request.
    decision: Decision,
}

impl Account {
    /// Of a request of this cost, which is passed on after this decision.
    pub(super) fn new(shared: Arc<Shared>, keys: &[Key], cost: u32, decision: Decision) -> Self {
        Self {
            shared,
            keys: Keys::from_slice(keys),
            balance: Mutex::new(Balance {
                charged: taken(&decision, cost),
                decision,
            }),
        }
    }

    pub(super) fn limiter(&self) -> &RateLimiter {
        &self.shared.limiter
    }

    /// Reads the decision with the numbers of now.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Decision) -> T) -> T {
        read(&lock(&self.balance).decision)
    }

    /// Adds the rate-limit fields of the response.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        if self.shared.tells_clients {
            self.read(|decision| self.shared.headers.tell(decision, headers));
        }
    }

    /// Gives everything back if the answer does not count. The response waits for what is returned.
    pub(super) fn answered(self: &Arc<Self>, response: ResponseHead<'_>) -> Option<Refund> {
        let count_if = self.shared.count_if.as_ref()?;
        if count_if(response) {
            return None;
        }
        match self.refund(u32::MAX) {
            Reply::Ready(()) => None,
            Reply::Pending(refund) => Some(refund),
        }
    }

    /// Gives back a part of what was taken, at most all of it.
    pub(super) fn refund(self: &Arc<Self>, cost: u32) -> Reply<()> {
        let mut balance = lock(&self.balance);
        let cost = cost.min(balance.charged);
        if cost == 0 {
            return Reply::Ready(());
        }
        // At once, so that two refunds at the same time do not give back the same.
        balance.charged -= cost;
        let limiter = self.limiter();
        let refund = limiter.refund_all(&self.keys, cost);
        if let Reply::Ready(()) = refund
            && let Reply::Ready(decision) = limiter.peek_all(&self.keys, 0)
        {
            balance.update(decision);
            return Reply::Ready(());
        }
        let account = self.clone();
        Reply::Pending(Box::pin(async move {
            refund.await;
            let decision = account.limiter().peek_all(&account.keys, 0).await;
            lock(&account.balance).update(decision);
        }))
    }

    /// Takes more, if it fits.
    pub(super) fn charge(self: &Arc<Self>, cost: u32) -> Reply<Result<(), Rejection>> {
        // Locked before the store decides, so that the numbers of a later decision stay.
        let mut balance = lock(&self.balance);
        match self.limiter().decide(&self.keys, cost) {
            Reply::Ready(decision) => {
                let charged = self.charged(&mut balance, decision, cost);
                drop(balance);
                Reply::Ready(charged.or_else(|decision| self.rejected(decision)))
            }
            Reply::Pending(decision) => {
                let account = self.clone();
                Reply::Pending(Box::pin(async move {
                    let decision = decision.await;
                    let charged = account.charged(&mut lock(&account.balance), decision, cost);
                    charged.or_else(|decision| account.rejected(decision))
                }))
            }
        }
    }

    fn charged(
        &self,
        balance: &mut Balance,
        decision: Decision,
        cost: u32,
    ) -> Result<(), Decision> {
        if !decision.is_admitted() {
            return Err(decision);
        }
        let taken = taken(&decision, cost);
        balance.charged = balance.charged.saturating_add(taken);
        balance.update(decision);
        Ok(())
    }

    #[cold]
    fn rejected(&self, decision: Decision) -> Result<(), Rejection> {
        let rejected = self.shared.rejected(&self.keys, decision);
        if self.shared.enforces(&rejected) {
            Err(self.shared.report(rejected))
        } else {
            self.shared.would_reject(&rejected, None);
            Ok(())
        }
    }
}

impl Balance {
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
