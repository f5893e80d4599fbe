//! Tables of figures, and their ratios with the targets.

use crate::contestants::{
    BARE, BARE_PAIR, INCR, OURS, OURS_PAIR, OURS_PERMIT, OURS_PERMIT_PER_KEY, OURS_SLIDING,
    OURS_TWO, SMALLEST,
};
use crate::rounds::{Figures, Keys, Setting};

/// The figures of one setting.
pub struct Table {
    pub setting: Setting,
    pub rows: Vec<(&'static str, Figures)>,
}

impl Table {
    pub fn print(&self) {
        println!("\n{}", self.setting);
        println!(
            "{:36} {:>11} {:>10} {:>10} {:>9} {:>9} {:>7}",
            "", "decisions/s", "p50 us", "p99 us", "server us", "script us", "calls"
        );
        for (name, figures) in &self.rows {
            let hint = if figures.are_disturbed() {
                "  (machine too busy)"
            } else {
                ""
            };
            println!(
                "{name:36} {:11.0} {:10.1} {:10.1} {:9.3} {:9.3} {:7.3}{hint}",
                figures.per_second,
                figures.p50,
                figures.p99,
                figures.server,
                figures.script,
                figures.calls,
            );
        }
    }

    fn figure(&self, name: &str, of: fn(&Figures) -> f64) -> f64 {
        let row = self.rows.iter().find(|(row, _)| *row == name);
        of(&row.expect("a row of the table").1)
    }
}

/// A figure of one contestant divided by that of another in the same table.
struct Ratio {
    of: Figure,
    us: &'static str,
    base: &'static str,
    setting: Setting,
    target: Target,
}

/// A figure to compare.
struct Figure {
    what: &'static str,
    value: fn(&Figures) -> f64,
}

/// The target of a ratio.
#[derive(Clone, Copy)]
enum Target {
    AtMost(f64),
    AtLeast(f64),
    Any,
}

use Target::{Any, AtLeast, AtMost};

const fn ratio(
    of: Figure,
    us: &'static str,
    base: &'static str,
    (tasks, keys): (usize, Keys),
    target: Target,
) -> Ratio {
    Ratio {
        of,
        us,
        base,
        setting: Setting { tasks, keys },
        target,
    }
}

const SCRIPT: Figure = Figure {
    what: "script time",
    value: |figures| figures.script,
};
const SERVER: Figure = Figure {
    what: "server time",
    value: |figures| figures.server,
};
const RATE: Figure = Figure {
    what: "decisions/s",
    value: |figures| figures.per_second,
};
const P50: Figure = Figure {
    what: "p50",
    value: |figures| figures.p50,
};

/// The setting in which costs are compared.
const COST: (usize, Keys) = (64, Keys::Many);

const RATIOS: &[Ratio] = &[
    ratio(SCRIPT, OURS, SMALLEST, COST, AtMost(1.3)),
    ratio(SCRIPT, OURS_TWO, SMALLEST, COST, AtMost(1.9)),
    ratio(SCRIPT, OURS_SLIDING, SMALLEST, COST, AtMost(1.9)),
    ratio(SCRIPT, OURS_PERMIT, SMALLEST, COST, AtMost(1.4)),
    // Tasks of one limit may share calls; one task cannot.
    ratio(SCRIPT, OURS_PERMIT, SMALLEST, (1, Keys::Many), Any),
    ratio(SCRIPT, OURS_PERMIT_PER_KEY, SMALLEST, COST, Any),
    ratio(SCRIPT, BARE, SMALLEST, COST, Any),
    ratio(SCRIPT, INCR, SMALLEST, COST, Any),
    ratio(SERVER, OURS, BARE, COST, Any),
    ratio(RATE, OURS, BARE, (64, Keys::One), AtLeast(6.0)),
    ratio(RATE, OURS, BARE, (512, Keys::One), AtLeast(20.0)),
    ratio(SERVER, OURS, BARE, (64, Keys::One), Any),
    ratio(SERVER, OURS, BARE, (512, Keys::One), Any),
    ratio(RATE, OURS, BARE, (64, Keys::Many), AtLeast(0.95)),
    ratio(RATE, OURS, BARE, (512, Keys::Many), AtLeast(0.95)),
    ratio(P50, OURS, BARE, (1, Keys::One), AtMost(1.1)),
    ratio(P50, OURS, BARE, (1, Keys::Many), AtMost(1.1)),
    ratio(P50, OURS_PAIR, BARE_PAIR, (1, Keys::ManyAndGlobal), Any),
    ratio(RATE, OURS_PAIR, BARE_PAIR, (1, Keys::ManyAndGlobal), Any),
    ratio(RATE, OURS_PAIR, BARE_PAIR, (64, Keys::ManyAndGlobal), Any),
    ratio(RATE, OURS_PAIR, BARE_PAIR, (512, Keys::ManyAndGlobal), Any),
    ratio(SERVER, OURS_PAIR, BARE_PAIR, (1, Keys::ManyAndGlobal), Any),
    ratio(SERVER, OURS_PAIR, BARE_PAIR, (64, Keys::ManyAndGlobal), Any),
    ratio(
        SERVER,
        OURS_PAIR,
        BARE_PAIR,
        (512, Keys::ManyAndGlobal),
        Any,
    ),
];

/// Prints the ratios of the tables that were measured.
pub fn print_ratios(tables: &[Table]) {
    println!("\nTargets");
    for ratio in RATIOS {
        let Some(table) = tables.iter().find(|table| table.setting == ratio.setting) else {
            continue;
        };
        let value = ratio.of.value;
        let measured = table.figure(ratio.us, value) / table.figure(ratio.base, value);
        let (us, base) = (ratio.us, ratio.base);
        let compared = format!("{}, {us} / {base}", ratio.of.what);
        println!(
            "{compared:76} {:42} {measured:8.3}  {}",
            ratio.setting.to_string(),
            ratio.target.verdict(measured)
        );
    }
}

impl Target {
    fn verdict(self, measured: f64) -> String {
        let (words, target, reached) = match self {
            AtMost(most) => ("at most ", most, measured <= most),
            AtLeast(least) => ("at least", least, measured >= least),
            Any => return "-".into(),
        };
        let verdict = if reached { "ok" } else { "MISS" };
        format!("{words} {target:7.3} {verdict}")
    }
}
