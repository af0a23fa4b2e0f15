//! Connections to Redis: one server, Sentinel, or a cluster. It knows nothing about tokens.

use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, FromRedisValue, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisFuture, RedisResult, TlsCertificates, TlsMode, Value,
};

use tokio::task::JoinSet;

use crate::base::pem::PemText;
use crate::config::options::STORE;
use crate::config::{Problem, RedisOptions, RedisTopology, ServerUrl};

/// For each of TCP, TLS and authentication.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// After this time the client library abandons a command. Requests have given up long before.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to one server or to a cluster. Cheap to clone; the clones multiplex their commands.
#[derive(Clone)]
pub enum RedisConnection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for RedisConnection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            RedisConnection::One(connection) => connection.req_packed_command(command),
            RedisConnection::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            RedisConnection::One(connection) => connection.req_packed_commands(pipeline, offset, count),
            RedisConnection::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            RedisConnection::One(connection) => connection.get_db(),
            RedisConnection::Cluster(connection) => connection.get_db(),
        }
    }
}

impl RedisConnection {
    /// Executes independent commands, and returns one result for each. Must run on a `LocalSet`.
    pub async fn query_all<T: FromRedisValue + 'static>(
        &mut self,
        commands: impl Iterator<Item = Cmd>,
    ) -> RedisResult<Vec<T>> {
        match self {
            RedisConnection::One(connection) => {
                let mut pipeline = redis::pipe();
                for command in commands {
                    pipeline.add_command(command);
                }
                pipeline.query_async(connection).await
            }
            // The keys may be on different servers.
            RedisConnection::Cluster(connection) => {
                let mut running = JoinSet::new();
                for (index, command) in commands.enumerate() {
                    let mut connection = connection.clone();
                    running.spawn_local(async move { (index, command.query_async(&mut connection).await) });
                }
                let mut results = Vec::with_capacity(running.len());
                while let Some(finished) = running.join_next().await {
                    let Ok((index, result)) = finished else { continue };
                    results.push((index, result?));
                }
                results.sort_by_key(|(index, _)| *index);
                Ok(results.into_iter().map(|(_, result)| result).collect())
            }
        }
    }
}

/// Connects. `attempt` counts from 0, so that each attempt starts with a different Sentinel or node.
///
/// Reads the certificate files each time, so that it uses renewed ones.
pub async fn connect(options: &RedisOptions, attempt: usize) -> RedisResult<RedisConnection> {
    let certificates = read_certificates(options).map_err(|problem| {
        redis::RedisError::from((redis::ErrorKind::InvalidClientConfig, "certificates", problem.to_string()))
    })?;
    let mut nodes = options.nodes.clone();
    let first = attempt % nodes.len();
    nodes.rotate_left(first);
    let info = |node: &ServerUrl| {
        let info = address(node).into_connection_info()?;
        Ok(info.set_redis_settings(connection_info(options)).set_tcp_settings(tcp_settings()))
    };
    match &options.topology {
        RedisTopology::Standalone => {
            let client = match certificates {
                Some(certificates) => Client::build_with_tls(info(&nodes[0])?, certificates)?,
                None => Client::open(info(&nodes[0])?)?,
            };
            client.get_multiplexed_async_connection_with_config(&timeouts()).await.map(RedisConnection::One)
        }
        RedisTopology::Sentinel { master } => {
            let mut client = sentinel(options, &nodes, master, certificates)?.build()?;
            client.get_async_connection_with_config(&timeouts()).await.map(RedisConnection::One)
        }
        RedisTopology::Cluster => {
            // User and password are those of the first node.
            let mut builder = ClusterClientBuilder::new(nodes.iter().map(info).collect::<RedisResult<Vec<_>>>()?)
                .connection_timeout(CONNECT_TIMEOUT)
                .response_timeout(RESPONSE_TIMEOUT)
                .tcp_settings(tcp_settings())
                .retries(2);
            if let Some(certificates) = certificates {
                builder = builder.certs(certificates);
            }
            builder.build()?.get_async_connection().await.map(RedisConnection::Cluster)
        }
    }
}

fn sentinel(
    options: &RedisOptions,
    nodes: &[ServerUrl],
    master: &str,
    certificates: Option<TlsCertificates>,
) -> RedisResult<SentinelClientBuilder> {
    let mut builder = SentinelClientBuilder::new(nodes.iter().map(address), master, SentinelServerType::Master)?
        .set_client_to_redis_db(i64::from(options.database))
        .set_client_to_redis_tcp_settings(tcp_settings())
        .set_client_to_sentinel_tcp_settings(tcp_settings());
    if let Some(username) = &options.username {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = &options.password {
        builder = builder.set_client_to_redis_password(password.expose());
    }
    if let Some(username) = &options.sentinel_username {
        builder = builder.set_client_to_sentinel_username(username);
    }
    if let Some(password) = &options.sentinel_password {
        builder = builder.set_client_to_sentinel_password(password.expose());
    }
    if let Some(certificates) = certificates {
        builder = builder
            .set_client_to_redis_tls_mode(TlsMode::Secure)
            .set_client_to_redis_certificates(certificates.clone())
            .set_client_to_sentinel_certificates(certificates);
    }
    Ok(builder)
}

fn address(node: &ServerUrl) -> ConnectionAddr {
    if node.tls {
        ConnectionAddr::TcpTls { host: node.host.clone(), port: node.port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(node.host.clone(), node.port)
    }
}

fn connection_info(options: &RedisOptions) -> RedisConnectionInfo {
    let mut info = RedisConnectionInfo::default().set_db(i64::from(options.database)).set_skip_set_lib_name();
    if let Some(username) = &options.username {
        info = info.set_username(username);
    }
    if let Some(password) = &options.password {
        info = info.set_password(password.expose());
    }
    info
}

fn tcp_settings() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn timeouts() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
}

/// Reads the CA certificate and the client certificate for `rediss://`; `None` if no node uses it.
fn read_certificates(options: &RedisOptions) -> Result<Option<TlsCertificates>, Problem> {
    let read = |option: &str, path: &std::path::Path| {
        let text = PemText::read(path);
        let pem = text.map(|text| text.pem.to_vec());
        pem.map_err(|error| Problem::new(option, format!("cannot read {}: {error}", path.display())))
    };
    if !options.nodes.iter().any(|node| node.tls) {
        return Ok(None);
    }
    let root_cert = options.ca_file.as_deref().map(|path| read(STORE.ca_file.key, path)).transpose()?;
    let client_tls = match &options.client_certificate {
        None => None,
        Some(files) => Some(ClientTlsConfig {
            client_cert: read(files.options[0], &files.chain)?,
            client_key: read(files.options[1], &files.key)?,
        }),
    };
    Ok(Some(TlsCertificates { client_tls, root_cert }))
}

/// Checks that the certificate files can be used, before connecting.
pub fn check_certificates(options: &RedisOptions) -> Result<(), Problem> {
    let Some(certificates) = read_certificates(options)? else { return Ok(()) };
    let unusable = |error: redis::RedisError| Problem::new(STORE.ca_file.key, format!("cannot be used: {error}"));
    let info = address(&options.nodes[0]).into_connection_info().map_err(unusable)?;
    Client::build_with_tls(info, certificates).map(drop).map_err(unusable)
}
