//! What replicas write down of their limiters, for tools that are none of them.

use std::time::Duration;

use tokio::time::Instant;

use super::Limits;
use crate::key::Secret;
use crate::store::overrides::{LimiterDescription, OverrideTable};
use crate::store::{FailureKind, StoreError};

/// How long what was written stands before it is written again: Redis may have lost it, which shows
/// by the epoch only where a limit was ever set.
const STANDS: Duration = Duration::from_secs(60);

/// What was written last.
#[derive(Default)]
pub(super) struct Published {
    limiters: Vec<LimiterDescription>,
    /// The description of lost overrides, while there are any.
    lost: Option<LimiterDescription>,
    /// The random name of this replica.
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
        table: &dyn OverrideTable,
        all_read: Option<Instant>,
    ) {
        let attached = limits.targets();
        let described = attached.iter().filter_map(|limited| limited.description());
        let tiers = limits
            .tiers()
            .into_iter()
            .map(|name| LimiterDescription::Tier {
                name: name.to_string(),
            });
        let names = limits
            .names()
            .into_iter()
            .map(|name| LimiterDescription::Name {
                name: name.to_string(),
            });
        let lists = limits
            .are_lists_applied()
            .then_some(LimiterDescription::Lists);
        let described = described.chain(tiers).chain(names).chain(lists);
        let mut described: Vec<_> = described.collect();
        if table.has_secret() && !described.is_empty() {
            let check = Secret::check_value();
            described.push(LimiterDescription::Secret { check });
        }
        let mut lost = None;
        if let overrides @ 1.. = limits.lost() {
            let replica = || format!("{:016x}", fastrand::u64(..));
            let description = LimiterDescription::Lost {
                replica: self.replica.get_or_insert_with(replica).clone(),
                overrides: overrides as u64,
            };
            lost = Some(description.clone());
            described.push(description);
        }
        let stands = self.at.is_some_and(|at| at.elapsed() < STANDS);
        if stands && self.limiters == described && self.as_of == all_read {
            return;
        }
        let withdrawn = self.lost.as_slice();
        let withdrawn = if lost.is_none() { withdrawn } else { &[] };
        let written = if described.is_empty() && withdrawn.is_empty() {
            Ok(())
        } else {
            table.publish(&described, withdrawn).await
        };
        if written.is_err_and(|error| passes(&error)) {
            return;
        }
        // What cannot be written at all is tried again in a minute.
        self.limiters = described;
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
