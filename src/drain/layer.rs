//! The layer: wraps another layer, with bounds for reading rejected bodies.

use std::sync::Arc;
use std::time::Duration;

use tower_layer::Layer;

use super::service::DrainRejected;
use crate::sync::{AtomicUsize, Ordering};

/// A layer that reads the rest of a rejected request's body before it sends the rejection. Made by
/// [`ConcurrencyLimitLayer::drain_rejected`] and [`RateLimitLayer::drain_rejected`].
///
/// [`ConcurrencyLimitLayer::drain_rejected`]: crate::ConcurrencyLimitLayer::drain_rejected
/// [`RateLimitLayer::drain_rejected`]: crate::RateLimitLayer::drain_rejected
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct DrainRejectedLayer<L> {
    layer: L,
    bounds: Arc<DrainBounds>,
}

/// The bounds for one body, and the number of bodies that are being read.
#[derive(Debug)]
pub(super) struct DrainBounds {
    pub(super) max_bytes: u64,
    pub(super) max_time: Duration,
    draining: AtomicUsize,
}

/// Counts one body that is being read. Dropping it releases the slot.
pub(super) struct DrainSlot(Arc<DrainBounds>);

impl<L> DrainRejectedLayer<L> {
    /// The maximum number of bodies that one layer reads at a time. Further rejections are sent at
    /// once.
    pub const MAX_DRAINING: usize = 64;

    pub(crate) fn new(layer: L, max_bytes: u64, max_time: Duration) -> Self {
        let bounds = DrainBounds {
            max_bytes,
            max_time,
            draining: AtomicUsize::new(0),
        };
        Self {
            layer,
            bounds: Arc::new(bounds),
        }
    }

    /// The wrapped layer.
    pub fn get_ref(&self) -> &L {
        &self.layer
    }
}

impl DrainBounds {
    /// Reserves a slot for one more body, if one is free.
    pub(super) fn begin(self: &Arc<Self>) -> Option<DrainSlot> {
        let draining = DrainSlot(self.clone());
        let before = self.draining.fetch_add(1, Ordering::AcqRel);
        (before < DrainRejectedLayer::<()>::MAX_DRAINING).then_some(draining)
    }
}

impl Drop for DrainSlot {
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
