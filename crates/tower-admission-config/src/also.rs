//! Groups whose limits a request is under besides those of its own group.

use std::iter;

use super::error::ConfigError;
use super::model::Config;

/// How many groups one request may be under. Each has a key and an address to charge.
const MAX_GROUPS: usize = 4;

impl Config {
    /// The groups that a group names in `also`, each followed by those that it names itself.
    pub(super) fn also(&self, group: &str) -> Result<Vec<&str>, ConfigError> {
        let mut found = Vec::new();
        let Some((group, _)) = self.groups.get_key_value(group) else {
            return Ok(found);
        };
        let mut way = vec![&**group];
        self.add_also(group, &mut way, &mut found)?;
        if found.len() >= MAX_GROUPS {
            let problem = format!(
                "a request can be under the limits of at most {MAX_GROUPS} groups, but these are {}",
                found.len() + 1
            );
            return Err(at(group, problem));
        }
        Ok(found)
    }

    fn add_also<'a>(
        &'a self,
        group: &str,
        way: &mut Vec<&'a str>,
        found: &mut Vec<&'a str>,
    ) -> Result<(), ConfigError> {
        let Some(settings) = self.groups.get(group) else {
            return Ok(());
        };
        for other in &settings.also {
            let Some((other, _)) = self.groups.get_key_value(other) else {
                let names: Vec<_> = self.groups().map(|name| format!("`{name}`")).collect();
                let problem = format!(
                    "unknown group {other:?}; the groups are {}",
                    names.join(", ")
                );
                return Err(at(group, problem));
            };
            if let Some(start) = way.iter().position(|name| name == other) {
                let circle: Vec<_> = way[start..]
                    .iter()
                    .map(|name| format!("`{name}`"))
                    .collect();
                let problem = format!(
                    "these groups form a cycle: {} names `{other}`",
                    circle.join(" names ")
                );
                return Err(at(group, problem));
            }
            if found.contains(&&**other) {
                let problem = format!("group `{other}` is named twice: remove one of them");
                return Err(at(way[0], problem));
            }
            found.push(other);
            way.push(other);
            self.add_also(other, way, found)?;
            way.pop();
        }
        Ok(())
    }

    /// Whether the groups that a request is under can be decided about as one.
    pub(super) fn check_also(&self, group: &str) -> Result<(), ConfigError> {
        let has_rates = |name: &str| -> Result<bool, ConfigError> {
            Ok(!self.groups[name].policies(name)?.list().is_empty())
        };
        let mut first = None;
        for name in iter::once(group).chain(self.also(group)?) {
            if !has_rates(name)? {
                continue;
            }
            let mode = self.on_failure(self.groups[name].on_failure);
            let (first, expected) = *first.get_or_insert((name, mode));
            if mode != expected {
                let problem = format!(
                    "groups `{first}` and `{name}` have rates but a different `on_failure`: one decision covers \
                            both, so use the same"
                );
                return Err(at(group, problem));
            }
        }
        Ok(())
    }
}

fn at(group: &str, problem: impl std::fmt::Display) -> ConfigError {
    ConfigError::at(format!("groups.{group}.also"), problem)
}
