//! The keys of lists' entries, for the schema and for the tables of `docs/configuration.md`. The readers of these lists
//! (`routes`, `jwt`, `rules`, `transport`) judge them; a test compares the keys.

/// A key of an entry.
#[derive(Clone, Copy, Debug)]
pub struct EntryKey {
    /// Its name.
    pub key: &'static str,
    /// What must stand there.
    pub(super) form: EntryForm,
    /// Whether no entry is without it.
    pub(super) required: bool,
    /// Whether exactly one of all such keys must be there.
    pub(super) one_of: bool,
    /// What it is for, as the documentation says it.
    pub meaning: &'static str,
}

/// What stands behind a key of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) enum EntryForm {
    /// Text that is not empty.
    Text,
    /// One text, or a list of them.
    Texts,
    /// One of these words, or a list of them.
    Words(&'static [&'static str]),
    /// A list of these words.
    WordList(&'static [&'static str]),
    /// One of these words.
    Word(&'static [&'static str]),
    /// `true` or `false`.
    Flag,
    /// A word of small letters, digits, `-` and `_`.
    Name,
    /// The beginning of paths.
    Prefix,
    /// A number of bytes with its unit.
    Size,
    /// A list of media types.
    MediaTypes,
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

const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

/// `routes`.
pub const ROUTES: &[EntryKey] = &[
    required("name", EntryForm::Name, "stands in logs in place of the path"),
    key("prefix", EntryForm::Prefix, "begins and ends with `/`"),
    key(
        "content_types",
        EntryForm::MediaTypes,
        "media types that `Content-Type` may name, without parameters",
    ),
    key(
        "methods",
        EntryForm::WordList(METHODS),
        "of GET, HEAD, POST, PUT, PATCH, DELETE; all of them unless given",
    ),
    key(
        "credentials",
        EntryForm::WordList(&["api_key", "jwt", "basic"]),
        "what may prove a caller: of `api_key`, `jwt` and `basic`; the first two unless given, and `jwt` only where \
         there are `auth.jwt_issuers`",
    ),
    key("max_body", EntryForm::Size, "the largest body, such as `10MiB`; `limits.body` unless given"),
    key(
        "client_certificate",
        EntryForm::Word(&["required", "optional"]),
        "`required`: the client must have shown a certificate (`tls.client_auth`); `optional` unless given",
    ),
    key("enabled", EntryForm::Flag, "`false` switches a profile off"),
];

const JWT_ISSUERS: &[EntryKey] = &[
    required("issuer", EntryForm::Text, "what the claim `iss` must be, to the letter"),
    one_of("jwks_url", EntryForm::Text, "where its keys are; `https`, or `http` on this machine"),
    one_of("jwks_file", EntryForm::Text, "or a file with the key set, read again when it changes"),
    one_of("secret_file", EntryForm::Text, "or a file with the secret of an HMAC, 32 bytes at least"),
    key("ca_file", EntryForm::Text, "authorities to trust for `jwks_url`, instead of the system's"),
    required("audiences", EntryForm::Texts, "one of these must be in `aud`"),
    key(
        "algorithms",
        EntryForm::Words(&[
            "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA", "HS256",
            "HS384", "HS512",
        ]),
        "what may sign: `RS256` `PS256` `ES256` `EdDSA` unless given; also the 384 and 512 ones, and `HS256` `HS384` \
         `HS512` with `secret_file` alone. There is no `none`",
    ),
    key("user_claim", EntryForm::Text, "the claim that names the user; `sub` unless given"),
    key(
        "tenants",
        EntryForm::Texts,
        "what `x-jwt-tenant-id` must be one of; unless given, that is left to the backend",
    ),
];

const IMPERSONATION_RULES: &[EntryKey] = &[
    required("users", EntryForm::Texts, "who calls: names or patterns"),
    required("act_as", EntryForm::Texts, "whom the backend may be told to take them for: names or patterns"),
];

const AUTHORIZATION_RULES: &[EntryKey] = &[
    key("users", EntryForm::Texts, "names or patterns; of who acts as another user, that one's name counts"),
    key("unknown_users", EntryForm::Flag, "`true`: callers whose key only the backend knows, too"),
    key("routes", EntryForm::Texts, "names of routes; all unless given"),
    key("methods", EntryForm::Words(METHODS), "methods; all unless given"),
    key(
        "ontologies",
        EntryForm::Texts,
        "names or patterns. Fits only where the path names one: `/timbr/openapi/ontology/<name>/…`, \
         `/timbr/api/q/<name>/…`, `get_ontology`, `get_config` and `clear_cache`. Bodies are not read, so such a rule \
         does not allow `/timbr/api/query/`",
    ),
];

const CERTIFICATES: &[EntryKey] = &[
    required("cert_file", EntryForm::Text, "certificate chain (PEM), leaf first"),
    required("key_file", EntryForm::Text, "its private key (PEM)"),
];

/// All lists of groups by their key.
pub const LISTS: [(&str, &[EntryKey]); 5] = [
    ("routes", ROUTES),
    ("auth.jwt_issuers", JWT_ISSUERS),
    ("impersonation.rules", IMPERSONATION_RULES),
    ("authorization.rules", AUTHORIZATION_RULES),
    ("tls.certificates", CERTIFICATES),
];

/// The keys of the entries of a list.
pub fn entry_keys(list: &str) -> Option<&'static [EntryKey]> {
    LISTS.iter().find(|(key, _)| *key == list).map(|(_, fields)| *fields)
}
