//! Publishes the limiters of a replica in the store, for tools.

use std::time::Duration;

use tokio::time::Instant;

use super::Limits;
use crate::key::Secret;
use crate::store::overrides::{LimiterDescription, OverrideTable};
use crate::store::{FailureKind, StoreError};

/// The interval after which unchanged descriptions are published again. Redis may have lost them,
/// which the epoch shows only if a limit was ever set.
const REPUBLISH_INTERVAL: Duration = Duration::from_secs(60);

/// The last published descriptions.
#[derive(Default)]
pub(super) struct PublishedLimiters {
    limiters: Vec<LimiterDescription>,
    /// The description of lost overrides, if there are any.
    lost: Option<LimiterDescription>,
    /// The random name of this replica.
    replica: Option<String>,
    /// The time of the complete read before the last publication.
    as_of: Option<Instant>,
    at: Option<Instant>,
}

impl PublishedLimiters {
    /// Publishes the limiters that use the limits, if they have changed, after each complete read,
    /// and every minute. The store drops descriptions that no replica renews.
    ///
    /// Compares descriptions instead of tracking changes, so that setters need no code for it.
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
        let is_current = self.at.is_some_and(|at| at.elapsed() < REPUBLISH_INTERVAL);
        if is_current && self.limiters == described && self.as_of == all_read {
            return;
        }
        let withdrawn = self.lost.as_slice();
        let withdrawn = if lost.is_none() { withdrawn } else { &[] };
        let written = if described.is_empty() && withdrawn.is_empty() {
            Ok(())
        } else {
            table.publish(&described, withdrawn).await
        };
        if written.is_err_and(|error| is_temporary(&error)) {
            return;
        }
        // A permanent failure is retried in a minute.
        self.limiters = described;
        self.lost = lost;
        self.as_of = all_read;
        self.at = Some(Instant::now());
    }
}

/// Whether the failure may be temporary.
fn is_temporary(error: &StoreError) -> bool {
    matches!(
        error.kind(),
        FailureKind::Disconnected
            | FailureKind::Timeout
            | FailureKind::Overloaded
            | FailureKind::Busy
    )
}
