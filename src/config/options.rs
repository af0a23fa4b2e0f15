//! Every option of the gateway, each defined once: from here come the flags, the environment variables, the keys
//! of the file, their help and their defaults.

pub use crate::config::shape::{API_AUTH_SALT, Opt, PREFIX, Shape, flag_of};

/// The option with this key.
pub fn find(key: &str) -> Option<&'static Opt> {
    OPTIONS.iter().find(|option| option.key == key)
}

const fn opt(key: &'static str, shape: Shape, default: Option<&'static str>, help: &'static str) -> Opt {
    Opt { key, shape, default, help }
}

/// All options, in the order in which they are documented.
pub const OPTIONS: &[Opt] = &[
    opt(
        API_AUTH_SALT,
        Shape::Secret,
        None,
        "The Fernet key that opens the clients' bearers: the same as in the API service. Several, with commas \
         between them, while salts are rotated; the first is the primary one.",
    ),
    opt("listen.https", Shape::Address, Some("0.0.0.0:8443"), "Where to take HTTPS (HTTP/1.1 and HTTP/2)."),
    opt(
        "listen.http",
        Shape::Address,
        Some("off"),
        "Where to take plain HTTP/1.1: for a sidecar on the loopback address.",
    ),
    opt(
        "listen.admin",
        Shape::Address,
        Some("127.0.0.1:9180"),
        "Where to answer /livez and /readyz. Not for the public.",
    ),
    opt(
        "listen.proxy_protocol",
        Shape::Choice(&["off", "required"]),
        Some("off"),
        "Whether connections begin with a PROXY protocol header (version 1 or 2). required: all do, and come from \
         trusted_proxies; others are closed.",
    ),
    opt(
        "trusted_proxies",
        Shape::Networks,
        None,
        "Networks of the proxies in front of the gateway, such as 10.0.0.0/8: only they are believed when they say \
         who the client is (X-Forwarded-For, Forwarded, PROXY protocol).",
    ),
    opt(
        "tls.cert_file",
        Shape::Path,
        None,
        "Certificate chain (PEM) for HTTPS. Without it a self-signed certificate is made at start. Read again when \
         it changes, like the other files of tls.",
    ),
    opt("tls.key_file", Shape::Path, None, "Private key (PEM) of tls.cert_file."),
    opt(
        "tls.certificates",
        Shape::Certificates,
        None,
        "Further certificates, chosen by the name that the client asks for (SNI): a list of {cert_file, key_file}. \
         tls.cert_file, or else the first one here, is shown to all others.",
    ),
    opt(
        "tls.client_auth",
        Shape::Choice(&["off", "optional", "required"]),
        Some("off"),
        "Whether HTTPS clients show a certificate of tls.client_ca_file. optional: they may, and a route can insist \
         (client_certificate). required: all must.",
    ),
    opt(
        "tls.client_ca_file",
        Shape::Path,
        None,
        "Certificate authorities (PEM) of the clients' certificates.",
    ),
    opt(
        "upstream.url",
        Shape::Url,
        None,
        "The Timbr backend: http://host:port or https://host[:port]. Required.",
    ),
    opt(
        "upstream.credential",
        Shape::Choice(&["forward", "impersonate"]),
        Some("forward"),
        "What proves the caller to the backend. forward: the client's own x-api-key, and x-forwarded-user. \
         impersonate: the gateway's service key, and x-api-impersonate-user.",
    ),
    opt(
        "upstream.api_key",
        Shape::Secret,
        None,
        "The service key for upstream.credential=impersonate: a Timbr token that was granted impersonation.",
    ),
    opt(
        "upstream.ca_file",
        Shape::Path,
        None,
        "Certificate authorities (PEM) to trust for an https upstream, instead of the system's.",
    ),
    opt(
        "upstream.client_cert_file",
        Shape::Path,
        None,
        "Client certificate chain (PEM) for an https upstream.",
    ),
    opt("upstream.client_key_file", Shape::Path, None, "Private key (PEM) of upstream.client_cert_file."),
    opt(
        "upstream.server_name",
        Shape::Text,
        None,
        "The name that an https upstream's certificate must carry, where it is not the URL's host.",
    ),
    opt("upstream.connect_timeout", Shape::Duration, Some("5s"), "To connect, TLS handshake included."),
    opt(
        "upstream.response_timeout",
        Shape::Duration,
        Some("1h"),
        "For the head of the answer. Queries may take long.",
    ),
    opt(
        "upstream.body_timeout",
        Shape::Duration,
        Some("5m"),
        "The longest pause within an answer before it is given up.",
    ),
    opt(
        "upstream.idle_timeout",
        Shape::Duration,
        Some("1500ms"),
        "How long an idle connection is kept for reuse. Must be below the backend's keep-alive (gunicorn: 2s).",
    ),
    opt(
        "auth.verifier",
        Shape::Choice(&["salt-holder", "users-file"]),
        Some("salt-holder"),
        "Who says that a password is right. salt-holder: whoever holds the salt may name any user. \
         users-file: a file of bcrypt hashes.",
    ),
    opt(
        "auth.users_file",
        Shape::Path,
        None,
        "Users and password hashes as `htpasswd -B` writes them, for auth.verifier=users-file.",
    ),
    opt(
        "auth.trust_salt_holder",
        Shape::Bool,
        Some("false"),
        "Accept that every holder of the salt can act as every user at the backend: what salt-holder and \
         impersonate amount to when used together.",
    ),
    opt(
        "auth.bearer_max_age",
        Shape::OptionalDuration,
        Some("off"),
        "Refuse bearers that were made longer ago.",
    ),
    opt("tokens.ttl", Shape::Duration, Some("24h"), "How long a minted token lives."),
    opt(
        "tokens.idle_ttl",
        Shape::OptionalDuration,
        Some("off"),
        "End a minted token that was not used for so long.",
    ),
    opt("tokens.max", Shape::Count, Some("1000000"), "The most tokens kept; beyond it the oldest one ends."),
    opt(
        "tokens.keys_file",
        Shape::Path,
        None,
        "Keys known in advance, one a line: user:sha256-of-the-key[:upstream key].",
    ),
    opt(
        "tokens.foreign",
        Shape::Choice(&["verify", "forward", "reject"]),
        Some("verify"),
        "What becomes of a key that the gateway does not know. verify: ask the backend once, and remember. \
         forward: leave it to the backend. reject: refuse it.",
    ),
    opt(
        "tokens.foreign_accept_ttl",
        Shape::Duration,
        Some("5m"),
        "How long the backend's yes to a foreign key is remembered.",
    ),
    opt(
        "tokens.foreign_reject_ttl",
        Shape::Duration,
        Some("10s"),
        "How long the backend's no to a foreign key is remembered.",
    ),
    opt(
        "store.kind",
        Shape::Choice(&["memory", "file", "redis"]),
        Some("memory"),
        "Where tokens are kept; see tokens.md. memory: in this process, until it ends. file: in a file too, for one \
         process. redis: in a Redis or Valkey that replicas share.",
    ),
    opt(
        "store.path",
        Shape::Path,
        None,
        "The file of store.kind=file; made with mode 0600 if it is not there. Only one process can have it open.",
    ),
    opt(
        "store.urls",
        Shape::Text,
        None,
        "The server of store.kind=redis: redis://host:port, or rediss://host:port for TLS. With store.mode=sentinel \
         the Sentinels, with cluster some of the nodes, with commas between them.",
    ),
    opt(
        "store.mode",
        Shape::Choice(&["standalone", "sentinel", "cluster"]),
        Some("standalone"),
        "How the servers of store.urls are put together.",
    ),
    opt(
        "store.sentinel_master",
        Shape::Text,
        None,
        "The name that the Sentinels know the primary server by, for store.mode=sentinel.",
    ),
    opt("store.database", Shape::Limit, Some("0"), "The number of the database. A cluster has only 0."),
    opt(
        "store.username",
        Shape::Text,
        None,
        "The ACL user to log in as; without it, the server's default user.",
    ),
    opt("store.password", Shape::Secret, None, "The password to log in with."),
    opt("store.sentinel_username", Shape::Text, None, "The ACL user to log in as at the Sentinels."),
    opt("store.sentinel_password", Shape::Secret, None, "The password to log in with at the Sentinels."),
    opt(
        "store.ca_file",
        Shape::Path,
        None,
        "Certificate authorities (PEM) to trust for rediss://, instead of the system's.",
    ),
    opt("store.client_cert_file", Shape::Path, None, "Client certificate chain (PEM) for rediss://."),
    opt("store.client_key_file", Shape::Path, None, "Private key (PEM) of store.client_cert_file."),
    opt(
        "store.prefix",
        Shape::Text,
        Some("timbr-gateway:"),
        "What all keys begin with. Replicas that are to share tokens have the same; others need another one.",
    ),
    opt(
        "store.timeout",
        Shape::Duration,
        Some("50ms"),
        "How long a request waits for Redis, and how slow Redis may be before it is taken for down. At most 10s.",
    ),
    opt(
        "store.max_stale",
        Shape::Duration,
        Some("1h"),
        "How long tokens that are known here go on working while Redis does not answer. Revocations do not arrive \
         meanwhile.",
    ),
    opt(
        "limits.body",
        Shape::Size,
        Some("100MiB"),
        "The largest body of a request. A route may have its own, `max_body`.",
    ),
    opt("limits.headers", Shape::Count, Some("100"), "The most fields of a request."),
    opt(
        "limits.header_size",
        Shape::Size,
        Some("32KiB"),
        "The largest head of a request, all fields together.",
    ),
    opt("limits.uri", Shape::Size, Some("8KiB"), "The longest target of a request, query included."),
    opt(
        "limits.body_rate",
        Shape::Size,
        Some("512B"),
        "The least that a client must send of a body, each second on average, beyond timeouts.body.",
    ),
    opt(
        "limits.connections",
        Shape::Count,
        Some("50000"),
        "The most client connections at once; further ones are closed at once.",
    ),
    opt(
        "limits.connections_per_address",
        Shape::Count,
        Some("12000"),
        "The most client connections of one address (IPv6: of one /64).",
    ),
    opt(
        "limits.requests",
        Shape::Count,
        Some("8192"),
        "The most requests in flight; further ones get 503 and Retry-After.",
    ),
    opt(
        "limits.requests_per_identity",
        Shape::Count,
        Some("1024"),
        "The most requests in flight with one key; further ones get 429 and Retry-After.",
    ),
    opt(
        "limits.requests_per_connection",
        Shape::Count,
        Some("1000000"),
        "After so many requests a connection is closed in good order.",
    ),
    opt("limits.streams", Shape::Count, Some("128"), "The most HTTP/2 streams of a connection at once."),
    opt(
        "limits.resets",
        Shape::Count,
        Some("64"),
        "The most HTTP/2 streams of a connection that were opened and reset in vain.",
    ),
    opt(
        "limits.control_frames",
        Shape::Count,
        Some("1000"),
        "The most HTTP/2 frames that do nothing (PING, SETTINGS, PRIORITY, empty DATA) beyond those that go with \
         requests.",
    ),
    opt(
        "limits.failures_per_address",
        Shape::Limit,
        Some("120"),
        "How often a minute a client's address (of IPv6: its /64) may show a wrong key or bearer and, counted apart, a \
         wrong password. Beyond it, what is wrong is answered 429, and no password is checked. Keys, tokens and bearers \
         that are right pass all the same. 0: no limit.",
    ),
    opt(
        "limits.failures_per_user",
        Shape::Limit,
        Some("10"),
        "How often a minute an address may be wrong about one user's password. 0: no limit.",
    ),
    opt("timeouts.handshake", Shape::Duration, Some("10s"), "For a client's TLS handshake."),
    opt("timeouts.header", Shape::Duration, Some("30s"), "For the head of a request, once it has begun."),
    opt("timeouts.idle", Shape::Duration, Some("75s"), "For a client's connection without a request."),
    opt("timeouts.body", Shape::Duration, Some("60s"), "The longest pause within a request's body."),
    opt("timeouts.write", Shape::Duration, Some("60s"), "For a client that takes nothing of its answer."),
    opt(
        "timeouts.connection_age",
        Shape::OptionalDuration,
        Some("off"),
        "After so long a connection is closed in good order, at a request's end. Spreads clients anew over replicas.",
    ),
    opt(
        "drain.delay",
        Shape::Duration,
        Some("0s"),
        "After SIGTERM: how long to go on accepting while readiness fails. In Kubernetes some 5s.",
    ),
    opt(
        "drain.timeout",
        Shape::Duration,
        Some("30s"),
        "After that: how long requests in flight may take to end.",
    ),
    opt(
        "log.level",
        Shape::Choice(&["error", "warn", "info", "debug", "trace"]),
        Some("info"),
        "Least level of events that are logged.",
    ),
    opt("log.format", Shape::Choice(&["text", "json"]), Some("text"), "Form of a log line."),
    opt("log.access", Shape::Bool, Some("true"), "One line for each request."),
    opt(
        "core_dumps",
        Shape::Bool,
        Some("false"),
        "Let core dumps be written and debuggers attach. Both see every secret; for the search for an error only.",
    ),
    opt("workers", Shape::Count, None, "Threads that serve requests. Default: one a core."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_that_others_script_against() {
        let variables: Vec<String> = OPTIONS.iter().map(Opt::variable).collect();
        for name in [
            "API_AUTH_SALT",
            "TIMBR_GATEWAY_UPSTREAM_URL",
            "TIMBR_GATEWAY_LISTEN_HTTP",
            "TIMBR_GATEWAY_LISTEN_HTTPS",
            "TIMBR_GATEWAY_LISTEN_ADMIN",
            "TIMBR_GATEWAY_TLS_CERT_FILE",
            "TIMBR_GATEWAY_TLS_KEY_FILE",
            "TIMBR_GATEWAY_UPSTREAM_CREDENTIAL",
            "TIMBR_GATEWAY_UPSTREAM_API_KEY",
            "TIMBR_GATEWAY_AUTH_VERIFIER",
            "TIMBR_GATEWAY_TOKENS_FOREIGN",
            "TIMBR_GATEWAY_TOKENS_KEYS_FILE",
            "TIMBR_GATEWAY_WORKERS",
        ] {
            assert!(variables.iter().any(|variable| variable == name), "{name}");
        }
        assert_eq!(find("listen.https").and_then(Opt::flag).as_deref(), Some("listen-https"));
    }

    #[test]
    fn no_secret_has_a_flag() {
        for option in OPTIONS.iter().filter(|option| option.shape == Shape::Secret) {
            assert_eq!(option.flag(), None, "{}", option.key);
            assert!(option.file_twin().is_some());
        }
    }

    #[test]
    fn keys_are_unique_and_no_key_is_a_folder_of_another() {
        for (i, a) in OPTIONS.iter().enumerate() {
            for b in &OPTIONS[i + 1..] {
                assert_ne!(a.key, b.key);
                assert!(!b.key.starts_with(&format!("{}.", a.key)), "{} / {}", a.key, b.key);
            }
        }
    }
}
