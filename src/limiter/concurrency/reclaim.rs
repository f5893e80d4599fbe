//! Reclaims permits of responses that their clients do not read.

use std::time::Duration;

use tokio::time::Instant;

use super::ConcurrencyLimiter;
use crate::limiter::key_counters::{KeySlotRequest, KeySlots, try_take_all};
use crate::limiter::slot_counter::Slot;
use crate::limiter::stalled::{ChargedKey, SearchResult};

/// The time to the next search, when another request got the reclaimed slot or nothing may be
/// reclaimed now.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);

impl ConcurrencyLimiter {
    /// The default time that a client may take for one frame of a response before a request that
    /// needs the permit reclaims it: one minute.
    pub const DEFAULT_RECLAIM_AFTER: Duration = Duration::from_secs(60);

    /// Sets how long a response must be stalled; `None` turns reclaiming off.
    pub fn set_reclaim_after(&self, stalled: Option<Duration>) {
        self.slots().stalled.set_limit(stalled);
    }

    /// Takes a free slot, or the slot of a stalled response.
    #[inline]
    pub(super) fn take_slot(&self) -> Option<Slot> {
        self.slots().try_take().or_else(|| self.take_stalled())
    }

    #[cold]
    fn take_stalled(&self) -> Option<Slot> {
        self.make_room();
        self.slots().try_take()
    }

    /// Reclaims as many stalled responses as one more request needs. Returns the time of the next
    /// search, unless reclaiming is off.
    ///
    /// Waiting requests get the freed slots first.
    #[cold]
    pub(in crate::limiter) fn make_room(&self) -> Option<Instant> {
        let slots = self.slots();
        self.reclaim(None, slots.in_flight(), slots.limit())
    }

    /// Takes the slots of all keys after the key at `full` was found at its limit.
    #[cold]
    pub(super) fn take_stalled_keys(
        &self,
        requests: &[KeySlotRequest<'_>],
        mut full: usize,
    ) -> Result<KeySlots, usize> {
        // Any of the keys can be the next one at its limit.
        for _ in requests {
            let KeySlotRequest {
                per_key,
                key,
                limit,
            } = &requests[full];
            let charged = ChargedKey { place: full, key };
            self.reclaim(Some(charged), per_key.in_flight(key), *limit);
            match try_take_all(requests) {
                Ok(slots) => return Ok(slots),
                Err(place) => full = place,
            }
        }
        Err(full)
    }

    /// Reclaims one stalled response, for a slot in a store that replicas share. Another request
    /// may get it.
    #[cold]
    pub(super) fn make_room_in_store(&self, charged: Option<ChargedKey<'_>>) {
        self.reclaim(charged, 1, 1);
    }

    fn reclaim(
        &self,
        charged: Option<ChargedKey<'_>>,
        in_flight: u64,
        limit: u64,
    ) -> Option<Instant> {
        let next_search = Instant::now() + SEARCH_INTERVAL;
        if limit == 0 {
            // No permit helps until the limit is raised.
            return Some(next_search);
        }
        let needed = (in_flight + 1).saturating_sub(limit);
        for _ in 0..needed {
            match self.slots().reclaim(charged, self.0.spares_stalled) {
                SearchResult::Found(reclaimed) => {
                    if let Some(observer) = &self.0.observer {
                        // An address identifies a client better than a token that the client made
                        // up.
                        let address = reclaimed.keys.iter().find(|key| key.is_ip());
                        let key = address.or(reclaimed.keys.first());
                        observer.reclaimed(&self.0.name, key, reclaimed.stalled);
                    }
                }
                SearchResult::Nothing(next) => return next,
                SearchResult::AtBound => {
                    self.slots().stalled.warn_at_bound(&self.0.name);
                    break;
                }
            }
        }
        Some(next_search)
    }
}
