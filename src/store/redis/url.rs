//! Where Redis is: one server, or a cluster.

use std::time::Duration;

use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{Client, ConnectionInfo, IntoConnectionInfo, RedisResult};

use super::failure::{FailureKind, StoreError};

/// What a URL says.
#[derive(Clone)]
pub(super) enum Target {
    Single(Box<Client>),
    Cluster(Box<ClusterClient>),
}

/// How long a cluster's client may try within one call; ours ends it sooner.
const CLUSTER_RETRIES: u32 = 2;
const CLUSTER_RETRY_WAIT_MILLIS: (u64, u64) = (1, 20);

impl Target {
    /// Reads `redis://`, `rediss://`, `unix:` and `redis+cluster://h1,h2` URLs.
    pub(super) fn parse(url: &str, connect_within: Duration) -> Result<Self, StoreError> {
        for (cluster, single) in [
            ("redis+cluster://", "redis://"),
            ("rediss+cluster://", "rediss://"),
        ] {
            if let Some(rest) = url.strip_prefix(cluster) {
                return Ok(Self::cluster(single, rest, connect_within)?);
            }
        }
        let info = settings(url.into_connection_info()?);
        Ok(Self::Single(Box::new(Client::open(info)?)))
    }

    fn cluster(scheme: &str, rest: &str, connect_within: Duration) -> RedisResult<Self> {
        let (credentials, hosts) = match rest.rsplit_once('@') {
            Some((credentials, hosts)) => (format!("{credentials}@"), hosts),
            None => (String::new(), rest),
        };
        let nodes: RedisResult<Vec<ConnectionInfo>> = hosts
            .trim_end_matches('/')
            .split(',')
            .map(|host| format!("{scheme}{credentials}{host}").into_connection_info())
            .collect();
        let (least, most) = CLUSTER_RETRY_WAIT_MILLIS;
        let client = ClusterClientBuilder::new(nodes?)
            .retries(CLUSTER_RETRIES)
            .min_retry_wait(least)
            .max_retry_wait(most)
            .connection_timeout(connect_within)
            .tcp_settings(tcp_settings())
            .build()?;
        Ok(Self::Cluster(Box::new(client)))
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }
}

fn settings(info: ConnectionInfo) -> ConnectionInfo {
    info.set_tcp_settings(tcp_settings())
}

/// Without delay: the client leaves Nagle's algorithm on, which costs throughput. With keepalive,
/// so that a peer that is gone is noticed on an idle connection too.
fn tcp_settings() -> TcpSettings {
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(5));
    let settings = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(Duration::from_secs(5));
    settings
}

/// Fails unless `INFO server` names a version that has every command the scripts use.
pub(super) fn check_version(info: &str) -> Result<(), StoreError> {
    let version = info
        .lines()
        .find_map(|line| line.strip_prefix("redis_version:"))
        .unwrap_or_default();
    let mut numbers = version
        .split('.')
        .map_while(|number| number.trim().parse().ok());
    let (major, minor): (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // A server that does not say is taken for a new one.
    if !version.is_empty() && (major, minor) < OLDEST {
        return Err(StoreError::new(FailureKind::TooOld));
    }
    Ok(())
}

const OLDEST: (u32, u32) = (6, 2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (info, ok) in [
            ("# Server\r\nredis_version:6.2.0\r\n", true),
            ("redis_version:7.0.15", true),
            ("redis_version:10.0", true),
            ("redis_version:6.0.20\r\nvalkey_version:1", false),
            ("redis_version:5.0.14\r\n", false),
            ("", true),
        ] {
            assert_eq!(check_version(info).is_ok(), ok, "{info:?}");
        }
    }
}
