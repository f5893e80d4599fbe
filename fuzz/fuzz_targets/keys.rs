//! Any request headers produce a key or no key, and the client cannot choose an address.
#![no_main]

use std::net::SocketAddr;

use http::{HeaderValue, Request};
use libfuzzer_sys::fuzz_target;
use tower_admission::extract::{ClientIp, ForwardingHeader, KeyExtractor, PeerAddr, RequestHead};
use tower_admission::{ByToken, Key};

fuzz_target!(
    |input: (Vec<Vec<u8>>, Vec<Vec<u8>>, Vec<Vec<u8>>, Vec<Vec<u8>>, bool)| {
        let (authorization, api_key, x_forwarded_for, forwarded, trusted_peer) = input;
        let mut request = Request::new(());
        let lines = [
            ("authorization", authorization),
            ("x-api-key", api_key),
            ("x-forwarded-for", x_forwarded_for),
            ("forwarded", forwarded),
        ];
        for (name, values) in lines {
            for value in values {
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    request.headers_mut().append(name, value);
                }
            }
        }
        let peer: SocketAddr = if trusted_peer {
            "10.0.0.1:1"
        } else {
            "192.0.2.1:1"
        }
        .parse()
        .unwrap();
        request.extensions_mut().insert(PeerAddr(peer));
        let head = RequestHead::from(&request);
        for header in [ForwardingHeader::XForwardedFor, ForwardingHeader::Forwarded] {
            let client = ClientIp::forwarded_by(["10.0.0.0/8".parse().unwrap()]).header(header);
            let key = client.extract(head).key().expect("the request has a peer");
            assert!(key.is_ip());
            if !trusted_peer {
                assert_eq!(key, Key::ip(peer.ip()));
            }
            let by_token = ByToken::default().client_ip(client).extract(head);
            assert!(by_token.key().is_some());
        }
    }
);
