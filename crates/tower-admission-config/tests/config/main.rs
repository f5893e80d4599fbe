//! Limits from a file and the environment.

#[cfg(feature = "axum")]
mod admin;
mod also;
mod builder;
#[cfg(feature = "redis-tls")]
#[path = "../../../tower-admission-redis/tests/redis/certificates.rs"]
#[allow(dead_code)]
mod certificates;
mod enabled;
mod errors;
#[cfg(feature = "axum")]
mod explained;
mod follow;
mod keys;
mod lists;
#[path = "../../../../tests/logged/mod.rs"]
mod logged;
mod loss;
mod off;
mod outcomes;
mod overrides;
mod paths;
mod redis;
mod reload;
mod routes;
mod selectors;
#[path = "../../../tower-admission-redis/tests/redis/server.rs"]
#[allow(dead_code)]
mod server;
mod tables;
mod tiers;
#[cfg(feature = "redis-tls")]
mod tls;
mod values;
mod warnings;

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use http::{Request, StatusCode};
use tower::ServiceExt;
use tower_admission_config::{Admission, Config, ConfigError};

/// A configuration in a folder of its own, under its usual name.
pub(crate) struct File(std::path::PathBuf);

impl File {
    pub(crate) fn new(text: &str) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static FILES: AtomicU32 = AtomicU32::new(0);
        let n = FILES.fetch_add(1, Ordering::Relaxed);
        let folder = format!("tower-admission-config-{}-{n}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let file = Self(folder.join("gateway.toml"));
        file.write(text);
        file
    }

    pub(crate) fn write(&self, text: &str) {
        std::fs::write(&self.0, text).unwrap();
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        &self.0
    }

    /// Reads it, with variables over it.
    pub(crate) fn load(&self, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        agree();
        let variables = variables.iter();
        let variables = variables.map(|(name, value)| (name.to_string(), value.to_string()));
        Config::load_with(&self.0, variables)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if let Some(folder) = self.0.parent() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// All tests of a process have one secret, that of those in Redis, whichever is first.
pub(crate) fn agree() {
    tower_admission::Secret::new([7; 16]).install().unwrap();
}

/// A configuration that means to have no groups.
pub(crate) const NOTHING: &str = "allow_empty = true\ngroups = {}\n";

pub(crate) fn config(text: &str) -> Config {
    agree();
    Config::from_toml(text).unwrap()
}

pub(crate) fn app(admission: &Admission) -> Router {
    Router::new()
        .route("/{*path}", any(|| async { "ok" }))
        .route("/api/login", any(|| async { StatusCode::UNAUTHORIZED }))
        .layer(admission.layer())
}

pub(crate) async fn status(app: &Router, path: &str, token: &str) -> StatusCode {
    let peer = std::net::SocketAddr::from(([192, 0, 2, 1], 1));
    let request = Request::get(path)
        .header("authorization", format!("Bearer {token}"))
        .extension(tower_admission::PeerAddr(peer));
    let request = request.body(Body::empty()).unwrap();
    app.clone().oneshot(request).await.unwrap().status()
}

pub(crate) async fn admitted(app: &Router, path: &str, token: &str) -> usize {
    let mut admitted = 0;
    while status(app, path, token).await == StatusCode::OK {
        admitted += 1;
    }
    admitted
}
