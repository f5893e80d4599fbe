//! The clock of stalled responses: whole milliseconds, which fit an atomic.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::Instant;

/// Milliseconds since an hour before the first call.
pub(super) fn now() -> u64 {
    (Instant::now() + HOUR)
        .saturating_duration_since(epoch())
        .as_millis() as u64
}

pub(super) fn instant(millis: u64) -> Instant {
    epoch() + Duration::from_millis(millis) - HOUR
}

/// The margin for tokio clocks: one runtime's clock may be paused and behind another's.
const HOUR: Duration = Duration::from_secs(3600);

fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}
