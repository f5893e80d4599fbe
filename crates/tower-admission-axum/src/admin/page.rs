//! The files of the page: HTML, CSS and a script. They contain no data.

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

/// The placeholder in the HTML for the base path of the other files.
const BASE_PATH_PLACEHOLDER: &str = "{base_path}";

/// Allows only the files of the page, and requests to its server.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// The characters that a path segment keeps. `%` is kept, because the path is already encoded.
const PATH_CHARACTERS: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'%');

pub(super) async fn html(OriginalUri(uri): OriginalUri) -> Response {
    let html = HTML.replace(BASE_PATH_PLACEHOLDER, &base_path(&uri));
    file("text/html; charset=utf-8", html.into())
}

pub(super) async fn css() -> Response {
    file("text/css; charset=utf-8", CSS.into())
}

pub(super) async fn js() -> Response {
    file("text/javascript; charset=utf-8", JS.into())
}

/// The base path of the files, relative to the page. The root of a nested router is `/admin` without a trailing slash, so a
/// plain relative path would point next to it instead of below it.
fn base_path(uri: &Uri) -> String {
    let last = uri.path().rsplit('/').next().unwrap_or_default();
    match last {
        "" => "./".to_owned(),
        last => format!("{}/", utf8_percent_encode(last, PATH_CHARACTERS)),
    }
}

fn file(content_type: &'static str, content: axum::body::Body) -> Response {
    let mut response = Response::new(content);
    for (name, value) in [
        (CONTENT_TYPE, content_type),
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, CSP),
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
    fn the_base_path_is_right_wherever_the_router_is_nested() {
        for (path, expected) in [
            ("/", "./"),
            ("/admin", "admin/"),
            ("/admin/", "./"),
            ("/a/b%20c", "b%20c/"),
            ("/a/b\"><script>", "b%22%3E%3Cscript%3E/"),
            ("/a/javascript:x", "javascript%3Ax/"),
        ] {
            // `Uri` rejects some of these.
            let uri = Uri::from_maybe_shared(axum::body::Bytes::copy_from_slice(path.as_bytes()));
            if let Ok(uri) = uri {
                assert_eq!(base_path(&uri), expected, "{path}");
            }
        }
    }

    #[test]
    fn the_page_has_no_inline_code_and_no_external_resource() {
        assert_eq!(HTML.matches(BASE_PATH_PLACEHOLDER).count(), 2);
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
