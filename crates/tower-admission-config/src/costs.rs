//! What requests of a group cost, as the application computes it.

use std::sync::Arc;

use tower_admission::extract::RequestHead;

use super::error::ConfigError;
use super::text::{FromText, shown};

/// The cost of a request.
pub(super) type Cost = Arc<dyn Fn(RequestHead<'_>) -> u32 + Send + Sync>;

/// What a group writes as its cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CostSource {
    One,
    /// What the application calls so.
    Named(String),
}

impl FromText for CostSource {
    fn read(text: &str) -> Result<Self, String> {
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        match text {
            "one" => Ok(Self::One),
            _ if text.is_empty() || !text.bytes().all(is_word) => Err(format!(
                "{} is not a cost: use `one`, or a name of AdmissionBuilder::cost_by",
                shown(text)
            )),
            _ => Ok(Self::Named(text.to_owned())),
        }
    }
}

/// The costs that the application computes.
#[derive(Default)]
pub(super) struct Costs {
    pub(super) default: Option<Cost>,
    named: Vec<(String, Cost)>,
}

impl Costs {
    pub(super) fn add(&mut self, name: &str, cost: Cost) {
        self.named.push((name.to_owned(), cost));
    }

    /// Whether configuration can refer to all of them.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (at, (name, _)) in self.named.iter().enumerate() {
            let problem = if CostSource::read(name) != Ok(CostSource::Named(name.clone())) {
                "is the built-in `one`, or not a word"
            } else if self.named[..at].iter().any(|(other, _)| other == name) {
                "occurs twice"
            } else {
                continue;
            };
            let name = shown(name);
            let problem = format!("AdmissionBuilder::cost_by: the name {name} {problem}");
            return Err(ConfigError::new(problem));
        }
        Ok(())
    }

    /// What requests of a group cost; `None` for 1.
    pub(super) fn of(&self, source: Option<&CostSource>) -> Result<Option<Cost>, String> {
        let name = match source {
            None => return Ok(self.default.clone()),
            Some(CostSource::One) => return Ok(None),
            Some(CostSource::Named(name)) => name,
        };
        let found = self.named.iter().find(|(known, _)| known == name);
        let cost = found.map(|(_, cost)| Some(cost.clone()));
        cost.ok_or_else(|| {
            let own: Vec<_> = self
                .named
                .iter()
                .map(|(own, _)| format!("`{own}`"))
                .collect();
            let own = match &*own {
                [] => "no costs".to_owned(),
                own => own.join(", "),
            };
            let name = shown(name);
            format!("{name} is not `one`; this program names {own} (AdmissionBuilder::cost_by)")
        })
    }
}
