//! What a decision is charged to, as the script takes it.

use std::sync::Arc;
use std::time::Duration;

use redis::{RedisWrite, ToRedisArgs};

use crate::decision::{Decision, Usage};
use crate::key::Key;
use crate::policy::{NamedQuota, Policy};
use crate::quota::Quota;

/// What the keys of a decision are charged to.
pub(super) struct Charged {
    pub(super) policies: Arc<Vec<Policy>>,
    pub(super) windows: Vec<Windows>,
    /// Whether these are other policies than at first.
    changed: bool,
}

/// The quotas that one key is charged to, as the scripts take them.
#[derive(Clone, Default)]
pub(super) struct Windows(pub(super) Vec<Window>);

#[derive(Clone, Copy)]
pub(super) struct Window {
    sliding: bool,
    /// In microseconds: a bucket's interval, or the length of a window's sub-windows.
    length: u64,
    /// The most that is admitted at once; 0 admits nothing.
    limit: u32,
}

/// What becomes of a cost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Take,
    Peek,
    Refund,
}

impl Mode {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Take => "take",
            Self::Peek => "look",
            Self::Refund => "give",
        }
    }
}

impl Charged {
    pub(super) fn new(policies: Vec<Policy>, changed: bool) -> Self {
        Self {
            windows: policies.iter().map(Windows::of).collect(),
            policies: Arc::new(policies),
            changed,
        }
    }

    /// Whether so much fits the quotas when nothing of them is used.
    pub(super) fn holds(&self, keys: &[Key], cost: u32) -> bool {
        let windows = self.windows.iter().take(keys.len());
        windows.flat_map(|w| &w.0).all(|w| cost <= w.limit)
    }

    /// Says by which policies it was decided, if these are not those at first.
    pub(super) fn tell(&self, decision: Decision) -> Decision {
        if self.changed {
            decision.by(self.policies.clone())
        } else {
            decision
        }
    }
}

/// What the script takes next to its keys.
pub(super) struct Arguments<'a> {
    pub(super) cost: u32,
    pub(super) mode: Mode,
    pub(super) policies: &'a [Windows],
}

impl ToRedisArgs for Arguments<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        out.write_arg_fmt(self.cost);
        out.write_arg(self.mode.word().as_bytes());
        for windows in self.policies {
            out.write_arg_fmt(windows.0.len());
            for window in &windows.0 {
                out.write_arg_fmt(u8::from(window.sliding));
                out.write_arg_fmt(window.length);
                out.write_arg_fmt(window.limit);
            }
        }
    }
}

/// What a script answered about one quota.
pub(super) fn usage(window: &Window, numbers: &[i64]) -> Usage {
    let micros = |number: i64| Duration::from_micros(number.max(0).unsigned_abs());
    let (remaining, reset) = (numbers[0].max(0) as u32, micros(numbers[1]));
    match numbers[2] {
        0 => Usage::admitted(window.limit, remaining, reset),
        wait => {
            let wait = (wait > 0).then(|| micros(wait));
            Usage::refused(window.limit, remaining, reset, wait)
        }
    }
}

impl Windows {
    pub(super) fn of(policy: &Policy) -> Self {
        let quotas = policy.quotas().iter().map(NamedQuota::quota);
        let limiting = quotas.filter(|quota| !quota.is_off());
        Self(limiting.map(Window::of).collect())
    }

    /// What is told of a key that cannot be asked about when others have refused.
    pub(super) fn unused(&self) -> Vec<Usage> {
        let windows = self.0.iter().map(|window| window.limit);
        windows
            .map(|limit| Usage::admitted(limit, limit, Duration::ZERO))
            .collect()
    }
}

impl Window {
    pub(super) fn of(quota: Quota) -> Self {
        match quota.rate() {
            Some(rate) => Self {
                sliding: rate.is_sliding(),
                // Rounded up, so that no more is admitted than was said.
                length: if rate.is_sliding() {
                    rate.period().as_nanos().div_ceil(SUB_WINDOWS * 1000) as u64
                } else {
                    rate.interval().as_nanos().div_ceil(1000) as u64
                },
                limit: rate.limit(),
            },
            None => Self {
                sliding: false,
                length: 0,
                limit: 0,
            },
        }
    }
}

/// In a period; see the [memory store](crate::store::memory#sliding-windows).
const SUB_WINDOWS: u128 = 15;
