//! Where limits are kept: Redis, or a service that has them.

use std::future::Future;
use std::time::Duration;

use tokio::time::timeout;
use tower_admission::KeyName;

use crate::admin::Admin;
use crate::args::{Place, ServerArgs};
use crate::failure::Failure;
use crate::keys::Keys;
use crate::redis::Redis;
use crate::usage::Report;

pub(crate) struct Server {
    kind: Kind,
    timeout: Duration,
}

enum Kind {
    Redis(Box<Redis>),
    Admin(Admin),
}

/// A limit that was set: as the server writes it, and what was there before.
pub(crate) struct Changed {
    pub(crate) limit: String,
    pub(crate) before: Option<String>,
}

/// One key that has a limit of its own.
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) limit: String,
}

impl Server {
    pub(crate) async fn open(
        place: &Place,
        args: &ServerArgs,
        keys: &Keys,
    ) -> Result<Self, Failure> {
        let wait = Duration::from_secs(args.timeout);
        let kind = match place {
            Place::Redis(url) => {
                let redis = Redis::open(url, args, keys.secret(), wait);
                Kind::Redis(Box::new(within(wait, redis).await?))
            }
            Place::Admin(url) => Kind::Admin(Admin::new(url, args.token.as_deref())?),
        };
        Ok(Self {
            kind,
            timeout: wait,
        })
    }

    pub(crate) async fn set(&self, key: &KeyName, limit: &str) -> Result<Changed, Failure> {
        match &self.kind {
            Kind::Redis(redis) => within(self.timeout, redis.set(key, limit)).await,
            Kind::Admin(admin) => within(self.timeout, admin.set(key, limit)).await,
        }
    }

    pub(crate) async fn get(&self, key: &KeyName) -> Result<Option<String>, Failure> {
        match &self.kind {
            Kind::Redis(redis) => within(self.timeout, redis.get(key)).await,
            Kind::Admin(admin) => within(self.timeout, admin.get(key)).await,
        }
    }

    pub(crate) async fn list(&self) -> Result<Vec<Entry>, Failure> {
        match &self.kind {
            Kind::Redis(redis) => within(self.timeout, redis.list()).await,
            Kind::Admin(admin) => within(self.timeout, admin.list()).await,
        }
    }

    /// Returns what there was.
    pub(crate) async fn delete(&self, key: &KeyName) -> Result<Option<String>, Failure> {
        match &self.kind {
            Kind::Redis(redis) => within(self.timeout, redis.delete(key)).await,
            Kind::Admin(admin) => within(self.timeout, admin.delete(key)).await,
        }
    }

    pub(crate) async fn usage(&self, key: Option<&KeyName>) -> Result<Report, Failure> {
        match &self.kind {
            Kind::Redis(redis) => within(self.timeout, redis.usage(key)).await,
            Kind::Admin(admin) => within(self.timeout, admin.usage(key)).await,
        }
    }

    pub(crate) async fn clear_caches(&self) -> Result<(), Failure> {
        match &self.kind {
            Kind::Redis(redis) => within(self.timeout, redis.clear_caches()).await,
            Kind::Admin(admin) => within(self.timeout, admin.clear_caches()).await,
        }
    }

    /// Whether it has to be told what keys are counted as.
    pub(crate) fn wants_fingerprints(&self) -> bool {
        matches!(self.kind, Kind::Redis(_))
    }
}

async fn within<T>(
    wait: Duration,
    answer: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout(wait, answer).await.unwrap_or_else(|_| {
        let seconds = wait.as_secs();
        Err(Failure::unreachable(format!(
            "no answer within {seconds} s: check that the server runs, or give it more by --timeout"
        )))
    })
}
