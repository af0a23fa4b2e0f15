//! The configuration: from what was typed (`options`, `file`, `sources`) to what it means ([`Config`]).

pub mod changes;
mod choices;
mod entry;
pub mod file;
mod identity;
pub mod jwt;
pub mod ldap;
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

use crate::base::secret::Secret;
use crate::observability::log::LogOptions;

pub use jwt::JwtOptions;
pub use ldap::LdapOptions;
pub use options::{Drain, Timeouts, TokenOptions};
pub use routes::{AcceptedCredentials, RouteProfile};
pub use rules::{AuthorizationOptions, ImpersonationOptions};
pub use sources::{Problem, Settings, Sources};
pub use upstream::{CredentialMode, HealthOptions, ServerUrl, UpstreamOptions};
pub use warnings::warnings;

/// The configuration as meant: every value is valid, and they fit together.
#[derive(Clone, Debug)]
pub struct Config {
    /// Fernet keys that open bearers; the first is the primary one. Never empty.
    pub salts: Vec<Secret>,
    /// Where to listen.
    pub listen: ListenOptions,
    /// HTTPS.
    pub tls: TlsOptions,
    /// Proxies that are believed when they say who the client is. Usually empty: nobody.
    pub trusted_proxies: Vec<IpNet>,
    /// The backend.
    pub upstream: UpstreamOptions,
    /// Who says that credentials are right.
    pub auth: AuthOptions,
    /// The platform.
    pub platform: PlatformOptions,
    /// Who may act as whom.
    pub impersonation: ImpersonationOptions,
    /// Who may ask for what; `None`: everybody for everything.
    pub authorization: Option<AuthorizationOptions>,
    /// Tokens and keys.
    pub tokens: TokenOptions,
    /// Where tokens are kept.
    pub store: StoreOptions,
    /// How often clients may be wrong about credentials.
    pub failures: FailureLimits,
    /// What clients are waited for.
    pub timeouts: Timeouts,
    /// What clients may ask for.
    pub limits: LimitOptions,
    /// How the process ends.
    pub drain: Drain,
    /// Whether the gateway wants no requests while no backend is in use.
    pub readiness_requires_upstream: bool,
    /// The log.
    pub log: LogOptions,
    /// Whether the process may be dumped and debugged.
    pub core_dumps: bool,
    /// Threads that serve requests; at least one.
    pub workers: usize,
    /// What is forwarded.
    pub routes: Vec<RouteProfile>,
    /// The options as they were given, for people.
    pub effective_options: Arc<[print::EffectiveOption]>,
}

/// Listening addresses; `None` is off.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// HTTPS.
    pub https: Option<SocketAddr>,
    /// Plain HTTP.
    pub http: Option<SocketAddr>,
    /// Health endpoints.
    pub admin: Option<SocketAddr>,
    /// Whether connections to the first two begin with a PROXY protocol header.
    pub proxy_protocol: bool,
}

/// Whom HTTPS shows itself as, and who must show what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// The first one is the default. Empty: a self-signed one is made at start.
    pub certificates: Vec<CertificateFiles>,
    /// What clients show; `None`: nothing.
    pub client_auth: Option<ClientAuth>,
}

/// What clients show in the TLS handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuth {
    /// The authorities of their certificates.
    pub ca_file: PathBuf,
    /// Whether a handshake without a certificate fails.
    pub required: bool,
}

/// A certificate chain and its private key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, leaf first.
    pub chain: PathBuf,
    /// The key.
    pub key: PathBuf,
    /// The options that name them: of the chain, and of the key.
    pub options: [&'static str; 2],
}

/// Where the platform is, and its pages.
#[derive(Clone, Debug)]
pub struct PlatformOptions {
    /// `None`: where the upstream is.
    pub url: Option<ServerUrl>,
    /// Trust anchors instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The login form.
    pub login_path: String,
    /// The page with the user's token.
    pub token_path: String,
    /// For each of its answers.
    pub timeout: Duration,
}

/// Who says that credentials are right.
#[derive(Clone, Debug)]
pub struct AuthOptions {
    /// The authority.
    pub verifier: VerifierOptions,
    /// Refuse bearers made longer ago.
    pub bearer_max_age: Option<Duration>,
    /// Tokens of identity providers.
    pub jwt: JwtOptions,
}

/// The authority over passwords.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerifierOptions {
    /// Whoever holds the salt may name any user; the password is not checked.
    SaltHolder,
    /// A file of names and password hashes.
    UsersFile(PathBuf),
    /// The platform's login form.
    Platform,
    /// The backend's own `get_token`.
    Delegate,
    /// A directory.
    Ldap(LdapOptions),
}

/// Where tokens are kept.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// What keeps them.
    pub kind: StoreKind,
    /// How long a request may wait for it.
    pub timeout: Duration,
    /// How long what is known here is believed while it cannot be asked.
    pub max_stale: Duration,
}

/// What keeps tokens.
#[derive(Clone, Debug)]
pub enum StoreKind {
    /// The process's memory.
    Memory,
    /// A file, and the process's memory.
    File(PathBuf),
    /// A Redis or Valkey that replicas share.
    Redis(Box<RedisOptions>),
}

/// Redis or Valkey, and how to reach it.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// What the addresses are those of.
    pub topology: RedisTopology,
    /// Where to begin; one at least.
    pub nodes: Vec<RedisNode>,
    /// Number of the database.
    pub database: u32,
    /// ACL user.
    pub username: Option<String>,
    /// Its password, or the server's.
    pub password: Option<Secret>,
    /// ACL user of the Sentinels.
    pub sentinel_username: Option<String>,
    /// Password of the Sentinels.
    pub sentinel_password: Option<Secret>,
    /// Trust anchors instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The gateway's own certificate.
    pub client_certificate: Option<CertificateFiles>,
    /// What all keys begin with.
    pub prefix: String,
}

/// How the servers are put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisTopology {
    /// One server, or one address behind which others see to it that there is one.
    Standalone,
    /// Sentinels know which server is the primary one.
    Sentinel {
        /// The name that they know it by.
        master: String,
    },
    /// Keys are spread over several primary servers.
    Cluster,
}

/// A server's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisNode {
    /// `rediss`.
    pub tls: bool,
    /// Name or address; an IPv6 address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// What becomes of a key that the gateway does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignKeyPolicy {
    /// The backend is asked once.
    Verify,
    /// The backend judges with each request.
    Forward,
    /// Refused.
    Reject,
}

/// How often a minute a client may be wrong about credentials; 0 is no limit.
#[derive(Clone, Copy, Debug)]
pub struct FailureLimits {
    /// From one address.
    pub per_address: u32,
    /// From one address, about one user.
    pub per_user: u32,
}

/// What clients may ask for.
#[derive(Clone, Copy, Debug)]
pub struct LimitOptions {
    /// Fields of a request.
    pub headers: usize,
    /// Bytes of a request's head.
    pub header_size: usize,
    /// Bytes of a request's target.
    pub uri: usize,
    /// Bytes a second of a request's body.
    pub body_rate: u64,
    /// Client connections of the process.
    pub connections: usize,
    /// Client connections of one address.
    pub connections_per_address: usize,
    /// Requests in flight of the process.
    pub requests: usize,
    /// Requests in flight of one identity.
    pub requests_per_identity: usize,
    /// Requests of one connection.
    pub requests_per_connection: u64,
    /// HTTP/2 streams of a connection at once.
    pub streams: u32,
    /// HTTP/2 streams that a connection may have reset in vain.
    pub resets: usize,
    /// HTTP/2 frames without a use that a connection may send.
    pub control_frames: u32,
    /// Requests that go to the backends at once, if that is limited.
    pub queue: Option<QueueOptions>,
}

/// Requests that go to the backends at once, and those that wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// At once.
    pub requests: usize,
    /// Waiting.
    pub queue: usize,
    /// For so long.
    pub timeout: Duration,
}

impl LimitOptions {
    /// Nothing is limited: for what has its own limits, and for tests.
    pub fn unlimited() -> LimitOptions {
        LimitOptions {
            headers: usize::MAX,
            header_size: usize::MAX,
            uri: usize::MAX,
            body_rate: 0,
            connections: usize::MAX,
            connections_per_address: usize::MAX,
            requests: usize::MAX,
            requests_per_identity: usize::MAX,
            requests_per_connection: u64::MAX,
            streams: u32::MAX,
            resets: usize::MAX,
            control_frames: u32::MAX,
            queue: None,
        }
    }
}

/// Reads everything and says what it means, or everything that is wrong with it.
pub fn load(sources: &Sources) -> Result<(Config, Settings), Vec<Problem>> {
    let mut problems = Vec::new();
    let mut settings = sources::merge(sources, &mut problems);
    settings.file_hashes = changes::hash_files(&settings);
    match validate::config(&settings, &mut problems) {
        Some(config) if problems.is_empty() => Ok((config, settings)),
        _ => Err(problems),
    }
}
