//! What happened and what to do, for each reason: told by `explain`, on the operators' page and in `docs/errors.md`, whose
//! table a test compares.

/// The explanation of a reason; empty for one that there is not.
pub fn advice(reason: &str) -> &'static str {
    CATALOGUE.iter().find(|(name, _)| *name == reason).map_or("", |(_, advice)| advice)
}

/// Reasons and their explanations, in the order of the path.
pub const CATALOGUE: &[(&str, &str)] = &[
    (
        "request_malformed",
        "No HTTP/1.1 request, or one with more than one reading: two lengths, a bare line feed, a folded field. The \
         sentence says what. The connection ends.",
    ),
    (
        "request_head_too_large",
        "More fields than `limits.headers`, or a head larger than `limits.header_size`.",
    ),
    ("target_too_long", "Longer than `limits.uri`."),
    ("request_head_stalled", "The head did not arrive within `timeouts.header`."),
    (
        "misdirected",
        "Over TLS, the host that the request names is not the one that the handshake named (SNI), and the certificate \
         is not for it.",
    ),
    (
        "client_certificate_required",
        "The route has `client_certificate: required`, and the client showed none.",
    ),
    ("overloaded", "More requests in flight than `limits.requests`."),
    (
        "too_many_requests",
        "More requests in flight with one key, or of one user, than `limits.requests_per_identity`.",
    ),
    (
        "upgrade_refused",
        "`Upgrade` to something else than `h2c` (which is declined in silence, as HTTP allows).",
    ),
    (
        "request_line_ambiguous",
        "The path has two readings (`//`, `..`, an escaped `/`, …), or target and `Host` name different hosts. Such \
         requests are refused, never tidied up.",
    ),
    ("not_found", "No route has this path. `config print` shows the routes."),
    ("method_not_allowed", "`Allow` says which methods the path takes."),
    (
        "field_repeated",
        "`x-api-key`, `x-jwt-token`, `Content-Type`, `Authorization`, `Host` and their like may stand once.",
    ),
    ("field_ambiguous", "A field such as `x_api_key`, which a Python backend would take for `x-api-key`."),
    ("connection_names_policy_field", "`Connection` names a field that decides about the request."),
    ("content_type_missing", "Timbr wants `Content-Type` with every call, GET too."),
    ("content_type_unsupported", "The route takes other media types; the sentence names them."),
    ("api_key_missing", "No `x-api-key`."),
    ("api_key_malformed", "`x-api-key` is empty, has spaces or commas, or is longer than 1024 characters."),
    ("api_key_unknown", "Neither the gateway nor, if it was asked, the backend knows the key."),
    (
        "token_expired",
        "A token of this gateway, or of one with the same salt, that does not live any more: its time is over, the \
         gateway was restarted, the user's password changed, the backend refuses the key that it stood for, or it \
         made room for newer ones. Ask for a new one.",
    ),
    (
        "token_store_unavailable",
        "The store of tokens does not answer, so that a token that this gateway has not seen before could neither be \
         looked up nor made. Tokens that it knows go on working.",
    ),
    (
        "api_key_unverifiable",
        "The backend could not be asked about a foreign key, gave neither a yes (200) nor a no (401, 403), or said \
         yes to a key that was made up for a test. The log says which.",
    ),
    ("api_key_check_busy", "The backend is being asked about as many foreign keys as it may be at once."),
    (
        "credentials_ambiguous",
        "`x-api-key` and `x-jwt-token` in one request, or one of them and `Authorization` where that is taken. \
         Exactly one credential is taken, so that nobody has to choose.",
    ),
    ("jwt_missing", "No `x-jwt-token`, on a route whose `credentials` are `[jwt]` alone."),
    (
        "jwt_invalid",
        "Not a token that an issuer of `auth.jwt_issuers` has signed. The sentence says what is wrong: form, \
         algorithm, issuer, key, or signature.",
    ),
    ("jwt_expired", "Its `exp` is over by more than `auth.jwt_leeway`."),
    (
        "jwt_unacceptable",
        "Genuine, but not for us or of no use: `aud`, `nbf`, the claim that names the user, or the tenant. The \
         sentence says which.",
    ),
    ("jwt_keys_unavailable", "The issuer's keys were never fetched, or not for a day. The log says why."),
    (
        "too_many_failures",
        "Too many wrong keys, bearers or passwords from one address: `limits.failures_per_address`, or for one user \
         `limits.failures_per_user`. `Retry-After` says when there is room again. Tokens and keys that are known go \
         on working; a refused try does not count.",
    ),
    (
        "impersonation_denied",
        "`x-api-impersonate-user`, and no rule of `impersonation.rules` lets the caller act as that user. For keys of \
         the backend's own under `upstream.credential=forward` the backend decides, unless `impersonation.own_keys` \
         is `deny`.",
    ),
    (
        "not_authorized",
        "With `authorization.mode: enforce`, no rule of `authorization.rules` allows this to the user.",
    ),
    ("basic_missing", "A route with `credentials: [basic]`, and no `Authorization: Basic …`."),
    ("basic_malformed", "`Authorization` there is not `Basic` with base64 of `token:` and a key."),
    ("bearer_missing", "`get_token` without `Authorization: Bearer …`."),
    (
        "bearer_invalid",
        "Not a Fernet token, or made with another salt. Compare `API_AUTH_SALT` on both sides.",
    ),
    ("bearer_expired", "Made longer ago than `auth.bearer_max_age`."),
    ("bearer_from_the_future", "Made more than a minute ahead of the gateway's clock."),
    (
        "bearer_without_credentials",
        "It opens, but holds no base64 of `user:password`, or one of them is empty.",
    ),
    (
        "bearer_user_name",
        "The name could not be a header field: other than printable ASCII, or over 256 characters.",
    ),
    ("credentials_wrong", "`auth.verifier` does not know this user with this password."),
    (
        "verifier_unavailable",
        "`auth.verifier` could not be asked, or gave neither a yes nor a no; or the platform could not say which key \
         a user has now. The log says why. Tokens that were given go on working.",
    ),
    (
        "upstream_key_renewed",
        "The backend refused the user's own key, and the platform gave a new one, but the request's body (over 64 \
         KiB) could not be sent again. Send the request again.",
    ),
    (
        "verifier_busy",
        "More logins than the machine, or the server that is asked, can check; each waits at most five seconds for \
         its turn.",
    ),
    ("request_body_too_large", "Larger than `limits.body`, or the route's `max_body`."),
    (
        "request_body_stalled",
        "The client made a pause longer than `timeouts.body`, or sent less than `limits.body_rate` on average.",
    ),
    ("request_body_broken", "The client's body broke off or is not well framed."),
    (
        "queue_full",
        "The backend has `upstream.requests` requests, and `upstream.queue` more wait; of these the caller has as many as \
         anybody, so this one gave way. Nothing was sent. See [upstreams.md](upstreams.md).",
    ),
    (
        "queue_timeout",
        "The backend had `upstream.requests` requests for as long as one may wait: `upstream.queue_timeout`. Nothing was \
         sent.",
    ),
    (
        "upstream_unavailable",
        "No address of the backend is in use: each of them refused several requests, or failed its checks, and none has \
         recovered yet. Nothing was sent. The log, and `/upstreams` on the admin listener, say why; \
         [upstreams.md](upstreams.md) explains it.",
    ),
    (
        "upstream_unreachable",
        "No connection to the backend, or none that can be trusted (TLS). The log says why. Nothing was sent.",
    ),
    ("upstream_connect_timeout", "No connection within `upstream.connect_timeout`. Nothing was sent."),
    (
        "upstream_closed",
        "The backend closed the connection without an answer. The request may have been carried out; it is not sent \
         again unless that is harmless.",
    ),
    ("upstream_invalid", "The backend's answer is not HTTP."),
    ("upstream_timeout", "No head of an answer within `upstream.response_timeout`."),
    (
        "internal_error",
        "An error in the gateway itself ended this request, and this one alone. The log has the place; please report \
         it.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_has_one_explanation() {
        for (at, (reason, text)) in CATALOGUE.iter().enumerate() {
            assert!(text.ends_with('.') && !text.contains("  "), "{reason}: {text}");
            assert_eq!(CATALOGUE.iter().position(|(other, _)| other == reason), Some(at), "{reason}");
        }
        assert_eq!(advice("no such reason"), "");
        assert!(advice("api_key_missing").contains("x-api-key"));
    }
}
