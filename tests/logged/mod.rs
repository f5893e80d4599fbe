//! Captures what the thread of a test logs.

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::Once;

thread_local! {
    static CAPTURED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Capture;

impl Write for Capture {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        CAPTURED.with_borrow_mut(|captured| captured.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines that this thread logs during `job`, without time and target.
pub(crate) fn logged(job: impl FnOnce()) -> Vec<String> {
    static ONCE: Once = Once::new();
    // One subscriber for all threads: otherwise the first event of a thread without one switches that event off in all.
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_writer(|| Capture)
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .init();
    });
    CAPTURED.take();
    job();
    let log = String::from_utf8(CAPTURED.take()).unwrap();
    log.lines().map(|line| line.trim().to_owned()).collect()
}
