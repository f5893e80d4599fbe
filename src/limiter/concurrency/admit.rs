//! Admits a request that has a slot here: asks the store, or joins the wait queue.

use super::{ConcurrencyLimiter, limit_of};
use crate::limiter::key_counters::{KeySlot, KeySlots};
use crate::limiter::permit::Permit;
use crate::limiter::slot_counter::{Slot, UNLIMITED};
use crate::limiter::stalled::ChargedKey;
use crate::limiter::wait::{KeyedRejection, PermitFuture, PermitReply, WaitLimits};
use crate::rejection::Reason;
use crate::store::{AcquireOutcome, FailureMode, LeaseLimits, Reply};

impl ConcurrencyLimiter {
    /// Admits a request that has a slot here, if the store also has one.
    #[inline]
    pub(in crate::limiter) fn admit(&self, slot: Slot, keys: KeySlots) -> PermitReply {
        if self.0.leases.is_none() {
            PermitReply::Admitted(self.permit(slot, keys))
        } else {
            self.ask_store(slot, keys)
        }
    }

    /// Asks the store about a request that this replica has room for.
    #[cold]
    fn ask_store(&self, slot: Slot, keys: KeySlots) -> PermitReply {
        match self.lease(&keys) {
            Reply::Ready(leased) => match self.interpret_lease(slot, keys, leased) {
                Ok(permit) => PermitReply::Admitted(permit),
                Err(rejected) => PermitReply::Rejected(rejected),
            },
            Reply::Pending(leased) => {
                let limiter = self.clone();
                PermitReply::Pending(PermitFuture::from_store(Box::pin(async move {
                    let leased = leased.await;
                    limiter.interpret_lease(slot, keys, leased)
                })))
            }
        }
    }

    fn lease(&self, keys: &KeySlots) -> Reply<AcquireOutcome> {
        let total = limit_of(self.slots());
        let limits_a_key = || keys.iter().any(|slot| slot.limit() != UNLIMITED);
        match &self.0.leases {
            Some(leases) if total.is_some() || limits_a_key() => {
                let keys = keys.iter().map(|slot| (slot.key(), slot.limit()));
                leases.acquire(LeaseLimits::new(total, keys))
            }
            _ => Reply::Ready(AcquireOutcome::Unavailable(FailureMode::Open)),
        }
    }

    /// Interprets the store's answer.
    fn interpret_lease(
        &self,
        slot: Slot,
        keys: KeySlots,
        leased: AcquireOutcome,
    ) -> Result<Permit, KeyedRejection> {
        match leased {
            AcquireOutcome::Granted(lease) => Ok(self.permit(slot, keys).with_lease(lease)),
            AcquireOutcome::KeyFull { place } => {
                if let Some(key) = keys.get(place).map(KeySlot::key) {
                    self.make_room_in_store(Some(ChargedKey { place, key: &key }));
                }
                Err(self.key_at_capacity(place))
            }
            AcquireOutcome::Full => {
                self.make_room_in_store(None);
                Err(self.at_capacity().into())
            }
            // This replica is known to have room.
            AcquireOutcome::Unavailable(FailureMode::Open) => Ok(self.permit(slot, keys)),
            AcquireOutcome::Unavailable(FailureMode::Closed) => {
                Err(self.rejection(Reason::Unavailable).into())
            }
            AcquireOutcome::Unavailable(FailureMode::LocalShare { replicas }) => {
                let share = |limit: u64| (limit / u64::from(replicas.max(1))).max(1);
                let is_full = |key: &KeySlot| key.in_flight() > share(key.limit());
                let limit = limit_of(self.slots());
                if let Some(place) = keys.iter().position(is_full) {
                    Err(self.key_at_capacity(place))
                } else if limit.is_some_and(|limit| slot.in_flight() > share(limit)) {
                    Err(self.at_capacity().into())
                } else {
                    Ok(self.permit(slot, keys))
                }
            }
        }
    }

    #[cold]
    pub(super) fn join_wait_queue(&self, keys: KeySlots, wait: Option<WaitLimits>) -> PermitReply {
        let place = wait.and_then(|wait| {
            let place = self.slots().join_wait_queue(wait.max_waiting)?;
            Some((place, wait.max_time))
        });
        match place {
            Some((place, max_time)) => {
                PermitReply::Pending(PermitFuture::queued(self.clone(), place, keys, max_time))
            }
            None => PermitReply::Rejected(self.at_capacity().into()),
        }
    }
}
