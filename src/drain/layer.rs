//! The layer: another layer, and the bounds of what is read for its rejections.

use std::sync::Arc;
use std::time::Duration;

use tower_layer::Layer;

use super::service::DrainRejected;
use crate::sync::{AtomicUsize, Ordering};

/// A layer that reads the rest of a rejected request's body before it sends the rejection; made
/// by [`ConcurrencyLimitLayer::drain_rejected`] and [`RateLimitLayer::drain_rejected`].
///
/// [`ConcurrencyLimitLayer::drain_rejected`]: crate::ConcurrencyLimitLayer::drain_rejected
/// [`RateLimitLayer::drain_rejected`]: crate::RateLimitLayer::drain_rejected
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct DrainRejectedLayer<L> {
    layer: L,
    bounds: Arc<Bounds>,
}

/// How much is read, and how much is being read.
#[derive(Debug)]
pub(super) struct Bounds {
    pub(super) max_bytes: u64,
    pub(super) max_time: Duration,
    draining: AtomicUsize,
}

/// A body that is being read. Dropping it makes room for another one.
pub(super) struct Draining(Arc<Bounds>);

impl<L> DrainRejectedLayer<L> {
    /// How many bodies one layer reads at a time. Further rejections are sent at once.
    pub const MAX_DRAINING: usize = 64;

    pub(crate) fn new(layer: L, max_bytes: u64, max_time: Duration) -> Self {
        let bounds = Bounds {
            max_bytes,
            max_time,
            draining: AtomicUsize::new(0),
        };
        Self {
            layer,
            bounds: Arc::new(bounds),
        }
    }

    /// The layer inside.
    pub fn get_ref(&self) -> &L {
        &self.layer
    }
}

impl Bounds {
    /// A place for one more body, if there is one.
    pub(super) fn begin(self: &Arc<Self>) -> Option<Draining> {
        let draining = Draining(self.clone());
        let before = self.draining.fetch_add(1, Ordering::AcqRel);
        (before < DrainRejectedLayer::<()>::MAX_DRAINING).then_some(draining)
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        self.0.draining.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<S, L: Layer<S>> Layer<S> for DrainRejectedLayer<L> {
    type Service = DrainRejected<L::Service>;

    fn layer(&self, inner: S) -> Self::Service {
        DrainRejected::new(self.layer.layer(inner), self.bounds.clone())
    }
}
