//! Compares the instructions of the hot paths with `baseline.txt`.
//!
//! ```text
//! cargo run --release                fails if a path takes over 5% more than in the baseline
//! cargo run --release -- --update    writes the current counts to the baseline
//! ```
//!
//! Needs Valgrind, and `cargo install gungraun-runner --version 0.20.0`.

mod baseline;
mod counts;

use std::process::ExitCode;

/// In percent.
const TOLERANCE: f64 = 5.0;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let update = match &*arguments {
        [] => false,
        [flag] if flag == "--update" => true,
        _ => {
            eprintln!("usage: instructions [--update]");
            return ExitCode::from(2);
        }
    };
    match run(update) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(update: bool) -> Result<ExitCode, String> {
    let counted = counts::count()?;
    if update {
        baseline::write(&counted)?;
        println!("baseline.txt is up to date");
        return Ok(ExitCode::SUCCESS);
    }

    let expected = baseline::read()?;
    let mut failed = false;
    println!(
        "{:32} {:>8} {:>8}",
        "instructions of a call", "baseline", "now"
    );
    for (name, now) in &counted {
        let Some(before) = expected.get(name) else {
            println!("{name:32} {:>8} {now:8}  NEW", "-");
            failed = true;
            continue;
        };
        let change = (*now as f64 / *before as f64 - 1.0) * 100.0;
        let verdict = if change > TOLERANCE { "  WORSE" } else { "" };
        println!("{name:32} {before:8} {now:8} {change:+7.1}%{verdict}");
        failed |= change > TOLERANCE;
    }
    for name in expected.keys().filter(|name| !counted.contains_key(*name)) {
        println!("{name:32} is in the baseline but was not counted");
        failed = true;
    }
    if failed {
        println!("If the change is intended: cargo run --release -- --update");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
