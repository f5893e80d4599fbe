//! The page, in a real browser.

use std::net::SocketAddr;

use axum::Router;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tower::Layer;
use tower_admission::AccessLayer;

use super::chromium::Page;
use super::{Service, TOKEN};

/// Starts a server on a free port, or on a given address.
pub(crate) async fn serve(app: Router, address: &str) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (address, server)
}

/// Opens the page of a nested router.
pub(crate) async fn open(service: &Service) -> Page {
    let (address, _) = serve(service.app.clone(), "127.0.0.1:0").await;
    Page::open(&format!("http://{address}/admin")).await
}

pub(crate) async fn fill(page: &mut Page, selector: &str, text: &str) {
    let fill = format!("(document.querySelector({selector:?}).value = {text:?})");
    page.evaluate(&fill).await;
    let told = format!(
        "document.querySelector({selector:?}).dispatchEvent(new Event('input', {{ bubbles: true }}))"
    );
    page.evaluate(&told).await;
}

pub(crate) async fn sign_in(page: &mut Page) {
    page.until("at('token-dialog').open", "true").await;
    fill(page, "#token", TOKEN).await;
    page.click("#token-form button").await;
    page.until("at('state').textContent", "Live").await;
}

/// The cells of the first row of a table, without the notes of its limit.
fn cells(table: &str) -> String {
    format!(
        "[...(at({table:?}).rows[0]?.cells ?? [])].map((cell) => \
            (cell.className === 'limit' ? cell.firstChild : cell).textContent).slice(0, 5).join('|')"
    )
}

#[tokio::test]
async fn the_page_asks_for_a_token_and_keeps_it_for_the_tab() {
    let service = Service::new();
    let mut page = open(&service).await;
    // A wrong token, and one that no header can contain.
    page.until("at('token-dialog').open", "true").await;
    assert_eq!(page.evaluate("at('main').hidden").await, "true");
    assert_eq!(page.evaluate("document.activeElement.id").await, "token");
    fill(&mut page, "#token", "zażółć").await;
    page.click("#token-form button").await;
    page.until("at('token-wrong').textContent.includes('letters')", "true")
        .await;
    assert!(page.errors.is_empty(), "{:?}", page.errors);
    fill(&mut page, "#token", "not-the-token-of-operators").await;
    page.click("#token-form button").await;
    page.until(
        "at('token-wrong').textContent",
        "This token is not accepted.",
    )
    .await;
    // The browser logs each 401 to the console.
    assert!(page.errors.iter().all(|error| error.contains("401")));
    page.errors.clear();
    sign_in(&mut page).await;
    page.until(
        "sessionStorage.length + ',' + localStorage.length + ',' + document.cookie",
        "1,0,",
    )
    .await;
    let replica = page.evaluate("at('replicas').textContent").await;
    let pid = std::process::id();
    assert!(replica.ends_with(&format!(" (pid {pid})")), "{replica}");

    // A reload keeps the token; signing out does not.
    page.call("Page.reload", json!({})).await;
    page.until("at('state').textContent", "Live").await;
    page.click("#sign-out").await;
    page.until(
        "at('token-dialog').open && sessionStorage.length === 0",
        "true",
    )
    .await;
    page.until("at('state').textContent", "Not connected").await;
    assert!(page.errors.is_empty(), "{:?}", page.errors);
}

/// The URL ends with a slash.
#[tokio::test]
async fn the_page_shows_rejections_and_requests_in_flight() {
    let service = Service::new();
    let (address, _) = serve(service.app.clone(), "127.0.0.1:0").await;
    let mut page = Page::open(&format!("http://{address}/admin/")).await;
    sign_in(&mut page).await;

    // The chart shows rejections.
    for _ in 0..1_236 {
        service.calls("acme").await;
    }
    let sums = "[...at('limiters').rows].map((row) => [...row.cells].slice(3).map((cell) => cell.textContent).join('|')).join()";
    page.until(sums, "2|1,234|0").await;
    page.until("Number(at('rejected').dataset.peak) > 0", "true")
        .await;
    let painted = "(() => { const c = at('rejected'); plot('rejected'); \
        const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; \
        const s = getComputedStyle(document.documentElement).getPropertyValue('--s0').trim(); \
        const [r, g, b] = [1, 3, 5].map((n) => parseInt(s.slice(n, n + 2), 16)); \
        let n = 0; for (let i = 0; i < p.length; i += 4) \
        if (p[i + 3] === 255 && p[i] === r && p[i + 1] === g && p[i + 2] === b) n += 1; \
        return n > 50; })()";
    assert_eq!(page.evaluate(painted).await, "true");
    page.until(
        "[...at('rejected-keys').rows[0].cells].slice(1, 4).map((cell) => cell.textContent).join('|')",
        "api: callshttp|1,234|UsageLimit…Ban…",
    )
    .await;

    // Bars in flight: green, amber, red.
    let mut held = Vec::new();
    for (count, level) in [(3, ""), (7, "amber"), (9, "red")] {
        while held.len() < count {
            held.push(service.chat.try_acquire().unwrap());
        }
        let shown = "(at('in-flight').querySelector('.of')?.textContent ?? '') + at('in-flight').firstChild?.className";
        page.until(shown, &format!("{count} of 10{level}")).await;
    }
    let note = page
        .evaluate("at('in-flight').querySelector('.note').textContent")
        .await;
    assert!(note.starts_with("in this process: "), "{note}");

    // From the list of rejected keys to an override, and to a ban.
    page.click("#rejected-keys tr button:nth-of-type(2)").await;
    page.until("document.activeElement.id", "edit-limit").await;
    let key = page.evaluate("at('edit-key').value").await;
    assert!(key.starts_with("org#"), "{key}");
    page.until(
        "at('edit-usage').querySelector('.of').textContent",
        "2 of 2",
    )
    .await;
    fill(&mut page, "#edit-limit", "calls=9/h").await;
    page.click("#edit-form .primary").await;
    page.until(
        &cells("limits"),
        &format!("{key}|calls=9/h|UsageEdit…Delete…"),
    )
    .await;
    assert!(service.calls("acme").await);
    page.click("#rejected-keys tr button:nth-of-type(3)").await;
    page.until("at('edit-limit').value", "deny all").await;
    page.until(
        "at('edit-replaces').textContent.startsWith('The current override is calls=9/h. It does not return')",
        "true",
    )
    .await;
    page.until("at('edit-for').selectedOptions[0].text", "in 1 hour")
        .await;
    fill(&mut page, "#edit-note", "ticket 4711").await;
    page.click("#edit-form .primary").await;
    page.until(
        &cells("limits"),
        &format!("{key}|deny all|UsageEdit…Delete…"),
    )
    .await;
    assert!(!service.calls("acme").await);
    let noted = "at('limits').rows[0].cells[1].lastChild.textContent";
    let noted = page.evaluate(noted).await;
    assert!(
        noted.starts_with("until ") && noted.contains(" · ticket 4711 · set "),
        "{noted}"
    );
    // An edit keeps the end and the note.
    let path = format!("/limits/{}", super::encoded(&key));
    let before = service.ask("GET", &path, "").await.json;
    page.click("#limits tr button:nth-of-type(2)").await;
    page.until("at('edit-for').value", "keep").await;
    fill(&mut page, "#edit-limit", "calls=8/h").await;
    page.click("#edit-form .primary").await;
    page.until(
        &cells("limits"),
        &format!("{key}|calls=8/h|UsageEdit…Delete…"),
    )
    .await;
    let after = service.ask("GET", &path, "").await.json;
    assert_eq!(
        (&after["end"], &after["note"]),
        (&before["end"], &before["note"])
    );
    assert!(
        page.errors.iter().all(|error| error.contains("404")),
        "{:?}",
        page.errors
    );
}

#[tokio::test]
async fn the_page_adds_changes_and_deletes_overrides() {
    let service = Service::new();
    let mut page = open(&service).await;
    sign_in(&mut page).await;
    for _ in 0..3 {
        service.calls("acme").await;
    }
    // An added override applies, and has the typed name.
    page.click("#add").await;
    page.until("document.activeElement.id", "edit-key").await;
    fill(&mut page, "#edit-key", "org:acme").await;
    fill(&mut page, "#edit-limit", "call=100/h").await;
    page.click("#edit-form .primary").await;
    page.until(
        "at('edit-wrong').textContent",
        "No limit has the name call: the names are calls, chat.",
    )
    .await;
    fill(&mut page, "#edit-limit", "calls=100/h").await;
    page.click("#edit-form .primary").await;
    page.until(&cells("limits"), "org:acme|calls=100/h|UsageEdit…Delete…")
        .await;
    assert!(service.calls("acme").await);
    page.until(
        "at('rejected-keys').rows[0]?.cells[0].textContent",
        "org:acme",
    )
    .await;

    // The usage of a key, from its row and from the search form.
    page.click("[aria-label='Usage of org:acme']").await;
    page.until("at('usage-override').textContent", "Override: calls=100/h")
        .await;
    let usage = "at('usage').firstChild.textContent";
    page.until(usage, "callsrate, override3 of 100in this process")
        .await;
    page.click("#usage-close").await;
    fill(&mut page, "#search", "org:acme").await;
    page.click("#find-form button").await;
    page.until("at('usage-dialog').open", "true").await;
    page.click("#usage-close").await;
    fill(&mut page, "#search", "").await;

    // Markup in a key is shown as text. The list shows changes of other operators.
    let markup = "org:<img src=x onerror=alert(1)>";
    assert_eq!(service.put(markup, "1/h").await.status, 200);
    page.until("at('limits').rows.length", "2").await;
    assert_eq!(page.evaluate("document.images.length").await, "0");

    // A deletion needs a confirmation.
    let delete = "[aria-label='Delete org:acme']";
    page.click(delete).await;
    page.until("at('delete-dialog').open", "true").await;
    let text = page.evaluate("at('delete-dialog').textContent").await;
    assert!(text.contains("the default applies"), "{text}");
    assert_eq!(
        page.evaluate("document.activeElement.id").await,
        "delete-cancel"
    );
    page.press("Escape", 27, "").await;
    page.until("at('delete-dialog').open", "false").await;
    assert_eq!(service.limits.len(), 2);
    page.click(delete).await;
    page.until("at('delete-dialog').open", "true").await;
    page.click("#delete-form .danger").await;
    page.until("at('limits').rows.length", "1").await;
    assert_eq!(service.limits.len(), 1);
    assert!(!service.calls("acme").await, "the default applies again");
    let refusal = |error: &String| error.contains("422") || error.contains("404");
    assert!(page.errors.iter().all(refusal), "{:?}", page.errors);
}

#[tokio::test]
async fn a_conflicting_edit_shows_both_overrides() {
    let service = Service::new();
    service.put("org:acme", "1/h").await;
    let mut page = open(&service).await;
    sign_in(&mut page).await;
    let shown = "[at('edit-conflict').hidden, at('conflict-theirs').textContent, at('conflict-mine').textContent].join()";
    for keeps in [true, false] {
        page.until("at('limits').rows.length", "1").await;
        page.click("[aria-label='Edit org:acme']").await;
        page.until("at('edit-dialog').open", "true").await;
        let theirs = if keeps { "2/h" } else { "3/h" };
        service.put("org:acme", theirs).await;
        fill(&mut page, "#edit-limit", "9/h").await;
        page.click("#edit-form .primary").await;
        page.until(shown, &format!("false,{theirs},9/h")).await;
        page.until("document.activeElement.id", "keep-theirs").await;
        assert_eq!(page.evaluate("at('edit-dialog').open").await, "true");
        let chosen = if keeps {
            "#keep-theirs"
        } else {
            "#edit-form .primary"
        };
        page.click(chosen).await;
        page.until("at('edit-dialog').open", "false").await;
        let counts = if keeps { theirs } else { "9/h" };
        page.until(
            &cells("limits"),
            &format!("org:acme|{counts}|UsageEdit…Delete…"),
        )
        .await;
        let limit = service.ask("GET", "/limits/org:acme", "").await;
        assert_eq!(limit.json["limit"], counts);
    }
    // Another operator changes the override before the confirmation.
    page.click("[aria-label='Delete org:acme']").await;
    page.until("at('delete-dialog').open", "true").await;
    service.put("org:acme", "4/h").await;
    page.click("#delete-form .danger").await;
    page.until("at('delete-limit').textContent", "4/h").await;
    assert_eq!(service.limits.len(), 1);
    page.click("#delete-form .danger").await;
    page.until("at('limits').rows.length", "0").await;
    assert!(
        page.errors.iter().all(|error| error.contains("412")),
        "{:?}",
        page.errors
    );
}

#[tokio::test]
async fn the_page_is_live_only_while_data_arrives() {
    let service = Service::new();
    let (address, server) = serve(service.app.clone(), "127.0.0.1:0").await;
    let mut page = Page::open(&format!("http://{address}/admin")).await;
    sign_in(&mut page).await;
    page.until("at('state').className", "live").await;
    // A server that accepts requests and never responds.
    server.abort();
    let _ = server.await;
    let silent = TcpListener::bind(address).await.unwrap();
    // Open connections are still served.
    page.evaluate("(fetch = () => new Promise(() => {}))").await;
    page.until("at('state').className", "lost").await;
    page.until("at('state').textContent.startsWith('No data: ')", "true")
        .await;
    page.until("at('silent').textContent.startsWith('for ')", "true")
        .await;
    page.until("at('main').classList.contains('old')", "true")
        .await;
    drop(silent);
    page.call("Page.reload", json!({})).await;
}

#[tokio::test]
async fn the_page_finds_one_of_a_thousand_overrides() {
    let service = Service::new();
    for n in 0..1_000 {
        let key = format!("org:tenant-{n:04}").parse().unwrap();
        let limit = format!("calls={}/h", 10_000 + n).parse().unwrap();
        service.limits.set(&key, limit).await.unwrap();
    }
    let mut page = open(&service).await;
    sign_in(&mut page).await;
    let count = "at('limits-count').textContent";
    page.until(count, "200 of 1,000 shown").await;
    page.click("#more").await;
    page.until(count, "400 of 1,000 shown").await;
    fill(&mut page, "#search", "TENANT-0731").await;
    page.until(count, "1 of 1,000 found").await;
    page.until(
        &cells("limits"),
        "org:tenant-0731|calls=10731/h|UsageEdit…Delete…",
    )
    .await;
    // The search stays while other operators change overrides.
    service.put("org:other", "calls=1/h").await;
    page.until(count, "1 of 1,001 found").await;
    fill(&mut page, "#search", "nothing like it").await;
    page.until(
        "at('no-limits').textContent",
        "No override contains this text.",
    )
    .await;
    assert!(page.errors.is_empty(), "{:?}", page.errors);
}

#[tokio::test]
async fn the_usage_of_a_banned_client_names_the_ban() {
    let service = Service::new();
    let _listed = AccessLayer::new(&service.limits).layer(service.app.clone());
    service.put("ip:203.0.113.0/24", "deny all").await;
    let mut page = open(&service).await;
    sign_in(&mut page).await;
    for (key, listed) in [
        (
            "ip:203.0.113.7",
            "Banned by ip:203.0.113.0/24 (set at run time).",
        ),
        ("ip:203.0.112.7", ""),
    ] {
        fill(&mut page, "#search", key).await;
        page.click("#find-form button").await;
        page.until("at('usage-key').textContent", key).await;
        page.until("at('usage-listed').textContent", listed).await;
        page.until("at('usage-listed').hidden", &listed.is_empty().to_string())
            .await;
        page.click("#usage-close").await;
    }
    assert!(page.errors.is_empty(), "{:?}", page.errors);
}
