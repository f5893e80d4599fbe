//! Why a limit could not be changed.

use std::fmt;

use super::Limits;
#[cfg(feature = "redis")]
use crate::store::redis::StoreError;

/// Why a limit could not be set or deleted.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum LimitsError {
    /// As many keys as can have limits of their own have some.
    TooMany,
    /// Redis, where they are kept, cannot be reached.
    #[cfg(feature = "redis")]
    Unavailable(StoreError),
}

impl fmt::Display for LimitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany => write!(f, "{} keys have limits of their own already", Limits::MOST),
            #[cfg(feature = "redis")]
            Self::Unavailable(_) => {
                f.write_str("the store that keeps the limits cannot be reached")
            }
        }
    }
}

impl std::error::Error for LimitsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::TooMany => None,
            #[cfg(feature = "redis")]
            Self::Unavailable(error) => Some(error),
        }
    }
}
