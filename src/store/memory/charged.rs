//! What one key is charged to: its own quota, or that of all.

use std::sync::Arc;

use governor::clock::Clock;

use super::buckets::{Meter, Metered};
use super::clock::SinceZero;
use super::governed::Mode;
use super::own::Own;
use crate::decision::Usage;
use crate::key::Key;

/// What a key is charged to.
pub(super) enum Charged<'a, C: Clock> {
    Meter(&'a Meter<C>),
    Own {
        own: Arc<Own>,
        at: usize,
        time: &'a SinceZero<C>,
    },
}

impl<C: Clock> Metered for Charged<'_, C> {
    fn decide(&self, key: &Key, cost: u32, mode: Mode) -> Usage {
        match self {
            Self::Meter(meter) => meter.decide(key, cost, mode),
            Self::Own { own, at, time } => own.quotas()[*at].decide(&|| time.now(), cost, mode),
        }
    }

    fn charge(&self, key: &Key, cost: u32) {
        match self {
            Self::Meter(meter) => meter.charge(key, cost),
            Self::Own { own, at, time } => own.quotas()[*at].charge(&|| time.now(), cost),
        }
    }

    fn refund(&self, key: &Key, cost: u32) {
        match self {
            Self::Meter(meter) => meter.refund(key, cost),
            Self::Own { own, at, time } => own.quotas()[*at].refund(&|| time.now(), cost),
        }
    }
}
