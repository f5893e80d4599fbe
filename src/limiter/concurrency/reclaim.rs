//! Permits of responses that their client does not read, for requests that need them.

use std::time::Duration;

use tokio::time::Instant;

use super::ConcurrencyLimiter;
use crate::limiter::per_key::{KeySlots, Wanted, try_take_all};
use crate::limiter::slots::Slot;
use crate::limiter::stalled::{Charged, Search};

/// When another request got what was reclaimed, or nothing may be reclaimed now.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl ConcurrencyLimiter {
    /// How long a client may take for one frame of a response before a request that needs the
    /// permit gets it: one minute.
    pub const DEFAULT_RECLAIM_AFTER: Duration = Duration::from_secs(60);

    /// Sets how long a response has to be stalled; `None` turns reclaiming off.
    pub fn set_reclaim_after(&self, stalled: Option<Duration>) {
        self.slots().stalled.set_limit(stalled);
    }

    /// Takes a free slot, or else that of a stalled response.
    #[inline]
    pub(super) fn take_slot(&self) -> Option<Slot> {
        self.slots().try_take().or_else(|| self.take_stalled())
    }

    #[cold]
    fn take_stalled(&self) -> Option<Slot> {
        self.make_room();
        self.slots().try_take()
    }

    /// Reclaims as many stalled responses as one more request needs. Returns when to look for more
    /// of them, unless reclaiming is off.
    ///
    /// What becomes free goes to the requests that wait, if there are any.
    #[cold]
    pub(in crate::limiter) fn make_room(&self) -> Option<Instant> {
        let slots = self.slots();
        self.reclaim(None, slots.in_flight(), slots.limit())
    }

    /// Takes the slots of all keys, after the one at `full` was found to have none left.
    #[cold]
    pub(super) fn take_stalled_keys(
        &self,
        wanted: &[Wanted<'_>],
        mut full: usize,
    ) -> Result<KeySlots, usize> {
        // Each key can be the one that is full.
        for _ in wanted {
            let Wanted {
                per_key,
                key,
                limit,
            } = &wanted[full];
            let charged = Charged { place: full, key };
            self.reclaim(Some(charged), per_key.taken(key), *limit);
            match try_take_all(wanted) {
                Ok(slots) => return Ok(slots),
                Err(place) => full = place,
            }
        }
        Err(full)
    }

    /// Reclaims one stalled response, for a slot in a store that replicas share: others may need it.
    #[cold]
    pub(super) fn make_room_in_store(&self, charged: Option<Charged<'_>>) {
        self.reclaim(charged, 1, 1);
    }

    fn reclaim(&self, charged: Option<Charged<'_>>, in_flight: u64, limit: u64) -> Option<Instant> {
        let look_again = Instant::now() + LOOK_AGAIN;
        if limit == 0 {
            // No room helps, until the limit is raised.
            return Some(look_again);
        }
        let needed = (in_flight + 1).saturating_sub(limit);
        for _ in 0..needed {
            match self.slots().reclaim(charged, self.0.spares_stalled) {
                Search::Found(reclaimed) => {
                    if let Some(observer) = &self.0.observer {
                        // An address says more of a client than a token that it made up.
                        let address = reclaimed.keys.iter().find(|key| key.is_ip());
                        let key = address.or(reclaimed.keys.first());
                        observer.reclaimed(&self.0.name, key, reclaimed.stalled);
                    }
                }
                Search::Nothing(next) => return next,
                Search::AtBound => {
                    self.slots().stalled.warn_at_bound(&self.0.name);
                    break;
                }
            }
        }
        Some(look_again)
    }
}
