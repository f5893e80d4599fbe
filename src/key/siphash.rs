//! SipHash with 128 bits of output, computed over a whole message at once.

/// Computes SipHash-`C`-`D`-128 (Aumasson and Bernstein, 2012) of `message`, as the first and the
/// second word of the output.
///
/// It takes the whole message, because a streaming hasher takes half as long again: it has to
/// buffer the bytes of an incomplete word.
#[inline]
#[must_use]
pub fn siphash128<const C: usize, const D: usize>([k0, k1]: [u64; 2], message: &[u8]) -> [u64; 2] {
    // The constants are "somepseudorandomlygeneratedbytes"; 0xee selects 128 bits of output.
    let mut state = SipState([
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ]);
    let (words, rest) = message.as_chunks();
    for word in words {
        state.absorb::<C>(u64::from_le_bytes(*word));
    }
    state.absorb::<C>(last_word(message, rest));

    state.0[2] ^= 0xee;
    let first = state.squeeze::<D>();
    state.0[1] ^= 0xdd;
    [first, state.squeeze::<D>()]
}

/// The last word: the bytes left over after the whole words, and the length modulo 256 in the
/// highest byte.
#[inline]
fn last_word(message: &[u8], rest: &[u8]) -> u64 {
    let bits = 8 * rest.len();
    let low = match message.last_chunk() {
        // One load: `rest` is the high end of the last eight bytes.
        Some(last) => u64::from_le_bytes(*last).checked_shr(64 - bits as u32),
        None => Some(
            rest.iter()
                .rfold(0, |word, byte| word << 8 | u64::from(*byte)),
        ),
    };
    low.unwrap_or(0) | (message.len() as u64) << 56
}

struct SipState([u64; 4]);

impl SipState {
    #[inline]
    fn absorb<const ROUNDS: usize>(&mut self, word: u64) {
        self.0[3] ^= word;
        (0..ROUNDS).for_each(|_| self.round());
        self.0[0] ^= word;
    }

    #[inline]
    fn squeeze<const ROUNDS: usize>(&mut self) -> u64 {
        (0..ROUNDS).for_each(|_| self.round());
        let [v0, v1, v2, v3] = self.0;
        v0 ^ v1 ^ v2 ^ v3
    }

    #[inline]
    fn round(&mut self) {
        let [mut v0, mut v1, mut v2, mut v3] = self.0;
        v0 = v0.wrapping_add(v1);
        v2 = v2.wrapping_add(v3);
        v1 = v1.rotate_left(13) ^ v0;
        v3 = v3.rotate_left(16) ^ v2;
        v0 = v0.rotate_left(32);

        v2 = v2.wrapping_add(v1);
        v0 = v0.wrapping_add(v3);
        v1 = v1.rotate_left(17) ^ v2;
        v3 = v3.rotate_left(21) ^ v0;
        v2 = v2.rotate_left(32);
        self.0 = [v0, v1, v2, v3];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use siphasher::sip128::{SipHasher13, SipHasher24};

    use super::*;

    fn bytes(hash: [u64; 2]) -> Vec<u8> {
        hash.map(u64::to_le_bytes).concat()
    }

    /// The key of the test vectors: the bytes 0 to 15.
    const KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    /// The first entries of `vectors_sip128` in the authors' implementation of SipHash-2-4.
    #[test]
    fn the_output_matches_the_authors_vectors() {
        let vectors: [(usize, [u8; 16]); 3] = [
            (
                0,
                [
                    0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72, 0x14, 0xc7,
                    0x55, 0x02, 0x93,
                ],
            ),
            (
                1,
                [
                    0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44, 0x34, 0x76, 0x59, 0x11, 0x9b,
                    0x22, 0xfc, 0x45,
                ],
            ),
            (
                2,
                [
                    0x81, 0x77, 0x22, 0x8d, 0xa4, 0xa4, 0x5d, 0xc7, 0xfc, 0xa3, 0x8b, 0xde, 0xf6,
                    0x0a, 0xff, 0xe4,
                ],
            ),
        ];
        let message: Vec<u8> = (0..64).collect();
        for (length, vector) in vectors {
            let hash = siphash128::<2, 4>(KEY, &message[..length]);
            assert_eq!(bytes(hash), vector, "{length}");
        }
    }

    /// A change of the output would change every key in a shared store.
    #[test]
    fn the_output_of_1_3_is_pinned() {
        let vectors: [(usize, [u8; 16]); 1] = [(
            0,
            [
                231, 126, 188, 178, 39, 136, 165, 190, 253, 98, 219, 106, 221, 48, 48, 1,
            ],
        )];
        let message: Vec<u8> = (0..64).collect();
        for (length, vector) in vectors {
            let hash = siphash128::<1, 3>(KEY, &message[..length]);
            assert_eq!(bytes(hash), vector, "{length}");
        }
    }

    fn agrees(key: [u64; 2], message: &[u8]) {
        let [k0, k1] = key;
        let theirs = SipHasher13::new_with_keys(k0, k1).hash(message);
        let ours = siphash128::<1, 3>(key, message);
        assert_eq!(ours, [theirs.h1, theirs.h2], "{} bytes", message.len());
        let theirs = SipHasher24::new_with_keys(k0, k1).hash(message);
        let ours = siphash128::<2, 4>(key, message);
        assert_eq!(ours, [theirs.h1, theirs.h2], "{} bytes", message.len());
    }

    /// Lengths above 256, where the length byte of the last word wraps around.
    #[test]
    fn every_length_agrees_with_another_implementation() {
        let message: Vec<u8> = (0..600_u32).map(|n| (n * 7 + n / 256) as u8).collect();
        for length in 0..=message.len() {
            agrees(KEY, &message[..length]);
            agrees([!0, 0], &message[message.len() - length..]);
        }
    }

    proptest! {
        #[test]
        fn any_message_agrees_with_another_implementation(
            key in any::<[u64; 2]>(),
            message in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            agrees(key, &message);
        }
    }
}
