//! What replicas write down of their limiters, for tools that are none of them.

use tokio::time::Instant;

use super::Limits;
use crate::store::redis::{FailureKind, LimitTable, StoreError};

/// What was written last, and when all limits had been read then.
#[derive(Default)]
pub(super) struct Published {
    limiters: Vec<(String, String)>,
    as_of: Option<Instant>,
}

impl Published {
    /// Writes down what is attached to the limits, if that is something else than it was, and again
    /// each time that all limits were read anew: what nobody writes any more is forgotten.
    ///
    /// They are compared rather than told of changes, so that no setter has to think of it.
    pub(super) async fn publish(
        &mut self,
        limits: &Limits,
        table: &LimitTable,
        all_read: Option<Instant>,
    ) {
        let attached = limits.limited();
        let described = attached.iter().filter_map(|limited| limited.description());
        let limiters: Vec<_> = described
            .map(|description| (description.field(), description.to_text()))
            .collect();
        if self.limiters == limiters && self.as_of == all_read {
            return;
        }
        let written = if limiters.is_empty() {
            Ok(())
        } else {
            table.publish(&limiters).await
        };
        if written.is_err_and(|error| passes(&error)) {
            return;
        }
        // What cannot be written at all is tried again when all is read anew.
        self.limiters = limiters;
        self.as_of = all_read;
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
