//! The field `grpc-status-details-bin`: a protocol buffer in base64.

use std::time::Duration;

/// Encodes a `google.rpc.Status` with a `google.rpc.RetryInfo` as base64 without padding, as gRPC
/// requires.
pub(super) fn status_with_retry_info(code: u8, message: &str, wait: Duration) -> Vec<u8> {
    let mut duration = Vec::with_capacity(16);
    // The maximum of google.protobuf.Duration: 10,000 years.
    number_field(1, wait.as_secs().min(315_576_000_000), &mut duration);
    number_field(2, wait.subsec_nanos().into(), &mut duration);

    let mut retry_info = Vec::with_capacity(duration.len() + 2);
    bytes_field(1, &duration, &mut retry_info);

    let mut any = Vec::with_capacity(retry_info.len() + 48);
    let type_url = b"type.googleapis.com/google.rpc.RetryInfo";
    bytes_field(1, type_url, &mut any);
    bytes_field(2, &retry_info, &mut any);

    let mut status = Vec::with_capacity(any.len() + message.len() + 16);
    number_field(1, code.into(), &mut status);
    if !message.is_empty() {
        bytes_field(2, message.as_bytes(), &mut status);
    }
    bytes_field(3, &any, &mut status);
    base64(&status)
}

/// Writes a varint field (wire type 0). The default value 0 is not written.
fn number_field(field: u8, number: u64, message: &mut Vec<u8>) {
    if number > 0 {
        message.push(field << 3);
        varint(number, message);
    }
}

/// Writes a string, bytes or message field (wire type 2).
fn bytes_field(field: u8, bytes: &[u8], message: &mut Vec<u8>) {
    message.push(field << 3 | 2);
    varint(bytes.len() as u64, message);
    message.extend_from_slice(bytes);
}

/// Seven bits per byte, lowest first. The high bit means that more bytes follow.
fn varint(mut number: u64, message: &mut Vec<u8>) {
    while number > 0x7f {
        message.push(number as u8 | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
}

/// Base64 (RFC 4648 §4) without padding.
fn base64(bytes: &[u8]) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = Vec::with_capacity((4 * bytes.len()).div_ceil(3));
    for three in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..=three.len()].copy_from_slice(three);
        let bits = u32::from_be_bytes(word);
        let sextets = [18, 12, 6, 0].map(|shift| ALPHABET[(bits >> shift & 63) as usize]);
        text.extend_from_slice(&sextets[..=three.len()]);
    }
    text
}

#[cfg(all(test, not(admission_loom)))]
mod tests {
    use ::base64::Engine;
    use ::base64::engine::general_purpose::STANDARD_NO_PAD;
    use proptest::prelude::*;
    use prost::Message;
    use tonic_types::pb;

    use super::*;

    /// The encoding of a protocol buffer library.
    fn expected(code: u8, message: &str, wait: Duration) -> Vec<u8> {
        let retry_info = pb::RetryInfo {
            retry_delay: Some(prost_types::Duration {
                seconds: wait.as_secs().min(315_576_000_000) as i64,
                nanos: wait.subsec_nanos() as i32,
            }),
        };
        let status = pb::Status {
            code: code.into(),
            message: message.to_owned(),
            details: vec![prost_types::Any {
                type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
                value: retry_info.encode_to_vec(),
            }],
        };
        STANDARD_NO_PAD.encode(status.encode_to_vec()).into_bytes()
    }

    #[test]
    fn the_details_match_a_protobuf_library() {
        let long = "\"\\\u{0}ä🌉".repeat(10_000);
        for message in ["", "x", "Rate limit exceeded.", &long] {
            for code in [0, 8, 127, 128, 255] {
                for nanos in [0, 1, 127, 128, 999_999_999] {
                    for seconds in [0, 1, 127, 128, 3600, 315_576_000_000, u64::MAX] {
                        let wait = Duration::new(seconds, nanos);
                        let ours = status_with_retry_info(code, message, wait);
                        assert_eq!(ours, expected(code, message, wait), "{code} {wait:?}");
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn base64_matches_another_implementation(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(base64(&bytes), STANDARD_NO_PAD.encode(&bytes).into_bytes());
        }
    }
}
