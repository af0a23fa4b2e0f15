//! The table of rejections, sorted along the request path. It is data only: `mod.rs` explains the columns.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::admission::RuleExceeded;
use crate::gateway::rejection::ResponseHeader::{self, Allow, Challenge, RetryAfter};
use crate::gateway::rejection::{ExampleData, Fault, RejectionEntry, StoppedRequest, seconds_until_retry};
use crate::observability::phase::Phase;

const API_KEY: ResponseHeader<'static> = Challenge("ApiKey realm=\"timbr\"");
/// The challenge of routes that accept `Authorization: Basic`.
pub const BASIC_CHALLENGE: &str = "Basic realm=\"timbr\"";
const BASIC: ResponseHeader<'static> = Challenge(BASIC_CHALLENGE);
const BEARER: ResponseHeader<'static> = Challenge("Bearer realm=\"timbr\"");
const INVALID_BEARER: ResponseHeader<'static> = Challenge("Bearer realm=\"timbr\", error=\"invalid_token\"");

rejections! {
    /// The bytes are not an HTTP request, or they are ambiguous.
    RequestMalformed(cause: &'static str) {
        status: BAD_REQUEST,
        reason: "request_malformed",
        phases: [Read],
        fault: Request,
        detail: *cause,
        message: format!("This is not a valid HTTP request: {cause}."),
        remedy: "Not an HTTP/1.1 request, or an ambiguous one: two lengths, a bare line feed, a folded header. The \
                 message names the cause. The connection is closed. Over HTTP/2 only its stream ends; where the message cannot \
                 be sent, the client receives RST_STREAM.",
    }
    /// An HTTP request without TLS arrived at `listen.https`.
    TlsRequired {
        status: BAD_REQUEST,
        reason: "tls_required",
        phases: [Read],
        fault: Request,
        message: "This port requires HTTPS, but the request was sent without encryption. Use an https:// URL.",
        remedy: "A client uses `http://` with the port of `listen.https`. If its request had a key, that key crossed the \
                 network unencrypted: replace it.",
    }
    /// Too many headers, or too many bytes of them.
    RequestHeadTooLarge {
        status: REQUEST_HEADER_FIELDS_TOO_LARGE,
        reason: "request_head_too_large",
        phases: [Read],
        fault: Request,
        rules: ["limits.headers", "limits.header_size"],
        message: "The request has too many headers, or they are too large. Send fewer or shorter headers.",
        remedy: "More headers than `limits.headers`, or a head larger than `limits.header_size`.",
    }
    /// The request target is too long.
    TargetTooLong {
        status: URI_TOO_LONG,
        reason: "target_too_long",
        phases: [Read],
        fault: Request,
        rules: ["limits.uri"],
        message: "The request target is too long. Send long input in the body of a POST request.",
        remedy: "The request target is longer than `limits.uri`.",
    }
    /// The client paused in the head for too long.
    RequestHeadStalled {
        status: REQUEST_TIMEOUT,
        reason: "request_head_stalled",
        phases: [Read],
        fault: Request,
        rules: ["timeouts.header"],
        message: "The request head did not arrive in time. Send it without a pause.",
        remedy: "The head did not arrive within `timeouts.header`.",
    }
    /// The request names a host that the certificate of the connection does not cover.
    Misdirected {
        status: MISDIRECTED_REQUEST,
        reason: "misdirected",
        phases: [Handshake],
        fault: Request,
        header: "host",
        rules: ["tls.certificates", "tls.cert_file"],
        message: "This connection was opened for a different host than the request names. Open a new connection for \
                  this host.",
        remedy: "Over TLS, the host of the request differs from the server name (SNI) of the handshake, and the \
                 certificate does not cover it.",
    }
    /// The route requires a client certificate, and the client sent none.
    ClientCertificateRequired {
        status: FORBIDDEN,
        reason: "client_certificate_required",
        phases: [Handshake],
        fault: Credentials,
        rules: ["routes.client_certificate"],
        message: "This path requires a TLS client certificate.",
        remedy: "The route has `client_certificate: required`, and the client sent no certificate.",
    }
    /// Too many requests are in flight.
    Overloaded {
        status: SERVICE_UNAVAILABLE,
        reason: "overloaded",
        phases: [Admission],
        fault: Rules,
        response_header: RetryAfter(1),
        rules: ["limits.requests"],
        message: "The gateway is handling too many requests. Try again in a moment.",
        remedy: "More requests in flight than `limits.requests`, or more than half of that number wait for the check of \
                 their credential.",
    }
    /// Too many HTTP/2 streams of this connection are open.
    StreamRefused {
        status: TOO_MANY_REQUESTS,
        reason: "stream_refused",
        phases: [Admission],
        fault: Rules,
        rules: ["limits.streams"],
        message: "Too many streams of this connection are open, or it is closing. Wait until some have ended.",
        remedy: "More streams of one HTTP/2 connection are open than `limits.streams`, or the connection closes after a \
                 head that could not be read. The client receives no response, but REFUSED_STREAM: it may send the \
                 request again.",
    }
    /// The process uses more memory than it may.
    MemoryExhausted {
        status: SERVICE_UNAVAILABLE,
        reason: "memory_exhausted",
        phases: [Admission],
        fault: Rules,
        response_header: RetryAfter(1),
        rules: ["limits.memory"],
        message: "The gateway is out of memory. Try again in a moment.",
        remedy: "The gateway uses more than `limits.memory`. Until a sixteenth of it is free, all requests receive this \
                 rejection, idle connections are closed, responses that their clients do not read for 5 seconds are \
                 aborted, and few new connections are accepted. Give it more memory, or lower `limits.connections` \
                 and `limits.requests`.",
    }
    /// Too many requests of this identity are in flight.
    TooManyRequests {
        status: TOO_MANY_REQUESTS,
        reason: "too_many_requests",
        phases: [Share],
        fault: Rules,
        response_header: RetryAfter(1),
        rules: ["limits.requests_per_identity"],
        message: "Too many of your requests are in progress. Wait until some of them have finished.",
        remedy: "More requests of one caller are in flight than `limits.requests_per_identity`.",
    }
    /// Too many event streams of this caller.
    TooManyStreams {
        status: TOO_MANY_REQUESTS,
        reason: "too_many_streams",
        phases: [Share],
        fault: Rules,
        response_header: RetryAfter(1),
        rules: ["limits.streams_per_identity"],
        message: "Too many of your event streams are open. Close some of them.",
        remedy: "One caller has more event streams open than `limits.streams_per_identity`. Each running MCP client has one.",
    }
    /// A rule of `limits.rules` limits this caller.
    RateLimited(exceeded: RuleExceeded) {
        status: TOO_MANY_REQUESTS,
        reason: "rate_limited",
        phases: [Share],
        fault: Rules,
        response_header: ResponseHeader::retry_after(exceeded.retry_after),
        rules: ["limits.rules"],
        detail: format!("the limit of rule {}", exceeded.rule),
        // Many clients show their users the message, but not the header.
        message: format!(
            "You send more requests than you may. Send fewer at a time, and try again in {} s.",
            seconds_until_retry(exceeded.retry_after)
        ),
        remedy: "A rule of `limits.rules` limits the rate or the number of concurrent requests of this caller. The \
                 access line and `explain` name the rule.",
    }
    /// `Upgrade` to a protocol that the gateway does not support.
    UpgradeRefused {
        status: BAD_REQUEST,
        reason: "upgrade_refused",
        phases: [Screen, GetToken],
        fault: Request,
        header: "upgrade",
        message: "Protocol upgrades are not supported. Remove the `Upgrade` header.",
        remedy: "`Upgrade` names a protocol other than TLS and HTTP. Offers of those (`h2c`, `TLS/1.2`) are ignored, as \
                 HTTP allows.",
    }
    /// The request line names no path, a host other than `Host`, or an ambiguous path.
    RequestLineAmbiguous(cause: &'static str) {
        status: BAD_REQUEST,
        reason: "request_line_ambiguous",
        phases: [Route],
        fault: Request,
        detail: *cause,
        message: format!(
            "The request target is rejected: {cause}. Send a plain path, such as /timbr/api/query/."
        ),
        remedy: "The path is ambiguous (`//`, `..`, an escaped `/`, …), or the target and `Host` name different \
                 hosts. Such requests are rejected, never normalized.",
    }
    /// No route has this path.
    NotFound {
        status: NOT_FOUND,
        reason: "not_found",
        phases: [Route],
        fault: Request,
        rules: ["routes.prefix"],
        message: "There is no route for this path. The paths of the API begin with /timbr/api/ or /timbr/openapi/.",
        remedy: "No route has this path. `config print` shows the routes.",
    }
    /// The route of the path does not accept the method.
    MethodNotAllowed(allowed: String) {
        status: METHOD_NOT_ALLOWED,
        reason: "method_not_allowed",
        phases: [Route],
        fault: Request,
        response_header: Allow(allowed),
        rules: ["routes.methods"],
        detail: format!("the path accepts {allowed}"),
        message: format!("This path accepts {allowed}."),
        remedy: "The path does not accept the method. `Allow` lists the methods that it accepts.",
    }
    /// A header that may occur once occurs more often.
    HeaderRepeated(name: &'static str) {
        status: BAD_REQUEST,
        reason: "field_repeated",
        phases: [Screen, GetToken, Route],
        fault: Request,
        header: name,
        message: format!("Send the `{name}` header only once."),
        remedy: "`x-api-key`, `x-jwt-token`, `Content-Type`, `Authorization`, `Host` and similar headers may occur \
                 only once.",
    }
    /// A backend could take the name of a header for the name of a policy header.
    HeaderAmbiguous(name: &'static str) {
        status: BAD_REQUEST,
        reason: "field_ambiguous",
        phases: [Screen, GetToken],
        fault: Request,
        header: name,
        message: format!("The name of a header can be mistaken for `{name}`. Spell it `{name}`, or remove the header."),
        remedy: "A header such as `x_api_key`, which a Python backend reads as `x-api-key`.",
    }
    /// `Connection` names a header that the gateway decides on or writes. The data is text of the client.
    ConnectionNamesPolicyHeader(name: String) {
        status: BAD_REQUEST,
        reason: "connection_names_policy_field",
        phases: [Screen],
        fault: Request,
        header: "connection",
        message: format!("The `Connection` header must not name `{name}`."),
        remedy: "`Connection` names a header on which the gateway bases its decisions.",
    }
    /// There is no `Content-Type`. The data lists the media types that the route accepts.
    ContentTypeMissing(accepted: String) {
        status: BAD_REQUEST,
        reason: "content_type_missing",
        phases: [Screen, GetToken],
        fault: Request,
        header: "content-type",
        rules: ["routes.content_types"],
        detail: format!("the route accepts {accepted}"),
        message: format!("The `Content-Type` header is missing. Send it with {accepted}, even with GET."),
        remedy: "Timbr requires `Content-Type` on every request, even with GET.",
    }
    /// The `Content-Type` is malformed or not one of the route's. The data lists the accepted ones.
    ContentTypeUnsupported(accepted: String) {
        status: UNSUPPORTED_MEDIA_TYPE,
        reason: "content_type_unsupported",
        phases: [Screen, GetToken],
        fault: Request,
        header: "content-type",
        rules: ["routes.content_types"],
        detail: format!("the route accepts {accepted}"),
        message: format!("The `Content-Type` header must be {accepted} for this path."),
        remedy: "The route accepts other media types. The message lists them.",
    }
    /// There is no `x-api-key`.
    ApiKeyMissing {
        status: UNAUTHORIZED,
        reason: "api_key_missing",
        phases: [Screen],
        fault: Credentials,
        response_header: API_KEY,
        header: "x-api-key",
        rules: ["routes.credentials"],
        message: "The `x-api-key` header is missing. Send the token from POST /timbr/api/get_token, or your Timbr \
                  token.",
        remedy: "The request has no `x-api-key`.",
    }
    /// The `x-api-key` does not have the form of a key.
    ApiKeyMalformed {
        status: UNAUTHORIZED,
        reason: "api_key_malformed",
        phases: [Screen],
        fault: Credentials,
        response_header: API_KEY,
        header: "x-api-key",
        message: "The `x-api-key` header must be one token of printable characters, without spaces or commas.",
        remedy: "`x-api-key` is empty, has spaces or commas, or is longer than 1024 characters.",
    }
    /// Neither the gateway nor the backend knows the `x-api-key`.
    ApiKeyUnknown {
        status: UNAUTHORIZED,
        reason: "api_key_unknown",
        phases: [Authenticate],
        fault: Credentials,
        response_header: API_KEY,
        header: "x-api-key",
        rules: ["tokens.foreign"],
        message: "The `x-api-key` is not valid. Get a token with POST /timbr/api/get_token, or check your Timbr token.",
        remedy: "Neither the gateway nor, if it was asked, the backend knows the key.",
    }
    /// A token of this gateway that has expired.
    TokenExpired {
        status: UNAUTHORIZED,
        reason: "token_expired",
        phases: [Authenticate],
        fault: Credentials,
        response_header: API_KEY,
        header: "x-api-key",
        rules: ["tokens.ttl", "tokens.idle_ttl"],
        message: "The token has expired. Get a new one with POST /timbr/api/get_token.",
        remedy: "A token of this gateway, or of one with the same store.key or salt, that is not valid any more: it \
                 expired, was not used for too long, ended so long ago that the reason is not known, or, with \
                 store.kind=memory, was made before a restart. Get a new token.",
    }
    /// A token of this gateway that was revoked.
    TokenRevoked {
        status: UNAUTHORIZED,
        reason: "token_revoked",
        phases: [Authenticate, Upstream],
        fault: Credentials,
        response_header: API_KEY,
        header: "x-api-key",
        rules: ["auth.verifier", "upstream.credential"],
        message: "The token was revoked. Get a new one with POST /timbr/api/get_token.",
        remedy: "An operator revoked the token, the user was removed or has a new password, the verifier was replaced, \
                 the salt of its login is not one of this gateway (compare `timbr-gateway salt status` at all replicas), \
                 or the backend rejects the upstream key of the token. Get a new token.",
    }
    /// An operator denies the user or the credential.
    CredentialDenied {
        status: FORBIDDEN,
        reason: "credential_denied",
        phases: [Authenticate, GetToken, Impersonate],
        fault: Rules,
        message: "An operator of the gateway has denied this user or credential for a while.",
        remedy: "An operator denied the user or the credential with `timbr-gateway tokens revoke --deny-for DURATION`. \
                 `tokens denied` lists such denials, `tokens allow` ends one.",
    }
    /// An operator has stopped the user, the route or the ontology.
    StoppedByOperator(stopped: Box<StoppedRequest>) {
        status: SERVICE_UNAVAILABLE,
        reason: "stopped_by_operator",
        phases: [Authorize, GetToken],
        fault: Rules,
        response_header: stopped.response_header(),
        detail: format!("{} is stopped", stopped.stop.target),
        message: String::from(&*stopped.stop.note.why),
        remedy: "An operator stopped the user, the route or the ontology with `timbr-gateway stop`; the message is the \
                 operator's, and `Retry-After` the end of the stop, if it has one. `timbr-gateway stopped` lists what is \
                 stopped, and `timbr-gateway resume` ends it.",
    }
    /// A token of this gateway that newer tokens have evicted.
    TokenEvicted {
        status: UNAUTHORIZED,
        reason: "token_evicted",
        phases: [Authenticate],
        fault: Credentials,
        response_header: API_KEY,
        header: "x-api-key",
        rules: ["tokens.max", "tokens.max_per_user"],
        message: "The token was replaced by newer ones. Get a new one with POST /timbr/api/get_token.",
        remedy: "The gateway holds tokens.max tokens, or tokens.max_per_user of this user, and this one was the oldest. \
                 Get a new token; raise tokens.max if there are so many users, or find the client that requests so many \
                 tokens.",
    }
    /// The token store could not read or write a token.
    TokenStoreUnavailable {
        status: SERVICE_UNAVAILABLE,
        reason: "token_store_unavailable",
        phases: [Authenticate, GetToken],
        fault: Dependency,
        response_header: RetryAfter(1),
        rules: ["store.kind", "store.timeout"],
        message: "The token store of the gateway does not respond, so the token could not be read or written. Try \
                  again in a moment.",
        remedy: "The token store does not respond, so a token that is not in the memory of this gateway can be neither \
                 read nor made. Tokens in memory keep working.",
    }
    /// The audit log cannot be written, and it is required.
    AuditUnavailable {
        status: SERVICE_UNAVAILABLE,
        reason: "audit_unavailable",
        phases: [Authenticate, Authorize, GetToken],
        fault: Dependency,
        response_header: RetryAfter(5),
        rules: ["audit.on_failure", "audit.file", "audit.syslog"],
        message: "The gateway cannot write its audit log, so it issues no token. Try again in a moment.",
        remedy: "`audit.on_failure` is `refuse`, and the line about the login was not written to `audit.file` and \
                 `audit.syslog` within two seconds: the disk is full, or the syslog server is unreachable. Existing \
                 tokens keep working.",
    }
    /// The backend could not say whether it knows a key.
    ApiKeyUnverifiable {
        status: SERVICE_UNAVAILABLE,
        reason: "api_key_unverifiable",
        phases: [Authenticate],
        fault: Dependency,
        response_header: RetryAfter(2),
        header: "x-api-key",
        rules: ["tokens.foreign"],
        message: "The `x-api-key` could not be checked at the backend. Try again in a moment.",
        remedy: "The backend did not respond to the check of a foreign key, responded with neither 200 nor 401 or 403, \
                 or did not reject the random key that the gateway sends first. The log has the cause. If the backend \
                 verifies no keys, set `tokens.foreign: reject`; `forward` only if it verifies keys on its other \
                 paths, otherwise any key passes.",
    }
    /// Too many keys are being checked at the backend.
    ApiKeyCheckBusy {
        status: SERVICE_UNAVAILABLE,
        reason: "api_key_check_busy",
        phases: [Authenticate],
        fault: Rules,
        response_header: RetryAfter(5),
        rules: ["tokens.foreign"],
        message: "Too many keys are being checked. Try again in a few seconds.",
        remedy: "The maximum number of concurrent checks of foreign keys at the backend is reached.",
    }
    /// The request has more than one credential.
    CredentialsAmbiguous {
        status: BAD_REQUEST,
        reason: "credentials_ambiguous",
        phases: [Screen],
        fault: Credentials,
        message: "The request has more than one credential. Send exactly one that the path accepts.",
        remedy: "`x-api-key` and `x-jwt-token` in one request, or one of them and `Authorization` on a route that \
                 accepts it. Exactly one credential is accepted, so that no server has to choose.",
    }
    /// There is no `x-jwt-token`, on a route that accepts no other credential.
    JwtMissing {
        status: UNAUTHORIZED,
        reason: "jwt_missing",
        phases: [Screen],
        fault: Credentials,
        response_header: API_KEY,
        header: "x-jwt-token",
        rules: ["routes.credentials"],
        message: "The `x-jwt-token` header is missing. Send a token from your identity provider.",
        remedy: "No `x-jwt-token` on a route with `credentials: [jwt]`.",
    }
    /// There is an `x-jwt-token`, but no issuer is configured.
    JwtNotConfigured {
        status: UNAUTHORIZED,
        reason: "jwt_not_configured",
        phases: [Screen],
        fault: Credentials,
        response_header: API_KEY,
        header: "x-jwt-token",
        rules: ["auth.jwt_issuers"],
        message: "This gateway accepts no JWT in `x-jwt-token`, because no issuer is configured. Send a key in \
                  `x-api-key`, or ask the operator to configure your identity provider.",
        remedy: "A client sent a JWT, and `auth.jwt_issuers` is empty. Add its identity provider, or give the client a \
                 key.",
    }
    /// The login is valid, but the backend returns no key of its user.
    UserKeyRefused {
        status: FORBIDDEN,
        reason: "user_key_refused",
        phases: [Authenticate, GetToken],
        fault: Credentials,
        rules: ["upstream.credential"],
        message: "Your login is valid, but Timbr returns no key for it. Ask the operator whether Timbr knows your user.",
        remedy: "With `upstream.credential: show-token`, the backend rejected `SHOW TOKEN` with the user's login, or the \
                 login has nothing that the backend could accept.",
    }
    /// The backend did not say which key the user has.
    UserKeyUnavailable {
        status: SERVICE_UNAVAILABLE,
        reason: "user_key_unavailable",
        phases: [Authenticate, GetToken],
        fault: Dependency,
        response_header: RetryAfter(2),
        rules: ["upstream.credential"],
        message: "Your key in Timbr cannot be requested at the moment. Try again in a few seconds.",
        remedy: "With `upstream.credential: show-token`, the backend did not respond to `SHOW TOKEN`, or not with one row \
                 with a key in `token`, or too many such requests were in progress. The log has the cause.",
    }
    /// The `x-jwt-token` is malformed, or no known issuer has signed it.
    JwtInvalid(cause: &'static str) {
        status: UNAUTHORIZED,
        reason: "jwt_invalid",
        phases: [Authenticate, Screen],
        fault: Credentials,
        response_header: API_KEY,
        header: "x-jwt-token",
        rules: ["auth.jwt_issuers"],
        detail: *cause,
        message: format!("The `x-jwt-token` is not valid: {cause}."),
        remedy: "Not a token that an issuer of `auth.jwt_issuers` has signed. The message names the cause: form, \
                 algorithm, issuer, key, or signature.",
    }
    /// The `x-jwt-token` has expired.
    JwtExpired {
        status: UNAUTHORIZED,
        reason: "jwt_expired",
        phases: [Authenticate],
        fault: Credentials,
        response_header: API_KEY,
        header: "x-jwt-token",
        rules: ["auth.jwt_leeway"],
        message: "The `x-jwt-token` has expired. Get a new one from your identity provider.",
        remedy: "Its `exp` is in the past by more than `auth.jwt_leeway`.",
    }
    /// The `x-jwt-token` is genuine, but issued for a different audience or without a usable user.
    JwtUnacceptable(cause: &'static str) {
        status: UNAUTHORIZED,
        reason: "jwt_unacceptable",
        phases: [Authenticate],
        fault: Credentials,
        response_header: API_KEY,
        header: "x-jwt-token",
        rules: ["auth.jwt_issuers"],
        detail: *cause,
        message: format!("The `x-jwt-token` is not accepted here: {cause}."),
        remedy: "Genuine, but not usable here: `aud`, `nbf`, `typ`, a required claim, the user name, the tenant, or an \
                 `x-jwt-…` header that differs from the token. The message names the cause.",
    }
    /// The `x-jwt-token` names a key that its issuer may have published since the last fetch. The data is the time until
    /// the next fetch.
    JwtKeyUnknown(wait: Duration) {
        status: SERVICE_UNAVAILABLE,
        reason: "jwt_key_unknown",
        phases: [Authenticate],
        fault: Dependency,
        // Rounded up, as below.
        response_header: RetryAfter(wait.as_secs() + 1),
        header: "x-jwt-token",
        rules: ["auth.jwt_refetch", "auth.jwt_issuers"],
        message: "The `x-jwt-token` names a key that its issuer has not published yet. Try again in a moment.",
        remedy: "The keys of the issuer were fetched less than `auth.jwt_refetch` ago and do not contain the `kid` of \
                 the token, or they could not be fetched again. Normal for a moment after a key rotation. If it \
                 continues, the client sends tokens of a key that the issuer has withdrawn or never had.",
    }
    /// The keys of the issuer of the `x-jwt-token` are not available.
    JwtKeysUnavailable {
        status: SERVICE_UNAVAILABLE,
        reason: "jwt_keys_unavailable",
        phases: [Authenticate],
        fault: Dependency,
        response_header: RetryAfter(2),
        header: "x-jwt-token",
        rules: ["auth.jwt_issuers"],
        message: "The `x-jwt-token` could not be checked because the keys of its issuer are not available. Try again \
                  in a moment.",
        remedy: "The keys of the issuer were never fetched, or not within the last day. The log has the cause.",
    }
    /// Too many wrong credentials. The data is the time until the next attempt.
    TooManyFailures(wait: Duration) {
        status: TOO_MANY_REQUESTS,
        reason: "too_many_failures",
        phases: [Authenticate, GetToken],
        fault: Rules,
        // Rounded up: a client that waits as long must not be early.
        response_header: RetryAfter(wait.as_secs() + 1),
        rules: ["limits.failures_per_address", "limits.failures_per_user"],
        detail: format!("the next attempt is possible after {} s", wait.as_secs() + 1),
        message: format!(
            "Too many wrong keys, bearers or passwords were sent from your address. Try again in {} s; known keys keep \
             working.",
            wait.as_secs() + 1
        ),
        remedy: "Too many wrong keys, bearers or passwords from one address (`limits.failures_per_address`), or for \
                 one user (`limits.failures_per_user`). `Retry-After` says when the next attempt is possible. Known \
                 tokens and keys keep working; rejected attempts are not counted.",
    }
    /// Too many new tokens for the client's address. The data is the time until the next one.
    TooManyTokens(wait: Duration) {
        status: TOO_MANY_REQUESTS,
        reason: "too_many_tokens",
        phases: [Authenticate, GetToken],
        fault: Rules,
        response_header: RetryAfter(wait.as_secs() + 1),
        rules: ["limits.tokens_per_address"],
        detail: format!("the next token is possible after {} s", wait.as_secs() + 1),
        message: format!(
            "Too many new tokens were requested from your address. Try again in {} s, and use one token for all requests \
             of a user.",
            wait.as_secs() + 1
        ),
        remedy: "More new tokens for one address than `limits.tokens_per_address`. A login that receives its existing \
                 token is not limited. Behind a proxy, set `trusted_proxies`, so that its clients do not share a limit.",
    }
    /// No rule lets the caller act as the user in `x-api-impersonate-user`.
    ImpersonationDenied {
        status: FORBIDDEN,
        reason: "impersonation_denied",
        phases: [Impersonate],
        fault: Rules,
        header: "x-api-impersonate-user",
        rules: ["impersonation.rules", "impersonation.own_keys"],
        message: "`x-api-impersonate-user` is not allowed: no rule of this gateway lets you act as that user. Remove \
                  the header, or ask for a rule (impersonation.rules).",
        remedy: "The request has `x-api-impersonate-user`, and no rule of `impersonation.rules` lets the caller act as \
                 that user. For the backend's own keys with `upstream.credential=forward` the backend decides, unless \
                 `impersonation.own_keys` is `deny`.",
    }
    /// No rule allows the request of an authenticated caller.
    NotAuthorized(detail: String) {
        status: FORBIDDEN,
        reason: "not_authorized",
        phases: [Authorize],
        fault: Rules,
        rules: ["authorization.rules"],
        detail: detail.clone(),
        message: "You are authenticated, but no rule allows this request. Ask for a rule (authorization.rules).",
        remedy: "With `authorization.mode: enforce`, no rule of `authorization.rules` allows this request to the user.",
    }
    /// The statement asks for the user's key, which clients do not receive.
    ShowTokenDenied {
        status: FORBIDDEN,
        reason: "show_token_denied",
        phases: [Authorize],
        fault: Rules,
        rules: ["tokens.show_token", "limits.buffer"],
        message: "Clients do not receive their key through this gateway. `SHOW TOKEN`, and statements in which the gateway \
                  cannot exclude it, are rejected. Log in with get_token.",
        remedy: "`tokens.show_token` is `deny`; or it is `mint`, and the statement is not exactly `SHOW TOKEN` in a query, \
                 or there can be no token of the gateway for its sender. Statements that are larger than `limits.buffer` or \
                 ambiguous are rejected, too.",
    }
    /// There is no `Authorization: Basic`, on a route that accepts it.
    BasicMissing {
        status: UNAUTHORIZED,
        reason: "basic_missing",
        phases: [Screen],
        fault: Credentials,
        response_header: BASIC,
        header: "authorization",
        rules: ["routes.credentials"],
        message: "Send `Authorization: Basic` with the user name `token` or `token@<ontology>` and your Timbr token as the \
                  password.",
        remedy: "No `Authorization: Basic …` on a route with `credentials: [basic]`.",
    }
    /// `Authorization: Basic` without a key.
    BasicMalformed {
        status: UNAUTHORIZED,
        reason: "basic_malformed",
        phases: [Screen, Authenticate],
        fault: Credentials,
        response_header: BASIC,
        header: "authorization",
        message: "The `Authorization` header must be `Basic` with the user name `token` or `token@<ontology>` and your Timbr \
                  token as the password. A user's own password is accepted only where the gateway can check it.",
        remedy: "On such a route, `Authorization` is not `Basic` with `token` or `token@<ontology>` as the user name and a \
                 key as the password, or it has a user's name and `auth.verifier` is `salt-holder`, which checks no password.",
    }
    /// The user name, the path, the headers and the body name different ontologies.
    OntologyAmbiguous {
        status: BAD_REQUEST,
        reason: "ontology_ambiguous",
        phases: [Screen, Authorize],
        fault: Request,
        message: "The request names two different ontologies. Use the same one in the user name, the path, the headers and the \
                  body.",
        remedy: "The ontology in `token@<ontology>`, in the path and in `x-ontology` must be the same. With \
                 `authorization.rules` or `ontologies` in `limits.rules`, also that in the body, and the database of a \
                 Thrift session.",
    }
    /// There is no `Authorization: Bearer`.
    BearerMissing {
        status: UNAUTHORIZED,
        reason: "bearer_missing",
        phases: [GetToken],
        fault: Credentials,
        response_header: BEARER,
        header: "authorization",
        message: "Send `Authorization: Bearer <token>`, a Fernet token of base64(username:password) made with \
                  API_AUTH_SALT.",
        remedy: "`get_token` without `Authorization: Bearer …`.",
    }
    /// The bearer cannot be decrypted.
    BearerInvalid {
        status: UNAUTHORIZED,
        reason: "bearer_invalid",
        phases: [GetToken],
        fault: Credentials,
        response_header: INVALID_BEARER,
        header: "authorization",
        rules: ["api_auth_salt"],
        message: "The bearer is not a Fernet token made with the API_AUTH_SALT of this API, or it was modified on the \
                  way.",
        remedy: "Not a Fernet token, or made with a different salt. Compare `API_AUTH_SALT` on both \
                 sides, and `timbr-gateway salt status` at all replicas.",
    }
    /// The bearer is too old.
    BearerExpired {
        status: UNAUTHORIZED,
        reason: "bearer_expired",
        phases: [GetToken],
        fault: Credentials,
        response_header: INVALID_BEARER,
        header: "authorization",
        rules: ["auth.bearer_max_age"],
        message: "The bearer is too old. Make a new one.",
        remedy: "Made longer ago than `auth.bearer_max_age`.",
    }
    /// The time in the bearer is in the future.
    BearerFromTheFuture {
        status: UNAUTHORIZED,
        reason: "bearer_from_the_future",
        phases: [GetToken],
        fault: Credentials,
        response_header: INVALID_BEARER,
        header: "authorization",
        message: "The time in the bearer is in the future. Set the clock of the machine that makes it.",
        remedy: "Made more than a minute ahead of the gateway's clock.",
    }
    /// The bearer contains no user name and password.
    BearerWithoutCredentials {
        status: UNAUTHORIZED,
        reason: "bearer_without_credentials",
        phases: [GetToken],
        fault: Credentials,
        response_header: INVALID_BEARER,
        header: "authorization",
        message: "The bearer can be decrypted, but does not contain base64(username:password).",
        remedy: "It can be decrypted, but contains no base64 of `user:password`, or one of the two is empty.",
    }
    /// The user name in the bearer cannot be sent in a header.
    BearerUserName {
        status: UNAUTHORIZED,
        reason: "bearer_user_name",
        phases: [GetToken],
        fault: Credentials,
        response_header: INVALID_BEARER,
        header: "authorization",
        message: "The bearer can be decrypted, but its user name has characters other than printable ASCII, a comma, or \
                  spaces at its ends.",
        remedy: "The user name cannot be sent in a header: a comma, characters other than printable ASCII, or more than \
                 256.",
    }
    /// Unknown user or wrong password.
    CredentialsWrong {
        status: UNAUTHORIZED,
        reason: "credentials_wrong",
        phases: [Authenticate, GetToken],
        fault: Credentials,
        response_header: INVALID_BEARER,
        rules: ["auth.verifier"],
        message: "Unknown user or wrong password.",
        remedy: "`auth.verifier` does not know this user with this password.",
    }
    /// No verifier could check a password, or say which upstream key a user has.
    VerifierUnavailable {
        status: SERVICE_UNAVAILABLE,
        reason: "verifier_unavailable",
        phases: [Authenticate, Upstream, GetToken],
        fault: Dependency,
        response_header: RetryAfter(5),
        rules: ["auth.verifier"],
        message: "The password cannot be checked at the moment. Try again in a few seconds; existing tokens keep \
                  working.",
        remedy: "`auth.verifier` did not respond, or with neither yes nor no; or the platform could not say which key \
                 a user has now. The log has the cause. Existing tokens keep working.",
    }
    /// The backend rejected the user's key, it was renewed, and the request could not be sent again.
    UpstreamKeyRenewed {
        status: SERVICE_UNAVAILABLE,
        reason: "upstream_key_renewed",
        phases: [Upstream],
        fault: Dependency,
        response_header: RetryAfter(1),
        rules: ["upstream.credential"],
        message: "Your key for the backend had expired and was renewed. The request was not executed; send it again.",
        remedy: "The backend rejected the user's own key, and the platform issued a new one, but the request body \
                 (over limits.buffer) could not be sent again. Send the request again.",
    }
    /// Too many passwords are being checked.
    VerifierBusy {
        status: SERVICE_UNAVAILABLE,
        reason: "verifier_busy",
        phases: [Authenticate, GetToken],
        fault: Rules,
        response_header: RetryAfter(5),
        rules: ["auth.verifier"],
        message: "Too many passwords are being checked. Try again in a few seconds.",
        remedy: "More logins than the machine, or the server of the verifier, can check; each waits at most five \
                 seconds in the queue.",
    }
    /// The body is larger than the route accepts.
    RequestBodyTooLarge {
        status: PAYLOAD_TOO_LARGE,
        reason: "request_body_too_large",
        phases: [Screen, Upstream],
        fault: Request,
        rules: ["limits.body", "routes.max_body"],
        message: "The request body is larger than this path accepts.",
        remedy: "Larger than `limits.body`, or the route's `max_body`.",
    }
    /// The client paused in its body for too long.
    RequestBodyStalled {
        status: REQUEST_TIMEOUT,
        reason: "request_body_stalled",
        phases: [Upstream],
        fault: Request,
        rules: ["timeouts.body", "limits.body_rate"],
        message: "The request body did not arrive in time.",
        remedy: "The client paused for longer than `timeouts.body`, or sent less than `limits.body_rate` on average.",
    }
    /// The body ended early or is malformed.
    RequestBodyBroken {
        status: BAD_REQUEST,
        reason: "request_body_broken",
        phases: [Upstream],
        fault: Request,
        message: "The framing of the request body is not valid.",
        remedy: "The request body ended early, or its framing is not valid.",
    }
    /// The backend has its maximum number of requests, and the queue is full.
    QueueFull {
        status: SERVICE_UNAVAILABLE,
        reason: "queue_full",
        phases: [Share],
        fault: Rules,
        response_header: RetryAfter(1),
        rules: ["upstream.queue", "upstream.requests", "upstream.requests_per_endpoint"],
        message: "The Timbr backend is busy, and too many requests are queued. Send fewer at a time, or try again in a \
                  moment. This one was not sent.",
        remedy: "The backend has `upstream.requests` requests, or each endpoint `upstream.requests_per_endpoint`, and \
                 `upstream.queue` more are queued. When the queue is full, the caller with the most queued requests \
                 receives this rejection. Nothing was sent.",
    }
    /// The request was queued for too long.
    QueueTimeout {
        status: SERVICE_UNAVAILABLE,
        reason: "queue_timeout",
        phases: [Share],
        fault: Rules,
        response_header: RetryAfter(1),
        rules: ["upstream.queue_timeout", "upstream.requests", "upstream.requests_per_endpoint"],
        message: "The Timbr backend was busy for too long. The request was not sent; try again in a moment.",
        remedy: "The backend had `upstream.requests` requests, or each endpoint `upstream.requests_per_endpoint`, and this \
                 one was queued for longer than `upstream.queue_timeout`. Nothing was sent.",
    }
    /// An operator has cancelled the query.
    QueryCancelled(why: Arc<str>) {
        status: CONFLICT,
        reason: "query_cancelled",
        phases: [Upstream],
        fault: Rules,
        rules: ["journal.enabled"],
        message: match &**why {
            "" => "An operator of the gateway has cancelled this query. Ask before you send it again.".to_owned(),
            why => format!("An operator of the gateway has cancelled this query: {}.", why.trim_end_matches('.')),
        },
        remedy: "An operator has used `timbr-gateway queries cancel`; the audit log says who, and why. The status is one \
                 that clients do not retry by themselves. The backend may have executed the query, or a part of it.",
    }
    /// Connecting to the backend failed.
    UpstreamUnreachable {
        status: BAD_GATEWAY,
        reason: "upstream_unreachable",
        phases: [Upstream],
        fault: Dependency,
        response_header: RetryAfter(1),
        rules: ["upstream.url"],
        message: "The Timbr backend cannot be reached. The request was not sent; try again in a moment.",
        remedy: "No connection to the backend, or none with a trusted certificate. The log has the cause. Nothing was \
                 sent.",
    }
    /// The connection to the backend was not established in time.
    UpstreamConnectTimeout {
        status: GATEWAY_TIMEOUT,
        reason: "upstream_connect_timeout",
        phases: [Upstream],
        fault: Dependency,
        response_header: RetryAfter(1),
        rules: ["upstream.connect_timeout"],
        message: "The Timbr backend does not accept connections. The request was not sent; try again in a moment.",
        remedy: "No connection within `upstream.connect_timeout`. Nothing was sent.",
    }
    /// The backend closed the connection without a response.
    UpstreamClosed {
        status: BAD_GATEWAY,
        reason: "upstream_closed",
        phases: [Upstream],
        fault: Dependency,
        response_header: RetryAfter(1),
        rules: ["upstream.url"],
        message: "The Timbr backend closed the connection without a response. The request may have been executed.",
        remedy: "The backend closed the connection without a response. The request may have been executed; it is \
                 retried only if that is safe.",
    }
    /// The response of the backend is not valid HTTP.
    UpstreamInvalid {
        status: BAD_GATEWAY,
        reason: "upstream_invalid",
        phases: [Upstream],
        fault: Dependency,
        rules: ["upstream.url"],
        message: "The response of the Timbr backend is not valid HTTP. The request may have been executed.",
        remedy: "The response of the backend is not valid HTTP.",
    }
    /// The backend did not respond in time.
    UpstreamTimeout {
        status: GATEWAY_TIMEOUT,
        reason: "upstream_timeout",
        phases: [Upstream],
        fault: Dependency,
        rules: ["upstream.response_timeout"],
        message: "The Timbr backend did not respond in time. The request may have been executed.",
        remedy: "No head of a response within `upstream.response_timeout`.",
    }
    /// The gateway itself failed.
    InternalError {
        status: INTERNAL_SERVER_ERROR,
        reason: "internal_error",
        phases: [Unknown],
        fault: Gateway,
        message: "The gateway failed while it handled this request, which may have been executed. Its log has more \
                  under the request id.",
        remedy: "An error in the gateway itself ended this request, and no other. The log has the location; please \
                 report it.",
    }
}
