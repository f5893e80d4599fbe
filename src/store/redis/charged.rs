//! What a decision is charged to, as the script takes it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use redis::{RedisWrite, ToRedisArgs};
use smallvec::SmallVec;

use crate::decision::{Decision, Usage};
use crate::key::Key;
use crate::policy::{Binding, NamedQuota, Policy};
use crate::quota::Quota;

/// What the keys of a decision are charged to.
pub(super) struct Charged {
    pub(super) policies: Arc<Vec<Policy>>,
    windows: Vec<Windows>,
    /// Whether these are other policies than at first.
    changed: bool,
}

/// The quotas of a policy, as the scripts take them.
#[derive(Clone, Default)]
pub(super) struct Windows(Vec<Window>);

/// The quotas that one key is charged to.
pub(super) struct Charge<'a> {
    windows: &'a [Window],
    /// Those that a request has to fit. The others only count it.
    binding: Range<usize>,
}

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
    /// Takes, and counts nowhere else until the whole decision is known.
    Hold,
    /// Counts elsewhere what was held.
    Count,
    /// Gives back what was held.
    Return,
    Peek,
    Refund,
}

impl Mode {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Take => "take",
            Self::Hold => "hold",
            Self::Count => "count",
            Self::Return => "back",
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

    /// What each of these keys is charged to.
    pub(super) fn charges(&self, binding: &Binding, keys: &[Key]) -> SmallVec<[Charge<'_>; 2]> {
        let windows = self.windows.iter().enumerate().take(keys.len());
        windows
            .map(|(policy, windows)| Charge {
                windows: &windows.0,
                binding: binding.places(policy),
            })
            .collect()
    }

    /// Whether there are quotas that bind.
    pub(super) fn binds(&self, binding: &Binding, keys: &[Key]) -> bool {
        let charges = self.charges(binding, keys);
        charges
            .iter()
            .any(|charge| charge.binding().next().is_some())
    }

    /// Whether so much fits the quotas that bind when nothing of them is used.
    pub(super) fn holds(&self, binding: &Binding, keys: &[Key], cost: u32) -> bool {
        let charges = self.charges(binding, keys);
        let mut windows = charges.iter().flat_map(Charge::binding);
        windows.all(|window| cost <= window.limit)
    }

    /// Says by which policies it was decided, if these are not those at first.
    pub(super) fn tell(&self, binding: &Binding, decision: Decision) -> Decision {
        if self.changed {
            decision.by(binding.of_policies(&self.policies))
        } else {
            decision
        }
    }
}

/// What the script takes next to its keys.
pub(super) struct Arguments<'a> {
    pub(super) cost: u32,
    pub(super) mode: Mode,
    pub(super) charges: &'a [Charge<'a>],
}

impl ToRedisArgs for Arguments<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        out.write_arg_fmt(self.cost);
        out.write_arg(self.mode.word().as_bytes());
        for charge in self.charges {
            out.write_arg_fmt(charge.windows.len());
            for (at, window) in charge.windows.iter().enumerate() {
                let kind = match (window.sliding, charge.binding.contains(&at)) {
                    (false, true) => 0,
                    (true, true) => 1,
                    (false, false) => 2,
                    (true, false) => 3,
                };
                out.write_arg_fmt(kind);
                out.write_arg_fmt(window.length);
                out.write_arg_fmt(window.limit);
            }
        }
    }
}

/// What a script answered about one quota.
fn usage(window: &Window, numbers: &[i64]) -> Usage {
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
        let quotas = policy.all_quotas().map(NamedQuota::quota);
        let limiting = quotas.filter(|quota| !quota.is_off());
        Self(limiting.map(Window::of).collect())
    }
}

impl Charge<'_> {
    /// The quotas that bind.
    pub(super) fn binding(&self) -> impl Iterator<Item = &Window> {
        self.windows[self.binding.clone()].iter()
    }

    /// As the script answers about those that bind.
    pub(super) fn usages<'a>(&'a self, numbers: &'a [i64]) -> impl Iterator<Item = Usage> + 'a {
        let numbers = numbers.chunks_exact(3).skip(self.binding.start);
        self.binding()
            .zip(numbers)
            .map(|(window, numbers)| usage(window, numbers))
    }

    /// Whether there are others, which only count.
    pub(super) fn has_others(&self) -> bool {
        self.binding.len() < self.windows.len()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.windows.len()
    }

    /// What is told of a key that cannot be asked about when others have refused.
    pub(super) fn unused(&self) -> Vec<Usage> {
        let limits = self.binding().map(|window| window.limit);
        limits
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
