//! The page, in a real browser.

use axum::Router;
use serde_json::json;
use tokio::net::TcpListener;

use super::chromium::Page;
use super::{Service, TOKEN};

/// A server with a page, and the page, nested as it should not have to know of.
async fn open(service: &Service) -> Page {
    open_app(service.app.clone()).await
}

pub(crate) async fn open_app(app: Router) -> Page {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    Page::open(&format!("http://{address}/admin")).await
}

async fn fill(page: &mut Page, selector: &str, text: &str) {
    let fill = format!("(document.querySelector({selector:?}).value = {text:?})");
    page.evaluate(&fill).await;
    let told = format!(
        "document.querySelector({selector:?}).dispatchEvent(new Event('input', {{ bubbles: true }}))"
    );
    page.evaluate(&told).await;
}

async fn press(page: &mut Page, key: &str, code: u32, text: &str) {
    for kind in ["keyDown", "keyUp"] {
        let mut press = json!({
            "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code,
        });
        if kind == "keyDown" && !text.is_empty() {
            press["text"] = text.into();
        }
        page.call("Input.dispatchKeyEvent", press).await;
    }
}

pub(crate) async fn sign_in(page: &mut Page) {
    page.until("at('token-dialog').open", "true").await;
    fill(page, "#token", TOKEN).await;
    page.click("#token-form button").await;
    page.until("at('state').textContent", "Live").await;
}

/// Cells of the first row of a table.
fn cells(table: &str) -> String {
    format!(
        "[...(at({table:?}).rows[0]?.cells ?? [])].map((cell) => cell.textContent).slice(0, 5).join('|')"
    )
}

#[tokio::test]
async fn the_page_shows_refusals_and_changes_limits() {
    let service = Service::new();
    let mut page = open(&service).await;
    // With a token that is wrong, and with one that could not be sent.
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
    // The browser writes each 401 to the console by itself.
    assert!(page.errors.iter().all(|error| error.contains("401")));
    page.errors.clear();
    sign_in(&mut page).await;
    page.until(
        "sessionStorage.length + ',' + localStorage.length + ',' + document.cookie",
        "1,0,",
    )
    .await;

    // What is refused is plotted.
    for _ in 0..9 {
        service.calls("acme").await;
    }
    let seven = "[...at('limiters').rows].map((row) => [...row.cells].slice(3).map((cell) => cell.textContent).join()).join()";
    page.until(seven, "2,7,0").await;
    assert_eq!(
        page.evaluate("Number(at('refused').dataset.peak) > 0")
            .await,
        "true"
    );
    let painted = "(() => { const c = at('refused'); const s = series.values().next().value; \
        plot('refused'); const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; \
        const e = document.createElement('i'); e.className = `s${s.colour}`; document.body.append(e); \
        const [r, g, b] = getComputedStyle(e).backgroundColor.match(/\\d+/g).map(Number); e.remove(); \
        let n = 0; for (let i = 0; i < p.length; i += 4) \
        if (p[i + 3] === 255 && p[i] === r && p[i + 1] === g && p[i + 2] === b) n += 1; \
        return n > 50; })()";
    assert_eq!(page.evaluate(painted).await, "true");
    page.until("at('refused-keys').rows[0]?.cells[1].textContent", "7")
        .await;

    // In flight: green, amber, red.
    let mut held = Vec::new();
    for (count, level) in [(3, ""), (7, "amber"), (9, "red")] {
        while held.len() < count {
            held.push(service.chat.try_acquire().unwrap());
        }
        let shown = "at('in-flight').textContent + at('in-flight').firstChild?.className";
        page.until(shown, &format!("chat{count} of 10{level}"))
            .await;
    }

    // A limit that is added counts, and is shown as what it is called.
    assert!(!service.calls("acme").await);
    page.click("#add").await;
    page.until("document.activeElement.id", "edit-key").await;
    fill(&mut page, "#edit-key", "org:acme").await;
    fill(&mut page, "#edit-limit", "call=100/h").await;
    page.click("#edit-form .primary").await;
    page.until(
        "at('edit-wrong').textContent",
        "No limit is called call: there are calls, chat.",
    )
    .await;
    fill(&mut page, "#edit-limit", "calls=100/h").await;
    page.click("#edit-form .primary").await;
    page.until(&cells("limits"), "org:acme|calls=100/h|UsageEdit…Delete…")
        .await;
    assert!(service.calls("acme").await);
    page.until(
        "at('refused-keys').rows[0]?.cells[0].textContent",
        "org:acme",
    )
    .await;
    // The same by keys alone: the row's second button, and Enter in the form.
    let edit = "document.querySelector('[aria-label=\"Edit org:acme\"]').focus()";
    page.evaluate(edit).await;
    press(&mut page, "Enter", 13, "\r").await;
    page.until("document.activeElement.id", "edit-limit").await;
    fill(&mut page, "#edit-limit", "calls=4/h").await;
    press(&mut page, "Enter", 13, "\r").await;
    page.until(&cells("limits"), "org:acme|calls=4/h|UsageEdit…Delete…")
        .await;
    assert!(service.calls("acme").await);
    assert!(!service.calls("acme").await);

    // The usage of a key.
    page.click("[aria-label='Usage of org:acme']").await;
    page.until("at('usage-of').textContent", "org:acme: calls=4/h")
        .await;
    page.until(
        "at('usage').firstChild.textContent",
        "callsrate, its own4 of 4",
    )
    .await;

    // The search, and text that is none of the page's.
    let markup = "org:<img src=x onerror=alert(1)>";
    assert_eq!(service.put(markup, "1/h").await.status, 200);
    page.evaluate("load()").await;
    page.until("at('limits').rows.length", "2").await;
    assert_eq!(page.evaluate("document.images.length").await, "0");
    fill(&mut page, "#search", "ACME").await;
    page.until("at('limits').rows.length", "1").await;

    // Deleting asks first.
    let delete = "[aria-label='Delete org:acme']";
    page.click(delete).await;
    page.until("at('delete-dialog').open", "true").await;
    let text = page.evaluate("at('delete-dialog').textContent").await;
    assert!(text.contains("the default applies"), "{text}");
    assert_eq!(
        page.evaluate("document.activeElement.id").await,
        "delete-cancel"
    );
    press(&mut page, "Escape", 27, "").await;
    page.until("at('delete-dialog').open", "false").await;
    assert_eq!(service.limits.len(), 2);
    page.click(delete).await;
    page.click("#delete-form .danger").await;
    page.until("at('limits').rows.length", "0").await;
    assert_eq!(service.limits.len(), 1);
    assert!(!service.calls("acme").await, "the default applies again");

    // A reload keeps the token, signing out does not.
    let refusal = |error: &String| error.contains("422");
    assert!(page.errors.iter().all(refusal), "{:?}", page.errors);
    page.errors.clear();
    page.call("Page.reload", json!({})).await;
    page.until("at('state').textContent", "Live").await;
    page.click("#sign-out").await;
    page.until(
        "at('token-dialog').open && sessionStorage.length === 0",
        "true",
    )
    .await;
    assert!(page.errors.is_empty(), "{:?}", page.errors);
}

#[tokio::test]
async fn the_page_fits_a_phone_and_the_night() {
    let service = Service::new();
    let mut page = open(&service).await;
    sign_in(&mut page).await;
    let long = "x".repeat(200);
    service
        .put(&format!("org:{long}"), "calls=1/h, chat=1 concurrent")
        .await;
    service.put("org:acme", "2/h").await;
    for _ in 0..5 {
        service.calls(&long).await;
        service.calls("acme").await;
    }
    page.evaluate("load()").await;
    page.until("at('limits').rows.length", "2").await;
    page.until("at('refused-keys').rows.length", "2").await;
    let wide = "document.documentElement.scrollWidth <= innerWidth";
    for (width, height) in [(360, 640), (768, 1024), (1280, 800)] {
        page.resize(width, height, width < 700).await;
        page.until(&format!("innerWidth === {width} && {wide}"), "true")
            .await;
        page.evaluate("edit('', '')").await;
        page.until(wide, "true").await;
        page.click("#edit-cancel").await;
    }
    let back = "getComputedStyle(document.body).backgroundColor";
    for scheme in ["light", "dark"] {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        page.call(
            "Emulation.setEmulatedMedia",
            json!({ "features": features }),
        )
        .await;
        let expected = if scheme == "dark" {
            "rgb(20, 23, 26)"
        } else {
            "rgb(246, 247, 248)"
        };
        page.until(back, expected).await;
    }
    // Whoever goes by keys sees where they are.
    page.click("#edit-cancel").await;
    press(&mut page, "Tab", 9, "").await;
    let outline = "getComputedStyle(document.activeElement).outlineStyle";
    page.until(outline, "solid").await;
    assert!(page.errors.is_empty(), "{:?}", page.errors);
}
