//! The page on several screen sizes, in both colour schemes, and with the keyboard alone.

use serde_json::Value;

use super::Service;
use super::chromium::Page;
use super::page::{open, sign_in};

/// Texts with a contrast below WCAG AA: 4.5, or 3 for large text.
const TOO_FAINT: &str = r#"(() => {
  const parse = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (top, below) => Object.fromEntries(['r', 'g', 'b'].map((c) => [c, top[c] * top.a + below[c] * (1 - top.a)]));
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), { r: 255, g: 255, b: 255 });
  };
  const luminance = (colour) => ['r', 'g', 'b'].map((c) => colour[c] / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
  const contrast = (one, two) => {
    const [low, high] = [luminance(one), luminance(two)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const faint = [];
  let checked = 0;
  const check = (element, style, text) => {
    const back = behind(element);
    const ratio = contrast(over(parse(style.color), back), back);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    checked += 1;
    if (ratio < (isLarge ? 3 : 4.5)) faint.push(`${text} ${style.color} ${ratio.toFixed(2)}`);
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    const text = texts.currentNode.textContent.trim();
    if (text && element.checkVisibility()) check(element, getComputedStyle(element), text);
  }
  for (const input of document.querySelectorAll('input, select')) {
    if (!input.checkVisibility()) continue;
    check(input, getComputedStyle(input), input.id);
    if (input.placeholder) check(input, getComputedStyle(input, '::placeholder'), `${input.id} placeholder`);
  }
  return JSON.stringify({ faint, checked });
})()"#;

async fn is_readable(page: &mut Page, at: &str) {
    let found: Value = serde_json::from_str(&page.evaluate(TOO_FAINT).await).unwrap();
    assert_eq!(found["faint"], serde_json::json!([]), "{at}");
    assert!(found["checked"].as_u64().unwrap() > 30, "{at} {found}");
}

/// A service with content in each part of its page.
async fn busy(service: &Service) -> Vec<tower_admission::Permit> {
    let long = "x".repeat(200);
    service
        .put(&format!("org:{long}"), "calls=1/h, chat=1 concurrent")
        .await;
    service.put("org:acme", "2/h").await;
    for _ in 0..5 {
        service.calls(&long).await;
        service.calls("acme").await;
        service.calls("other").await;
    }
    (0..9)
        .map(|_| service.chat.try_acquire().unwrap())
        .collect()
}

#[tokio::test]
async fn the_page_fits_each_screen_and_is_readable_in_both_colour_schemes() {
    let service = Service::new();
    let _held = busy(&service).await;
    let mut page = open(&service).await;
    sign_in(&mut page).await;
    page.until("at('limits').rows.length", "2").await;
    page.until("at('rejected-keys').rows.length", "3").await;
    page.until("at('changes').rows.length", "2").await;
    let fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth";
    let dialog = "(({ left, right, width }) => left >= 0 && right <= innerWidth && width > 200)\
        (document.querySelector('dialog[open]').getBoundingClientRect())";
    for (width, height) in [(1400, 900), (800, 1000), (390, 844)] {
        page.resize(width, height, width < 700).await;
        page.until(&format!("innerWidth === {width} && {fits}"), "true")
            .await;
        for scheme in ["light", "dark"] {
            let at = format!("{width} {scheme}");
            page.colours(scheme).await;
            let is_dark = "matchMedia('(prefers-color-scheme: dark)').matches";
            page.until(is_dark, if scheme == "dark" { "true" } else { "false" })
                .await;
            is_readable(&mut page, &at).await;
            page.evaluate("void edit('org:acme')").await;
            page.until("at('edit-usage').children.length > 0", "true")
                .await;
            page.evaluate(
                "(at('edit-conflict').hidden = false, at('edit-wrong').textContent = 'Wrong.')",
            )
            .await;
            page.until(dialog, "true").await;
            page.until(fits, "true").await;
            is_readable(&mut page, &at).await;
            page.click("#edit-cancel").await;
            page.evaluate("void showUsage('org:acme')").await;
            page.until("at('usage-dialog').open", "true").await;
            page.until(dialog, "true").await;
            is_readable(&mut page, &at).await;
            page.click("#usage-close").await;
            for what in ["delete", "undo"] {
                let button = format!(
                    "#{} button:last-child",
                    if what == "undo" { "changes" } else { "limits" }
                );
                page.click(&button).await;
                page.until(&format!("at('{what}-dialog').open"), "true")
                    .await;
                page.evaluate(&format!("(at('{what}-wrong').textContent = 'Wrong.')"))
                    .await;
                page.until(dialog, "true").await;
                is_readable(&mut page, &at).await;
                page.click(&format!("#{what}-cancel")).await;
            }
        }
    }
    assert!(page.errors.is_empty(), "{:?}", page.errors);
}

/// Presses Tab until an element has the focus.
async fn tab_to(page: &mut Page, element: &str) {
    for _ in 0..60 {
        if page
            .evaluate(&format!("document.activeElement.matches({element:?})"))
            .await
            == "true"
        {
            // A keyboard user must see the focus.
            let outline = "getComputedStyle(document.activeElement).outlineStyle";
            assert_eq!(page.evaluate(outline).await, "solid", "{element}");
            return;
        }
        page.press("Tab", 9, "").await;
    }
    panic!("the tabulator does not come to {element}");
}

async fn enter(page: &mut Page) {
    page.press("Enter", 13, "\r").await;
}

#[tokio::test]
async fn the_page_works_with_the_keyboard_alone() {
    let service = Service::new();
    let mut page = open(&service).await;
    page.until("document.activeElement.id", "token").await;
    page.type_text(super::TOKEN).await;
    enter(&mut page).await;
    page.until("at('state').textContent", "Live").await;

    tab_to(&mut page, "#add").await;
    enter(&mut page).await;
    page.until("document.activeElement.id", "edit-key").await;
    page.type_text("org:acme").await;
    page.press("Tab", 9, "").await;
    page.until("document.activeElement.id", "edit-limit").await;
    page.type_text("calls=3/h").await;
    enter(&mut page).await;
    page.until("at('limits').rows.length", "1").await;

    tab_to(&mut page, "[aria-label='Edit org:acme']").await;
    enter(&mut page).await;
    page.until("document.activeElement.id", "edit-limit").await;
    page.press("Escape", 27, "").await;
    page.until("at('edit-dialog').open", "false").await;
    // The focus stays after the list was read again.
    let focused = "document.activeElement.getAttribute('aria-label')";
    page.until(focused, "Edit org:acme").await;
    service.put("org:zebra", "calls=1/h").await;
    page.until("at('limits').rows.length", "2").await;
    page.until(focused, "Edit org:acme").await;

    tab_to(&mut page, "[aria-label='Delete org:acme']").await;
    enter(&mut page).await;
    page.until("document.activeElement.id", "delete-cancel")
        .await;
    page.press("Tab", 9, "").await;
    enter(&mut page).await;
    page.until("at('limits').rows.length", "1").await;

    tab_to(&mut page, "[aria-label='Undo the change of org:acme']").await;
    enter(&mut page).await;
    page.until("document.activeElement.id", "undo-cancel").await;
    page.press("Tab", 9, "").await;
    enter(&mut page).await;
    page.until("at('limits').rows.length", "2").await;

    tab_to(&mut page, "#search").await;
    page.type_text("org:zebra").await;
    enter(&mut page).await;
    page.until("at('usage-dialog').open", "true").await;
    page.press("Escape", 27, "").await;
    page.until("at('usage-dialog').open", "false").await;
    assert!(
        page.errors.iter().all(|error| error.contains("404")),
        "{:?}",
        page.errors
    );
}

/// More limiters than colours.
#[tokio::test]
async fn the_page_distinguishes_many_limiters() {
    use axum::Router;
    use axum::body::Body;
    use axum::routing::get;
    use http::Request;
    use tower_admission::{Limits, Quota, RateLimitLayer};
    use tower_admission_axum::admin::{self, Recorder, Token};

    let recorder = Recorder::new();
    let limits = Limits::new();
    let mut app = Router::new();
    for n in 0..12 {
        let layer = RateLimitLayer::by(super::caller, Quota::per_hour(1_000))
            .name(&format!("limiter {n:02}"))
            .observe(recorder.clone());
        let path = format!("/{n}");
        app = app.route(&path, get(|| async { "hello" }).layer(layer));
    }
    let token = Token::new(super::TOKEN).unwrap();
    let service = Service {
        app: app.nest_service("/admin", admin::router(&limits, &recorder, token)),
        limits,
        chat: tower_admission::ConcurrencyLimitLayer::new(1).limiter(),
    };
    for n in 0..12 {
        for _ in 0..=n {
            let request = Request::get(format!("/{n}")).header("org", "acme");
            service.send(request.body(Body::empty()).unwrap()).await;
        }
    }
    let mut page = open(&service).await;
    sign_in(&mut page).await;
    // The busiest eight have their own lines, and the other four share one.
    page.until("at('admitted').dataset.lines", "9").await;
    let looks = "[...at('limiters').querySelectorAll('svg')].map((image) => \
        getComputedStyle(image).stroke + image.firstChild.getAttribute('stroke-dasharray'))";
    page.until(&format!("{looks}.length"), "12").await;
    page.until(&format!("new Set({looks}).size"), "9").await;
    page.until("at('others').textContent", "4 more limiters, as one line")
        .await;
    let names = "[...at('limiters').querySelectorAll('.s8')].map((image) => image.nextSibling.textContent).sort().join()";
    page.until(names, "limiter 00,limiter 01,limiter 02,limiter 03")
        .await;
    // Sorted by rejections, then by admissions.
    page.until(
        "at('limiters').rows[0].cells[0].childNodes[1].textContent",
        "limiter 11",
    )
    .await;
    assert!(page.errors.is_empty(), "{:?}", page.errors);
}
