//! Reads the identity providers whose JSON Web Tokens are accepted. Verifies no token.

use std::path::PathBuf;
use std::time::Duration;

use jsonwebtoken::{Algorithm, AlgorithmFamily};

use crate::base::glob::Glob;
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::config::choices::UnknownIssuers;
use crate::config::list_entry::ListEntry;
use crate::config::options::AUTH;
use crate::config::reader::{Reader, complete};
use crate::config::url::{self, ResourceUrl};
use crate::config::{AuthOptions, RouteProfile};

/// Acceptance of JSON Web Tokens.
#[derive(Clone, Debug)]
pub struct JwtOptions {
    /// Identity providers; without any, no JWT is accepted.
    pub issuers: Vec<IssuerOptions>,
    /// Whether tokens of other issuers are forwarded.
    pub unknown_issuers: UnknownIssuers,
    /// Tolerated clock difference.
    pub leeway: Duration,
    /// Interval at which key sets are fetched.
    pub refresh: Duration,
    /// Minimum interval between fetches that are caused by tokens with an unknown key ID.
    pub refetch: Duration,
}

impl JwtOptions {
    /// Whether any JWT can be accepted.
    pub fn is_enabled(&self) -> bool {
        !self.issuers.is_empty() || self.unknown_issuers == UnknownIssuers::Forward
    }
}

/// One identity provider.
#[derive(Clone, Debug)]
pub struct IssuerOptions {
    /// Expected claim `iss`.
    pub issuer: String,
    /// The keys that verify signatures.
    pub keys: JwksSource,
    /// The private key that decrypts its encrypted tokens.
    pub decryption_key_file: Option<PathBuf>,
    /// The claim `aud` must contain one of them.
    pub audiences: Vec<String>,
    /// Accepted signature algorithms.
    pub algorithms: Vec<Algorithm>,
    /// Accepted values of the header `typ`; `None`: any.
    pub types: Option<Vec<String>>,
    /// Claims that a token must have.
    pub required_claims: Vec<RequiredClaim>,
    /// The claim that names the user.
    pub user_claim: String,
    /// Patterns of the user names that the issuer may use; `None`: all.
    pub users: Option<Vec<Glob>>,
    /// Begins the name of each of its users.
    pub user_prefix: String,
    /// The claims with the groups or roles of the user.
    pub groups_claims: Vec<String>,
    /// Accepted values of `x-jwt-tenant-id`; `None`: the backend decides.
    pub tenants: Option<Vec<String>>,
    /// The claim that `x-jwt-tenant-id` must agree with.
    pub tenant_claim: Option<String>,
    /// Whether user names begin with the tenant: `tenant/user`.
    pub tenant_user: bool,
}

/// A claim that a token must have.
#[derive(Clone, Debug)]
pub struct RequiredClaim {
    /// Its name, or a path in nested claims.
    pub name: String,
    /// Patterns of its value.
    pub values: Vec<Glob>,
}

impl IssuerOptions {
    /// Whether the configuration says which user names the issuer may use.
    fn has_own_users(&self) -> bool {
        self.users.is_some() || !self.user_prefix.is_empty() || self.tenant_user
    }
}

/// The source of an issuer's keys.
#[derive(Clone, Debug)]
pub enum JwksSource {
    /// A JSON Web Key Set that is fetched regularly.
    Url {
        /// URL of the key set, or of the document that names it.
        url: ResourceUrl,
        /// Certificate authorities, for the URL in the document too; `None`: the system's.
        ca_file: Option<PathBuf>,
        /// Whether the URL is that of a document (OpenID Connect Discovery).
        is_discovery: bool,
    },
    /// Path of a JSON Web Key Set.
    File(PathBuf),
    /// The shared secret of an HMAC.
    Secret(Secret),
}

/// Names of the accepted signature algorithms (RFC 7518 and RFC 8037). There is no `none`.
pub(super) const ALGORITHMS: [&str; 12] =
    ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA", "HS256", "HS384", "HS512"];

/// In bytes. A secret that is shorter than the hash could be guessed (RFC 7518 section 3.2).
const MIN_SECRET_LENGTH: usize = 32;

impl Reader<'_> {
    pub(super) fn jwt(&mut self) -> Option<JwtOptions> {
        complete!(JwtOptions {
            issuers: Some(self.issuers()),
            unknown_issuers: self.get(&AUTH.jwt_unknown_issuers),
            leeway: self.get(&AUTH.jwt_leeway),
            refresh: self.get(&AUTH.jwt_refresh),
            refetch: self.get(&AUTH.jwt_refetch),
        })
    }

    fn issuers(&mut self) -> Vec<IssuerOptions> {
        let mut issuers: Vec<IssuerOptions> = Vec::new();
        for (index, node) in self.get(&AUTH.jwt_issuers).unwrap_or_default().into_iter().enumerate() {
            let at = format!("{}[{index}]", AUTH.jwt_issuers);
            let issuer = ListEntry::new(at.clone(), node, self.problems).and_then(issuer);
            match issuer {
                Some(issuer) if issuers.iter().any(|other| other.issuer == issuer.issuer) => {
                    self.problem(format!("{at}.issuer"), "is a duplicate");
                }
                issuer => issuers.extend(issuer),
            }
        }
        self.require_separate_users(&issuers);
        issuers
    }

    /// SECURITY: two issuers that may name the same user give that user's rights to accounts of both.
    fn require_separate_users(&mut self, issuers: &[IssuerOptions]) {
        if issuers.len() < 2 {
            return;
        }
        for issuer in issuers.iter().filter(|issuer| !issuer.has_own_users()) {
            let message = format!(
                "the issuer {:?} needs users, user_prefix or tenant_user, because there are several issuers and each could \
                 name the users of the others. With users: '*' it may name all",
                issuer.issuer
            );
            self.problem(AUTH.jwt_issuers.key, message);
        }
    }

    /// Without issuers no route accepts JWTs. A route that names them explicitly is then a mistake.
    pub(super) fn require_issuers_for_jwt_routes(&mut self, routes: &mut [RouteProfile], auth: Option<&AuthOptions>) {
        if auth.is_none_or(|auth| auth.jwt.is_enabled()) {
            return;
        }
        for route in routes {
            if route.has_explicit_credentials && route.accepts.jwt {
                let message = format!("is required: the route {} has jwt in its credentials", route.name);
                self.problem(AUTH.jwt_issuers.key, message);
            }
            route.accepts.jwt = false;
        }
    }
}

fn issuer(mut entry: ListEntry<'_>) -> Option<IssuerOptions> {
    let issuer = entry.required("issuer");
    let keys = keys(&mut entry);
    let decryption_key_file = entry.text("decryption_key_file").map(PathBuf::from);
    let audiences = entry.texts("audiences");
    if audiences.is_none() {
        entry.problem("audiences", "is missing: tokens for other services would be accepted");
    }
    let is_secret = matches!(keys, Some(JwksSource::Secret(_)));
    let algorithms = algorithms(&mut entry, is_secret);
    let types = entry.texts("typ");
    let required_claims = entry
        .groups_of_texts("required_claims")
        .into_iter()
        .map(|(name, values)| RequiredClaim { name, values: values.into_iter().map(Glob::new).collect() });
    let required_claims = required_claims.collect();
    let user_claim = entry.text("user_claim").unwrap_or_else(|| "sub".to_owned());
    let users = entry.texts("users").map(|users| users.into_iter().map(Glob::new).collect());
    let user_prefix = entry.text("user_prefix").unwrap_or_default();
    if !user_prefix.is_empty() && UserName::parse(user_prefix.as_bytes()).is_err() {
        entry.problem("user_prefix", "must be printable ASCII that a user name can begin with");
    }
    let groups_claims = entry.texts("groups_claims").unwrap_or_default();
    let (tenants, tenant_claim) = (entry.texts("tenants"), entry.text("tenant_claim"));
    let tenant_user = entry.flag("tenant_user");
    // SECURITY: with several tenants and no claim, a client could choose between users of the same name.
    if tenant_user && tenant_claim.is_none() && tenants.as_ref().is_none_or(|tenants| tenants.len() != 1) {
        entry.problem("tenant_user", "needs tenant_claim, or tenants with one tenant: the token must prove the tenant");
    }
    if tenant_user && tenant_claim.is_none() && tenants.iter().flatten().any(|tenant| tenant.contains('/')) {
        entry.problem("tenants", "must not contain `/` with tenant_user");
    }
    let complete = entry.finish();
    let options = IssuerOptions {
        issuer: issuer?,
        keys: keys?,
        decryption_key_file,
        audiences: audiences?,
        algorithms,
        types,
        required_claims,
        user_claim,
        users,
        user_prefix,
        groups_claims,
        tenants,
        tenant_claim,
        tenant_user,
    };
    complete.then_some(options)
}

fn keys(entry: &mut ListEntry<'_>) -> Option<JwksSource> {
    const ONE: &str = "set exactly one of jwks_url, discovery_url, jwks_file and secret_file";
    let urls = (entry.text("jwks_url"), entry.text("discovery_url"));
    let (file, secret) = (entry.text("jwks_file"), entry.text("secret_file"));
    let ca_file = entry.text("ca_file").map(PathBuf::from);
    if ca_file.is_some() && urls == (None, None) {
        entry.problem("ca_file", "has no effect without jwks_url or discovery_url");
    }
    match (urls, file, secret) {
        ((Some(text), None), None, None) => {
            let url = trusted_url(entry, "jwks_url", &text)?;
            Some(JwksSource::Url { url, ca_file, is_discovery: false })
        }
        ((None, Some(text)), None, None) => {
            let url = trusted_url(entry, "discovery_url", &text)?;
            Some(JwksSource::Url { url, ca_file, is_discovery: true })
        }
        ((None, None), Some(path), None) => Some(JwksSource::File(path.into())),
        ((None, None), None, Some(path)) => match Secret::read_file(path.as_ref()) {
            Ok(secret) if secret.expose().len() >= MIN_SECRET_LENGTH => Some(JwksSource::Secret(secret)),
            Ok(_) => {
                entry.problem("secret_file", format!("must contain at least {MIN_SECRET_LENGTH} bytes"));
                None
            }
            Err(error) => {
                entry.problem("secret_file", format!("cannot be read: {error}"));
                None
            }
        },
        _ => {
            entry.problem("jwks_url", ONE);
            None
        }
    }
}

fn trusted_url(entry: &mut ListEntry<'_>, key: &str, text: &str) -> Option<ResourceUrl> {
    url::parse_trusted_resource(text).map_err(|message| entry.problem(key, message)).ok()
}

/// SECURITY: a public key must never be used as the secret of an HMAC. HMAC algorithms are accepted with `secret_file`
/// only, and all others without it only.
fn algorithms(entry: &mut ListEntry<'_>, is_secret: bool) -> Vec<Algorithm> {
    let parse = |name: &str| match name.parse::<Algorithm>() {
        Err(_) => Err(format!("must be one of {}, not {name:?}", ALGORITHMS.join(", "))),
        Ok(algorithm) if (algorithm.family() == AlgorithmFamily::Hmac) != is_secret => {
            Err(format!("{name} cannot be combined with {}", if is_secret { "secret_file" } else { "a key set" }))
        }
        Ok(algorithm) => Ok(algorithm),
    };
    entry.parsed_texts("algorithms", parse).unwrap_or_else(|| {
        if is_secret {
            entry.problem("algorithms", "is missing; with secret_file it must be of HS256, HS384 and HS512");
        }
        vec![Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::EdDSA]
    })
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::AlgorithmFamily;

    use crate::config::Config;
    use crate::config::testing::load;

    fn loaded(issuers: &str) -> Result<Config, String> {
        load("", &[("AUTH_JWT_ISSUERS", issuers)])
    }

    #[test]
    fn issuers_need_a_name_keys_and_an_audience() {
        let config = loaded("[{issuer: 'https://idp/', jwks_url: 'https://idp/keys', audiences: timbr}]");
        let config = config.expect("valid");
        let issuer = &config.auth.jwt.issuers[0];
        assert_eq!((issuer.audiences.as_slice(), issuer.user_claim.as_str()), (&["timbr".to_owned()][..], "sub"));
        assert!(issuer.algorithms.iter().all(|algorithm| algorithm.family() != AlgorithmFamily::Hmac));
        assert!(config.routes.iter().all(|route| route.accepts.jwt || route.accepts.basic));
        assert!(loaded("[]").expect("valid").routes.iter().all(|route| !route.accepts.jwt));
    }

    #[test]
    fn several_issuers_have_separate_users() {
        let issuers = |first: &str, second: &str| {
            let one = |name: &str, more: &str| {
                format!("{{issuer: {name}, jwks_url: 'https://idp/{name}', audiences: timbr{more}}}")
            };
            loaded(&format!("[{}, {}]", one("a", first), one("b", second)))
        };
        for first in [", users: '*@a'", ", user_prefix: a-", ", tenant_user: true, tenants: a", ", users: '*'"] {
            assert!(issuers(first, ", user_prefix: 'b/'").is_ok(), "{first}");
            let error = issuers("", first).expect_err(first);
            assert!(error.contains("\"a\" needs users, user_prefix or tenant_user"), "{error}");
        }
    }

    #[test]
    fn issuers_that_would_accept_too_much_are_rejected() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            path.display().to_string()
        };
        let (short, long) = (at("short", "hush"), at("long", &"x".repeat(32)));
        for (issuer, expected) in [
            ("jwks_url: 'https://idp/k', audiences: a".to_owned(), "issuer: is missing"),
            ("issuer: i, jwks_url: 'https://idp/k'".to_owned(), "audiences: is missing"),
            ("issuer: i, audiences: []".to_owned(), "audiences: must not be empty"),
            ("issuer: i, audiences: a".to_owned(), "set exactly one of"),
            ("issuer: i, audiences: a, jwks_url: 'http://idp/k'".to_owned(), "must be https"),
            ("issuer: i, audiences: a, jwks_file: k, algorithms: none".to_owned(), "must be one of"),
            ("issuer: i, audiences: a, jwks_file: k, algorithms: [RS256, HS256]".to_owned(), "cannot be combined"),
            (format!("issuer: i, audiences: a, secret_file: {long}, algorithms: RS256"), "cannot be combined"),
            (format!("issuer: i, audiences: a, secret_file: {long}"), "algorithms: is missing"),
            (format!("issuer: i, audiences: a, secret_file: {short}, algorithms: HS256"), "at least 32 bytes"),
            ("issuer: i, audiences: a, jwks_file: k, ca_file: c".to_owned(), "no effect without jwks_url"),
            ("issuer: i, audiences: a, jwks_file: k, discovery_url: 'https://idp'".to_owned(), "set exactly one of"),
            ("issuer: i, audiences: a, discovery_url: 'http://idp'".to_owned(), "must be https"),
            ("issuer: i, audiences: a, jwks_file: k, audience: b".to_owned(), "audience: unknown key"),
            ("issuer: i, audiences: a, jwks_file: k, user_prefix: 'a:'".to_owned(), "user_prefix: must be printable"),
            ("issuer: i, audiences: a, jwks_file: k, tenant_user: true".to_owned(), "tenant_user: needs tenant_claim"),
            (
                "issuer: i, audiences: a, jwks_file: k, tenants: [a, b], tenant_user: true".to_owned(),
                "tenant_user: needs tenant_claim",
            ),
            (
                "issuer: i, audiences: a, jwks_file: k, tenants: 'a/b', tenant_user: true".to_owned(),
                "tenants: must not contain",
            ),
            ("issuer: i, audiences: a, jwks_file: k, required_claims: [azp]".to_owned(), "must be a group of keys"),
            ("issuer: i, audiences: a, jwks_file: k, required_claims: {azp: []}".to_owned(), "must not be empty"),
        ] {
            let error = loaded(&format!("[{{{issuer}}}]")).expect_err(&issuer);
            assert!(error.contains(expected), "{issuer}: {error}");
        }
        assert!(loaded("{issuer: i}").expect_err("no list").contains("must be a list"));
    }
}
