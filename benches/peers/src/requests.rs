//! Requests with bearer tokens, built outside of the measured time.

use std::net::{Ipv4Addr, SocketAddr};

use axum::extract::ConnectInfo;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request};

/// The surroundings of the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Bare: the request has no extensions and the response no headers, so a layer that adds one
    /// pays for the whole map.
    Bare,
    /// As in a server: the request has an extension and the response a header.
    Served,
}

/// The address of client 0. The other clients have the addresses after it.
const FIRST_PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);

/// A request of the client with this number, with a token of 40 bytes.
pub fn request(client: u64, setting: Setting) -> Request<()> {
    let authorization = format!("Bearer {}", token(client));
    let authorization = HeaderValue::try_from(authorization).expect("hexadecimal digits");

    let mut request = Request::new(());
    request.headers_mut().insert(AUTHORIZATION, authorization);
    if setting == Setting::Served {
        let address = Ipv4Addr::from(u32::from(FIRST_PEER) + client as u32);
        let peer = ConnectInfo(SocketAddr::from((address, 50_000)));
        request.extensions_mut().insert(peer);
    }
    request
}

pub fn token(client: u64) -> String {
    let (a, b) = (mix(client), mix(!client));
    format!("{a:016x}{b:016x}{:08x}", client as u32)
}

/// Draws clients at random, uniformly.
#[derive(Clone, Debug)]
pub struct Clients {
    number: u64,
    state: u64,
}

impl Clients {
    pub fn new(number: u64, seed: u64) -> Self {
        Self {
            number,
            state: seed,
        }
    }

    pub fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(1);
        mix(self.state) % self.number
    }

    /// Puts a chunk of requests into `requests`.
    pub fn fill(&mut self, requests: &mut Vec<Request<()>>, chunk: usize, setting: Setting) {
        requests.extend((0..chunk).map(|_| request(self.draw(), setting)));
    }
}

/// SplitMix64.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
