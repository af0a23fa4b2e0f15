//! Where the gateway listens, and what it stands in front of.

use crate::config::options::{API_AUTH_SALT, Opt, Shape, opt};

pub const SERVING: &[Opt] = &[
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
        "Where to answer health checks, scrapes of metrics, and operators: their page and their orders. Not for the public.",
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
        "The Timbr backend: http://host:port or https://host[:port]. Required, unless upstream.urls is given.",
    ),
    opt(
        "upstream.urls",
        Shape::Urls,
        None,
        "Several backends of one kind instead of upstream.url, all http:// or all https://; see upstreams.md.",
    ),
    opt(
        "upstream.credential",
        Shape::Choice(&["forward", "impersonate", "platform", "delegate"]),
        Some("forward"),
        "What proves the caller to the backend. forward: the client's own x-api-key, and x-forwarded-user. \
         impersonate: the gateway's service key, and x-api-impersonate-user. platform: the user's own key, which the \
         platform gives when it logs the user in. delegate: the token that the backend's own get_token gave the user.",
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
        "upstream.requests",
        Shape::Limit,
        Some("0"),
        "The most requests that go to the backends at once, altogether; further ones wait, and callers take turns. For a \
         backend with so many threads. 0: no limit.",
    ),
    opt(
        "upstream.queue",
        Shape::Limit,
        Some("1024"),
        "The most requests that wait for upstream.requests; beyond it the caller with the most gives way, with 503. 0: \
         none waits.",
    ),
    opt("upstream.queue_timeout", Shape::Duration, Some("30s"), "How long one may wait there."),
    opt(
        "upstream.resolve_interval",
        Shape::Duration,
        Some("5s"),
        "How often a backend's name is looked up anew. New connections go to the addresses it has then; what was known \
         stays in use while the name cannot be looked up.",
    ),
    opt(
        "upstream.health_path",
        Shape::Text,
        None,
        "A path of the backend that each address is asked for now and then, without credentials; 200 to 399 is healthy. \
         Default: none is asked, and what requests meet decides.",
    ),
    opt(
        "upstream.health_interval",
        Shape::Duration,
        Some("5s"),
        "How often, and the longest such a check may take.",
    ),
    opt(
        "upstream.unhealthy_after",
        Shape::Count,
        Some("3"),
        "So many checks that fail one after the other take an address out of use.",
    ),
    opt("upstream.healthy_after", Shape::Count, Some("2"), "So many that succeed put it back."),
    opt(
        "upstream.eject_after",
        Shape::Limit,
        Some("5"),
        "So many requests one after the other that an address does not answer take it out of use: no connection, none in \
         time, closed or timed out without an answer, an invalid one, or 502, 503 or 504. 0: never.",
    ),
    opt(
        "upstream.eject_time",
        Shape::Duration,
        Some("5s"),
        "How long, at first; twice as long each further time, up to five minutes. An address that takes no connections is \
         back as soon as it does.",
    ),
];
