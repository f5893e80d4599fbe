//! A connection to one server or to a cluster.

use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::{AsyncConnectionConfig, Cmd, RedisFuture, Value};

use super::failure::{FailureKind, StoreError};
use super::url::{Target, check_version};

/// How long it may take to connect, the server's first answer included.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_millis(500);

#[derive(Clone)]
pub(super) enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Target {
    pub(super) async fn connect(&self) -> Result<Connection, StoreError> {
        let mut connection = match self {
            Self::Single(client) => {
                // Every call has a deadline of ours.
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(CONNECT_WITHIN))
                    .set_response_timeout(None);
                Connection::Single(
                    client
                        .get_multiplexed_async_connection_with_config(&config)
                        .await?,
                )
            }
            Self::Cluster(client) => Connection::Cluster(client.get_async_connection().await?),
        };
        if let Connection::Single(_) = connection {
            let info: Result<Vec<u8>, _> = redis::cmd("INFO")
                .arg("server")
                .query_async(&mut connection)
                .await;
            match info {
                // It holds paths, which need not be text.
                Ok(info) => check_version(&String::from_utf8_lossy(&info))?,
                // Whoever may not ask is let in; a script that the server cannot run says so.
                Err(error) if FailureKind::of(&error) == FailureKind::Denied => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(connection)
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a redis::Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}
