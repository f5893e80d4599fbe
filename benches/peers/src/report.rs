//! Prints tables and compares figures with their targets.

use std::ops::Deref;

use crate::measure::Cost;

pub fn title(title: &str) {
    println!("\n{title}");
}

/// Prints a table of costs and returns it for ratios.
pub fn table(heading: &str, costs: Vec<Cost>) -> Costs {
    title(heading);
    for cost in &costs {
        let Cost {
            name, nanos, over, ..
        } = cost;
        let hint = if cost.disturbed {
            "  (machine too busy)"
        } else {
            ""
        };
        println!("{name:44} {nanos:9.1}   over {over:9.1}{hint}");
    }
    Costs(costs)
}

pub struct Costs(Vec<Cost>);

impl Deref for Costs {
    type Target = [Cost];

    fn deref(&self) -> &[Cost] {
        &self.0
    }
}

impl Costs {
    /// The ratio of the costs of `us` and `peer`, each above no middleware.
    pub fn ratio(&self, us: &str, peer: &str) -> f64 {
        let over = |name| {
            let mut costs = self.iter();
            costs
                .find(|cost| cost.name == name)
                .expect("a row of the table")
                .over
        };
        over(us) / over(peer)
    }
}

/// A measured figure and its target.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

struct Row {
    what: String,
    measured: f64,
    target: Target,
}

/// The target of a figure.
enum Target {
    AtMost(f64),
    AtLeast(f64),
    Any,
}

impl Report {
    pub fn at_most(&mut self, what: &str, measured: f64, most: f64) {
        self.add(what, measured, Target::AtMost(most));
    }

    pub fn at_least(&mut self, what: &str, measured: f64, least: f64) {
        self.add(what, measured, Target::AtLeast(least));
    }

    /// For comparison, without a target.
    pub fn measured(&mut self, what: &str, measured: f64) {
        self.add(what, measured, Target::Any);
    }

    fn add(&mut self, what: &str, measured: f64, target: Target) {
        self.rows.push(Row {
            what: what.into(),
            measured,
            target,
        });
    }

    pub fn print(&self) {
        title("Targets");
        for row in &self.rows {
            println!("{:84} {:9.3}  {}", row.what, row.measured, row.verdict());
        }
    }
}

impl Row {
    fn verdict(&self) -> String {
        let (words, target, reached) = match self.target {
            Target::AtMost(most) => ("at most ", most, self.measured <= most),
            Target::AtLeast(least) => ("at least", least, self.measured >= least),
            Target::Any => return String::from("-"),
        };
        let verdict = if reached { "ok" } else { "MISS" };
        format!("{words} {target:7.3} {verdict}")
    }
}
