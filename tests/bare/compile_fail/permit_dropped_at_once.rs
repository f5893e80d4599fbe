//! A permit that is not kept limits nothing.
#![deny(unused_must_use)]
use tower_admission::ConcurrencyLimitLayer;

fn main() -> Result<(), tower_admission::Rejection> {
    let limiter = ConcurrencyLimitLayer::new(64).limiter();
    limiter.try_acquire()?;
    Ok(())
}
