//! Options that take one of a few words, and the word for each value.

use tracing::level_filters::LevelFilter;

use crate::base::label_values::label_values;
use crate::config::options::{OptionType, Shape};
use crate::config::routes::ContentTypeRule;
use crate::observability::log::LogFormat;
use crate::observability::queries::QueryText;

/// Implements `OptionType` for a type with one word per value.
macro_rules! words {
    ($type:ty, $words:expr, $parse:expr) => {
        impl OptionType for $type {
            type Value = $type;
            const SHAPE: Shape = Shape::Choice($words);

            fn parse(text: &str) -> Result<$type, String> {
                $parse(text).ok_or_else(|| format!("must be one of {}, not {text:?}", $words.join(", ")))
            }
        }
    };
    ($type:ty) => {
        words! { $type, <$type>::WORDS, <$type>::parse }
    };
}

/// Declares an enum of option values, with the word of each variant.
macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),+ $(,)? })+) => {$(
        label_values! {
            $(#[$doc])*
            #[allow(missing_docs, reason = "the help of the option says what each word means")]
            $name { $($variant = $word,)+ }
        }
        words! { $name }
    )+};
}

choices! {
    /// `audit.on_failure`
    AuditFailure { Continue = "continue", Refuse = "refuse" }
    /// `listen.admin_commands`
    AdminCommands { Loopback = "loopback", Token = "token", Socket = "socket" }
    /// `listen.admin_socket_mode`
    AdminSocketMode { Owner = "0600", Group = "0660" }
    /// `listen.http_socket_mode`
    ClientSocketMode { Owner = "0600", Group = "0660", Everyone = "0666" }
    /// `listen.proxy_protocol`
    ProxyProtocol { Off = "off", Required = "required" }
    /// `upstream.host_header`
    HostHeader { Backend = "backend", Client = "client" }
    /// `trusted_proxies_header`
    ProxyHeader { XForwardedFor = "x-forwarded-for", Forwarded = "forwarded" }
    /// `tls.min_version`
    TlsMinVersion { Tls12 = "1.2", Tls13 = "1.3" }
    /// `limits.half_close`
    HalfClose { Cancel = "cancel", Serve = "serve" }
    /// `tls.client_auth`
    ClientAuthMode { Off = "off", Optional = "optional", Required = "required" }
    /// `upstream.credential`
    CredentialKind {
        Forward = "forward",
        Impersonate = "impersonate",
        Platform = "platform",
        Delegate = "delegate",
        ShowToken = "show-token",
    }
    /// `tokens.foreign`
    ForeignKeyPolicy { Verify = "verify", Forward = "forward", Reject = "reject" }
    /// `tokens.show_token`
    ShowTokenPolicy { Backend = "backend", Deny = "deny", Mint = "mint" }
    /// `auth.verifier`
    VerifierKind {
        SaltHolder = "salt-holder",
        UsersFile = "users-file",
        Platform = "platform",
        Delegate = "delegate",
        Ldap = "ldap",
    }
    /// `upstream.abandoned`
    AbandonedPolicy { HalfClose = "half-close", Close = "close" }
    /// `impersonation.own_keys`
    OwnKeys { Backend = "backend", Deny = "deny" }
    /// `authorization.mode`
    AuthorizationMode { Off = "off", Shadow = "shadow", Enforce = "enforce" }
    /// `auth.jwt_unknown_issuers`
    UnknownIssuers { Reject = "reject", Forward = "forward" }
    /// `store.kind`
    StoreType { Memory = "memory", File = "file", Redis = "redis" }
    /// `store.mode`
    StoreMode { Standalone = "standalone", Sentinel = "sentinel", Cluster = "cluster" }
}

#[allow(clippy::derivable_impls, reason = "the macro declares the variants")]
impl Default for TlsMinVersion {
    fn default() -> TlsMinVersion {
        TlsMinVersion::Tls12
    }
}

words! { ContentTypeRule }
words! { LogFormat }
words! { QueryText }

const LEVELS: &[&str] = &["error", "warn", "info", "debug", "trace"];
words! { LevelFilter, LEVELS, |text: &str| LEVELS.contains(&text).then(|| text.parse().ok()).flatten() }
