//! Deletes ended overrides in the store, and detects a clock that is ahead of the store's.

use std::time::Duration;

use tokio::time::Instant;

use super::replica::{ChangeOutcome, Replica};
use super::{LimitChange, Limits};
use crate::store::overrides::SetOverride;
use crate::sync::lock;

/// How far the clock of this process may be ahead of the store's before that is logged, in seconds.
const MAX_CLOCK_LEAD_SECONDS: u64 = 5;

/// The minimum interval between warnings.
const WARN_INTERVAL: Duration = Duration::from_secs(600);

/// The maximum time before a replica asks the store again whether an override has ended.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// Ended overrides that are deleted between two reads of changes.
const DELETIONS_PER_READ: usize = 100;

/// Tracks that this process's clock is ahead of the store's.
#[derive(Default)]
pub(super) struct ClockLead {
    /// The time until which there is nothing to delete.
    until: Option<Instant>,
    warned: Option<Instant>,
}

impl ClockLead {
    /// Records that the store has not reached an end that this process has reached.
    fn record(&mut self, here: u64, store: u64, end: u64) {
        let now = Instant::now();
        let left = Duration::from_secs(end.saturating_sub(store)).min(RETRY_INTERVAL);
        self.until = Some(now + left);
        let ahead = here.saturating_sub(store);
        let is_due = self.warned.is_none_or(|at| at.elapsed() >= WARN_INTERVAL);
        if ahead >= MAX_CLOCK_LEAD_SECONDS && is_due {
            self.warned = Some(now);
            tracing::warn!(
                seconds = ahead,
                "the clock of this process is ahead of the clock of the store: overrides end too early here; set the \
                 clock of this host"
            );
        }
    }
}

impl Replica {
    /// Deletes ended overrides in the store. What fails is retried later, here or by another
    /// replica.
    pub(super) async fn delete_ended(&self, limits: &Limits, clock_lead: &mut ClockLead) {
        limits.process_ends();
        if clock_lead.until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        for _ in 0..DELETIONS_PER_READ {
            let ended = lock(&limits.0.state).ended.pop_first();
            let Some(((end, name), entry)) = ended else {
                break;
            };
            let call = SetOverride {
                name: name.as_str(),
                ended_at: Some(end),
                max_overrides: Limits::MAX_OVERRIDES,
                max_audited: Limits::MAX_CHANGES,
                ..SetOverride::default()
            };
            let expected = Some(entry.clone());
            match self.set(limits, call, Some(&expected), &name).await {
                Ok(ChangeOutcome::Made { .. }) => {
                    let now = limits.0.clock.seconds();
                    LimitChange::ended(name, Some(entry), now).report();
                    continue;
                }
                // Another replica has deleted it, or an operator has set another override.
                Ok(ChangeOutcome::Changed(_) | ChangeOutcome::Unreadable | ChangeOutcome::Full) => {
                    continue;
                }
                Ok(ChangeOutcome::NotEnded { now }) => {
                    clock_lead.record(limits.0.clock.seconds(), now, end)
                }
                Err(_) => {}
            }
            // Later ones have not ended either, or cannot be deleted now.
            let mut state = lock(&limits.0.state);
            state.ended.entry((end, name)).or_insert(entry);
            break;
        }
    }
}
