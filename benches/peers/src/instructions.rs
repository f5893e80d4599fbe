//! Instructions per request of an axum server, counted by callgrind.

use std::io::ErrorKind;
use std::process::Command;

use tokio::runtime::Runtime;

use crate::Effort;
use crate::apps::{APPS, App};
use crate::load::Connection;
use crate::report::{Report, title};
use crate::server::{runtime, serve};

/// Serves requests of one client on the same thread, so that every run does the same work in the
/// same order.
pub fn serve_and_exit(app: &App, requests: u64) {
    let runtime = runtime();
    let mut connection = runtime.block_on(async {
        let address = serve(app).await;
        Connection::open(app, address).await
    });
    counted_by_callgrind(&runtime, &mut connection, requests);
}

/// Callgrind counts only this function. The calibration of the clock at the start takes a fixed
/// time, and so a varying number of instructions.
#[inline(never)]
fn counted_by_callgrind(runtime: &Runtime, connection: &mut Connection, requests: u64) {
    runtime.block_on(async {
        for _ in 0..requests {
            connection.call().await;
        }
    });
}

/// Work before and after the requests is in both counts and cancels out in the difference.
const FEW: u64 = 1_000;
const MANY: u64 = 5_000;

pub fn per_request(_: Effort, report: &mut Report) {
    title(
        "axum, HTTP/1 keep-alive on loopback: instructions per request, including those of the client",
    );
    let mut baseline = None;
    for app in &APPS {
        let (Some(few), Some(many)) = (count(app, FEW), count(app, MANY)) else {
            println!("Valgrind is not installed");
            return;
        };
        let each = (many - few) as f64 / (MANY - FEW) as f64;
        let baseline = *baseline.get_or_insert(each);
        let over = each - baseline;
        println!("{:44} {each:9.0}   over {over:9.0}", app.name);
        if over > 0.0 {
            let what = format!("axum served, instructions, {} over no middleware", app.name);
            report.measured(&what, over);
        }
    }
}

/// The instructions of a process that serves this number of requests; `None` without Valgrind.
fn count(app: &App, requests: u64) -> Option<u64> {
    let program = std::env::current_exe().expect("a path");
    let counted = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*counted_by_callgrind*")
        .arg(program)
        .args(["--serve", app.argument, "--requests", &requests.to_string()])
        .output();
    let output = match counted {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        counted => counted.expect("valgrind runs"),
    };
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}");
    let (_, count) = report.split_once("Collected : ").expect("a count");
    let count = count.split_whitespace().next().expect("a count");
    Some(count.parse().expect("a number"))
}
