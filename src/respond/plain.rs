//! Plain text answers.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};

use super::Responder;
use crate::extract::RequestHead;
use crate::rejection::Rejection;

/// Answers in plain text, with the message for people.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Responder for Plain {
    fn respond(&self, rejection: &Rejection, _: RequestHead<'_>) -> Response<Bytes> {
        let sentence = match rejection.fixed_sentence() {
            Some(sentence) => Bytes::from_static(sentence.as_bytes()),
            None => rejection.to_string().into(),
        };
        let mut response = Response::new(sentence);
        *response.status_mut() = rejection.reason().status();
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        response
    }
}
