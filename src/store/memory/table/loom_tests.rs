//! Every interleaving of few threads over few slots.

use loom::sync::Arc;
use loom::thread;

use super::*;

const NOW: u64 = 1_000_000;

struct OneRule;

const JUDGE: &OneRule = &OneRule;

impl Judge for OneRule {
    fn now(&self) -> u64 {
        NOW
    }

    fn full_at(&self, state: State) -> Option<u64> {
        (state.full_at <= NOW + 10).then_some(state.full_at)
    }
}

fn state(full_at: u64) -> State {
    State { number: 7, full_at }
}

/// All keys in one row.
fn key(n: u64) -> Place {
    Place::new([(n + 2) << 16, 0])
}

fn add(table: &Table, key: Place, amount: u64) {
    table.update(key, JUDGE, |found| {
        let full_at = found.map_or(NOW, |found| found.full_at.max(NOW));
        ((), Some(state(full_at + amount)))
    });
}

/// What is stored for a key itself.
fn stored(table: &Table, key: Place) -> Option<u64> {
    table.find(key).map(|(_, entry)| entry.state.full_at)
}

/// A thread with a key for which key 1 would have to go.
fn put_in_another(table: &Arc<Table>) -> thread::JoinHandle<()> {
    let table = table.clone();
    thread::spawn(move || add(&table, key(2), 3))
}

fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(test);
}

#[test]
fn a_new_key_is_put_in_once() {
    model(|| {
        let table = Arc::new(Table::new(2));
        let other = {
            let table = table.clone();
            thread::spawn(move || add(&table, key(1), 1))
        };
        add(&table, key(1), 1);
        other.join().unwrap();
        assert_eq!(stored(&table, key(1)), Some(NOW + 2));
        assert_eq!(table.len(), 1);
    });
}

#[test]
fn an_update_and_an_eviction_of_the_same_slot_do_not_mix() {
    model(|| {
        let table = Arc::new(Table::new(1));
        add(&table, key(1), 1);
        let evicting = put_in_another(&table);
        add(&table, key(1), 20);
        evicting.join().unwrap();
        // Key 1 denies from the moment it is charged, so it is never the one to go after that;
        // key 2 is in the table, or was evicted by key 1's return, or found no room.
        assert!(table.len() <= 1);
        match (stored(&table, key(1)), stored(&table, key(2))) {
            (Some(arrival), None) => assert!(arrival == NOW + 21 || arrival == NOW + 20),
            (None, Some(arrival)) => panic!("a denying key was forgotten for one at {arrival}"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn giving_back_never_touches_another_key() {
    model(|| {
        let table = Arc::new(Table::new(1));
        add(&table, key(1), 1);
        let evicting = put_in_another(&table);
        table.update_known(key(1), |found| {
            let full_at = found.map_or(NOW, |found| found.full_at - 1);
            ((), Some(state(full_at)))
        });
        evicting.join().unwrap();
        assert_eq!(stored(&table, key(1)), None);
        assert_eq!(stored(&table, key(2)), Some(NOW + 3));
    });
}
