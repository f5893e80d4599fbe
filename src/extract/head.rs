//! Requests and responses without their bodies.

use http::{Extensions, HeaderMap, Method, Request, Response, StatusCode, Uri, request::Parts};

/// A request without its body, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The URI. A nested axum router sees it without the prefix that it is nested at.
    pub uri: &'a Uri,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// What servers and layers further out have put next to the request.
    pub extensions: &'a Extensions,
}

impl<'a, B> From<&'a Request<B>> for RequestHead<'a> {
    fn from(request: &'a Request<B>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            headers: request.headers(),
            extensions: request.extensions(),
        }
    }
}

impl<'a> From<&'a Parts> for RequestHead<'a> {
    fn from(parts: &'a Parts) -> Self {
        Self {
            method: &parts.method,
            uri: &parts.uri,
            headers: &parts.headers,
            extensions: &parts.extensions,
        }
    }
}

/// A response without its body, borrowed.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ResponseHead<'a> {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// What the handler, and the layers around it, added to the response.
    pub extensions: &'a Extensions,
}

impl<'a, B> From<&'a Response<B>> for ResponseHead<'a> {
    fn from(response: &'a Response<B>) -> Self {
        Self {
            status: response.status(),
            headers: response.headers(),
            extensions: response.extensions(),
        }
    }
}

/// A header that a request may have once.
pub(super) enum Field<T> {
    Absent,
    Once(T),
    /// It is unclear which value the application uses. A client could show one credential to the
    /// limiter and another one to the application.
    Repeated,
}

impl<T> Field<T> {
    #[inline]
    pub(super) fn map<U>(self, map: impl FnOnce(T) -> U) -> Field<U> {
        match self {
            Self::Absent => Field::Absent,
            Self::Once(value) => Field::Once(map(value)),
            Self::Repeated => Field::Repeated,
        }
    }
}

/// Looks up a header that a request may have once.
#[inline]
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> Field<&'a [u8]> {
    let Some(value) = headers.get(name) else {
        return Field::Absent;
    };
    // Mostly nothing is there twice, which costs nothing to know.
    let has_duplicates = headers.len() > headers.keys_len();
    if has_duplicates && headers.get_all(name).iter().nth(1).is_some() {
        return Field::Repeated;
    }
    Field::Once(value.as_bytes())
}
