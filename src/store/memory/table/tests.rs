//! The table's promises: the bound, what is forgotten and what never is, and no lost update.

use std::thread;

use super::*;

/// The time of one request; an empty bucket lacks ten.
const INTERVAL: u64 = 1_000;
const TOLERANCE: u64 = 9 * INTERVAL;
const NOW: u64 = 1 << 40;
const ADMITS: u64 = NOW + TOLERANCE;

/// Of one rule, that all buckets are charged by.
struct OneRule;

const JUDGE: &OneRule = &OneRule;

impl Judge for OneRule {
    fn now(&self) -> u64 {
        NOW
    }

    fn full_at(&self, state: State) -> Option<u64> {
        (state.full_at <= ADMITS).then_some(state.full_at)
    }
}

/// A state of the only rule.
fn state(full_at: u64) -> State {
    State { number: 7, full_at }
}

/// A full bucket that has been full for long.
const IDLE: u64 = NOW - 10_000_000_000;
/// A bucket that denies.
const DENYING: u64 = NOW + TOLERANCE + 1;
/// A bucket that was used and does not deny.
const USED: u64 = NOW + 3 * INTERVAL;

fn place(n: u64) -> Place {
    crate::key::Key::new("test", &n.to_le_bytes())
        .hash_words()
        .into()
}

impl From<[u64; 2]> for Place {
    fn from(bits: [u64; 2]) -> Self {
        Self::new(bits)
    }
}

/// Puts a key in with this time, or sets it.
fn set(table: &Table, key: Place, full_at: u64) {
    table.update(key, JUDGE, |_| ((), Some(state(full_at))));
}

/// What is stored for a key itself.
fn get(table: &Table, key: Place) -> Option<u64> {
    let (_, entry) = table.find(key)?;
    assert_eq!(entry.state.number, 7);
    Some(entry.state.full_at)
}

#[test]
fn a_key_keeps_its_state() {
    let table = Table::new(100_000);
    for n in 0..50_000 {
        set(&table, place(n), USED + n);
    }
    for n in 0..50_000 {
        assert_eq!(get(&table, place(n)), Some(USED + n));
    }
    assert_eq!(table.len(), 50_000);
    assert_eq!(get(&table, place(50_000)), None);
}

#[test]
fn a_step_without_a_state_changes_nothing() {
    let table = Table::new(10);
    assert_eq!(table.update(place(1), JUDGE, |_| (7, None)), 7);
    assert_eq!(table.len(), 0);
    set(&table, place(1), USED);
    assert_eq!(table.update(place(1), JUDGE, |_| (8, None)), 8);
    assert_eq!(get(&table, place(1)), Some(USED));
}

#[test]
fn the_bound_holds_at_every_size() {
    for bound in [0, 1, 2, 3, 7, 8, 9, 100, 1_000, 3_000] {
        let table = Table::new(bound);
        for n in 0..20 * (bound as u64 + 10) {
            set(&table, place(n), [IDLE, USED, DENYING][n as usize % 3]);
            assert!(table.len() <= bound.max(1), "{} of {bound}", table.len());
        }
        let occupied: usize = (0..20 * (bound as u64 + 10))
            .filter(|n| get(&table, place(*n)).is_some())
            .count();
        assert!(occupied <= bound.max(1), "{occupied} of {bound}");
    }
}

#[test]
fn a_flood_never_lets_a_denied_key_back_in() {
    let table = Table::new(10_000);
    for n in 0..1_000 {
        set(&table, place(n), DENYING);
    }
    for n in 1_000..1_000_000 {
        set(&table, place(n), NOW + INTERVAL);
    }
    assert!(table.len() > 9_900, "{}", table.len());
    for n in 0..1_000 {
        assert_eq!(get(&table, place(n)), Some(DENYING), "key {n}");
    }
}

#[test]
fn at_the_bound_the_fullest_buckets_go_first() {
    let table = Table::new(10_000);
    for n in 0..2_000 {
        set(&table, place(n), USED + 5 * INTERVAL);
    }
    for n in 2_000..500_000 {
        set(&table, place(n), NOW + INTERVAL);
    }
    let kept = (0..2_000)
        .filter(|n| get(&table, place(*n)).is_some())
        .count();
    assert!(kept >= 1_990, "{kept} of 2000");
}

#[test]
fn keys_without_room_share_the_overflow_bucket() {
    let table = Table::new(64);
    let mut filled = 0;
    for n in 0.. {
        set(&table, place(n), DENYING);
        filled = n;
        if table.len() == 64 && n > 10_000 {
            break;
        }
    }
    // Every bucket denies, so nothing of this is stored but in the overflow buckets, which deny
    // as well.
    let denies = (filled + 1..filled + 1_000).all(|n| {
        let step = |found: Option<State>| match found {
            Some(found) if found == state(DENYING) => (true, None),
            _ => (false, Some(state(DENYING))),
        };
        table.update(place(n), JUDGE, step)
    });
    assert!(denies);
    assert_eq!(table.len(), 64);
    assert_eq!(
        table.get(place(filled + 1), JUDGE),
        Some(state(DENYING)),
        "as an update finds it"
    );
}

#[test]
fn idle_room_is_used_again_and_nobody_has_to_ask() {
    let table = Table::new(1_000_000);
    for n in 0..1_000 {
        set(&table, place(n), IDLE);
    }
    let bytes = table.bytes();
    for n in 1_000..200_000 {
        set(&table, place(n), IDLE);
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
            set(&table, place(n), USED);
            n += 1;
        }
        table.bytes() as u64
    };
    assert!(fill(1) < 64 * 1024);
    assert!(fill(10_000) < 1024 * 1024);
    assert!(fill(1_000_000) <= 34 * 1_000_000);
    // Shortly before the bound a key in a million finds all of its rows full.
    assert!(table.len() >= 999_990, "{}", table.len());
}

#[test]
fn only_a_known_key_is_updated_as_such() {
    let table = Table::new(10);
    set(&table, place(1), USED);
    let halve = |found: Option<State>| ((), found.map(|found| state(found.full_at / 2)));
    assert_eq!(table.update_known(place(1), halve), Some(()));
    assert_eq!(get(&table, place(1)), Some(USED / 2));
    assert_eq!(table.update_known(place(2), halve), None);
    assert_eq!(table.len(), 1);
}

#[test]
fn an_entry_keeps_all_its_bits() {
    let table = Table::new(10);
    for bits in [[0; 2], [u64::MAX; 2], [1 << 16, 5]] {
        let key = Place::new(bits);
        for (number, full_at) in [(0, 0), (u16::MAX, u64::MAX), (1 << 15, 1)] {
            let state = State { number, full_at };
            table.update(key, JUDGE, |_| ((), Some(state)));
            assert_eq!(table.find(key).unwrap().1.state, state);
        }
    }
}

/// Threads that meet on the same new keys, in rows that fill up meanwhile: a key that was put in
/// twice, or an update on a slot that had moved on, would lose counts.
#[test]
fn no_update_is_lost_among_threads() {
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
                        let step = |found: Option<State>| {
                            let full_at = found.map_or(NOW, |found| found.full_at);
                            ((), Some(state(full_at + 1)))
                        };
                        table.update(place(n), JUDGE, step);
                    }
                }
            });
        }
    });
    let total: u64 = (0..KEYS)
        .map(|n| get(&table, place(n)).unwrap() - NOW)
        .sum();
    assert_eq!(total, 8 * ROUNDS * KEYS);
    assert_eq!(table.len() as u64, KEYS);
}

/// The same at the bound: a denying key stays put while others are evicted all around it.
#[test]
fn a_denied_key_stays_denied_among_threads() {
    let table = Table::new(64);
    for n in 0..16 {
        set(&table, place(n), DENYING);
    }
    thread::scope(|scope| {
        for t in 0..8 {
            let table = &table;
            scope.spawn(move || {
                for n in 0..20_000 {
                    set(table, place(1_000 + t * 1_000_000 + n), NOW + n % 5);
                    assert_eq!(get(table, place(n % 16)), Some(DENYING));
                    assert!(table.len() <= 64);
                }
            });
        }
    });
}
