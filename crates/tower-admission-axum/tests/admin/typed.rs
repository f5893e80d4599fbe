//! Typed text is in no URL, because it may be a credential.

use std::sync::{Arc, Mutex};

use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use tower_admission::{Key, KeyName};

use super::Service;
use super::chromium::Page;
use super::page::{fill, serve, sign_in};

const CREDENTIAL: &str = "hunter2-hunter2";

/// A page, and the URLs of its requests.
async fn open(service: &Service) -> (Page, Arc<Mutex<Vec<String>>>) {
    let urls = Arc::new(Mutex::new(Vec::new()));
    let log = urls.clone();
    let app = service
        .app
        .clone()
        .layer(from_fn(move |request: Request, next: Next| {
            log.lock().unwrap().push(request.uri().to_string());
            next.run(request)
        }));
    let (address, _) = serve(app, "127.0.0.1:0").await;
    let mut page = Page::open(&format!("http://{address}/admin")).await;
    sign_in(&mut page).await;
    (page, urls)
}

fn name() -> String {
    KeyName::from(Key::new("bearer", CREDENTIAL.as_bytes())).to_string()
}

#[tokio::test]
async fn a_typed_credential_is_in_no_url_and_becomes_a_name() {
    let service = Service::new();
    service.put("org:acme", "2/h").await;
    let (mut page, urls) = open(&service).await;
    let visited = "history.length + location.href + document.title";
    let before = page.evaluate(visited).await;

    // An override of the credential.
    page.click("#add").await;
    page.until("document.activeElement.id", "edit-key").await;
    fill(&mut page, "#edit-key", &format!("bearer:{CREDENTIAL}")).await;
    fill(&mut page, "#edit-limit", "nonsense").await;
    page.click("#edit-form .primary").await;
    page.until("at('edit-wrong').textContent.length > 0", "true")
        .await;
    assert_eq!(page.evaluate("at('edit-key').value").await, name());
    fill(&mut page, "#edit-limit", "9/h").await;
    page.click("#edit-form .primary").await;
    page.until("at('limits').rows.length", "2").await;

    // The search finds it while it is typed, and shows its name after the field loses the focus.
    let count = "at('limits-count').textContent";
    fill(&mut page, "#search", &format!("bearer:{CREDENTIAL}")).await;
    page.until(count, "1 of 2 found").await;
    let leave = "at('search').dispatchEvent(new Event('change'))";
    page.evaluate(leave).await;
    page.until("at('search').value", &name()).await;
    page.until(count, "1 of 2 found").await;

    // A copied header leads to its usage.
    let header = format!("Authorization: Bearer {CREDENTIAL}");
    fill(&mut page, "#search", &header).await;
    page.click("#find-form button").await;
    page.until("at('usage-dialog').open", "true").await;
    assert_eq!(page.evaluate("at('usage-key').textContent").await, name());
    assert_eq!(page.evaluate("at('search').value").await, name());
    page.click("#usage-close").await;

    // A text that is not recognised as a credential, and one that cannot be read.
    for typed in [CREDENTIAL, "Authorization: Basic hunter2-hunter2"] {
        fill(&mut page, "#search", typed).await;
        page.until(count, "0 of 2 found").await;
        page.click("#find-form button").await;
        page.until("at('error').hidden", "false").await;
        let error = page.evaluate("at('error').textContent").await;
        assert!(
            error.contains("kind") && !error.contains("hunter2"),
            "{error}"
        );
    }
    let urls = urls.lock().unwrap().join("\n");
    assert!(
        urls.contains("/admin/search") && !urls.contains("hunter2"),
        "{urls}"
    );
    assert_eq!(page.evaluate(visited).await, before);
    let shown = page.evaluate("document.documentElement.outerHTML").await;
    assert!(!shown.contains("hunter2"));
    assert!(
        page.errors.iter().all(|error| error.contains("422")),
        "{:?}",
        page.errors
    );
}

/// The error of a click stays while other operators change overrides.
#[tokio::test]
async fn an_error_stays_until_the_next_click() {
    let service = Service::new();
    let (mut page, _) = open(&service).await;
    fill(&mut page, "#search", "nothing like it").await;
    page.until("at('no-limits').hidden", "false").await;
    page.click("#find-form button").await;
    page.until("at('error').hidden", "false").await;
    for total in ["1", "2"] {
        service
            .put(&format!("org:nothing like it {total}"), "1/h")
            .await;
        page.until("at('limits').rows.length", total).await;
        assert_eq!(page.evaluate("at('error').hidden").await, "false");
    }
    page.click("#add").await;
    page.until("at('error').hidden", "true").await;
}
