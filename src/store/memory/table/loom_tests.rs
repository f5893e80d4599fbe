//! Every interleaving of few threads over few slots.

use loom::sync::Arc;
use loom::thread;

use super::*;

const NOW: u64 = 1_000_000;
const JUDGE: Judge = Judge {
    now: NOW,
    admits: NOW + 10,
    empty: NOW + 11,
    latest: NOW + 100,
};

/// All keys in one row.
fn key(n: u64) -> Place {
    Place::new([n + 2, 0])
}

fn add(table: &Table, key: Place, amount: u64) {
    let step = |arrival: Option<u64>| Ok::<_, ()>(((), arrival.unwrap_or(NOW).max(NOW) + amount));
    table.update(key, || JUDGE, step).unwrap();
}

/// What is stored for a key itself.
fn stored(table: &Table, key: Place) -> Option<u64> {
    table.find(key).map(|(_, entry)| entry.arrival)
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
        table.give_back(key(1), 1);
        evicting.join().unwrap();
        assert_eq!(stored(&table, key(1)), None);
        assert_eq!(stored(&table, key(2)), Some(NOW + 3));
    });
}
