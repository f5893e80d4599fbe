//! The table's guarantees: its bound, evictions, and no lost updates.

use std::thread;

use super::*;

/// The time of one request; an empty bucket lacks ten.
const INTERVAL: u64 = 1_000;
const TOLERANCE: u64 = 9 * INTERVAL;
const NOW: u64 = 1 << 40;
const ADMITS: u64 = NOW + TOLERANCE;

/// One rule charges all buckets.
struct OneRule;

const CRITERIA: &OneRule = &OneRule;

impl EvictionCriteria for OneRule {
    fn now(&self) -> u64 {
        NOW
    }

    fn full_at(&self, state: BucketState) -> Option<u64> {
        (state.full_at <= ADMITS).then_some(state.full_at)
    }
}

/// A state under the only rule.
fn state(full_at: u64) -> BucketState {
    BucketState {
        rule_number: 7,
        full_at,
    }
}

/// A bucket that has been full for a long time.
const IDLE: u64 = NOW - 10_000_000_000;
/// A bucket that denies.
const DENYING: u64 = NOW + TOLERANCE + 1;
/// A bucket that is used and does not deny.
const USED: u64 = NOW + 3 * INTERVAL;

fn key(n: u64) -> TableKey {
    crate::key::Key::new("test", &n.to_le_bytes())
        .hash_words()
        .into()
}

impl From<[u64; 2]> for TableKey {
    fn from(bits: [u64; 2]) -> Self {
        Self::new(bits)
    }
}

/// Stores this time for a key, which is inserted if necessary.
fn set(table: &Table, key: TableKey, full_at: u64) {
    table.update(key, CRITERIA, |_| ((), Some(state(full_at))));
}

/// What is stored for the key itself.
fn get(table: &Table, key: TableKey) -> Option<u64> {
    let (_, entry) = table.find(key)?;
    assert_eq!(entry.state.rule_number, 7);
    Some(entry.state.full_at)
}

#[test]
fn a_key_keeps_its_state() {
    let table = Table::new(100_000);
    for n in 0..50_000 {
        set(&table, key(n), USED + n);
    }
    for n in 0..50_000 {
        assert_eq!(get(&table, key(n)), Some(USED + n));
    }
    assert_eq!(table.len(), 50_000);
    assert_eq!(get(&table, key(50_000)), None);
}

#[test]
fn a_step_without_a_state_changes_nothing() {
    let table = Table::new(10);
    assert_eq!(table.update(key(1), CRITERIA, |_| (7, None)), 7);
    assert_eq!(table.len(), 0);
    set(&table, key(1), USED);
    assert_eq!(table.update(key(1), CRITERIA, |_| (8, None)), 8);
    assert_eq!(get(&table, key(1)), Some(USED));
}

#[test]
fn the_bound_holds_at_every_size() {
    for bound in [0, 1, 2, 3, 7, 8, 9, 100, 1_000, 3_000] {
        let table = Table::new(bound);
        for n in 0..20 * (bound as u64 + 10) {
            set(&table, key(n), [IDLE, USED, DENYING][n as usize % 3]);
            assert!(table.len() <= bound.max(1), "{} of {bound}", table.len());
        }
        let occupied: usize = (0..20 * (bound as u64 + 10))
            .filter(|n| get(&table, key(*n)).is_some())
            .count();
        assert!(occupied <= bound.max(1), "{occupied} of {bound}");
    }
}

#[test]
fn a_flood_of_new_keys_never_evicts_a_denying_key() {
    let table = Table::new(10_000);
    for n in 0..1_000 {
        set(&table, key(n), DENYING);
    }
    for n in 1_000..1_000_000 {
        set(&table, key(n), NOW + INTERVAL);
    }
    assert!(table.len() > 9_900, "{}", table.len());
    for n in 0..1_000 {
        assert_eq!(get(&table, key(n)), Some(DENYING), "key {n}");
    }
}

#[test]
fn at_the_bound_the_fullest_buckets_are_evicted_first() {
    let table = Table::new(10_000);
    for n in 0..2_000 {
        set(&table, key(n), USED + 5 * INTERVAL);
    }
    for n in 2_000..500_000 {
        set(&table, key(n), NOW + INTERVAL);
    }
    let kept = (0..2_000)
        .filter(|n| get(&table, key(*n)).is_some())
        .count();
    assert!(kept >= 1_990, "{kept} of 2000");
}

#[test]
fn keys_without_room_share_the_overflow_bucket() {
    let table = Table::new(64);
    let mut filled = 0;
    for n in 0.. {
        set(&table, key(n), DENYING);
        filled = n;
        if table.len() == 64 && n > 10_000 {
            break;
        }
    }
    // Every bucket denies, so these keys are stored in the overflow buckets only, which then deny
    // as well.
    let denies = (filled + 1..filled + 1_000).all(|n| {
        let step = |found: Option<BucketState>| match found {
            Some(found) if found == state(DENYING) => (true, None),
            _ => (false, Some(state(DENYING))),
        };
        table.update(key(n), CRITERIA, step)
    });
    assert!(denies);
    assert_eq!(table.len(), 64);
    assert_eq!(
        table.get(key(filled + 1), CRITERIA),
        Some(state(DENYING)),
        "get finds what an update finds"
    );
}

#[test]
fn new_keys_reuse_idle_slots_without_a_cleanup() {
    let table = Table::new(1_000_000);
    for n in 0..1_000 {
        set(&table, key(n), IDLE);
    }
    let bytes = table.bytes();
    for n in 1_000..200_000 {
        set(&table, key(n), IDLE);
    }
    assert!(table.len() < 3_000, "{}", table.len());
    assert!(
        table.bytes() <= bytes + 64 * 1024,
        "{} from {bytes}",
        table.bytes()
    );
}

#[test]
fn memory_grows_with_the_keys_and_not_with_the_bound() {
    let table = Table::new(1_000_000);
    let mut n = 0;
    let mut fill = |keys: u64| {
        while n < keys {
            set(&table, key(n), USED);
            n += 1;
        }
        table.bytes() as u64
    };
    assert!(fill(1) < 64 * 1024);
    assert!(fill(10_000) < 1024 * 1024);
    assert!(fill(1_000_000) <= 34 * 1_000_000);
    // Shortly before the bound, one key in a million finds all its rows full.
    assert!(table.len() >= 999_990, "{}", table.len());
}

#[test]
fn update_known_updates_stored_keys_only() {
    let table = Table::new(10);
    set(&table, key(1), USED);
    let halve = |found: Option<BucketState>| ((), found.map(|found| state(found.full_at / 2)));
    assert_eq!(table.update_known(key(1), halve), Some(()));
    assert_eq!(get(&table, key(1)), Some(USED / 2));
    assert_eq!(table.update_known(key(2), halve), None);
    assert_eq!(table.len(), 1);
}

#[test]
fn an_entry_keeps_all_its_bits() {
    let table = Table::new(10);
    for bits in [[0; 2], [u64::MAX; 2], [1 << 16, 5]] {
        let key = TableKey::new(bits);
        for (rule_number, full_at) in [(0, 0), (u16::MAX, u64::MAX), (1 << 15, 1)] {
            let state = BucketState {
                rule_number,
                full_at,
            };
            table.update(key, CRITERIA, |_| ((), Some(state)));
            assert_eq!(table.find(key).unwrap().1.state, state);
        }
    }
}

/// Threads insert the same new keys while the rows fill up. A key that is inserted twice, or an
/// update of a slot that has another key, would lose counts.
#[test]
fn concurrent_updates_are_never_lost() {
    const KEYS: u64 = 5_000;
    const ROUNDS: u64 = 20;
    let table = Table::new(100_000);
    thread::scope(|scope| {
        for t in 0..8 {
            let table = &table;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    for n in 0..KEYS {
                        let n = (n * (2 * t + 1) + round) % KEYS;
                        let step = |found: Option<BucketState>| {
                            let full_at = found.map_or(NOW, |found| found.full_at);
                            ((), Some(state(full_at + 1)))
                        };
                        table.update(key(n), CRITERIA, step);
                    }
                }
            });
        }
    });
    let total: u64 = (0..KEYS).map(|n| get(&table, key(n)).unwrap() - NOW).sum();
    assert_eq!(total, 8 * ROUNDS * KEYS);
    assert_eq!(table.len() as u64, KEYS);
}

/// The same at the bound: a denying key stays while others are evicted around it.
#[test]
fn concurrent_inserts_never_evict_a_denying_key() {
    let table = Table::new(64);
    for n in 0..16 {
        set(&table, key(n), DENYING);
    }
    thread::scope(|scope| {
        for t in 0..8 {
            let table = &table;
            scope.spawn(move || {
                for n in 0..20_000 {
                    set(table, key(1_000 + t * 1_000_000 + n), NOW + n % 5);
                    assert_eq!(get(table, key(n % 16)), Some(DENYING));
                    assert!(table.len() <= 64);
                }
            });
        }
    });
}
