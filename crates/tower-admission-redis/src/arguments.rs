//! Arguments of the script that decides requests.

use redis::{RedisWrite, ToRedisArgs};
use smallvec::SmallVec;

use tower_admission::{Rule, provider::RuleKind};

/// The rules that apply to one key, in the order of its quotas.
pub(super) type KeyRules = SmallVec<[Rule; 2]>;

/// What a call does with a cost.
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

/// Consecutive requests of one cost that charge the same keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) cost: u32,
    /// The number of requests; at least 1.
    pub(super) count: u32,
    /// Indexes into the keys of the call; all runs of a call have the same number.
    pub(super) keys: SmallVec<[u16; 2]>,
}

impl Run {
    /// A run of one request that charges all `keys` keys of its call.
    pub(super) fn single(cost: u32, keys: usize) -> Self {
        let keys = 0..u16::try_from(keys).expect("a request has few keys");
        Self {
            cost,
            count: 1,
            keys: keys.collect(),
        }
    }
}

/// The arguments next to the keys.
#[derive(Clone, Copy)]
pub(super) struct Arguments<'a> {
    pub(super) mode: Mode,
    /// One for each key.
    pub(super) rules: &'a [KeyRules],
    /// In their order of arrival.
    pub(super) runs: &'a [Run],
}

impl Arguments<'_> {
    /// The number of keys that each run names: none if all runs charge all keys.
    fn named(&self) -> usize {
        let all = |run: &Run| {
            let keys = run.keys.iter().map(|key| usize::from(*key));
            keys.eq(0..self.rules.len())
        };
        match self.runs.first() {
            Some(run) if !self.runs.iter().all(all) => run.keys.len(),
            _ => 0,
        }
    }
}

impl ToRedisArgs for Arguments<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        let named = self.named();
        let mut head = format!("{} {named}", self.mode.word());
        let mut before = None;
        for rules in self.rules {
            head.push(' ');
            match rules {
                same if before == Some(same) => head.push('='),
                rules if rules.is_empty() => head.push('.'),
                rules => head.extend(rules.iter().map(letter)),
            }
            before = Some(rules);
        }
        out.write_arg(head.as_bytes());
        let mut before = None;
        for rules in self.rules {
            for rule in rules.iter().filter(|_| before != Some(rules)) {
                out.write_arg_fmt(micros_per_request(rule));
                out.write_arg_fmt(rule.limit());
            }
            before = Some(rules);
        }
        for run in self.runs {
            out.write_arg_fmt(run.cost);
            out.write_arg_fmt(run.count);
            // Lua counts from 1.
            for key in run.keys.iter().take(named) {
                out.write_arg_fmt(u32::from(*key) + 1);
            }
        }
    }
}

fn letter(rule: &Rule) -> char {
    match rule.kind() {
        RuleKind::DenyAll | RuleKind::Bucket => 'b',
        RuleKind::Window => 's',
        RuleKind::Unlimited => '-',
    }
}

/// The interval of a bucket or the length of a sub-window. Rounded up, so that the limit is never exceeded.
pub(super) fn micros_per_request(rule: &Rule) -> u64 {
    (rule.length().as_nanos() as u64).div_ceil(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower_admission::Quota;

    fn written(rules: &[KeyRules], runs: &[Run]) -> String {
        let mode = Mode::Take;
        let written = Arguments { mode, rules, runs }.to_redis_args();
        let words = written
            .into_iter()
            .map(|word| String::from_utf8(word).unwrap());
        words.collect::<Vec<_>>().join(", ")
    }

    fn rules(quotas: &[Quota]) -> KeyRules {
        quotas.iter().copied().map(Rule::new).collect()
    }

    #[test]
    fn a_single_request_names_no_keys() {
        let of_key = rules(&[Quota::per_second(10)]);
        let one = std::slice::from_ref(&of_key);
        assert_eq!(
            written(one, &[Run::single(3, 1)]),
            "take 0 b, 100000, 10, 3, 1"
        );
        let two = [
            of_key,
            rules(&[Quota::per_minute(15).sliding(), Quota::off()]),
        ];
        assert_eq!(
            written(&two, &[Run::single(3, 2)]),
            "take 0 b s-, 100000, 10, 4000000, 15, 0, 0, 3, 1"
        );
    }

    #[test]
    fn runs_with_different_keys_name_their_keys() {
        let of_key = rules(&[Quota::per_second(10)]);
        let runs = [[0, 2], [1, 2]].map(|keys| Run {
            cost: 1,
            count: 5,
            keys: keys.into_iter().collect(),
        });
        assert_eq!(
            written(&[of_key.clone(), of_key.clone(), of_key], &runs),
            "take 2 b = =, 100000, 10, 1, 5, 1, 3, 1, 5, 2, 3"
        );
    }
}
