//! Requests and responses without their bodies.

use http::{Extensions, HeaderMap, Method, Request, Response, StatusCode, Uri, request::Parts};

/// A request without its body, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The URI. In a nested axum router it lacks the prefix of that router.
    pub uri: &'a Uri,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// Values that the server and outer layers added to the request.
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
    /// Values that the handler and its layers added to the response.
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

/// The value of a header that must not be repeated.
pub(super) enum Field<T> {
    Absent,
    Once(T),
    /// The application may use either value, so a client could show one credential to the limiter
    /// and another to the application.
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

/// Looks up a header that must not be repeated.
#[inline]
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> Field<&'a [u8]> {
    let Some(value) = headers.get(name) else {
        return Field::Absent;
    };
    // Few requests have repeated headers, and comparing the two lengths is cheap.
    let has_duplicates = headers.len() > headers.keys_len();
    if has_duplicates && headers.get_all(name).iter().nth(1).is_some() {
        return Field::Repeated;
    }
    Field::Once(value.as_bytes())
}
