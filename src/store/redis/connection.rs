//! Connections to Redis, however its servers are put together.

use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisFuture, RedisResult, TlsCertificates, TlsMode, Value,
};

use crate::config::options::STORE;
use crate::config::{Problem, RedisNode, RedisOptions, RedisTopology};

/// For TCP, TLS and logging in, each of them in the background.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The library gives up a command after so long. Requests wait for less; this is for what nobody waits for any more.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// One server, or a cluster of them; a cheap clone, and any number of commands may be under way.
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

/// Connects. `attempt` counts from 0, so that each begins with another Sentinel or node than the last one.
///
/// Certificates are read each time, so that renewed ones are used.
pub async fn connect(options: &RedisOptions, attempt: usize) -> RedisResult<RedisConnection> {
    let certificates = read_certificates(options).map_err(|problem| {
        redis::RedisError::from((redis::ErrorKind::InvalidClientConfig, "certificates", problem.to_string()))
    })?;
    let mut nodes = options.nodes.clone();
    let begin = attempt % nodes.len();
    nodes.rotate_left(begin);
    match &options.topology {
        RedisTopology::Standalone => {
            let info =
                address(&nodes[0]).into_connection_info()?.set_redis_settings(connection_info(options));
            let info = info.set_tcp_settings(tcp_settings());
            let client = match certificates {
                Some(certificates) => Client::build_with_tls(info, certificates)?,
                None => Client::open(info)?,
            };
            client.get_multiplexed_async_connection_with_config(&timeouts()).await.map(RedisConnection::One)
        }
        RedisTopology::Sentinel { master } => {
            let mut client = sentinel(options, &nodes, master, certificates)?.build()?;
            client.get_async_connection_with_config(&timeouts()).await.map(RedisConnection::One)
        }
        RedisTopology::Cluster => {
            let infos = nodes.iter().map(|node| {
                Ok(address(node)
                    .into_connection_info()?
                    .set_redis_settings(connection_info(options))
                    .set_tcp_settings(tcp_settings()))
            });
            let infos = infos.collect::<RedisResult<Vec<_>>>()?;
            let mut builder = ClusterClientBuilder::new(infos)
                .connection_timeout(CONNECT_TIMEOUT)
                .response_timeout(RESPONSE_TIMEOUT)
                .tcp_settings(tcp_settings())
                .retries(2);
            if let Some(username) = &options.username {
                builder = builder.username(username);
            }
            if let Some(password) = &options.password {
                builder = builder.password(password.expose());
            }
            if let Some(certificates) = certificates {
                builder = builder.certs(certificates);
            }
            builder.build()?.get_async_connection().await.map(RedisConnection::Cluster)
        }
    }
}

fn sentinel(
    options: &RedisOptions,
    nodes: &[RedisNode],
    master: &str,
    certificates: Option<TlsCertificates>,
) -> RedisResult<SentinelClientBuilder> {
    let mut builder =
        SentinelClientBuilder::new(nodes.iter().map(address), master, SentinelServerType::Master)?
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

fn address(node: &RedisNode) -> ConnectionAddr {
    if node.tls {
        ConnectionAddr::TcpTls { host: node.host.clone(), port: node.port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(node.host.clone(), node.port)
    }
}

fn connection_info(options: &RedisOptions) -> RedisConnectionInfo {
    let mut login =
        RedisConnectionInfo::default().set_db(i64::from(options.database)).set_skip_set_lib_name();
    if let Some(username) = &options.username {
        login = login.set_username(username);
    }
    if let Some(password) = &options.password {
        login = login.set_password(password.expose());
    }
    login
}

fn tcp_settings() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn timeouts() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
}

/// What `rediss://` needs; `None` for `redis://`.
pub fn read_certificates(options: &RedisOptions) -> Result<Option<TlsCertificates>, Problem> {
    let read = |option: &str, path: &std::path::Path| {
        std::fs::read(path)
            .map_err(|error| Problem::new(option, format!("cannot read {}: {error}", path.display())))
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

/// Tells whether such files can be used at all, before anybody is connected to.
pub fn check_certificates(options: &RedisOptions) -> Result<(), Problem> {
    let Some(certificates) = read_certificates(options)? else { return Ok(()) };
    let unusable =
        |error: redis::RedisError| Problem::new(STORE.ca_file.key, format!("cannot be used: {error}"));
    let info = address(&options.nodes[0]).into_connection_info().map_err(unusable)?;
    Client::build_with_tls(info, certificates).map(drop).map_err(unusable)
}
