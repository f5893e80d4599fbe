//! How a replica deletes overrides in the store that have ended, and finds that its clock is ahead of the store's.

use std::time::Duration;

use tokio::time::Instant;

use super::replica::{Outcome, Replica};
use super::{LimitChange, Limits};
use crate::store::overrides::SetOverride;
use crate::sync::lock;

/// How far ahead of the store's clock the clock of this process may be before that is logged: in seconds.
const MAX_AHEAD: u64 = 5;

/// How often it is logged at most.
const WARN_EVERY: Duration = Duration::from_secs(600);

/// How long a replica waits at most before it asks the store again whether an override has ended by its clock.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Overrides that have ended and are deleted in the store between two looks at what was changed.
const ENDED_AT_A_TIME: usize = 100;

/// Remembers that this process's clock is ahead of the store's, and when it warned.
#[derive(Default)]
pub(super) struct Ahead {
    /// Until when there is nothing to delete.
    until: Option<Instant>,
    warned: Option<Instant>,
}

impl Ahead {
    /// The store has not reached an end yet that this process has.
    fn note(&mut self, here: u64, store: u64, end: u64) {
        let now = Instant::now();
        let left = Duration::from_secs(end.saturating_sub(store)).min(ASK_AGAIN);
        self.until = Some(now + left);
        let ahead = here.saturating_sub(store);
        let is_due = self.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY);
        if ahead >= MAX_AHEAD && is_due {
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
    /// Deletes overrides in the store that have ended. What fails is done later, here or by another replica.
    pub(super) async fn delete_ended(&self, limits: &Limits, ahead: &mut Ahead) {
        limits.turn_ends();
        if ahead.until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        for _ in 0..ENDED_AT_A_TIME {
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
                Ok(Outcome::Made { .. }) => {
                    let now = limits.0.clock.seconds();
                    LimitChange::ended(name, Some(entry), now).report();
                    continue;
                }
                // Another replica has deleted it, or an operator has set another one.
                Ok(Outcome::Changed(_) | Outcome::Unreadable | Outcome::Full) => continue,
                Ok(Outcome::NotEnded { now }) => ahead.note(limits.0.clock.seconds(), now, end),
                Err(_) => {}
            }
            // Later ones have not ended either, or cannot be deleted now.
            let mut state = lock(&limits.0.state);
            state.ended.entry((end, name)).or_insert(entry);
            break;
        }
    }
}
