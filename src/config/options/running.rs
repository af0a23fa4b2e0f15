//! What clients may ask for, and how the process runs.

use crate::config::options::{Opt, Shape, opt};

pub const RUNNING: &[Opt] = &[
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
        "readiness.upstream",
        Shape::Bool,
        Some("false"),
        "Whether /readyz fails while no address of the backend is in use. Off, as all replicas would leave at once, and the \
         clients would be refused a connection instead of being told why.",
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
