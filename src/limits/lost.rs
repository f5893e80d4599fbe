//! Overrides that a replica keeps although the store has lost them.

use std::collections::HashSet;

use super::entry::line;
use super::replica::Replica;
use super::reported::ReportedChanges;
use super::{LimitChange, Limits, LimitsError};
use crate::key::KeyName;
use crate::store::overrides::Renewal;
use crate::sync::{Mutex, lock};

/// The names of lost overrides, at most as many as there are overrides.
#[derive(Default)]
pub(super) struct LostOverrides(Mutex<HashSet<KeyName>>);

impl LostOverrides {
    /// Replaces the set of lost overrides. Logs it if one of them is new.
    fn replace(&self, names: HashSet<KeyName>) {
        let mut lost = lock(&self.0);
        let is_new = !names.is_subset(&lost);
        *lost = names;
        report(lost.len());
        if is_new {
            tracing::error!(
                overrides = lost.len(),
                "the store has lost overrides; this replica keeps its copies until an operator imports \
                 them again or accepts the loss"
            );
        }
    }

    /// Removes an override that the store has again, or has deleted.
    fn remove(&self, name: &KeyName) {
        let mut lost = lock(&self.0);
        if lost.remove(name) {
            report(lost.len());
        }
    }
}

fn report(lost: usize) {
    #[cfg(feature = "metrics")]
    #[allow(clippy::cast_precision_loss)]
    metrics::gauge!("admission_limits_lost").set(lost as f64);
    let _ = lost;
}

impl Limits {
    /// Makes all replicas drop the overrides that the store has [lost](Self::lost), within a
    /// second. Each replica logs their number and the first names. In memory it does nothing.
    ///
    /// # Errors
    ///
    /// [`LimitsError::Unavailable`].
    pub async fn accept_loss(&self) -> Result<(), LimitsError> {
        self.accept_loss_by(None, None).await
    }

    /// Like [`accept_loss`](Self::accept_loss), with an author and an origin for the [audit
    /// trail](Self::changes), as in [`edit`](Self::edit).
    ///
    /// # Errors
    ///
    /// [`LimitsError::Unavailable`].
    pub async fn accept_loss_by(
        &self,
        author: Option<&str>,
        origin: Option<&str>,
    ) -> Result<(), LimitsError> {
        let Some(replica) = &self.0.replica else {
            return Ok(());
        };
        let (author, origin) = (author.and_then(line), origin.and_then(line));
        let begun = ReportedChanges::begin(&replica.seen);
        let why = Renewal::LossAccepted {
            known: lock(&replica.read).known.loss_accepted_at,
            author: author.as_deref().unwrap_or_default(),
            origin: origin.as_deref().unwrap_or_default(),
            max_audited: Self::MAX_CHANGES,
        };
        let renewed = replica.table.renew(begun.id, why).await;
        renewed.map_err(LimitsError::Unavailable)?;
        begun.complete();
        LimitChange::loss_accepted(author, origin, self.0.clock.seconds()).report();
        self.refresh().await
    }
}

impl Replica {
    /// The number of overrides that are kept although the store has lost them.
    pub(super) fn lost(&self) -> usize {
        lock(&self.lost.0).len()
    }

    pub(super) fn set_lost(&self, names: HashSet<KeyName>) {
        self.lost.replace(names);
    }

    pub(super) fn remove_lost(&self, name: &KeyName) {
        self.lost.remove(name);
    }
}
