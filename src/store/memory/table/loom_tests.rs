//! Every interleaving of a few threads over a few slots.

use loom::sync::Arc;
use loom::thread;

use super::*;

const NOW: u64 = 1_000_000;

struct OneRule;

const CRITERIA: &OneRule = &OneRule;

impl EvictionCriteria for OneRule {
    fn now(&self) -> u64 {
        NOW
    }

    fn full_at(&self, state: BucketState) -> Option<u64> {
        (state.full_at <= NOW + 10).then_some(state.full_at)
    }
}

fn state(full_at: u64) -> BucketState {
    BucketState {
        rule_number: 7,
        full_at,
    }
}

/// All keys share one row.
fn key(n: u64) -> TableKey {
    TableKey::new([(n + 2) << 16, 0])
}

fn add(table: &Table, key: TableKey, amount: u64) {
    table.update(key, CRITERIA, |found| {
        let full_at = found.map_or(NOW, |found| found.full_at.max(NOW));
        ((), Some(state(full_at + amount)))
    });
}

/// What is stored for the key itself.
fn stored(table: &Table, key: TableKey) -> Option<u64> {
    table.find(key).map(|(_, entry)| entry.state.full_at)
}

/// A thread that inserts key 2, which would evict key 1.
fn insert_another_key(table: &Arc<Table>) -> thread::JoinHandle<()> {
    let table = table.clone();
    thread::spawn(move || add(&table, key(2), 3))
}

fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(test);
}

#[test]
fn a_new_key_is_inserted_once() {
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
fn an_update_and_an_eviction_of_one_slot_exclude_each_other() {
    model(|| {
        let table = Arc::new(Table::new(1));
        add(&table, key(1), 1);
        let evicting = insert_another_key(&table);
        add(&table, key(1), 20);
        evicting.join().unwrap();
        // Key 1 denies once it is charged, so it is not evicted after that. Key 2 is in the table,
        // or was evicted when key 1 returned, or found no room.
        assert!(table.len() <= 1);
        match (stored(&table, key(1)), stored(&table, key(2))) {
            (Some(arrival), None) => assert!(arrival == NOW + 21 || arrival == NOW + 20),
            (None, Some(arrival)) => panic!("a denying key was evicted for one at {arrival}"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_refund_never_changes_another_key() {
    model(|| {
        let table = Arc::new(Table::new(1));
        add(&table, key(1), 1);
        let evicting = insert_another_key(&table);
        table.update_known(key(1), |found| {
            let full_at = found.map_or(NOW, |found| found.full_at - 1);
            ((), Some(state(full_at)))
        });
        evicting.join().unwrap();
        assert_eq!(stored(&table, key(1)), None);
        assert_eq!(stored(&table, key(2)), Some(NOW + 3));
    });
}
