//! Where tokens are kept.

use super::{Opt, Shape, opt};

/// The options of `store`.
pub(super) const STORE: &[Opt] = &[
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
];
