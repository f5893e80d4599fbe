//! Rejects what no service would go by.

use tower_admission::{KeyName, Limit, LimitError, QuotaError};

use crate::failure::Failure;
use crate::own::Own;
use crate::redis::Redis;
use crate::suggest::advice;

impl Redis {
    /// Rejects an override that no service would go by.
    pub(crate) async fn check(&self, key: &KeyName, own: &Own) -> Result<(), Failure> {
        let limit = read(&own.limit)?;
        let services = self.services().await?;
        if self.is_unchecked {
            return Ok(());
        }
        if !services.reaches(key) {
            return Err(Failure::unknown(format!(
                "{key} is a network, and no service has allow and deny lists for these limits, so it would have no \
                 effect (--unchecked takes it)"
            )));
        }
        if key.as_str().contains('#') && services.has_their_secret().is_none() {
            return Err(Failure::unknown(format!(
                "no service under the prefix {:?} has a secret of its own, so none finds the key of a credential \
                 (--unchecked takes it)",
                self.prefix
            )));
        }
        let known = services.tiers().iter().map(|tier| &**tier);
        if let Some(tier) = limit.tier()
            && !known.clone().any(|known| known == tier)
        {
            let advice = advice(tier, known);
            return Err(Failure::unknown(format!(
                "no tier is called {tier:?}{advice}"
            )));
        }
        let known = services.names().iter().map(|name| &**name);
        for name in limit.names() {
            if !known.clone().any(|known| known == name) {
                let advice = advice(name, known);
                return Err(Failure::unknown(format!(
                    "no limit is called {name:?}{advice}"
                )));
            }
        }
        // Each part by itself, as no name has a comma in it.
        for part in own.limit.split(',').map(str::trim) {
            if services.applies(&read(part)?) {
                continue;
            }
            let value = part.split_once('=').map_or(part, |(_, value)| value.trim());
            let named = known.clone().map(|name| format!("{name}={value}"));
            let named =
                named.filter(|named| read(named).is_ok_and(|named| services.applies(&named)));
            let named: Vec<_> = named.collect();
            return Err(Failure::unknown(match &named[..] {
                [] => format!("{part:?} is about no limit that services have"),
                named => format!(
                    "{part:?} is about no limit that services have: write {}",
                    named.join(" or ")
                ),
            }));
        }
        Ok(())
    }
}

/// Reads a limit.
pub(crate) fn read(limit: &str) -> Result<Limit, Failure> {
    limit.parse().map_err(|error| {
        Failure::refused(match error {
            // Of what is written as a quota it says more.
            LimitError::Quota(quota) if quota != QuotaError::Syntax => {
                format!("no limit: {quota}")
            }
            error => format!("no limit: {error}"),
        })
    })
}
