//! The configuration: merges the sources of [`options`] and turns them into a valid [`Config`], or reports every
//! problem. Does not apply anything.

mod admin;
pub mod audit;
pub mod changes;
mod choices;

pub mod file;
mod identity;
pub mod jwt;
pub mod ldap;
mod limit_rules;
mod list_entry;
pub mod options;
pub mod print;
mod reader;
pub mod routes;
pub mod rules;
pub mod salts;
pub mod schema;
mod size;
pub mod sources;
mod store;
#[cfg(test)]
pub(crate) mod testing;
mod transport;
mod upstream;
pub mod url;
mod validate;
mod warnings;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::base::glob::Glob;
use crate::base::secret::Secret;
use crate::observability::log::LogOptions;
use crate::observability::queries::QueryText;

pub use admin::{AdminOptions, admin_exposure};
pub use choices::{
    AbandonedPolicy, AdminCommands, ForeignKeyPolicy, HalfClose, HostHeader, ProxyHeader, ShowTokenPolicy,
    TlsMinVersion, UnknownIssuers,
};
pub use jwt::JwtOptions;
pub use ldap::LdapOptions;
pub use limit_rules::LimitRule;
pub use options::{Drain, LimitOptions, PlatformOptions, Timeouts, TokenOptions};
pub use routes::{AffinityKey, ContentTypeRule, CorsOptions, RouteProfile};
pub use rules::{AuthorizationOptions, ImpersonationOptions};
pub use sources::{Problem, Settings, Sources};
pub use store::StoreKey;
pub use upstream::{CredentialMode, DEFAULT_UPSTREAM, HealthOptions, ServerUrl, UpstreamOptions};
pub use warnings::warnings;

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Fernet keys that decrypt bearers; the first is the primary one. Never empty.
    pub salts: Vec<Secret>,
    /// Addresses of the listeners.
    pub listen: ListenOptions,
    /// The clients that may use admin commands.
    pub admin: AdminOptions,
    /// Certificates and client certificates of the HTTPS listener.
    pub tls: TlsOptions,
    /// Networks whose information about the client address is trusted. Often empty.
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which they report the client.
    pub trusted_proxies_header: ProxyHeader,
    /// Headers of clients that are not forwarded, in lower case.
    pub dropped_headers: Vec<Glob>,
    /// The default upstream, which also verifies keys.
    pub upstream: UpstreamOptions,
    /// The upstreams that routes name. `RouteProfile::upstream` counts from 1 for them.
    pub upstreams: Vec<UpstreamOptions>,
    /// Verification of credentials.
    pub auth: AuthOptions,
    /// The platform's login pages, for `auth.verifier=platform`.
    pub platform: PlatformOptions,
    /// Rules for acting as other users.
    pub impersonation: ImpersonationOptions,
    /// Rules for all requests; `None`: every authenticated request is allowed.
    pub authorization: Option<AuthorizationOptions>,
    /// Lifetimes of tokens and handling of keys.
    pub tokens: TokenOptions,
    /// The token store.
    pub store: StoreOptions,
    /// Timeouts of client connections.
    pub timeouts: Timeouts,
    /// Limits on connections and requests.
    pub limits: LimitOptions,
    /// Rate limits and concurrency limits for each caller.
    pub limit_rules: Vec<LimitRule>,
    /// Graceful shutdown.
    pub drain: Drain,
    /// Whether readiness fails while no address of a backend is healthy.
    pub readiness_requires_upstream: bool,
    /// Level and format of the log.
    pub log: LogOptions,
    /// Outputs of the audit log.
    pub audit: audit::AuditOptions,
    /// The text of statements in the query journal; `None`: the journal is off.
    pub journal: Option<QueryText>,
    /// Whether core dumps and debuggers are allowed.
    pub core_dumps: bool,
    /// Number of worker threads; at least one.
    pub workers: usize,
    /// Profiles of the paths that are forwarded. Never empty.
    pub routes: Vec<RouteProfile>,
    /// Values and origins of the options, for display.
    pub effective_options: Arc<[print::EffectiveOption]>,
}

impl Config {
    /// `tokens.show_token`, or its default, which depends on the credential that the backend receives.
    ///
    /// SECURITY: with `show-token`, clients must not receive the key that they are kept from.
    pub fn show_token(&self) -> ShowTokenPolicy {
        let default = match self.upstream.credential {
            CredentialMode::ShowToken => ShowTokenPolicy::Mint,
            _ => ShowTokenPolicy::Backend,
        };
        self.tokens.show_token.unwrap_or(default)
    }
}

/// Addresses of the listeners; `None`: disabled.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// HTTPS: HTTP/1.1 and HTTP/2.
    pub https: Option<SocketAddr>,
    /// Plain HTTP/1.1.
    pub http: Option<SocketAddr>,
    /// Plain HTTP/1.1 over a Unix socket: its path and file mode.
    pub http_socket: Option<(PathBuf, u32)>,
    /// Health checks, metrics, dashboard and admin commands.
    pub admin: Option<SocketAddr>,
    /// Whether connections of clients begin with a PROXY protocol header.
    pub proxy_protocol: bool,
}

/// TLS of the HTTPS listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// The first one is the default. Empty: a self-signed one is generated at start.
    pub certificates: Vec<CertificateFiles>,
    /// Client certificates; `None`: they are not requested.
    pub client_auth: Option<ClientAuth>,
    /// Lowest version of TLS that clients may use.
    pub min_version: TlsMinVersion,
    /// Keys of session tickets; `None`: each process has its own.
    pub ticket_keys_file: Option<PathBuf>,
}

/// Client certificates in the TLS handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuth {
    /// Certificate authorities (PEM).
    pub ca_file: PathBuf,
    /// Whether a handshake without a certificate fails.
    pub required: bool,
}

/// Paths of a certificate chain and its private key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// Certificate chain, leaf first.
    pub chain: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Keys of the options that name the chain and the private key, for errors.
    pub options: [&'static str; 2],
}

/// Verification of credentials.
#[derive(Clone, Debug)]
pub struct AuthOptions {
    /// How passwords are verified.
    pub verifier: VerifierOptions,
    /// Maximum age of a bearer.
    pub bearer_max_age: Option<Duration>,
    /// JSON Web Tokens of identity providers.
    pub jwt: JwtOptions,
}

/// How passwords are verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerifierOptions {
    /// Not at all: a client that holds the salt may name any user.
    SaltHolder,
    /// By a file of names and password hashes.
    UsersFile(PathBuf),
    /// By the platform's login form.
    Platform,
    /// By the backend's own `get_token`.
    Delegate,
    /// By an LDAP directory.
    Ldap(Box<LdapOptions>),
}

/// The token store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Where tokens are stored.
    pub kind: StoreKind,
    /// The keys that protect it.
    pub keys: StoreKeyOptions,
    /// Limit for a store operation during a request.
    pub timeout: Duration,
    /// How long cached tokens are accepted while the store is down.
    pub max_stale: Duration,
}

/// The keys of the store, the primary one first.
#[derive(Clone, Debug)]
pub enum StoreKeyOptions {
    /// `store.key`.
    Configured(Vec<StoreKey>),
    /// Derived from the salts, so that stored data depends on them.
    OfSalts(Vec<StoreKey>),
    /// A random key that is made at start. Only the checksums of tokens have keys that are derived from the salts.
    Random {
        /// These keys.
        checksum_keys: Vec<StoreKey>,
    },
}

/// Where tokens are stored.
#[derive(Clone, Debug)]
pub enum StoreKind {
    /// In the memory of the process.
    Memory,
    /// In the memory of the process and in a file.
    File(PathBuf),
    /// In a Redis or Valkey server that replicas share.
    Redis(Box<RedisOptions>),
}

/// How to connect to Redis or Valkey.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// What `nodes` are.
    pub topology: RedisTopology,
    /// Servers, Sentinels or some nodes of the cluster; at least one.
    pub nodes: Vec<RedisNode>,
    /// Number of the database.
    pub database: u32,
    /// ACL user.
    pub username: Option<String>,
    /// Password of the ACL user, or of the default user.
    pub password: Option<Secret>,
    /// ACL user of the Sentinels.
    pub sentinel_username: Option<String>,
    /// Password of the Sentinels.
    pub sentinel_password: Option<Secret>,
    /// Certificate authorities; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// The client certificate of the gateway.
    pub client_certificate: Option<CertificateFiles>,
    /// Prefix of all keys.
    pub prefix: String,
}

/// Topology of the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisTopology {
    /// One server, or one address that leads to the current primary server.
    Standalone,
    /// The Sentinels know the primary server.
    Sentinel {
        /// Name of the primary server at the Sentinels.
        master: String,
    },
    /// Keys are distributed over several primary servers.
    Cluster,
}

/// Address of a Redis server or Sentinel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisNode {
    /// Whether the scheme is `rediss`.
    pub tls: bool,
    /// Host name or IP address; an IPv6 address has no brackets.
    pub host: String,
    /// TCP port; 6379 if the URL has none.
    pub port: u16,
}

/// Limit on concurrent requests to an upstream, and the queue for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// Concurrent requests; `None`: no limit.
    pub requests: Option<usize>,
    /// Concurrent requests of each endpoint; `None`: no limit.
    pub requests_per_endpoint: Option<usize>,
    /// Queued requests.
    pub queue: usize,
    /// Maximum time in the queue.
    pub timeout: Duration,
}

impl Config {
    /// All upstreams, the default one first. `RouteProfile::upstream` is an index in this list.
    pub fn all_upstreams(&self) -> impl Iterator<Item = &UpstreamOptions> {
        std::iter::once(&self.upstream).chain(&self.upstreams)
    }

    /// The names of all upstreams, with the limits of their queues.
    pub fn queues(&self) -> Vec<(String, Option<QueueOptions>)> {
        self.all_upstreams().map(|upstream| (upstream.name.clone(), upstream.queue)).collect()
    }
}

/// Loads the configuration from all sources. Blocks on the file system. The error has every problem, at least one.
pub fn load(sources: &Sources) -> Result<(Config, Settings), Vec<Problem>> {
    let mut problems = Vec::new();
    let mut settings = sources::merge(sources, &mut problems);
    settings.file_hashes = changes::hash_files(&settings);
    match validate::config(&settings, &mut problems) {
        Some(config) if problems.is_empty() => Ok((config, settings)),
        _ => Err(problems),
    }
}
