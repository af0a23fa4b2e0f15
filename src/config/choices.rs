//! Options that take one of a few words, and the word for each value.

use tracing::level_filters::LevelFilter;

use crate::config::options::{OptionType, Shape};
use crate::observability::log::LogFormat;
use crate::observability::queries::QueryText;

/// Implements `OptionType` for a type with one word per value.
macro_rules! words {
    ($type:ty { $($word:literal => $value:expr),+ $(,)? }) => {
        impl OptionType for $type {
            type Value = $type;
            const SHAPE: Shape = Shape::Choice(&[$($word),+]);

            fn parse(text: &str) -> Result<$type, String> {
                match text {
                    $($word => Ok($value),)+
                    _ => Err(format!("must be one of {}, not {text:?}", [$($word),+].join(", "))),
                }
            }
        }
    };
}

/// Declares an enum of option values, with the word of each variant.
macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident { $($word:literal => $variant:ident),+ $(,)? })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the help of the option says what each word means")]
        pub enum $name { $($variant),+ }

        words! { $name { $($word => $name::$variant),+ } }
    )+};
}

choices! {
    /// `audit.on_failure`
    AuditFailure { "continue" => Continue, "refuse" => Refuse }
    /// `listen.admin_commands`
    AdminCommands { "loopback" => Loopback, "token" => Token, "socket" => Socket }
    /// `listen.admin_socket_mode`
    AdminSocketMode { "0600" => Owner, "0660" => Group }
    /// `listen.http_socket_mode`
    ClientSocketMode { "0600" => Owner, "0660" => Group, "0666" => Everyone }
    /// `listen.proxy_protocol`
    ProxyProtocol { "off" => Off, "required" => Required }
    /// `upstream.host_header`
    HostHeader { "backend" => Backend, "client" => Client }
    /// `trusted_proxies_header`
    ProxyHeader { "x-forwarded-for" => XForwardedFor, "forwarded" => Forwarded }
    /// `tls.min_version`
    TlsMinVersion { "1.2" => Tls12, "1.3" => Tls13 }
    /// `limits.half_close`
    HalfClose { "cancel" => Cancel, "serve" => Serve }
    /// `tls.client_auth`
    ClientAuthMode { "off" => Off, "optional" => Optional, "required" => Required }
    /// `upstream.credential`
    CredentialKind {
        "forward" => Forward,
        "impersonate" => Impersonate,
        "platform" => Platform,
        "delegate" => Delegate,
        "show-token" => ShowToken,
    }
    /// `tokens.foreign`
    ForeignKeyPolicy { "verify" => Verify, "forward" => Forward, "reject" => Reject }
    /// `tokens.show_token`
    ShowTokenPolicy { "backend" => Backend, "deny" => Deny, "mint" => Mint }
    /// `auth.verifier`
    VerifierKind {
        "salt-holder" => SaltHolder,
        "users-file" => UsersFile,
        "platform" => Platform,
        "delegate" => Delegate,
        "ldap" => Ldap,
    }
    /// `upstream.abandoned`
    AbandonedPolicy { "half-close" => HalfClose, "close" => Close }
    /// `impersonation.own_keys`
    OwnKeys { "backend" => Backend, "deny" => Deny }
    /// `authorization.mode`
    AuthorizationMode { "off" => Off, "shadow" => Shadow, "enforce" => Enforce }
    /// `auth.jwt_unknown_issuers`
    UnknownIssuers { "reject" => Reject, "forward" => Forward }
    /// `store.kind`
    StoreType { "memory" => Memory, "file" => File, "redis" => Redis }
    /// `store.mode`
    StoreMode { "standalone" => Standalone, "sentinel" => Sentinel, "cluster" => Cluster }
}

#[allow(clippy::derivable_impls, reason = "the macro declares the variants")]
impl Default for TlsMinVersion {
    fn default() -> TlsMinVersion {
        TlsMinVersion::Tls12
    }
}

words! { LogFormat { "text" => LogFormat::Text, "json" => LogFormat::Json } }
words! { QueryText { "none" => QueryText::None, "fingerprint" => QueryText::Fingerprint, "full" => QueryText::Full } }
words! { LevelFilter {
    "error" => LevelFilter::ERROR,
    "warn" => LevelFilter::WARN,
    "info" => LevelFilter::INFO,
    "debug" => LevelFilter::DEBUG,
    "trace" => LevelFilter::TRACE,
} }
