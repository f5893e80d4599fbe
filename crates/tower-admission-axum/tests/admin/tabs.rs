//! Many open tabs.

use super::Service;
use super::chromium::Page;
use super::page::{serve, sign_in};

/// Over HTTP/1.1 a browser opens six connections to a host. Pages with streams would leave none for the seventh.
#[tokio::test]
async fn seven_tabs_are_live_at_the_same_time() {
    let service = Service::new();
    let (address, _) = serve(service.app.clone(), "127.0.0.1:0").await;
    let url = format!("http://{address}/admin");
    let mut page = Page::open(&url).await;
    sign_in(&mut page).await;
    let mut windows = Vec::new();
    for _ in 0..7 {
        windows.push(page.open_window(&url).await);
        sign_in(&mut page).await;
        assert_eq!(page.evaluate("document.hidden").await, "false");
    }
    let limit = |n: usize| format!("calls={}/h", n + 1);
    for (n, window) in windows.iter().enumerate() {
        page.look_at(window);
        // Each page sees a change, and makes one.
        let limits =
            "[...at('limits').rows].map((row) => row.cells[1].firstChild.textContent).join()";
        let before = (0..n).map(limit).collect::<Vec<_>>().join(",");
        page.until(limits, &before).await;
        let set = format!(
            "void ask('PUT', 'limits/org:n{n}', {{ body: {{ limit: '{}' }} }})",
            limit(n)
        );
        page.evaluate(&set).await;
        page.until("at('state').textContent", "Live").await;
    }
    let all = "[...at('limits').rows].length";
    page.until(all, "7").await;
    assert!(page.errors.is_empty(), "{:?}", page.errors);
}

#[tokio::test]
async fn a_hidden_tab_does_not_poll() {
    let service = Service::new();
    let (address, _) = serve(service.app.clone(), "127.0.0.1:0").await;
    let mut page = Page::open(&format!("http://{address}/admin")).await;
    sign_in(&mut page).await;
    let count = "(asked = 0, own = fetch, fetch = (...all) => { asked += 1; return own(...all); })";
    page.evaluate(count).await;
    page.until("asked > 1", "true").await;
    let hide = |hidden: bool| {
        format!(
            "(Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }}), \
             document.dispatchEvent(new Event('visibilitychange')))"
        )
    };
    page.evaluate(&hide(true)).await;
    // After the pending poll the data becomes old without further polls.
    page.until("at('state').className", "lost").await;
    let asked = page.evaluate("asked").await;
    page.until(
        "Number(at('silent').textContent.match(/[0-9]+/)) > 5",
        "true",
    )
    .await;
    assert_eq!(page.evaluate("asked").await, asked);
    page.evaluate(&hide(false)).await;
    page.until("at('state').className", "live").await;
    assert!(page.errors.is_empty(), "{:?}", page.errors);
}
