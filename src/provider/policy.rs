//! How a configuration makes a [`Policy`].

use crate::limit::{Limit, LimitError};
use crate::policy::Policy;
use crate::quota::Quota;

/// For configuration: policies from the rates of a group.
pub trait PolicyInternals: Sized {
    /// A policy without quotas.
    #[must_use]
    fn empty() -> Self;

    /// Removes the quotas that are off in every tier.
    #[must_use]
    fn without_off_quotas(self) -> Self;

    /// A limit with these rates by quota name.
    ///
    /// # Errors
    ///
    /// A name is invalid or occurs twice.
    fn limit_of<'a>(
        quotas: impl IntoIterator<Item = (&'a str, Quota)>,
    ) -> Result<Limit, LimitError>;
}

impl PolicyInternals for Policy {
    fn empty() -> Self {
        Self::empty()
    }

    fn without_off_quotas(self) -> Self {
        self.without_off_quotas()
    }

    fn limit_of<'a>(
        quotas: impl IntoIterator<Item = (&'a str, Quota)>,
    ) -> Result<Limit, LimitError> {
        Limit::from_quotas(quotas)
    }
}
