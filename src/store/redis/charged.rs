//! What a decision is charged to, as the script takes it.

use std::time::Duration;

use redis::{RedisWrite, ToRedisArgs};
use smallvec::SmallVec;

use crate::decision::Usage;
use crate::rule::{Rule, RuleKind};

/// The rules by which one key is charged, in the order of its quotas.
pub(super) type KeyRules = SmallVec<[Rule; 2]>;

/// What becomes of a cost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Take,
    Peek,
    Refund,
}

impl Mode {
    fn word(self) -> &'static str {
        match self {
            Self::Take => "take",
            Self::Peek => "look",
            Self::Refund => "give",
        }
    }
}

/// What the script takes next to its keys.
pub(super) struct Arguments<'a> {
    pub(super) cost: u32,
    pub(super) mode: Mode,
    /// For each key.
    pub(super) rules: &'a [KeyRules],
}

impl ToRedisArgs for Arguments<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        out.write_arg_fmt(self.cost);
        out.write_arg(self.mode.word().as_bytes());
        for rules in self.rules {
            out.write_arg_fmt(rules.len());
            for rule in rules {
                let kind = match rule.kind() {
                    RuleKind::DenyAll | RuleKind::Bucket => 0,
                    RuleKind::Window => 1,
                    RuleKind::Unlimited => 2,
                };
                out.write_arg_fmt(kind);
                // Rounded up, so that no more is admitted than was promised.
                out.write_arg_fmt(rule.length_nanos().div_ceil(1_000));
                out.write_arg_fmt(rule.limit());
            }
        }
    }
}

/// The usages that a script answered about the quotas of one key, in order; `None` of one that is off.
pub(super) fn usages<'a>(
    rules: &'a [Rule],
    numbers: &'a [i64],
) -> impl Iterator<Item = Option<Usage>> + 'a {
    let numbers = numbers.chunks_exact(3);
    rules
        .iter()
        .zip(numbers)
        .map(|(rule, numbers)| usage(rule, numbers))
}

fn usage(rule: &Rule, numbers: &[i64]) -> Option<Usage> {
    if rule.kind() == RuleKind::Unlimited {
        return None;
    }
    let micros = |number: i64| Duration::from_micros(number.max(0).unsigned_abs());
    let (remaining, reset) = (numbers[0].max(0) as u32, micros(numbers[1]));
    let usage = match numbers[2] {
        0 => Usage::admitted(rule.limit(), remaining, reset),
        wait => {
            let wait = (wait > 0).then(|| micros(wait));
            Usage::rejected(rule.limit(), remaining, reset, wait)
        }
    };
    Some(usage.under(rule))
}

/// The usages of a key that cannot be asked about when others have rejected.
pub(super) fn unused(rules: &[Rule]) -> Vec<Option<Usage>> {
    let limiting = |rule: &Rule| rule.kind() != RuleKind::Unlimited;
    let usage = |rule: &Rule| Usage::admitted(rule.limit(), rule.limit(), Duration::ZERO);
    rules
        .iter()
        .map(|rule| limiting(rule).then(|| usage(rule).under(rule)))
        .collect()
}
