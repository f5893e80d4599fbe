//! The charge of one request, which its handler and its response share.

use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::slice;
use std::sync::{Arc, OnceLock};

use http::{HeaderMap, Request, Response};
use smallvec::SmallVec;

use super::guard::rejects_credentials;
use super::joint::JointRejection;
use super::state::{DecisionContext, LayerState};
use crate::decision::Decision;
use crate::extract::ResponseHead;
use crate::key::Key;
use crate::limiter::{ChargedBuckets, LimiterSet, RateLimiter};
use crate::rejection::Rejection;
use crate::store::Reply;
use crate::sync::{Mutex, lock};

/// The keys of a request, one for each policy of its layer.
pub(super) enum Keys {
    /// The common case, which is cheap to copy.
    One(Key),
    Several(SmallVec<[Key; 2]>),
}

/// A refund that the store has not confirmed yet.
pub(super) type Refund = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The charge of one request, and the numbers that its response reports.
pub(super) struct Account {
    shared: Arc<LayerState>,
    keys: Keys,
    charged: ChargedBuckets,
    cost: u32,
    /// The decision that admitted the request.
    decision: Decision,
    /// The changes by the handler or the response. Empty for most requests, which then need no
    /// lock.
    changed: OnceLock<Box<Mutex<Balance>>>,
    /// The address to charge if the response rejects the request's credentials.
    suspect: Option<Box<Key>>,
}

struct Balance {
    /// The part of the cost that was charged and not refunded.
    charged: u32,
    /// The jointly decided limits that were refunded in full, because they do not count the
    /// response.
    refunded: LimiterSet,
    /// The decision, with the numbers after the last change by this request.
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
        shared: &Arc<LayerState>,
        keys: &[Key],
        context: DecisionContext,
        decision: Decision,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared: shared.clone(),
            keys: Keys::copy(keys),
            charged: shared
                .limiter
                .charged_buckets(context.tier, keys, context.excluded),
            cost: context.cost,
            decision,
            changed: OnceLock::new(),
            suspect: context.suspect.map(Box::new),
        })
    }

    pub(super) fn limiter(&self) -> &RateLimiter {
        &self.shared.limiter
    }

    /// Reads the decision with its current numbers.
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
                refunded: LimiterSet::NONE,
                decision: self.decision.clone(),
            }))
        };
        lock(self.changed.get_or_init(balance))
    }

    /// Adds the rate-limit fields to the response.
    #[inline]
    pub(super) fn report(&self, headers: &mut HeaderMap) {
        if self.shared.reports_to_clients {
            self.read(|decision| self.shared.report(decision, headers));
        }
    }

    /// Charges the suspect if the response rejects its credentials, and refunds the request if the
    /// response does not count. The response must wait for the returned refund.
    #[inline]
    pub(super) fn answered<RB>(self: &Arc<Self>, response: &Response<RB>) -> Option<Refund> {
        if self.suspect.is_some() && rejects_credentials(response) {
            self.charge_suspect();
        }
        let head = ResponseHead::from(response);
        let refund = match &*self.shared.parts {
            [] => {
                let counts = self.shared.count_if.as_ref()?;
                match counts(head) {
                    true => return None,
                    false => self.refund(u32::MAX),
                }
            }
            _ => self.refund_limits(self.shared.not_counting(head)),
        };
        match refund {
            Reply::Ready(()) => None,
            Reply::Pending(refund) => Some(refund),
        }
    }

    /// Charges the address for rejected credentials, or for credentials without an answer.
    #[cold]
    pub(super) fn charge_suspect(&self) {
        if let Some(address) = &self.suspect {
            self.shared.charge_suspect(address);
        }
    }

    /// Refunds a part of the charge, at most all of it.
    pub(super) fn refund(self: &Arc<Self>, cost: u32) -> Reply<()> {
        let mut balance = self.balance();
        let cost = cost.min(balance.charged);
        if cost == 0 {
            return Reply::Ready(());
        }
        // Subtract before the refund, so that two concurrent refunds do not refund the same charge.
        balance.charged -= cost;
        let refunded = balance.refunded;
        self.refund_except(balance, refunded, cost)
    }

    /// Refunds some of the jointly decided limits in full.
    fn refund_limits(self: &Arc<Self>, parts: LimiterSet) -> Reply<()> {
        let counting = parts.complement(self.shared.parts.len());
        if counting.with(self.charged.excluded()) == self.charged.excluded() {
            return self.refund(u32::MAX);
        }
        let mut balance = self.balance();
        let cost = balance.charged;
        if parts.is_empty() || cost == 0 {
            return Reply::Ready(());
        }
        balance.refunded = balance.refunded.with(parts);
        self.refund_except(balance, counting, cost)
    }

    /// Refunds all limits except `left_out`, and updates the numbers.
    fn refund_except(
        self: &Arc<Self>,
        mut balance: impl DerefMut<Target = Balance>,
        excluded: LimiterSet,
        cost: u32,
    ) -> Reply<()> {
        let limiter = self.limiter();
        let refund = match excluded.is_empty() {
            true => limiter.refund_charged(&self.charged, &self.keys, cost),
            false => limiter.refund_charged(&self.charged.without(excluded), &self.keys, cost),
        };
        if let Reply::Ready(()) = refund
            && let Reply::Ready(decision) = limiter.peek_charged(&self.charged, &self.keys)
        {
            balance.update(decision);
            return Reply::Ready(());
        }
        let account = self.clone();
        Reply::Pending(Box::pin(async move {
            refund.await;
            let peeked = account
                .limiter()
                .peek_charged(&account.charged, &account.keys);
            let decision = peeked.await;
            account.balance().update(decision);
        }))
    }

    /// Charges more, if it fits.
    pub(super) fn charge(self: &Arc<Self>, cost: u32) -> Reply<Result<(), Rejection>> {
        self.charge_without(LimiterSet::NONE, cost)
    }

    /// Charges more, except to some of the jointly decided limits.
    fn charge_without(
        self: &Arc<Self>,
        excluded: LimiterSet,
        cost: u32,
    ) -> Reply<Result<(), Rejection>> {
        let charged = match excluded.is_empty() {
            true => None,
            false => Some(self.charged.without(excluded)),
        };
        // Lock before the store decides, so that an earlier decision cannot overwrite the numbers
        // of a later one.
        let mut balance = self.balance();
        let limiter = self.limiter();
        match limiter.charge_more(charged.as_ref().unwrap_or(&self.charged), &self.keys, cost) {
            Reply::Ready(decision) => {
                let charged = balance.charge(decision, cost);
                drop(balance);
                match charged {
                    Ok(()) => Reply::Ready(Ok(())),
                    Err(decision) => self.rejected(decision, excluded, cost),
                }
            }
            Reply::Pending(decision) => {
                let account = self.clone();
                Reply::Pending(Box::pin(async move {
                    let decision = decision.await;
                    let charged = account.balance().charge(decision, cost);
                    match charged {
                        Ok(()) => Ok(()),
                        Err(decision) => account.rejected(decision, excluded, cost).await,
                    }
                }))
            }
        }
    }

    #[cold]
    fn rejected(
        self: &Arc<Self>,
        decision: Decision,
        excluded: LimiterSet,
        cost: u32,
    ) -> Reply<Result<(), Rejection>> {
        let shared = &self.shared;
        if !shared.parts.is_empty() {
            return match shared.resolve_joint_rejection(
                None::<&mut Request<()>>,
                &self.keys,
                &decision,
                excluded,
            ) {
                JointRejection::Enforced(rejected) => {
                    Reply::Ready(Err(shared.report_rejected(rejected)))
                }
                JointRejection::Without(parts) => self.charge_without(excluded.with(parts), cost),
            };
        }
        let rejected = shared.rejected(&self.keys, decision);
        if shared.enforces(&self.keys, &rejected) {
            Reply::Ready(Err(shared.report_rejected(rejected)))
        } else {
            shared.would_reject(&rejected, None, None);
            Reply::Ready(Ok(()))
        }
    }
}

impl Balance {
    /// Adds an additional charge.
    fn charge(&mut self, decision: Decision, cost: u32) -> Result<(), Decision> {
        if !decision.is_admitted() {
            return Err(decision);
        }
        let taken = taken(&decision, cost);
        self.charged = self.charged.saturating_add(taken);
        self.update(decision);
        Ok(())
    }

    /// Keeps the old numbers if the store did not count.
    fn update(&mut self, decision: Decision) {
        if !decision.usages().is_empty() {
            self.decision = decision;
        }
    }
}

/// The cost that a decision charged: 0 if it rejects, or if the store did not count.
fn taken(decision: &Decision, cost: u32) -> u32 {
    if decision.is_admitted() && !decision.usages().is_empty() {
        cost
    } else {
        0
    }
}
