//! Rejects overrides that no service would enforce.

use tower_admission::{KeyName, Limit, LimitError, QuotaError};

use crate::failure::Failure;
use crate::override_json::OverrideJson;
use crate::redis::Redis;
use crate::suggest::advice;

impl Redis {
    /// Rejects an override that no service would enforce.
    pub(crate) async fn check(&self, key: &KeyName, own: &OverrideJson) -> Result<(), Failure> {
        let limit = read(&own.limit)?;
        let services = self.services().await?;
        if self.is_unchecked {
            return Ok(());
        }
        if !services.reaches(key) {
            return Err(Failure::unknown(format!(
                "{key} is a network, but no service has allow and deny lists for these limits, so this has no \
                    effect (--unchecked sets it anyway)"
            )));
        }
        if key.as_str().contains('#') && services.has_their_secret().is_none() {
            return Err(Failure::unknown(format!(
                "no service under the prefix {:?} has a configured secret, so none finds the key of a \
                    credential (--unchecked sets it anyway)",
                self.prefix
            )));
        }
        let known = services.tiers().iter().map(|tier| &**tier);
        if let Some(tier) = limit.tier()
            && !known.clone().any(|known| known == tier)
        {
            let advice = advice(tier, known);
            return Err(Failure::unknown(format!("unknown tier {tier:?}{advice}")));
        }
        let known = services.names().iter().map(|name| &**name);
        for name in limit.names() {
            if !known.clone().any(|known| known == name) {
                let advice = advice(name, known);
                return Err(Failure::unknown(format!("unknown limit {name:?}{advice}")));
            }
        }
        // Check each part separately. Names have no comma.
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
                [] => format!("{part:?} matches no limit of the services"),
                named => format!(
                    "{part:?} matches no limit of the services: write {}",
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
        Failure::rejected(match error {
            // This error is more precise for a quota.
            LimitError::Quota(quota) if quota != QuotaError::Syntax => {
                format!("invalid limit: {quota}")
            }
            error => format!("invalid limit: {error}"),
        })
    })
}
