//! Checks that each server can decide requests.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, ServerErrorKind, Value};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Inner;
use super::answers::parse;
use super::arguments::{Arguments, KeyRules, Mode, Run};
use super::attempt::{CONNECT_WITHIN, apart};
use super::call_error::{CallError, OrFailure};
use super::client::Route;
use super::connection::Driver;
use super::slots::{Range, SLOTS, ranges, slot};
use super::url::Address;
use tower_admission::Quota;
use tower_admission::Rule;
use tower_admission::store::FailureKind;

/// Fails with the first error. Uses new connections, because permissions may have changed since the others were opened.
pub(super) async fn ping(store: &Arc<Inner>) -> Result<(), CallError> {
    let mut probes = JoinSet::new();
    match store.client.route() {
        Route::One(_) => {
            let key = key_of(store);
            probes.spawn(probe(store.clone(), None, key));
        }
        Route::BySlot(router) => {
            for (master, of_slots) in masters(router.ask_seeds().await?)? {
                let key = key_in(&key_of(store), of_slots);
                probes.spawn(probe(store.clone(), Some(master), key));
            }
        }
    }
    while let Some(probed) = probes.join_next().await {
        // The probe reports a panic.
        probed.unwrap_or_else(|_| Err(CallError::new(FailureKind::Disconnected)))?;
    }
    Ok(())
}

/// Each master with one of its slots.
fn masters(found: Vec<Range>) -> Result<HashMap<Address, u16>, CallError> {
    let mut have_one = vec![false; SLOTS];
    for range in &found {
        have_one[usize::from(range.first)..=usize::from(range.last)].fill(true);
    }
    let without = have_one.iter().filter(|has_one| !**has_one).count();
    if without > 0 {
        let words = format!("{without} slots of the cluster have no master");
        return Err(CallError::because(FailureKind::Busy, words));
    }
    let masters = found.into_iter().map(|range| (range.master, range.first));
    Ok(masters.collect())
}

/// A key under the prefix that no limiter uses.
fn key_of(store: &Inner) -> String {
    format!("{}:ping", store.names.prefix())
}

/// The same in a slot. The tag is short: finding it takes about as many attempts as there are slots.
fn key_in(key: &str, of_slot: u16) -> String {
    let mut keys = (0_u64..).map(|n| format!("{key}:{{{n}}}"));
    let found = keys.find(|key| slot(key.as_bytes()) == of_slot);
    found.expect("numbers do not end")
}

/// Checks one server; without an address, the current master.
async fn probe(store: Arc<Inner>, address: Option<Address>, key: String) -> Result<(), CallError> {
    let probed = apart(async move {
        let is_alone = address.is_none();
        let has_tls = store.client.target().has_tls();
        let opened = timeout(CONNECT_WITHIN, open(&store, address)).await;
        let (address, connection, mut driver) =
            opened.unwrap_or_else(|_| Err(CallError::not_connected(has_tls)))?;
        let mut checked = pin!(async {
            check_role(connection.clone(), &address, is_alone).await?;
            decide(&store, connection, key).await
        });
        let within = store.client.patience();
        let checked = timeout(within, async {
            tokio::select! {
                checked = &mut checked => checked,
                // The call that waited for the connection has failed with the cause.
                () = &mut driver => checked.await,
            }
        });
        let late = || format!("no answer within {within:?}");
        let checked = checked
            .await
            .unwrap_or_else(|_| Err(CallError::because(FailureKind::Timeout, late())));
        checked.map_err(|error| error.at(&address))
    });
    probed.await
}

async fn open(
    store: &Inner,
    address: Option<Address>,
) -> Result<(Address, MultiplexedConnection, Driver), CallError> {
    let target = store.client.target();
    let address = match address {
        Some(address) => address,
        None => target.master().await?,
    };
    match target.open(&address).await {
        Ok((connection, driver)) => Ok((address, connection, driver)),
        Err(error) => Err(error.at(&address)),
    }
}

/// Fails unless the server is a master, and holds all slots if it is the only server.
async fn check_role(
    mut connection: MultiplexedConnection,
    asked: &Address,
    is_alone: bool,
) -> Result<(), CallError> {
    let about: Value = redis::cmd("HELLO")
        .query_async(&mut connection)
        .await
        .or_failure()?;
    let about: HashMap<String, Value> = redis::from_redis_value(about).unwrap_or_default();
    let is = |field: &str, value: &str| {
        let found = about.get(field).cloned();
        found.is_some_and(|found| {
            redis::from_redis_value(found).is_ok_and(|found: String| found == value)
        })
    };
    if is("mode", "sentinel") {
        let words = "it is a Sentinel: use redis+sentinel://";
        return Err(CallError::because(FailureKind::Configuration, words));
    }
    if is("role", "replica") {
        return Err(CallError::because(FailureKind::ReadOnly, "it is a replica"));
    }
    if is("mode", "cluster") && is_alone {
        // A user without this permission finds out with the first key of another server.
        let slots: Result<Value, _> = redis::cmd("CLUSTER")
            .arg("SLOTS")
            .query_async(&mut connection)
            .await;
        let found = slots.map(|slots| ranges(&slots, asked)).unwrap_or_default();
        if masters(found).is_ok_and(|masters| masters.len() > 1) {
            let words = "it is one server of a cluster: use redis+cluster://";
            return Err(CallError::because(FailureKind::Configuration, words));
        }
    }
    Ok(())
}

/// Decides a request of cost 1, like a limiter does.
async fn decide(
    store: &Inner,
    mut connection: MultiplexedConnection,
    key: String,
) -> Result<(), CallError> {
    // The key expires after a few milliseconds.
    let rules = [KeyRules::from_iter([Rule::new(Quota::per_second(1_000))])];
    let runs = [Run::single(1, 1)];
    let arguments = Arguments {
        mode: Mode::Take,
        rules: &rules,
        runs: &runs,
    };
    let keys = [key];
    let call = store.rates.call(&keys, arguments);
    let mut answer = call.query_async::<Value>(&mut connection).await;
    if answer
        .as_ref()
        .is_err_and(|error| error.kind() == ErrorKind::Server(ServerErrorKind::NoScript))
    {
        let call = store.rates.call_with_source(&keys, arguments);
        answer = call.query_async(&mut connection).await;
    }
    let numbers: Vec<i64> = redis::from_redis_value(answer.or_failure()?).or_failure()?;
    parse(&numbers, &rules, &runs).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_without_a_master_is_found() {
        let range = |first, last, port| Range {
            first,
            last,
            master: Address::Tcp("h".into(), port),
        };
        let last = SLOTS as u16 - 1;
        let found = vec![range(0, 99, 1), range(100, last, 2)];
        assert_eq!(masters(found).unwrap().len(), 2);
        for (found, without) in [
            (vec![], "16384 slots"),
            (vec![range(0, 99, 1), range(101, last, 2)], "1 slots"),
            // Two masters claim the same slot.
            (vec![range(1, last, 1), range(1, last, 2)], "1 slots"),
        ] {
            let error = masters(found).unwrap_err();
            assert_eq!(error.kind(), FailureKind::Busy);
            assert!(error.detail().unwrap().starts_with(without), "{error}");
        }
    }
}
