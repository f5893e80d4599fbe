//! Acquires permits: several requests share a call.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::call_error::CallError;
use super::client::Retry;
use super::lanes::{Calls, LaneKey, Lanes};
use super::leases::{FULL, GRANTED, KEY_FULL, LATE, OfKeys, Slots, new_id, or_none};
use tower_admission::store::FailureKind;
use tower_admission::store::{AcquireOutcome, LeaseGuard, LeaseLimits};

/// All permits of a limiter count towards one total, so they share one lane.
pub(super) const LANE: LaneKey = [0, 0];

/// The maximum number of permits in one call. The server does nothing else while it decides a call: about a millisecond
/// at this size.
const MAX_BATCH: usize = 128;

/// A requested permit.
pub(super) struct Wanted {
    lease: Lease,
    limits: LeaseLimits,
}

/// A lease, created before its call, so that every outcome releases it.
struct Lease {
    slots: Arc<Slots>,
    id: u64,
    of_keys: OfKeys,
    /// Whether the store may have granted it.
    may_be_taken: bool,
}

impl LeaseGuard for Lease {}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.may_be_taken {
            let of_keys = std::mem::take(&mut self.of_keys);
            self.slots.queue_release(self.id, of_keys);
        }
    }
}

/// The outcome when a key holds other data.
const WRONG: i64 = -3;

/// The answer of `acquire.lua` for one lease.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Granted,
    Full,
    KeyFull {
        place: usize,
    },
    Late,
    /// A key holds other data.
    Wrong,
}

impl Outcome {
    fn parse(numbers: &[redis::Value]) -> Option<Self> {
        let [redis::Value::Int(outcome), redis::Value::Int(place)] = *numbers else {
            return None;
        };
        match outcome {
            GRANTED => Some(Self::Granted),
            FULL => Some(Self::Full),
            KEY_FULL => usize::try_from(place)
                .ok()
                .map(|place| Self::KeyFull { place }),
            LATE => Some(Self::Late),
            WRONG => Some(Self::Wrong),
            _ => None,
        }
    }
}

impl Calls for Slots {
    type Request = LeaseLimits;
    type Batch = Vec<Wanted>;
    /// `None` if the failure mode decides. The request that waits for the answer reports that decision.
    type Answer = Option<AcquireOutcome>;

    fn lanes(&self) -> &Lanes<Self> {
        &self.lanes
    }

    fn patience(&self) -> Duration {
        self.store.client.patience()
    }

    fn batch<'a>(
        self: &Arc<Self>,
        requests: impl Iterator<Item = &'a LeaseLimits>,
    ) -> (Vec<Wanted>, usize) {
        let wanted = requests.take(MAX_BATCH).map(|limits| self.wanted(limits));
        let wanted: Vec<_> = wanted.collect();
        let size = wanted.len();
        (wanted, size)
    }

    async fn call(
        self: &Arc<Self>,
        mut wanted: Vec<Wanted>,
        deadline: Instant,
    ) -> Vec<Option<AcquireOutcome>> {
        let mut outcomes = self.ask(&wanted, deadline).await;
        if outcomes
            .as_ref()
            .is_ok_and(|all| all.contains(&Outcome::Late))
        {
            // The caller still waits. So this is the first call, or the clocks have drifted apart since the last
            // answer. The time in this answer makes the next call valid.
            outcomes = self.ask(&wanted, deadline).await;
        }
        match outcomes {
            Ok(outcomes) => {
                let leased = wanted.into_iter().zip(outcomes);
                leased
                    .map(|(wanted, outcome)| wanted.lease.after(outcome))
                    .collect()
            }
            Err(error) => {
                let unavailable = wanted.iter_mut().map(|wanted| {
                    // A call that was not sent took nothing.
                    wanted.lease.may_be_taken = error.was_sent();
                    None
                });
                unavailable.collect()
            }
        }
    }
}

impl Lease {
    fn after(mut self, outcome: Outcome) -> Option<AcquireOutcome> {
        self.may_be_taken = outcome == Outcome::Granted;
        match outcome {
            Outcome::Granted => {
                self.slots.hold(self.id, self.of_keys.clone());
                Some(AcquireOutcome::Granted(Box::new(self)))
            }
            Outcome::Full => Some(AcquireOutcome::Full),
            Outcome::KeyFull { place } => Some(AcquireOutcome::KeyFull { place }),
            Outcome::Late | Outcome::Wrong => None,
        }
    }
}

impl Slots {
    fn wanted(self: &Arc<Self>, limits: &LeaseLimits) -> Wanted {
        let of_keys = limits.keys().iter().enumerate();
        let of_keys = of_keys.map(|(place, (key, _))| self.names.of_key(place, key));
        Wanted {
            lease: Lease {
                slots: self.clone(),
                id: new_id(),
                of_keys: of_keys.collect(),
                may_be_taken: true,
            },
            limits: limits.clone(),
        }
    }

    /// Acquires permits in their order of arrival.
    async fn ask(&self, wanted: &[Wanted], deadline: Instant) -> Result<Vec<Outcome>, CallError> {
        let mut keys = vec![self.names.total.clone()];
        let mut arguments = self.arguments(Instant::now(), self.ttl());
        for Wanted { lease, limits } in wanted {
            keys.extend_from_slice(&lease.of_keys);
            arguments.extend([self.member(lease.id), or_none(limits.total)]);
            arguments.push(limits.keys().len().to_string());
            arguments.extend(limits.keys().iter().map(|(_, limit)| limit.to_string()));
        }
        let client = &self.store.client;
        let script = &self.store.leases.acquire;
        // A repeated call has the same ids, and so the same effect.
        let answer = client.run(script, &keys, &*arguments, deadline, Retry::Once);
        let wrong = || client.failed(CallError::new(FailureKind::WrongData).after_sending());
        let answer: Vec<redis::Value> = answer.await?;
        let [time, epoch, outcomes @ ..] = &*answer else {
            return Err(wrong());
        };
        let time = redis::from_redis_value_ref(time).map_err(|_| wrong())?;
        let epoch = redis::from_redis_value_ref(epoch).map_err(|_| wrong())?;
        self.learn(time, epoch);
        let outcomes: Vec<_> = outcomes.chunks(2).map_while(Outcome::parse).collect();
        if outcomes.len() != wanted.len() {
            return Err(wrong());
        }
        if outcomes.contains(&Outcome::Wrong) {
            wrong();
        }
        Ok(outcomes)
    }
}
