//! Tables, and what there is to reach.

use std::ops::Deref;

use crate::measure::Cost;

pub fn title(title: &str) {
    println!("\n{title}");
}

/// Prints a table of costs and hands it back for ratios.
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
    /// How many times the cost of `peer` that of `us` is, each above no middleware.
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

/// What was measured of what is to be reached.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

struct Row {
    what: String,
    measured: f64,
    at_most: Option<f64>,
}

impl Report {
    pub fn at_most(&mut self, what: &str, measured: f64, at_most: f64) {
        self.add(what, measured, Some(at_most));
    }

    /// For comparison, without a target.
    pub fn measured(&mut self, what: &str, measured: f64) {
        self.add(what, measured, None);
    }

    fn add(&mut self, what: &str, measured: f64, at_most: Option<f64>) {
        self.rows.push(Row {
            what: what.into(),
            measured,
            at_most,
        });
    }

    pub fn print(&self) {
        title("To reach");
        println!("{:80} {:>9} {:>8}", "", "measured", "at most");
        for Row {
            what,
            measured,
            at_most,
        } in &self.rows
        {
            match at_most {
                Some(most) => {
                    let verdict = if measured <= most { "ok" } else { "MISS" };
                    println!("{what:80} {measured:9.3} {most:8.3} {verdict}");
                }
                None => println!("{what:80} {measured:9.3} {:>8}", "-"),
            }
        }
    }
}
