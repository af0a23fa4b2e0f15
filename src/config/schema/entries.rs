//! The keys of the entries of list options, for the schema and the tables of `docs/configuration.md`. Does not read
//! them: that is done by `routes`, `jwt`, `rules` and `transport`, and a test compares the keys.

use std::sync::LazyLock;

use crate::config::HostHeader;
use crate::config::jwt::ALGORITHMS;
use crate::config::options::{self, OptionSpec, Shape};
use crate::config::routes::{CREDENTIALS, ContentTypeRule};
use crate::http::statement::StatementClass;

use EntryForm::{
    Duration, Flag, Group, MediaTypes, Name, Number, Prefix, Prefixes, Size, Text, Texts, TextsByName, Word, WordList,
    Words,
};

/// A key of an entry.
#[derive(Clone, Copy, Debug)]
pub struct EntryKey {
    /// Name in the entry: `jwks_url`.
    pub key: &'static str,
    /// Form of the value.
    pub(super) form: EntryForm,
    /// Whether every entry must have it.
    pub(super) required: bool,
    /// Whether an entry must have exactly one of the keys with this mark.
    pub(super) one_of: bool,
    /// Description for the schema and the documentation, in Markdown.
    pub meaning: &'static str,
}

/// The form of a value in an entry.
#[derive(Clone, Copy, Debug)]
pub(super) enum EntryForm {
    /// Text that is not empty.
    Text,
    /// One text, or a list of them.
    Texts,
    /// A group of keys, each with one text or a list of them.
    TextsByName,
    /// One of these words, or a list of them.
    Words(&'static [&'static str]),
    /// A list of these words.
    WordList(&'static [&'static str]),
    /// One of these words.
    Word(&'static [&'static str]),
    /// `true` or `false`.
    Flag,
    /// A word of lower-case letters, digits, `-` and `_`.
    Name,
    /// Prefix of a path.
    Prefix,
    /// A number.
    Number,
    /// A number of bytes with its unit: `10MiB`.
    Size,
    /// A duration with its unit: `20s`.
    Duration,
    /// `any`, or a list of media types.
    MediaTypes,
    /// A list of prefixes.
    Prefixes,
    /// A group of these keys.
    Group(&'static [EntryKey]),
    /// The form of this option.
    Option(&'static OptionSpec),
}

const fn key(key: &'static str, form: EntryForm, meaning: &'static str) -> EntryKey {
    EntryKey { key, form, required: false, one_of: false, meaning }
}

const fn required(key: &'static str, form: EntryForm, meaning: &'static str) -> EntryKey {
    EntryKey { key, form, required: true, one_of: false, meaning }
}

const fn one_of(key: &'static str, form: EntryForm, meaning: &'static str) -> EntryKey {
    EntryKey { key, form, required: false, one_of: true, meaning }
}

/// Declares the keys of a list: `key`, `required` or `one_of`, then the name, the form and the meaning.
macro_rules! entries {
    ($(#[$meta:meta])* $visibility:vis $list:ident { $($kind:ident $name:ident: $form:expr, $meaning:literal;)+ }) => {
        $(#[$meta])*
        $visibility const $list: &[EntryKey] = &[$($kind(stringify!($name), $form, $meaning)),+];
    };
}

const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

entries! {
/// The keys of `routes`, which exists in the file only.
pub ROUTES {
    required name: Name, "Name of the profile, shown in logs and metrics in place of the path.";
    key prefix: Prefix, "Prefix of the path, such as `/timbr/api/`. It matches with and without its last slash.";
    key prefixes: Prefixes, "Several prefixes, in place of `prefix`.";
    key content_types: MediaTypes,
        "Accepted media types of `Content-Type`, without parameters, or `any`. Default of a new route: `application/json`.";
    key content_type: Word(ContentTypeRule::WORDS),
        "`always`: every request must have a `Content-Type`, as Timbr documents it for `api` and `openapi`. \
         `with_content`: those with a body. Default: `with_content`, except for `api` and `openapi`.";
    key methods: WordList(METHODS),
        "Accepted methods: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS. Default of a new route: all except OPTIONS.";
    key credentials: WordList(&CREDENTIALS),
        "Accepted credentials: `api_key`, `jwt`, `basic` (`token` or `token@<ontology>`, and a key), `bearer` (a key or a \
         JWT in `Authorization: Bearer`), or `none` alone: the backend authenticates the sender. Default: `api_key` and, \
         if `auth.jwt_issuers` is set, `jwt`.";
    key max_body: Size, "Maximum size of a request body, such as `10MiB`. Default: `limits.body`.";
    key buffer: Size,
        "Part of a request body that is received before the request is sent, such as `1MiB`. Default: `limits.buffer`.";
    key response_keepalive: Duration,
        "Time after which a response begins although the backend has not responded, such as `20s`; see *Long queries*. \
         Default: never.";
    key client_certificate: Word(&["required", "optional"]),
        "`required`: this path requires a TLS client certificate (see `tls.client_auth`). Default: `optional`.";
    key upstream: Name, "Name of an entry of `upstreams`. Default: `default`, the section `upstream`.";
    key cors: Group(CORS),
        "Pages of other origins that may send requests: {origins, methods, headers, credentials, max_age}.";
    key response_timeout: Duration, "In place of `response_timeout` of the upstream.";
    key body_timeout: Duration, "In place of `body_timeout` of the upstream.";
    key affinity: Text,
        "What keeps requests on one endpoint: `mcp-session-id`, `user`, the name of a header, `cookie:NAME`, or `none`. \
         Default: `mcp-session-id` for `mcp`, else `none`.";
    key host_header: Word(HostHeader::WORDS), "In place of `host_header` of the upstream.";
    key enabled: Flag, "`false` disables the profile.";
} }

entries! { CORS {
    required origins: Texts, "Origins such as https://app.example.com, or `*`.";
    key methods: Words(METHODS), "Methods that pages may use. Default: those of the route.";
    key headers: Texts, "Headers that pages may send. Default: those of Timbr's clients.";
    key credentials: Flag, "`true`: the browser sends cookies and client certificates.";
    key max_age: Duration, "How long a browser caches the permission. Default: 10m.";
} }

entries! { JWT_ISSUERS {
    required issuer: Text, "Expected claim `iss`, compared exactly.";
    one_of jwks_url: Text, "URL of the key set: `https`, or `http` on this machine.";
    one_of discovery_url: Text,
        "URL of the issuer's OpenID Connect discovery document, which names the key set, in place of `jwks_url`: \
         `https://…/.well-known/openid-configuration`.";
    one_of jwks_file: Text, "File with the key set, in place of `jwks_url`. Reloaded when it changes.";
    one_of secret_file: Text, "File with the shared secret of an HMAC, in place of a key set; at least 32 bytes.";
    key ca_file: Text, "Certificate authorities (PEM) for `jwks_url` or `discovery_url`, in place of the system's.";
    key decryption_key_file: Text,
        "RSA private key (PEM, PKCS #8) that decrypts encrypted tokens: `RSA-OAEP` or `RSA-OAEP-256` with `A128GCM`, \
         `A256GCM`, `A128CBC-HS256` or `A256CBC-HS512`. The token inside must be signed by the issuer.";
    required audiences: Texts, "Accepted audiences: the claim `aud` must contain one of them.";
    key algorithms: Words(&ALGORITHMS),
        "Accepted signature algorithms. Default: `RS256`, `PS256`, `ES256`, `EdDSA`. Also the variants with 384 and 512, and \
         `HS256`, `HS384`, `HS512` with `secret_file` only. `none` is never accepted.";
    key typ: Texts, "Accepted types of the token, such as `at+jwt`. Default: any.";
    key required_claims: TextsByName,
        "Claims that a token must have, with their accepted values: `{azp: [web, 'svc-*']}`. Names or patterns; `'*'` accepts \
         every value. A nested claim is written `a.b`.";
    key user_claim: Text, "Claim that holds the user name. Default: `sub`.";
    key users: Texts,
        "User names that the issuer may use: names or patterns, compared with the claim. With several issuers, each \
         needs `users`, `user_prefix` or `tenant_user`. Default: all.";
    key user_prefix: Text, "Text that is put before the user names of this issuer.";
    key groups_claims: Texts,
        "Claims with the groups or roles of the user, such as `groups` or `realm_access.roles`, for `groups` in rules.";
    key tenants: Texts, "Accepted values of `x-jwt-tenant-id`. Default: the backend decides.";
    key tenant_claim: Text, "Claim with the tenant, which `x-jwt-tenant-id` must be equal to if it is sent.";
    key tenant_user: Flag,
        "`true`: user names are `tenant/user`, as with `JWT_USE_TENANT_USER` in Timbr. Needs `tenant_claim`, or \
         `tenants` with one tenant.";
} }

entries! { IMPERSONATION_RULES {
    key users: Texts, "Callers: names or patterns. Each rule needs `users` or `groups`.";
    key groups: Texts,
        "Groups of callers, from a JWT (`groups_claims`) or a directory (`ldap.groups_…`): names or patterns.";
    required act_as: Texts, "Users whom they may act as: names or patterns.";
} }

entries! { AUTHORIZATION_RULES {
    key users: Texts, "Users: names or patterns. With impersonation, the name of the impersonated user is compared.";
    key groups: Texts,
        "Groups of callers, from a JWT (`groups_claims`) or a directory (`ldap.groups_…`): names or patterns. A rule \
         with `users` and `groups` matches callers of either. With impersonation, groups do not match.";
    key unknown_users: Flag, "`true`: also callers whose key only the backend knows.";
    key routes: Texts, "Names of routes. Default: all.";
    key methods: Words(METHODS), "HTTP methods. Default: all.";
    key ontologies: Texts,
        "Ontologies: names or patterns. Matches only if the request names the ontology: `/timbr/openapi/ontology/<name>/…`, \
         `/timbr/api/q/<name>/…`, `get_ontology`, `get_config` and `clear_cache`; `ontology_name` of \
         `/timbr/api/query/`, in a body of at most `limits.buffer`; the user part of Basic credentials.";
    key statements: Words(StatementClass::WORDS),
        "Classes of the statement in the body: see below. A request without a statement does not match. Default: all \
         requests.";
    key tools: Texts,
        "MCP tools: names or patterns. Matches requests to `/timbr/api/mcp/` that call one of them with `tools/call`, in a \
         body of at most `limits.buffer`, and all MCP requests that call none. Default: all requests.";
} }

entries! { LIMIT_RULES {
    required name: Name, "Name of the rule in logs and metrics.";
    key users: Texts,
        "Callers: names or patterns, in any case. Default: every caller, also those whom only the backend knows.";
    key groups: Texts,
        "Groups of callers, from a JWT (`groups_claims`) or a directory (`ldap.groups_…`): names or patterns. A rule \
         with `users` and `groups` matches callers of either. Each caller is counted on its own.";
    key addresses: Texts, "Addresses or networks of the clients. Default: all.";
    key routes: Texts, "Names of routes. Default: all.";
    key ontologies: Texts,
        "Ontologies that the request names in its path or statement: names or patterns. A body that cannot be read, or is \
         larger than `limits.buffer`, counts for any; statements of a Thrift session and tools of MCP name none. Default: all, \
         also requests that name none.";
    key requests_per_second: Number, "Requests of each caller per second, on average; may be a fraction.";
    key burst: Number, "Requests that a caller may send at once. Default: `requests_per_second`, rounded up.";
    key concurrent: Number, "Concurrent requests of each caller, without event streams (MCP).";
    key mode: Word(&["enforce", "shadow"]),
        "`shadow`: requests above the limit are counted, logged and forwarded. Default: `enforce`.";
} }

entries! { CERTIFICATES {
    required cert_file: Text, "Certificate chain (PEM), leaf first.";
    required key_file: Text, "Private key (PEM).";
} }

/// The keys of the section `upstream`, and a name. Secrets are in files.
static UPSTREAMS: LazyLock<Vec<EntryKey>> = LazyLock::new(|| {
    let name = required("name", Name, "Name for `routes[].upstream`, shown in logs and metrics.");
    let keys = options::all().filter_map(|option| {
        let name = option.key.strip_prefix("upstream.")?;
        Some(match option.shape {
            Shape::Secret => key("api_key_file", Text, option.help),
            _ => key(name, EntryForm::Option(option), option.help),
        })
    });
    std::iter::once(name).chain(keys).collect()
});

/// The keys of all lists, by the key of the option.
pub fn lists() -> [(&'static str, &'static [EntryKey]); 7] {
    [
        ("routes", ROUTES),
        ("upstreams", &UPSTREAMS),
        ("auth.jwt_issuers", JWT_ISSUERS),
        ("impersonation.rules", IMPERSONATION_RULES),
        ("authorization.rules", AUTHORIZATION_RULES),
        ("limits.rules", LIMIT_RULES),
        ("tls.certificates", CERTIFICATES),
    ]
}

/// The keys of the entries of one list.
pub fn entry_keys(list: &str) -> Option<&'static [EntryKey]> {
    lists().into_iter().find(|(key, _)| *key == list).map(|(_, fields)| fields)
}
