//! A response that waits for its client, registered with the limiters whose permits it holds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use smallvec::SmallVec;

use super::permit::Permit;
use super::slot_counter::SlotCounter;
use super::stall_clock::now;
use super::stalled::{Reclaimable, SHARDS, StalledResponses};
use crate::key::Key;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, lock};

/// A parked response, shared with the requests that may reclaim its permits.
pub(super) struct ParkedResponse<T> {
    entries: SmallVec<[LimiterEntry; 1]>,
    shard: usize,
    parked_at: AtomicU64,
    /// Present while the response waits for its client, unless it was reclaimed.
    content: Mutex<ParkedContent<T>>,
}

/// A response's entry with one limiter whose permit it holds.
struct LimiterEntry {
    slots: &'static SlotCounter,
    /// Its index in the shard, once it is inserted.
    index: OnceLock<usize>,
    keys: SmallVec<[Key; 2]>,
    /// Whether the response continues without the permit of this limiter.
    is_spared: AtomicBool,
}

enum ParkedContent<T> {
    /// With the response, which is being polled or waits for its handler.
    WithResponse,
    Parked(T, Permit),
    Reclaimed(&'static StalledResponses),
}

/// A response that is registered as possibly stalled. Dropping it removes the response.
// One pointer, because every response body has room for it.
pub(crate) struct Parking<T>(pub(super) Arc<ParkedResponse<T>>);

/// The result of unparking a response.
pub(crate) enum Unparked<T> {
    Content(T, Permit),
    /// The response was not parked.
    NotParked,
    Reclaimed,
}

impl<T: Send + 'static> Parking<T> {
    /// Parks a response after it has passed on a frame. Until its client has taken the frame, a
    /// request that needs the permit may reclaim it after the stall limit.
    ///
    /// Returns both arguments if the permit cannot be reclaimed: it holds no slot, or reclaiming is
    /// off.
    pub(crate) fn new(content: T, permit: Permit) -> Result<Self, (T, Permit)> {
        let entries = permit.all().filter_map(|permit| {
            let slots = permit.slots().filter(|slots| slots.stalled.is_on())?;
            Some(LimiterEntry {
                slots,
                index: OnceLock::new(),
                keys: permit.keys().collect(),
                is_spared: AtomicBool::new(false),
            })
        });
        let entries: SmallVec<_> = entries.collect();
        if entries.is_empty() {
            return Err((content, permit));
        }
        let shard = shard_of_thread();
        let parked = Arc::new(ParkedResponse {
            entries,
            shard,
            parked_at: AtomicU64::new(now()),
            content: Mutex::new(ParkedContent::Parked(content, permit)),
        });
        for entry in &parked.entries {
            let index = lock(&entry.slots.stalled.shards[shard]).insert(parked.clone());
            let _ = entry.index.set(index);
        }
        Ok(Self(parked))
    }

    /// Parks the response again after another frame.
    pub(crate) fn park(&self, content: T, permit: Permit) {
        // A response that continues without a permit has nothing to reclaim.
        let parked_at = if permit.is_held() { now() } else { 0 };
        *lock(&self.0.content) = ParkedContent::Parked(content, permit);
        self.0.parked_at.store(parked_at, Ordering::Release);
    }

    /// Returns the parked content after the client has taken the frame.
    pub(crate) fn unpark(&self) -> Unparked<T> {
        let mut content = lock(&self.0.content);
        self.0.parked_at.store(0, Ordering::Release);
        match std::mem::replace(&mut *content, ParkedContent::WithResponse) {
            ParkedContent::Parked(parked, permit) => Unparked::Content(parked, permit),
            ParkedContent::WithResponse => Unparked::NotParked,
            ParkedContent::Reclaimed(of) => {
                *content = ParkedContent::Reclaimed(of);
                Unparked::Reclaimed
            }
        }
    }
}

impl<T> Drop for Parking<T> {
    fn drop(&mut self) {
        let parked = &*self.0;
        let entries = parked
            .entries
            .iter()
            .map(|LimiterEntry { slots, index, .. }| {
                let index = index.get()?;
                lock(&slots.stalled.shards[parked.shard]).try_remove(*index)
            });
        let entries: SmallVec<[_; 1]> = entries.collect();
        let content = std::mem::replace(&mut *lock(&parked.content), ParkedContent::WithResponse);
        if let ParkedContent::Reclaimed(of) = content {
            of.reclaimed.fetch_sub(1, Ordering::Relaxed);
        }
        // Dropped outside of the locks, because dropping a body can run any code.
        drop((content, entries));
    }
}

impl<T> ParkedResponse<T> {
    fn entry(&self, of: &StalledResponses) -> Option<&LimiterEntry> {
        let mut entries = self.entries.iter();
        entries.find(|entry| std::ptr::eq(&entry.slots.stalled, of))
    }
}

impl<T: Send + 'static> Reclaimable for ParkedResponse<T> {
    fn parked_at(&self, of: &StalledResponses) -> u64 {
        match self.entry(of) {
            Some(entry) if !entry.is_spared.load(Ordering::Relaxed) => {
                self.parked_at.load(Ordering::Acquire)
            }
            _ => 0,
        }
    }

    fn keys(&self, of: &StalledResponses) -> &[Key] {
        self.entry(of).map_or(&[], |entry| &entry.keys)
    }

    fn reclaim(&self, of: &StalledResponses, parked_at: u64, spare: bool) -> bool {
        let Some(entry) = self.entry(of) else {
            return false;
        };
        let (content, permit) = {
            let mut content = lock(&self.content);
            if self.parked_at.load(Ordering::Acquire) != parked_at {
                return false;
            }
            if entry.is_spared.load(Ordering::Relaxed) {
                return false;
            }
            if spare && let ParkedContent::Parked(_, permit) = &mut *content {
                let taken = permit.take_permit_of(entry.slots);
                entry.is_spared.store(true, Ordering::Relaxed);
                if !permit.is_held() {
                    self.parked_at.store(0, Ordering::Release);
                }
                // Dropped after the lock, because an observer sees it go.
                drop(content);
                drop(taken);
                return true;
            }
            match std::mem::replace(
                &mut *content,
                ParkedContent::Reclaimed(&entry.slots.stalled),
            ) {
                ParkedContent::Parked(parked, permit) => (parked, permit),
                other => {
                    *content = other;
                    return false;
                }
            }
        };
        self.parked_at.store(0, Ordering::Release);
        // A body that panics on drop must not abort the request that needs its permit.
        let dropped = catch_unwind(AssertUnwindSafe(move || {
            let _permit = permit;
            drop(content);
        }));
        drop(dropped);
        true
    }
}

/// Assigns threads to shards, so that streaming threads do not wait for each other.
fn shard_of_thread() -> usize {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    thread_local! {
        static SHARD: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    SHARD.with(|shard| *shard)
}
