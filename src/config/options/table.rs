//! The table of all options. The key of an option is the prefix of its group and its name in the group; the text after
//! the value's type is the default, and the brackets hold the range.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;
use tracing::level_filters::LevelFilter;

use crate::base::glob::Glob;
use crate::base::secret::Secret;
use crate::config::audit::SyslogServer;
use crate::config::choices::{
    AbandonedPolicy, AdminCommands, AdminSocketMode, AuditFailure, AuthorizationMode, ClientAuthMode, ClientSocketMode,
    CredentialKind, HalfClose, HostHeader, OwnKeys, ProxyHeader, ProxyProtocol, ShowTokenPolicy, StoreMode, StoreType,
    TlsMinVersion, UnknownIssuers, VerifierKind,
};
use crate::config::options::types::{Count, DurationOrZero, Limit, Size};
use crate::config::options::{Key, OptionSpec, group};
use crate::config::reader::Reader;
use crate::config::{ForeignKeyPolicy, ServerUrl};
use crate::observability::log::LogFormat;
use crate::observability::queries::QueryText;

/// All options, sorted as in the documentation.
pub fn all() -> impl Iterator<Item = &'static OptionSpec> {
    let groups = [
        GlobalKeys::SPECS,
        ListenKeys::SPECS,
        TlsKeys::SPECS,
        UpstreamKeys::SPECS,
        HealthKeys::SPECS,
        AuthKeys::SPECS,
        PlatformKeys::SPECS,
        LdapKeys::SPECS,
        ImpersonationKeys::SPECS,
        AuthorizationKeys::SPECS,
        HeaderKeys::SPECS,
        TokenKeys::SPECS,
        StoreKeys::SPECS,
        LimitKeys::SPECS,
        LimitRuleKeys::SPECS,
        TimeoutKeys::SPECS,
        DrainKeys::SPECS,
        ReadinessKeys::SPECS,
        LogKeys::SPECS,
        AuditKeys::SPECS,
        JournalKeys::SPECS,
    ];
    groups.into_iter().flatten()
}

group! { GLOBAL: GlobalKeys = "" {
    api_auth_salt: Secret,
        "Fernet key that decrypts the clients' bearers; the same key as in the Timbr API service. For a rotation, \
         several keys separated by commas; the first one is the primary key.";
    trusted_proxies: Vec<IpNet>,
        "Networks of the proxies in front of the gateway, such as 10.0.0.0/8. The client addresses in X-Forwarded-For, \
         Forwarded and PROXY protocol headers are trusted only if they come from one of these networks. unix: means \
         the clients of listen.http_socket.";
    trusted_proxies_header: ProxyHeader = "x-forwarded-for",
        "Header in which the trusted proxies report the client. x-forwarded-for: X-Forwarded-For and X-Forwarded-Proto. \
         forwarded: Forwarded (RFC 7239), with for and proto. The other one is ignored, because a proxy that does not \
         write it forwards what the client wrote.";
    upstreams: Vec<Value>,
        "Further upstreams, for routes that name one: a list of {name, url or urls, …} with the keys of upstream. See \
         upstreams.md.";
    workers: Count ["1"..="1024"],
        "Number of worker threads. Default: one for each CPU core.";
    core_dumps: bool = "false",
        "Allow core dumps and debuggers. Both expose every secret in memory; enable it for debugging only.";
} }

group! { LISTEN: ListenKeys = "listen." {
    https: Option<SocketAddr> = "0.0.0.0:8443",
        "Address of the HTTPS listener (HTTP/1.1 and HTTP/2).";
    http: Option<SocketAddr> = "off",
        "Address of the plain HTTP/1.1 listener, such as a loopback address for a sidecar.";
    http_socket: PathBuf,
        "Unix socket for plain HTTP/1.1, in addition to listen.http, for a proxy or a client on this machine. Its folder must \
         be writable only by the gateway's user or root, and is created if it does not exist. All clients of the socket \
         together are one address, unix:, in limits and logs.";
    http_socket_mode: ClientSocketMode = "0660",
        "File mode of listen.http_socket. 0660: the gateway's user, its group and root. 0666: every user of this machine. \
         Clients still have to authenticate.";
    admin: Option<SocketAddr> = "127.0.0.1:9180",
        "Address of the admin listener: health checks, metrics, dashboard and admin commands. Must not be public.";
    admin_commands: AdminCommands = "loopback",
        "Clients that may use admin commands and list tokens. loopback: every process of this machine or pod, by \
         listen.admin. token: processes of this machine or pod that send listen.admin_token as a bearer. socket: only \
         users whom the file mode of listen.admin_socket admits. The socket is always accepted where it exists.";
    admin_socket: PathBuf,
        "Unix socket of the admin listener, in addition to listen.admin. The audit log names the operators who use it. Its \
         folder must be writable only by the gateway's user or root, and is created if it does not exist.";
    admin_socket_mode: AdminSocketMode = "0600",
        "File mode of listen.admin_socket. 0600: the gateway's user and root. 0660: also the group of the socket.";
    admin_token: Secret,
        "Token for listen.admin_commands=token: at least 32 printable ASCII characters without spaces.";
    proxy_protocol: ProxyProtocol = "off",
        "Whether connections start with a PROXY protocol header (version 1 or 2). required: every connection must have \
         one and come from trusted_proxies; other connections are closed.";
} }

group! { TLS: TlsKeys = "tls." {
    cert_file: PathBuf,
        "Certificate chain (PEM) for HTTPS. Default: a self-signed certificate that is generated at start. Reloaded \
         when it changes, like the other files of tls.";
    key_file: PathBuf,
        "Private key (PEM) of tls.cert_file.";
    certificates: Vec<Value>,
        "Additional certificates, selected by server name (SNI): a list of {cert_file, key_file}. Clients whose server \
         name matches none receive tls.cert_file or, if it is not set, the first certificate of this list.";
    min_version: TlsMinVersion = "1.2",
        "Lowest version of TLS that clients may use.";
    client_auth: ClientAuthMode = "off",
        "Whether HTTPS clients present a certificate signed by tls.client_ca_file. optional: they may, and a route can \
         require it (client_certificate). required: every client must.";
    client_ca_file: PathBuf,
        "Certificate authorities (PEM) for client certificates.";
    ticket_keys_file: PathBuf,
        "Keys of TLS session tickets that replicas share, so that clients can resume a session with each of them: base64 of \
         32 random bytes on each line. The first one encrypts, all decrypt. Default: each process has its own key.";
} }

group! { UPSTREAM: UpstreamKeys = "upstream." {
    url: ServerUrl,
        "URL of the Timbr backend: http://host:port, https://host[:port], or unix:/path for HTTP over a Unix socket. Required \
         unless upstream.urls is set.";
    urls: Vec<ServerUrl>,
        "URLs of several equivalent backends, in place of upstream.url; all https://, or all http:// or unix:/. See \
         upstreams.md.";
    credential: CredentialKind = "forward",
        "Credential that is sent to the backend. forward: the client's own x-api-key, with the user in \
         x-forwarded-user. impersonate: the gateway's service key, with the user in x-api-impersonate-user. platform: \
         the user's own key, which the platform returns at login. delegate: the token that the backend's own get_token \
         returned to the user. show-token: the user's own key, which the gateway requests with the statement SHOW TOKEN, \
         the user's JWT or what the login returned; see tokens.md.";
    api_key: Secret,
        "Service key for upstream.credential=impersonate: a Timbr token that is allowed to impersonate.";
    ca_file: PathBuf,
        "Certificate authorities (PEM) for an https upstream, in place of the system's.";
    client_cert_file: PathBuf,
        "Client certificate chain (PEM) for an https upstream.";
    client_key_file: PathBuf,
        "Private key (PEM) of upstream.client_cert_file.";
    server_name: String,
        "Server name to expect in the certificate of an https upstream. Default: the host of the URL.";
    connect_timeout: Duration = "5s",
        "Timeout for connecting to the backend, including the TLS handshake.";
    response_timeout: Duration = "1h",
        "Timeout for the response headers of the backend. Queries can take long.";
    body_timeout: Duration = "5m",
        "Timeout between two successive reads of the response body.";
    idle_timeout: Duration = "1500ms",
        "Time after which an idle connection to the backend is closed. Must be shorter than the keep-alive timeout of \
         the backend (gunicorn: 2s).";
    host_header: HostHeader = "backend",
        "Name in the host header of requests. backend: the host of the URL. client: the host that the client used, for a \
         backend that is a virtual host of that name or builds URLs from it. It is always in x-forwarded-host too.";
    abandoned: AbandonedPolicy = "half-close",
        "Handling of the backend connection of a request whose client has left. half-close: the gateway closes its \
         direction, and the request keeps its slot and counts for its caller until the backend has responded or closed the \
         connection, at most for upstream.response_timeout. close: for backends that misread a half-closed connection; \
         the request does not count any longer, although the backend may still process it.";
    requests: Limit<usize> = "0",
        "Maximum number of concurrent requests to all backends together, such as the number of the backend's threads. \
         Further requests are queued, and slots are shared fairly among callers. 0: no limit.";
    requests_per_endpoint: Limit<usize> = "0",
        "Maximum number of concurrent requests to each address of the backends. The load balancer passes over an address \
         that has this number; while all have, requests are queued as for upstream.requests. 0: no limit.";
    queue: Limit<usize> = "1024",
        "Maximum number of queued requests. When the queue is full, the caller with the most queued requests receives \
         503. 0: no queue.";
    queue_timeout: Duration = "30s",
        "Maximum time that a request waits in the queue.";
    resolve_interval: Duration = "5s",
        "Interval of DNS lookups of the backend's name. New connections use the latest addresses; while the lookup \
         fails, the last known ones are used.";
} }

group! {
    /// Health checks and ejection of a backend's addresses.
    #[derive(Clone, Debug, PartialEq)]
    HEALTH: HealthKeys = "upstream." => HealthOptions {
    health_path: String,
        "Path of the active health check, which is sent to each address without credentials; status 200 to 399 is \
         healthy. Default: no active health check; the responses to requests decide.";
    health_interval: Duration = "5s",
        "Interval between two health checks of an address, and the timeout of each.";
    unhealthy_after: Count<u32> = "3" ["1"..="1000"],
        "Number of consecutive failed health checks after which an address is ejected.";
    healthy_after: Count<u32> = "2" ["1"..="1000"],
        "Number of consecutive successful health checks after which an ejected address is used again.";
    eject_after: Limit = "5",
        "Number of consecutive failed requests after which an address is ejected: connection error or timeout, no \
         response or an invalid one, or status 502, 503 or 504. 0: never.";
    eject_time: Duration = "5s",
        "Duration of the first ejection. It doubles with each further one, up to five minutes. An address that refuses \
         connections is used again as soon as it accepts them.";
} }

group! { AUTH: AuthKeys = "auth." {
    verifier: VerifierKind = "salt-holder",
        "How passwords are verified. salt-holder: not at all; a client that holds the salt may name any user. users-file: by a \
         file of password hashes. platform: by the platform's login form. delegate: by the backend's own get_token. \
         ldap: by an LDAP directory.";
    users_file: PathBuf,
        "Users and password hashes (bcrypt or Argon2id) for auth.verifier=users-file, in the format of `htpasswd -B` and \
         `timbr-gateway users add`. Reloaded when it changes.";
    trust_salt_holder: bool = "false",
        "Accept that every holder of the salt can act as every user at the backend. Required to combine \
         auth.verifier=salt-holder with upstream.credential=impersonate or with impersonation.rules.";
    bearer_max_age: Option<Duration> = "off",
        "Maximum age of a bearer. Older bearers are rejected.";
    jwt_issuers: Vec<Value>,
        "Identity providers whose JSON Web Tokens are accepted in x-jwt-token: a list of {issuer, jwks_url or jwks_file \
         or secret_file, audiences, …}. See configuration.md.";
    jwt_unknown_issuers: UnknownIssuers = "reject",
        "Handling of JSON Web Tokens whose issuer is not in auth.jwt_issuers. forward: the backend receives them \
         unchanged and verifies them; their user is unknown to the gateway.";
    jwt_leeway: DurationOrZero = "30s" ["0s"..="5m"],
        "Tolerated clock difference between the gateway and an identity provider.";
    jwt_refresh: Duration = "10m",
        "Interval at which key sets are fetched from jwks_url.";
    jwt_refetch: Duration = "10s",
        "Minimum interval between two fetches that are caused by tokens with an unknown key ID.";
} }

group! {
    /// The platform's login pages, for `auth.verifier=platform`.
    #[derive(Clone, Debug)]
    PLATFORM: PlatformKeys = "platform." => PlatformOptions {
    url: ServerUrl,
        "URL of the platform for auth.verifier=platform: http://host:port or https://host[:port]. Default: upstream.url.";
    ca_file: PathBuf,
        "Certificate authorities (PEM) for an https platform.url, in place of the system's.";
    login_path: String = "/login/",
        "Path of the platform's login form.";
    token_path: String = "/timbr/get_timbr_user_token/",
        "Path of the platform's page that holds the user's token.";
    user_path: String,
        "Path of a page with the name of the user who is logged in, as JSON: {\"username\": …}, also inside of \
         {\"result\": …}, such as /api/v1/me/. Then that name is used, however the client spells it.";
    timeout: Duration = "10s",
        "Timeout of each request to the platform.";
} }

group! { LDAP: LdapKeys = "ldap." {
    url: String,
        "URL of the LDAP directory for auth.verifier=ldap: ldap://host[:port] or ldaps://host[:port].";
    start_tls: bool = "true",
        "Use StartTLS on ldap:// connections. It can be disabled only for a directory on the same machine.";
    ca_file: PathBuf,
        "Certificate authorities (PEM) for the directory, in place of the system's.";
    user_dn: String,
        "Distinguished name of a user's entry, which begins with the attribute that has the user's name, such as \
         uid={user},ou=people,dc=example,dc=com.";
    base_dn: String,
        "Base of the search for a user's entry, in place of ldap.user_dn.";
    filter: String = "(uid={user})",
        "Filter of the search. The attribute before ={user} must equal the user name exactly, including case.";
    bind_dn: String,
        "Distinguished name to bind as for the search. Default: an anonymous search.";
    bind_password: Secret,
        "Password of ldap.bind_dn.";
    groups_attribute: String,
        "Attribute of the user's entry that names the user's groups, such as memberOf.";
    groups_base_dn: String,
        "Base of a search for the user's groups, in place of ldap.groups_attribute.";
    groups_filter: String = "(member={dn})",
        "Filter of this search, with {dn} for the user's entry and {user} for the user's name.";
    timeout: Duration = "5s",
        "Timeout of a whole login.";
} }

group! { IMPERSONATION: ImpersonationKeys = "impersonation." {
    rules: Vec<Value>,
        "Users who may act as other users with x-api-impersonate-user: a list of {users, act_as}, names or patterns \
         with * and ?. Requests that no rule allows are rejected.";
    own_keys: OwnKeys = "backend",
        "Who decides when no rule allows the request and the client's own backend key is forwarded \
         (upstream.credential=forward). backend: the backend decides. deny: the request is rejected.";
} }

group! { AUTHORIZATION: AuthorizationKeys = "authorization." {
    mode: AuthorizationMode = "off",
        "Whether authorization.rules are applied. shadow: requests that no rule allows are logged, counted and \
         forwarded. enforce: they are rejected.";
    rules: Vec<Value>,
        "Requests that are allowed: a list of {users, groups, unknown_users, routes, methods, ontologies, \
         statements, tools}. See configuration.md.";
} }

group! { HEADERS: HeaderKeys = "headers." {
    drop: Vec<Glob>,
        "Headers of clients that the backend never receives, by name or by a pattern with *, such as x-sso-*: those in \
         which a system behind the gateway expects a user. The headers of well-known gateways are dropped in any case.";
} }

group! {
    /// Tokens and keys.
    #[derive(Clone, Debug)]
    TOKENS: TokenKeys = "tokens." => TokenOptions {
    ttl: Duration = "24h",
        "Lifetime of a token that the gateway issues.";
    idle_ttl: Option<Duration> = "off",
        "Time without use after which a token expires.";
    max: Count = "1000000",
        "Maximum number of stored tokens. When it is exceeded, the oldest token is evicted.";
    max_per_user: Limit<usize> = "50",
        "Maximum number of tokens of one user in the memory of a replica. When it is exceeded, the oldest token of that \
         user is evicted. Each password of a user has its own token. 0: no limit.";
    keys_file: PathBuf,
        "Keys that are known in advance, one per line: user:sha256-of-the-key[:upstream key].";
    foreign: ForeignKeyPolicy = "verify",
        "Handling of keys that the gateway does not know. verify: ask the backend once and cache the result. forward: \
         let the backend decide on each request; if it verifies no keys, any key passes. reject: reject the request.";
    foreign_user_query: String,
        "Statement that returns the name of a foreign key's user, in one row with one column. It is sent to the ontology \
         system_db with each foreign key that the backend has accepted. Default: these users are unknown by name.";
    show_token: ShowTokenPolicy,
        "What a client receives that sends the statement SHOW TOKEN, which returns the user's own key. backend: the \
         backend's response. deny: a rejection. mint: a token of the gateway, or the key that the client sent. Default: \
         backend; with upstream.credential=show-token: mint. See tokens.md.";
    foreign_accept_ttl: Duration = "5m",
        "Cache time of the backend's acceptance of a foreign key.";
    foreign_reject_ttl: Duration = "10s",
        "Cache time of the backend's rejection of a foreign key.";
} }

group! { STORE: StoreKeys = "store." {
    kind: StoreType = "memory",
        "Where tokens are stored. memory: in the process, until it exits. file: also in a file, for one process. redis: \
         in a Redis or Valkey server that replicas share. See tokens.md.";
    key: Secret,
        "Key that protects stored tokens and signs new ones: 32 random bytes in base64, as `timbr-gateway store key` \
         prints. The same at all replicas, and unknown to clients. For a rotation, several keys separated by commas; the \
         first one is the primary key. Required for store.kind=file and redis, unless auth.verifier is salt-holder. \
         Default for store.kind=memory: a random key.";
    path: PathBuf,
        "File of store.kind=file, created with mode 0600 if it does not exist. Only one process can open it.";
    urls: String,
        "Servers of store.kind=redis, separated by commas: redis://host:port, or rediss://host:port for TLS. With \
         store.mode=sentinel the Sentinels, with store.mode=cluster some of the nodes.";
    mode: StoreMode = "standalone",
        "Topology of the servers in store.urls.";
    sentinel_master: String,
        "Name of the primary server at the Sentinels, for store.mode=sentinel.";
    database: Limit = "0",
        "Number of the database. A cluster has only 0.";
    username: String,
        "ACL user. Default: the server's default user.";
    password: Secret,
        "Password of the ACL user.";
    sentinel_username: String,
        "ACL user at the Sentinels.";
    sentinel_password: Secret,
        "Password at the Sentinels.";
    ca_file: PathBuf,
        "Certificate authorities (PEM) for rediss://, in place of the system's.";
    client_cert_file: PathBuf,
        "Client certificate chain (PEM) for rediss://.";
    client_key_file: PathBuf,
        "Private key (PEM) of store.client_cert_file.";
    prefix: String = "timbr-gateway:",
        "Prefix of all keys. Replicas that share tokens must have the same prefix, and other gateways a different one.";
    timeout: Duration = "50ms",
        "Timeout of a Redis operation during a request; a slower server is considered to be down. Limited to 10s.";
    max_stale: DurationOrZero = "1h",
        "Maximum time for which cached tokens are accepted while Redis does not respond. Revocations are not \
         received during that time.";
} }

group! {
    /// Limits on connections and requests.
    #[derive(Clone, Copy, Debug)]
    LIMITS: LimitKeys = "limits." => LimitOptions {
    body: Size = "100MiB",
        "Maximum size of a request body. A route can override it with max_body.";
    buffer: Size = "64KiB",
        "Part of a request body that is received before the request is queued or sent to the backend. A smaller body is \
         sent in one piece, with its length. A route can override it with buffer.";
    headers: Count = "100" ["1"..="1000"],
        "Maximum number of headers of a request.";
    header_size: Size<usize> = "32KiB" ["1KiB"..="256KiB"],
        "Maximum size of the request line and all headers.";
    uri: Size<usize> = "8KiB" ["256B"..="64KiB"],
        "Maximum length of the request target, including the query.";
    body_rate: Size = "512B",
        "Minimum rate of a request body: bytes per second on average, after a grace period of timeouts.body.";
    response_rate: Size = "512B",
        "Minimum rate at which a client reads a response while the gateway waits for it: bytes per second, after a grace \
         period of timeouts.write. A slower response is aborted.";
    connections: Count = "50000",
        "Maximum number of client connections. Further connections are closed immediately.";
    connections_per_address: Count = "12000",
        "Maximum number of connections from one client address (IPv6: one /64 network).";
    memory: Size ["1MiB"..="1024GiB"],
        "Maximum memory of the process, or of its control group if that has a limit. Above it, requests receive 503, \
         idle connections are closed, and responses that are not read for 5 seconds are aborted. Default: 85 % of the control group's limit; unlimited if there is none.";
    requests: Count = "8192",
        "Maximum number of concurrent requests, of which at most half may wait for the check of their credential. \
         Further requests receive 503 and Retry-After.";
    requests_per_identity: Count = "1024",
        "Maximum number of concurrent requests of one caller: a user, or a key whose user only the backend knows. Further \
         requests receive 429 and Retry-After.";
    streams_per_identity: Count = "64",
        "Maximum number of open event streams (MCP) of one caller, which count for no other limit on concurrent \
         requests but limits.requests. Further streams receive 429 and Retry-After.";
    unauthenticated_rate: Limit = "20",
        "Requests per second of one client address (IPv6: /64 network) on routes without credentials; ten times as many \
         may come at once. Further requests receive 429 and Retry-After. 0: no limit.";
    requests_per_connection: Count<u64> = "1000000",
        "Maximum number of requests on one connection. It is then closed gracefully.";
    streams: Count<u32> = "128" ["1"..="1000000"],
        "Maximum number of concurrent HTTP/2 streams on one connection. Further ones are refused; clients send them again.";
    resets: Count = "64",
        "Maximum number of HTTP/2 streams on one connection that are reset before they are served, or because of errors of \
         the client. The connection is closed when it is exceeded.";
    control_frames: Count<u32> = "1000" ["1"..="1000000"],
        "Maximum number of HTTP/2 frames without effect (PING, SETTINGS, PRIORITY, empty DATA) on one connection, beyond \
         those that accompany requests.";
    half_close: HalfClose = "cancel",
        "The request of an HTTP/1.1 client that closes its side of the connection while it waits. cancel: the client has \
         disconnected, so the request is cancelled. serve: it gets its response; a client that has disconnected is not \
         noticed before that.";
    failures_per_address: Limit = "120",
        "Rate limit for failed authentication per client address (IPv6: /64 network), per minute: wrong keys and bearers \
         and, counted separately, wrong passwords. Above it, failures receive 429, and neither passwords nor unknown keys \
         are checked; tokens, known keys and valid bearers are still accepted. 0: no limit.";
    failures_per_user: Limit = "10",
        "Rate limit for wrong passwords of one user from one address, per minute. 0: no limit.";
    tokens_per_address: Limit = "600",
        "Rate limit for new tokens per client address (IPv6: /64 network), per minute. A login that receives its existing \
         token does not count. Above it, logins receive 429 and Retry-After. 0: no limit.";
} }

group! { LIMIT_RULES: LimitRuleKeys = "limits." {
    rules: Vec<Value>,
        "Rate limits and concurrency limits for each caller: a list of {name, users, groups, addresses, routes, ontologies, \
         requests_per_second, burst, concurrent, mode}. See configuration.md.";
} }

group! {
    /// Time limits on what clients do.
    #[derive(Clone, Copy, Debug)]
    TIMEOUTS: TimeoutKeys = "timeouts." => Timeouts {
    handshake: Duration = "10s",
        "Timeout for the TLS handshake with a client.";
    header: Duration = "30s",
        "Timeout for reading the request line and headers, from their first byte.";
    idle: Duration = "75s",
        "Time after which a client connection without a request is closed (keep-alive timeout).";
    body: Duration = "60s",
        "Timeout between two successive reads of a request body.";
    write: Duration = "60s",
        "Timeout between two successive writes of a response to a client. Over HTTP/2 it ends the response that the \
         client does not read, and the connection only if its socket accepts nothing.";
    connection_age: Option<Duration> = "off",
        "Maximum age of a client connection. It is then closed gracefully after the current request, so that clients \
         spread over the replicas.";
} }

group! {
    /// Graceful shutdown.
    #[derive(Clone, Copy, Debug)]
    DRAIN: DrainKeys = "drain." => Drain {
    delay: DurationOrZero = "0s",
        "Time for which the gateway still accepts connections after SIGTERM, while readiness fails. In Kubernetes about 5s.";
    timeout: Duration = "30s",
        "Maximum time for requests in flight to complete after drain.delay.";
} }

group! { READINESS: ReadinessKeys = "readiness." {
    upstream: bool = "false",
        "Whether /readyz fails while no address of the backend is healthy. If it is enabled, all replicas become unready \
         together, and clients cannot connect instead of receiving an error response.";
} }

group! { LOG: LogKeys = "log." {
    level: LevelFilter = "info",
        "Minimum level of logged events.";
    format: LogFormat = "text",
        "Format of log lines.";
    access: bool = "true",
        "Write an access log line for each request.";
} }

group! {
    /// Outputs of the audit log beside the log itself.
    #[derive(Clone, Debug, PartialEq, Eq)]
    AUDIT: AuditKeys = "audit." => AuditOptions {
    file: PathBuf,
        "File that the audit log is appended to, as JSON lines, in addition to the log. It is opened again when it has been \
         renamed. Created with mode 0640 if it does not exist.";
    file_max_size: Size = "100MiB",
        "Size at which audit.file is renamed to audit.file.1, and so on. 0B: never.";
    file_keep: Count = "10" ["1"..="1000"],
        "Number of renamed files of audit.file that are kept.";
    syslog: SyslogServer,
        "Syslog server (RFC 5424) for the audit log: unix:/path, tcp://host:port or tls://host:port.";
    syslog_ca_file: PathBuf,
        "Certificate authorities (PEM) for a tls:// syslog server, in place of the system's.";
    on_failure: AuditFailure = "continue",
        "Logins whose audit line cannot be written to audit.file and audit.syslog. continue: they succeed, and lost lines \
         are counted. refuse: they receive 503.";
} }

group! { JOURNAL: JournalKeys = "journal." {
    enabled: bool = "false",
        "Whether statements are recorded: a log line for each one (target query), the running ones, which an operator can \
         cancel, and statistics of the last hour. See queries.md.";
    text: QueryText = "none",
        "How much of the text of a statement the journal has. none: only a hash of it without its literals. fingerprint: the \
         text without its literals. full: the text as it was sent; its literals can be personal data.";
} }
