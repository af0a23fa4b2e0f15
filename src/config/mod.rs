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
mod names;
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
pub use identity::{AuthOptions, VerifierOptions};
pub use jwt::JwtOptions;
pub use ldap::LdapOptions;
pub use limit_rules::LimitRule;
pub use options::{Drain, HealthOptions, LimitOptions, PlatformOptions, Timeouts, TokenOptions};
pub use routes::{AGENT_LOG_PATHS, AffinityKey, ContentTypeRule, CorsOptions, RouteProfile, THRIFT_PATHS};
pub use rules::{AuthorizationOptions, ImpersonationOptions};
pub use sources::{Problem, Settings, Sources};
pub use store::{RedisOptions, RedisTopology, StoreKey, StoreKeyOptions, StoreKind, StoreOptions};
pub use transport::{CertificateFiles, ClientAuth, TlsOptions};
pub use upstream::{CredentialMode, DEFAULT_UPSTREAM, QueueOptions, ServerUrl, UpstreamOptions};
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

    /// All upstreams, the default one first. `RouteProfile::upstream` is an index in this list.
    pub fn all_upstreams(&self) -> impl Iterator<Item = &UpstreamOptions> {
        std::iter::once(&self.upstream).chain(&self.upstreams)
    }

    /// The names of all upstreams, with the limits of their queues.
    pub fn queues(&self) -> Vec<(String, Option<QueueOptions>)> {
        self.all_upstreams().map(|upstream| (upstream.name.clone(), upstream.queue)).collect()
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

/// Loads the configuration from all sources. Blocks on the file system. The error has every problem, at least one.
pub fn load(sources: &Sources) -> Result<(Config, Settings), Vec<Problem>> {
    let mut problems = Vec::new();
    let mut settings = sources::merge(sources, &mut problems);
    settings.file_hashes = changes::hash_files(&settings);
    match validate::config(&settings, &mut problems) {
        Some(config) if problems.is_empty() => Ok((config, settings)),
        _ => {
            settings.add_origins(&mut problems);
            Err(problems)
        }
    }
}
