//! The descriptions of limiters that replicas write into Redis for tools.

use std::time::Duration;

use super::call_error::CallError;
use super::overrides::RedisOverrides;
use tower_admission::store::overrides::LimiterDescription;

/// How long a description is kept after the last write.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// How long a lost count is kept: three times the interval at which a replica writes it.
const LOST_KEPT: Duration = Duration::from_secs(180);

fn kept() -> [String; 2] {
    [KEPT, LOST_KEPT].map(|kept| kept.as_secs().to_string())
}

impl RedisOverrides {
    pub(super) async fn write_limiters(
        &self,
        limiters: &[LimiterDescription],
        withdrawn: &[LimiterDescription],
    ) -> Result<(), CallError> {
        let mut arguments = kept().to_vec();
        for limiter in limiters {
            let text = serde_json::to_string(limiter).unwrap_or_default();
            arguments.extend([field(limiter), text]);
        }
        // An empty text removes a description.
        for limiter in withdrawn {
            arguments.extend([field(limiter), String::new()]);
        }
        let published = self.call::<u8>(&self.publish, &self.limiters, &arguments[..]);
        published.await.map(drop)
    }

    /// Reads the descriptions in the order of their fields. Leaves out those of a later version.
    pub(super) async fn read_limiters(&self) -> Result<Vec<LimiterDescription>, CallError> {
        let arguments = &kept()[..];
        // Bytes, because other programs may write there.
        let mut found: Vec<(Vec<u8>, Vec<u8>)> = self
            .call(&self.published, &self.limiters, arguments)
            .await?;
        found.sort_unstable();
        let found = found.iter();
        let found = found.filter_map(|(_, text)| serde_json::from_slice(text).ok());
        Ok(found.collect())
    }
}

/// The field of a description in the hash.
fn field(limiter: &LimiterDescription) -> String {
    match limiter {
        LimiterDescription::Rate(rate) => format!("rate {}", rate.place),
        LimiterDescription::Concurrency(slots) => format!("concurrency {}", slots.name),
        LimiterDescription::Lease(slots) => format!("lease {}", slots.name),
        LimiterDescription::Tier { name } => format!("tier {name}"),
        LimiterDescription::Name { name } => format!("name {name}"),
        LimiterDescription::Lists => "lists".to_owned(),
        // One field per secret, so that services that change to another secret do not hide each other's.
        LimiterDescription::Secret { check } => format!("secret {check}"),
        // limiters_publish.lua keeps fields that begin with this word for minutes instead of a day.
        LimiterDescription::Lost { replica, .. } => format!("lost {replica}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_has_a_field_of_its_own() {
        let tier = LimiterDescription::Tier {
            name: "pro".to_owned(),
        };
        assert_eq!(field(&tier), "tier pro");
        let name = LimiterDescription::Name {
            name: "pro".to_owned(),
        };
        assert_eq!(field(&name), "name pro");
        assert_eq!(field(&LimiterDescription::Lists), "lists");
    }
}
