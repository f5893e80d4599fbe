//! Why a limit could not be changed.

use std::fmt;

use super::Limits;

/// Why a limit could not be set or deleted.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum LimitsError {
    /// As many keys as can have limits of their own have some.
    TooMany,
}

impl fmt::Display for LimitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany => write!(f, "{} keys have limits of their own already", Limits::MOST),
        }
    }
}

impl std::error::Error for LimitsError {}
