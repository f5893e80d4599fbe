//! What replicas write down of their limiters, for tools that are none of them.

use std::time::Duration;

use tokio::time::Instant;

use super::{Description, Limits};
use crate::key::Secret;
use crate::store::redis::{FailureKind, LimitTable, StoreError};

/// How long what was written stands before it is written again: Redis may have lost it, which shows
/// by the epoch only where a limit was ever set.
const STANDS: Duration = Duration::from_secs(60);

/// What was written last.
#[derive(Default)]
pub(super) struct Published {
    limiters: Vec<(String, String)>,
    /// What it said of overrides that the store lost is known by, while it says so.
    lost: Option<String>,
    /// What this replica is called there.
    replica: Option<String>,
    /// When all limits had been read then.
    as_of: Option<Instant>,
    at: Option<Instant>,
}

impl Published {
    /// Writes down what is attached to the limits, if that is something else than it was, and again
    /// each time that all limits were read anew and each minute: what nobody writes any more is
    /// forgotten.
    ///
    /// They are compared rather than told of changes, so that no setter has to think of it.
    pub(super) async fn publish(
        &mut self,
        limits: &Limits,
        table: &LimitTable,
        all_read: Option<Instant>,
    ) {
        let attached = limits.targets();
        let described = attached.iter().filter_map(|limited| limited.description());
        let tiers = limits.tiers().into_iter().map(|name| Description::Tier {
            name: name.to_string(),
        });
        let names = limits.names().into_iter().map(|name| Description::Name {
            name: name.to_string(),
        });
        let lists = limits.are_lists_applied().then_some(Description::Lists);
        let described = described.chain(tiers).chain(names).chain(lists);
        let mut described: Vec<_> = described.collect();
        if table.has_secret && !described.is_empty() {
            let check = Secret::check_value();
            described.push(Description::Secret { check });
        }
        let mut lost = None;
        if let overrides @ 1.. = limits.lost() {
            let replica = || format!("{:016x}", fastrand::u64(..));
            let description = Description::Lost {
                replica: self.replica.get_or_insert_with(replica).clone(),
                overrides: overrides as u64,
            };
            lost = Some(description.field());
            described.push(description);
        }
        let limiters: Vec<_> = described
            .iter()
            .map(|description| (description.field(), description.to_text()))
            .collect();
        let stands = self.at.is_some_and(|at| at.elapsed() < STANDS);
        if stands && self.limiters == limiters && self.as_of == all_read {
            return;
        }
        let mut changes = limiters.clone();
        if lost.is_none()
            && let Some(over) = &self.lost
        {
            changes.push((over.clone(), String::new()));
        }
        let written = if changes.is_empty() {
            Ok(())
        } else {
            table.publish(&changes).await
        };
        if written.is_err_and(|error| passes(&error)) {
            return;
        }
        // What cannot be written at all is tried again in a minute.
        self.limiters = limiters;
        self.lost = lost;
        self.as_of = all_read;
        self.at = Some(Instant::now());
    }
}

/// Whether it may work in a moment.
fn passes(error: &StoreError) -> bool {
    matches!(
        error.kind(),
        FailureKind::Disconnected
            | FailureKind::Timeout
            | FailureKind::Overloaded
            | FailureKind::Busy
    )
}
