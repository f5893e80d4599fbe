//! The page shows the source of an override, and undoes the last change of a key.

use serde_json::json;
use tower_admission::Override;

use super::Service;
use super::chromium::Page;
use super::page::{fill, open, sign_in};

/// The texts of the buttons in a row of a table.
fn buttons(table: &str, row: usize) -> String {
    format!(
        "[...at({table:?}).rows[{row}].querySelectorAll('button')].map((one) => one.textContent).join()"
    )
}

/// The limits before and after a change, without notes.
fn change(row: usize) -> String {
    format!(
        "[...at('changes').rows[{row}]?.cells ?? []].slice(1, 4).map((cell) => cell.firstChild.textContent).join('|')"
    )
}

async fn undo(page: &mut Page) {
    page.click("#changes button").await;
    page.until("at('undo-dialog').open", "true").await;
    assert_eq!(
        page.evaluate("document.activeElement.id").await,
        "undo-cancel"
    );
    page.click("#undo-form .danger").await;
}

#[tokio::test]
async fn the_last_change_of_a_key_is_undone_with_its_end_and_note() {
    let service = Service::new();
    let put = async |body: serde_json::Value| {
        let answer = service
            .ask("PUT", "/limits/org:acme", &body.to_string())
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json
    };
    let plan = put(json!({ "limit": "5/h", "for_seconds": 86_400, "note": "trial" })).await;
    put(json!({ "limit": "deny all", "for_seconds": 3_600 })).await;
    let mut page = open(&service).await;
    sign_in(&mut page).await;
    page.until(&change(0), "org:acme|5/h|deny all").await;
    page.until(&change(1), "org:acme|–|5/h").await;
    // An older change has no undo: it would undo the later one too.
    assert_eq!(page.evaluate(&buttons("changes", 0)).await, "Undo…");
    assert_eq!(page.evaluate(&buttons("changes", 1)).await, "");

    undo(&mut page).await;
    page.until(&change(0), "org:acme|deny all|5/h").await;
    let now = service.ask("GET", "/limits/org:acme", "").await.json;
    for member in ["limit", "end", "note"] {
        assert_eq!(now[member], plan[member], "{member}");
    }
    // The first override of a key, and a deletion.
    service.put("org:other", "1/h").await;
    page.until(&change(0), "org:other|–|1/h").await;
    undo(&mut page).await;
    page.until(&change(0), "org:other|1/h|–").await;
    assert_eq!(
        service.ask("GET", "/limits/org:other", "").await.status,
        404
    );
    undo(&mut page).await;
    page.until(&change(0), "org:other|–|1/h").await;
    assert_eq!(
        service.ask("GET", "/limits/org:other", "").await.json["limit"],
        "1/h"
    );
    assert!(
        page.errors.iter().all(|error| error.contains("404")),
        "{:?}",
        page.errors
    );
}

#[tokio::test]
async fn only_the_last_change_is_undone() {
    let service = Service::new();
    service.put("org:acme", "5/h").await;
    service.put("org:acme", "deny all").await;
    let mut page = open(&service).await;
    sign_in(&mut page).await;
    page.until(&change(0), "org:acme|5/h|deny all").await;
    page.click("#changes button").await;
    page.until("at('undo-dialog').open", "true").await;
    service.put("org:acme", "9/h").await;
    page.click("#undo-form .danger").await;
    page.until(
        "at('undo-wrong').textContent.includes('nothing was undone')",
        "true",
    )
    .await;
    let limit = service.ask("GET", "/limits/org:acme", "").await;
    assert_eq!(limit.json["limit"], "9/h");
    page.click("#undo-cancel").await;
    // The conflict is detected before the confirmation too.
    page.until(&change(0), "org:acme|deny all|9/h").await;
    page.evaluate(
        "void confirmUndo({ key: 'org:acme', before: null, after: { limit: 'deny all' } })",
    )
    .await;
    page.until(
        "at('error').textContent.includes('was changed again')",
        "true",
    )
    .await;
    assert!(
        page.errors.iter().all(|error| error.contains("412")),
        "{:?}",
        page.errors
    );
}

#[tokio::test]
async fn overrides_of_the_configuration_are_marked_and_not_deleted() {
    let service = Service::new();
    let base = [("org:acme", "5/h"), ("org:banned", "deny all")];
    let base = base.map(|(key, limit)| {
        let limit = Override::new(limit.parse().unwrap());
        (key.parse().unwrap(), limit)
    });
    service.limits.set_base(base).unwrap();
    let mut page = open(&service).await;
    sign_in(&mut page).await;
    let notes = |row: usize| format!("at('limits').rows[{row}]?.cells[1].lastChild.textContent");
    for row in [0, 1] {
        page.until(&notes(row), "in the configuration").await;
        assert_eq!(page.evaluate(&buttons("limits", row)).await, "Usage,Edit…");
    }
    page.click("[aria-label='Edit org:acme']").await;
    page.until(
        "at('edit-replaces').textContent",
        "The configuration has 5/h. The override replaces it.",
    )
    .await;
    fill(&mut page, "#edit-limit", "9/h").await;
    page.click("#edit-form .primary").await;
    page.until(&buttons("limits", 0), "Usage,Edit…,Delete…")
        .await;
    let noted = page.evaluate(&notes(0)).await;
    assert!(
        noted.ends_with(" · replaces 5/h of the configuration"),
        "{noted}"
    );

    // The dialog shows what applies after the deletion.
    page.click("[aria-label='Delete org:acme']").await;
    page.until(
        "at('delete-fallback').textContent",
        "Then the override of the configuration applies: 5/h.",
    )
    .await;
    page.click("#delete-form .danger").await;
    page.until(&notes(0), "in the configuration").await;
    service.put("org:other", "1/h").await;
    page.until("at('limits').rows.length", "3").await;
    page.click("[aria-label='Delete org:other']").await;
    page.until(
        "at('delete-fallback').textContent",
        "Then the default applies.",
    )
    .await;
    assert!(page.errors.is_empty(), "{:?}", page.errors);
}
