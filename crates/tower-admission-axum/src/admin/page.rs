//! The page: HTML, CSS and a script that are the same for all, and hold nothing.

use axum::extract::OriginalUri;
use axum::response::Response;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

const HTML: &str = include_str!("page/admin.html");
const CSS: &str = include_str!("page/admin.css");
const JS: &str = concat!(
    include_str!("page/server.js"),
    include_str!("page/poll.js"),
    include_str!("page/traffic.js"),
    include_str!("page/now.js"),
    include_str!("page/limits.js"),
    include_str!("page/changes.js"),
);

/// What stands in the page for the folder that its other files are in.
const FOLDER: &str = "{folder}";

/// Only what comes with the page is run, shown or asked.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// What is left of a path as it is. Not `%`: a path is encoded already.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'%');

pub(super) async fn html(OriginalUri(uri): OriginalUri) -> Response {
    let html = HTML.replace(FOLDER, &folder(&uri));
    file("text/html; charset=utf-8", html.into())
}

pub(super) async fn css() -> Response {
    file("text/css; charset=utf-8", CSS.into())
}

pub(super) async fn js() -> Response {
    file("text/javascript; charset=utf-8", JS.into())
}

/// Where a page at this address finds what is below it. A nested router's `/` is `/admin` without a slash at
/// the end, and what is relative to that is next to it and not below.
fn folder(uri: &Uri) -> String {
    let last = uri.path().rsplit('/').next().unwrap_or_default();
    match last {
        "" => "./".to_owned(),
        last => format!("{}/", utf8_percent_encode(last, IN_PATH)),
    }
}

fn file(content_type: &'static str, content: axum::body::Body) -> Response {
    let mut response = Response::new(content);
    for (name, value) in [
        (CONTENT_TYPE, content_type),
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_from_wherever_it_is_nested() {
        for (path, expected) in [
            ("/", "./"),
            ("/admin", "admin/"),
            ("/admin/", "./"),
            ("/a/b%20c", "b%20c/"),
            ("/a/b\"><script>", "b%22%3E%3Cscript%3E/"),
            ("/a/javascript:x", "javascript%3Ax/"),
        ] {
            // Not all of these can come in.
            let uri = Uri::from_maybe_shared(axum::body::Bytes::copy_from_slice(path.as_bytes()));
            if let Ok(uri) = uri {
                assert_eq!(folder(&uri), expected, "{path}");
            }
        }
    }

    #[test]
    fn nothing_is_inline_or_from_elsewhere() {
        assert_eq!(HTML.matches(FOLDER).count(), 2);
        for text in [HTML, CSS, JS] {
            for no in [
                "http:",
                "https:",
                "//cdn",
                "innerHTML",
                "style=",
                " onclick",
                "eval(",
            ] {
                assert!(!text.contains(no), "{no}");
            }
        }
        assert_eq!(HTML.matches("<script").count(), 1);
        assert!(!HTML.contains("<style"));
    }
}
