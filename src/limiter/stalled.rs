//! Responses that their clients do not read, and the requests that reclaim their permits.

use std::sync::Arc;
use std::time::Duration;

use slab::Slab;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::key_search::{KeySearch, REMEMBERED_KEYS};
use super::stall_clock::{instant, now};
use crate::key::Key;
use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering, lock};

/// The maximum number of reclaimed responses that still exist, as a multiple of the limit; without
/// a total limit, as a multiple of the requests in flight.
///
/// Each of them keeps what its server has buffered until its connection ends: about half a megabyte
/// for HTTP/1. At the bound, nothing is reclaimed.
const MAX_RECLAIMED_PER_SLOT: u64 = 4;

/// The minimum of that bound. It exceeds what one HTTP/2 connection can open (200 streams in
/// hyper), so that a single connection cannot hold all capacity.
const MIN_RECLAIMED_BOUND: u64 = 256;

pub(super) const SHARDS: usize = 8;

/// The maximum number of searches without result per stall limit.
const SEARCHES_PER_LIMIT: u64 = 64;

/// The responses of one limiter that have passed on a frame and may be stalled.
///
/// A response with a single frame is never registered here.
pub(super) struct StalledResponses {
    /// The time in milliseconds after which a response counts as stalled; 0 turns reclaiming off.
    limit: AtomicU64,
    /// No response is stalled before this time, according to the last search.
    not_before: AtomicU64,
    /// The same for single keys, by [`KeySearch`]. A busy key at its limit may have nothing to
    /// reclaim while other requests need a stalled permit.
    key_searches: [AtomicU64; REMEMBERED_KEYS],
    /// Reclaimed responses that their server has not dropped yet.
    pub(super) reclaimed: AtomicUsize,
    /// The time of the last logged warning that there are too many of them.
    warned_at: AtomicU64,
    pub(super) shards: [Mutex<Slab<Arc<dyn Reclaimable>>>; SHARDS],
}

/// A parked response, as a search sees it.
pub(super) trait Reclaimable: Send + Sync {
    /// The time since which the response waits for its client; 0 while it does not wait.
    fn parked_at(&self, of: &StalledResponses) -> u64;

    /// The keys that the response counts for in this limiter, by position.
    fn keys(&self, of: &StalledResponses) -> &[Key];

    /// Takes the permits if the response is still parked since this time, and ends the response.
    /// With `spare`, the response continues without the permit of this limiter.
    fn reclaim(&self, of: &StalledResponses, parked_at: u64, spare: bool) -> bool;
}

/// A permit that was reclaimed from a stalled response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReclaimedPermit {
    /// The keys that the permit counted for, by position.
    pub(super) keys: SmallVec<[Key; 2]>,
    /// How long the client had not taken the last frame.
    pub(super) stalled: Duration,
}

/// The result of a search for a stalled response.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SearchResult {
    Found(ReclaimedPermit),
    /// No response is stalled. Holds the earliest time at which one can be, unless reclaiming is
    /// off.
    Nothing(Option<Instant>),
    /// Too many reclaimed responses still exist.
    AtBound,
}

/// A key, and the position of the limit that it is charged to.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChargedKey<'a> {
    pub(super) place: usize,
    pub(super) key: &'a Key,
}

/// A parked response, and the time since which it is parked.
type ParkedSince = (u64, Arc<dyn Reclaimable>);

impl StalledResponses {
    pub(super) fn new() -> Self {
        Self {
            limit: AtomicU64::new(0),
            not_before: AtomicU64::new(0),
            key_searches: std::array::from_fn(|_| AtomicU64::new(0)),
            reclaimed: AtomicUsize::new(0),
            warned_at: AtomicU64::new(0),
            shards: std::array::from_fn(|_| Mutex::new(Slab::new())),
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.limit.load(Ordering::Relaxed) != 0
    }

    /// Whether all reclaimed responses are dropped.
    #[cfg_attr(admission_loom, expect(dead_code, reason = "loom reuses no counters"))]
    pub(super) fn has_none_reclaimed(&self) -> bool {
        self.reclaimed.load(Ordering::Relaxed) == 0
    }

    pub(super) fn set_limit(&self, limit: Option<Duration>) {
        let millis = limit.map_or(0, |limit| limit.min(MAX_STALL_LIMIT).as_millis() as u64);
        let millis = millis.max(limit.is_some().into());
        self.limit.store(millis, Ordering::Relaxed);
        self.not_before.store(0, Ordering::Relaxed);
        for search in &self.key_searches {
            search.store(0, Ordering::Relaxed);
        }
    }

    /// Reclaims the permit of the response that has been stalled for the longest time, of those
    /// that count for `charged` if given. With `spare`, the response continues uncounted.
    #[cold]
    pub(super) fn reclaim(
        &self,
        charged: Option<ChargedKey<'_>>,
        max_reclaimed: u64,
        spare: bool,
    ) -> SearchResult {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == 0 {
            return SearchResult::Nothing(None);
        }
        if self.reclaimed.load(Ordering::Relaxed) as u64 >= max_reclaimed {
            return SearchResult::AtBound;
        }
        let key_search = charged.map(|charged| KeySearch::new(charged.key));
        loop {
            let now = now();
            let mut not_before = self.not_before.load(Ordering::Relaxed);
            if let Some(search) = &key_search {
                not_before = not_before.max(search.not_before(&self.key_searches));
            }
            if now < not_before {
                return SearchResult::Nothing(Some(instant(not_before)));
            }
            let (oldest, found) = self.oldest(charged);
            if let Some((parked_at, response)) = found
                && parked_at.saturating_add(limit) <= now
            {
                // Counted first, so that the response cannot be dropped before it is counted.
                self.reclaimed.fetch_add(1, Ordering::Relaxed);
                let is_reclaimed = response.reclaim(self, parked_at, spare);
                if spare || !is_reclaimed {
                    self.reclaimed.fetch_sub(1, Ordering::Relaxed);
                }
                if is_reclaimed {
                    return SearchResult::Found(ReclaimedPermit {
                        keys: response.keys(self).into(),
                        stalled: Duration::from_millis(now - parked_at),
                    });
                }
                // Its client took the frame at this moment.
                continue;
            }
            let soon = now + limit / SEARCHES_PER_LIMIT;
            // A response that is parked from now on is stalled a full limit later.
            let next = oldest.unwrap_or(now).saturating_add(limit);
            return SearchResult::Nothing(Some(instant(match &key_search {
                // Requests of other keys may need a stalled permit.
                Some(search) if next <= now => {
                    search.set_not_before(&self.key_searches, soon);
                    soon
                }
                _ => {
                    let next = next.max(soon);
                    self.not_before.store(next, Ordering::Relaxed);
                    next
                }
            })));
        }
    }

    /// Logs, at most once a minute, that clients that do not read hold capacity.
    #[cold]
    pub(super) fn warn_at_bound(&self, limiter: &str) {
        let (now, warned_at) = (now(), self.warned_at.load(Ordering::Relaxed));
        let is_due = warned_at == 0 || now >= warned_at + 60_000;
        if is_due && self.warned_at.swap(now, Ordering::Relaxed) == warned_at {
            tracing::warn!(
                limiter,
                reclaimed = self.reclaimed.load(Ordering::Relaxed),
                "clients that do not read their responses hold capacity: the connections of too \
                 many reclaimed responses are still open"
            );
        }
    }

    /// The time since which the oldest response is parked, and the oldest response that counts for
    /// `charged`.
    fn oldest(&self, charged: Option<ChargedKey<'_>>) -> (Option<u64>, Option<ParkedSince>) {
        let mut oldest = None;
        let mut found: Option<ParkedSince> = None;
        for shard in &self.shards {
            for (_, response) in lock(shard).iter() {
                let parked_at = response.parked_at(self);
                if parked_at == 0 {
                    continue;
                }
                oldest = Some(oldest.map_or(parked_at, |oldest: u64| oldest.min(parked_at)));
                let is_older = found.as_ref().is_none_or(|(found, _)| parked_at < *found);
                let counts = |ChargedKey { place, key }: ChargedKey<'_>| {
                    response
                        .keys(self)
                        .get(place)
                        .is_some_and(|held| held == key)
                };
                if is_older && charged.is_none_or(counts) {
                    found = Some((parked_at, response.clone()));
                }
            }
        }
        (oldest, found)
    }
}

/// A time that no client waits for. Longer times would overflow the clock.
const MAX_STALL_LIMIT: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The maximum number of reclaimed responses that may exist, for a number of slots.
pub(super) fn max_reclaimed(slots: u64) -> u64 {
    slots
        .saturating_mul(MAX_RECLAIMED_PER_SLOT)
        .max(MIN_RECLAIMED_BOUND)
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use super::*;
    use crate::limiter::parking::{Parking, Unparked};
    use crate::limiter::permit::Permit;
    use crate::limiter::slot_counter::SlotCounter;

    fn parked(slots: &'static SlotCounter) -> Parking<&'static str> {
        let permit = Permit::new(slots.try_take().unwrap());
        let parking = Parking::new("body", permit);
        parking.unwrap_or_else(|_| panic!("reclaiming is on"))
    }

    fn slots(limit: u64) -> &'static SlotCounter {
        let slots = SlotCounter::new(limit);
        slots.stalled.set_limit(Some(Duration::from_secs(60)));
        slots
    }

    #[test]
    fn every_parked_response_is_registered_once() {
        let slots = slots(1000);
        let listed = || -> usize {
            let shards = slots.stalled.shards.iter();
            shards.map(|shard| lock(shard).len()).sum()
        };
        for _ in 0..10 {
            let parked: Vec<_> = (0..1000).map(|_| parked(slots)).collect();
            assert_eq!(listed(), 1000);
            drop(parked);
            assert_eq!((listed(), slots.in_flight()), (0, 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_search_without_result_returns_the_time_of_the_next_one() {
        let slots = slots(2);
        let _first = parked(slots);
        tokio::time::advance(Duration::from_secs(10)).await;
        let moved = parked(slots);
        assert!(matches!(moved.unpark(), Unparked::Content("body", _)));
        let SearchResult::Nothing(Some(next)) = slots.reclaim(None, false) else {
            panic!("nothing is stalled yet");
        };
        // The clock has whole milliseconds.
        let wait = next - Instant::now();
        assert_eq!(wait.as_millis().next_multiple_of(10), 50_000);
        tokio::time::advance(Duration::from_secs(50)).await;
        let SearchResult::Found(reclaimed) = slots.reclaim(None, false) else {
            panic!("it is stalled by now");
        };
        assert_eq!(reclaimed.stalled, Duration::from_secs(60));
        assert!(matches!(
            slots.reclaim(None, false),
            SearchResult::Nothing(Some(_))
        ));
        assert_eq!(slots.in_flight(), 0);
    }
}

#[cfg(all(test, admission_loom))]
mod loom_tests {
    use super::*;
    use crate::limiter::parking::{Parking, Unparked};
    use crate::limiter::permit::Permit;
    use crate::limiter::slot_counter::SlotCounter;
    use loom::thread;

    #[test]
    fn a_permit_is_either_reclaimed_or_unparked() {
        loom::model(|| {
            let slots = SlotCounter::new(1);
            slots.stalled.set_limit(Some(Duration::from_secs(60)));
            let permit = Permit::new(slots.try_take().unwrap());
            let Ok(parking) = Parking::new((), permit) else {
                panic!("reclaiming is on");
            };
            let parked = parking.0.clone();
            let parked_at = parked.parked_at(&slots.stalled);
            let reclaiming = thread::spawn(move || {
                slots.stalled.reclaimed.fetch_add(1, Ordering::Relaxed);
                let is_reclaimed = parked.reclaim(&slots.stalled, parked_at, false);
                if !is_reclaimed {
                    slots.stalled.reclaimed.fetch_sub(1, Ordering::Relaxed);
                }
                is_reclaimed
            });
            let taken_back = match parking.unpark() {
                Unparked::Content((), permit) => Some(permit),
                Unparked::NotParked | Unparked::Reclaimed => None,
            };
            let is_reclaimed = reclaiming.join().unwrap();
            assert_ne!(is_reclaimed, taken_back.is_some());
            assert_eq!(slots.in_flight(), u64::from(taken_back.is_some()));
            drop((taken_back, parking));
            assert_eq!(slots.in_flight(), 0);
            assert_eq!(slots.stalled.reclaimed.load(Ordering::Relaxed), 0);
        });
    }
}
