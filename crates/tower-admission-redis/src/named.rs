//! Leases in Redis that are known by name, and outlive the process that took them.

use std::time::Duration;

use tokio::time::Instant;

use super::call_error::CallError;
use super::client::Retry;
use super::leases::{FULL, GRANTED, KEY_FULL, LATE, Slots, on_clock, or_none};
use super::script::Script;
use tower_admission::provider::clamp_ttl;
use tower_admission::store::FailureKind;
use tower_admission::store::{
    LeaseName, LeaseStatus, NamedAcquireOutcome, NamedLease, NamedLimits,
};

pub(super) struct Scripts {
    acquire: Script,
    heartbeat: Script,
    release: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            acquire: Script::new(on_clock!("named_acquire.lua")),
            heartbeat: Script::new(on_clock!("named_heartbeat.lua")),
            release: Script::new(on_clock!("named_release.lua")),
        }
    }
}

impl Slots {
    pub(super) async fn acquire_named(
        &self,
        lease: NamedLease,
        limits: NamedLimits,
    ) -> Result<NamedAcquireOutcome, CallError> {
        let deadline = self.store.client.deadline();
        let mut answer = self.ask_named(&lease, limits, deadline).await?;
        if answer.0 == LATE {
            // As with unnamed leases: the time in this answer makes the next call valid.
            answer = self.ask_named(&lease, limits, deadline).await?;
        }
        Ok(match answer {
            (GRANTED, _) => NamedAcquireOutcome::Granted,
            (FULL, taken) => NamedAcquireOutcome::Full(taken),
            (KEY_FULL, taken) => NamedAcquireOutcome::KeyFull(taken),
            _ => NamedAcquireOutcome::Unavailable(self.failure_mode()),
        })
    }

    async fn ask_named(
        &self,
        lease: &NamedLease,
        limits: NamedLimits,
        deadline: Instant,
    ) -> Result<(i64, u64), CallError> {
        let (keys, called) = self.names.named(&lease.name);
        let mut keys = keys.to_vec();
        keys.push(self.names.released(&called, lease.holder));
        let mut arguments = self.arguments(Instant::now(), clamp_ttl(lease.ttl));
        arguments.extend([
            called,
            or_none(limits.total),
            or_none(limits.per_tenant),
            lease.holder.to_string(),
        ]);
        let client = &self.store.client;
        let script = &self.store.named.acquire;
        let answer = client.run(script, &keys, &*arguments, deadline, Retry::Once);
        let (outcome, time, epoch, taken): (i64, u64, Vec<u8>, u64) = answer.await?;
        self.learn(time, epoch);
        Ok((outcome, taken))
    }

    pub(super) async fn heartbeat_named(
        &self,
        name: LeaseName,
        holder: Option<u64>,
        ttl: Duration,
    ) -> LeaseStatus {
        let (keys, called) = self.names.named(&name);
        let arguments = [called, holder_argument(holder), in_millis(clamp_ttl(ttl))];
        let client = &self.store.client;
        let script = &self.store.named.heartbeat;
        let deadline = client.deadline();
        let live = client.run_apart(script, &keys, &arguments[..], deadline, Retry::Once);
        standing(live.await)
    }

    pub(super) async fn release_named(&self, name: LeaseName, holder: Option<u64>) -> LeaseStatus {
        let (keys, called) = self.names.named(&name);
        let mut keys = keys.to_vec();
        keys.extend(holder.map(|holder| self.names.released(&called, holder)));
        // An acquire is rejected as too late two deadlines after its call.
        let remembered = 4 * self.store.options.client.deadline;
        let arguments = [
            called,
            holder_argument(holder),
            in_millis(clamp_ttl(remembered)),
        ];
        let client = &self.store.client;
        let script = &self.store.named.release;
        // A repeated release without a holder could release the lease of the next holder.
        let retry = match holder {
            Some(_) => Retry::Once,
            None => Retry::Never,
        };
        let deadline = client.deadline();
        let live = client.run_apart(script, &keys, &arguments[..], deadline, retry);
        standing(live.await)
    }
}

fn in_millis(time: Duration) -> String {
    time.as_millis().to_string()
}

/// A holder as an argument of scripts; empty for any.
fn holder_argument(holder: Option<u64>) -> String {
    holder.map(|holder| holder.to_string()).unwrap_or_default()
}

fn standing(live: Result<bool, CallError>) -> LeaseStatus {
    match live {
        Ok(true) => LeaseStatus::Live,
        Ok(false) => LeaseStatus::Gone,
        Err(error) if error.kind() == FailureKind::WrongData => LeaseStatus::Failed,
        Err(_) => LeaseStatus::Unavailable,
    }
}
