//! Where what is configured is counted.

#[cfg(feature = "redis")]
use std::collections::BTreeMap;
#[cfg(feature = "redis")]
use std::sync::Arc;

use tower_admission::concurrency::ConcurrencyLimitLayer;
use tower_admission::rate::RateLimitLayer;
use tower_admission::{Leases, Limits};
#[cfg(feature = "redis")]
use tower_admission_redis::RedisStore;
#[cfg(feature = "redis")]
use tower_admission_redis::StoreObserver;

#[cfg(feature = "redis")]
use super::error::ConfigError;
use super::keys::GroupKey;
use super::model::OnFailure;
#[cfg(feature = "redis")]
use super::model::Store;

/// Where is counted: in memory, or in Redis in a client for each way to fail.
#[derive(Default)]
pub(super) struct Stores {
    #[cfg(feature = "redis")]
    redis: Option<BTreeMap<OnFailure, RedisStore>>,
    #[cfg(feature = "redis")]
    default: OnFailure,
}

impl Stores {
    #[cfg(feature = "redis")]
    pub(super) fn open(
        config: &Store,
        observers: &[Arc<dyn StoreObserver>],
    ) -> Result<Self, ConfigError> {
        let default = config.on_failure;
        let (Some(url), Some(secret)) = (&config.url, config.secret) else {
            return Ok(Self {
                redis: None,
                default,
            });
        };
        let mut store = config.redis(url)?;
        let secret = tower_admission::Secret::new(secret.0);
        secret
            .install()
            .map_err(|error| ConfigError::at("store.secret", error))?;
        store = store.secret(secret);
        for observer in observers {
            store = store.observe(observer.clone());
        }
        let modes = [OnFailure::Open, OnFailure::Closed, OnFailure::LocalShare];
        let stores = modes.map(|mode| {
            let store = store.clone().on_failure(config.mode(mode));
            (mode, store)
        });
        Ok(Self {
            redis: Some(stores.into()),
            default,
        })
    }

    /// That of a group which fails like this, or of all others.
    #[cfg(feature = "redis")]
    pub(super) fn of(&self, on_failure: Option<OnFailure>) -> Option<&RedisStore> {
        self.redis
            .as_ref()?
            .get(&on_failure.unwrap_or(self.default))
    }

    pub(super) fn rate(
        &self,
        on_failure: Option<OnFailure>,
        layer: RateLimitLayer<GroupKey>,
    ) -> RateLimitLayer<GroupKey> {
        #[cfg(feature = "redis")]
        if let Some(store) = self.of(on_failure) {
            return layer.store(store.clone());
        }
        let _ = on_failure;
        layer
    }

    pub(super) fn concurrency(
        &self,
        on_failure: Option<OnFailure>,
        layer: ConcurrencyLimitLayer,
    ) -> ConcurrencyLimitLayer {
        #[cfg(feature = "redis")]
        if let Some(store) = self.of(on_failure) {
            return layer.store(store.clone());
        }
        let _ = on_failure;
        layer
    }

    pub(super) fn leases(&self, on_failure: Option<OnFailure>, leases: Leases) -> Leases {
        #[cfg(feature = "redis")]
        if let Some(store) = self.of(on_failure) {
            return leases.store(store.clone());
        }
        let _ = on_failure;
        leases
    }

    #[cfg(feature = "axum")]
    pub(super) fn sockets(
        &self,
        on_failure: Option<OnFailure>,
        sockets: tower_admission_axum::ws::SocketLimits,
    ) -> tower_admission_axum::ws::SocketLimits {
        #[cfg(feature = "redis")]
        if let Some(store) = self.of(on_failure) {
            return sockets.store(store.clone()).message_store(store.clone());
        }
        let _ = on_failure;
        sockets
    }

    pub(super) fn limits(&self) -> Limits {
        #[cfg(feature = "redis")]
        if let Some(store) = self.of(None) {
            return Limits::in_store(store);
        }
        Limits::new()
    }
}
