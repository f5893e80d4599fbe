//! Why a limit could not be changed.

use std::fmt;
use std::sync::Arc;

use super::Limits;
#[cfg(feature = "redis")]
use crate::store::redis::StoreError;

/// Why an override could not be set or deleted.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum LimitsError {
    /// [`Limits::MOST`] keys have an override already.
    TooMany,
    /// The overrides would have more than [`Limits::MAX_RATES`] distinct rates.
    TooManyRates,
    /// The override names a tier that is not declared.
    UnknownTier {
        /// The tier that it names.
        tier: Arc<str>,
        /// The tiers that are declared.
        known: Vec<Arc<str>>,
    },
    /// Redis, where they are kept, cannot be reached.
    #[cfg(feature = "redis")]
    Unavailable(StoreError),
}

impl fmt::Display for LimitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany => write!(f, "{} keys have an override already", Limits::MOST),
            Self::TooManyRates => {
                let most = Limits::MAX_RATES;
                write!(
                    f,
                    "the overrides have {most} distinct rates already: use one of these"
                )
            }
            Self::UnknownTier { tier, known } => {
                write!(
                    f,
                    "there is no tier {tier:?}; there are: {}",
                    known.join(", ")
                )
            }
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
            Self::TooMany | Self::TooManyRates | Self::UnknownTier { .. } => None,
            #[cfg(feature = "redis")]
            Self::Unavailable(error) => Some(error),
        }
    }
}
