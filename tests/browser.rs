//! The page of the WebSocket example, in a real browser.

mod chromium;

use std::process::Command;

use self::chromium::{Page, Process};

fn example(name: &str) -> (Process, String) {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.extend(["examples", name]);
    path.set_extension(std::env::consts::EXE_EXTENSION);
    let (process, line) = Process::start(
        Command::new(path).env("LISTEN", "127.0.0.1:0"),
        "Listening on ",
        "build the examples first: `cargo build --all-features --examples`",
    );
    let address = line.trim_end().strip_prefix("Listening on ");
    (process, address.unwrap().to_owned())
}

/// Waits until the page shows these numbers.
async fn until_shows(page: &mut Page, expected: [u32; 4]) {
    let numbers = "['open', 'rejected', 'echoed', 'over'].map(id => at(id).textContent)";
    let expected = expected.map(|number| number.to_string()).join(",");
    page.until(numbers, &expected).await;
}

#[tokio::test]
async fn the_page_shows_rejected_connections_and_messages() {
    let (_server, address) = example("websocket");
    let mut page = Page::open(&address).await;
    until_shows(&mut page, [0, 0, 0, 0]).await;

    for open in 1..=3 {
        page.click("#connect").await;
        until_shows(&mut page, [open, 0, 0, 0]).await;
    }
    page.click("#connect").await;
    until_shows(&mut page, [3, 1, 0, 0]).await;
    let last = "document.querySelector('#sockets li:last-child').textContent";
    let told = page.evaluate(last).await;
    assert!(
        told.contains("1008 policy violation key_at_capacity"),
        "{told}"
    );

    // Eight messages on a connection that may send five. Then eight more: the tenth violation closes the connection.
    let eight = "[aria-label='Send eight: connection 1']";
    page.click(eight).await;
    until_shows(&mut page, [3, 1, 5, 3]).await;
    let log = page.evaluate("at('log').textContent").await;
    assert!(log.contains("Rate limit exceeded."), "{log}");
    page.click(eight).await;
    until_shows(&mut page, [2, 1, 5, 9]).await;

    // The closed connection made room for another one.
    page.click("#connect").await;
    until_shows(&mut page, [3, 1, 5, 9]).await;
    page.click("[aria-label='Close: connection 2']").await;
    until_shows(&mut page, [2, 1, 5, 9]).await;
    assert!(page.errors.is_empty(), "{:?}", page.errors);

    // The page fits the width of a phone.
    page.resize(360, 640, true).await;
    page.until("document.documentElement.scrollWidth <= innerWidth", "true")
        .await;
}
