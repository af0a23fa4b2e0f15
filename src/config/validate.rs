//! Turns settings into a [`Config`] and checks the relations between options. All problems are collected before they
//! are reported.

use std::iter;
use std::net::SocketAddr;
use std::path::PathBuf;

use fernet::Fernet;

use crate::base::glob::Glob;
use crate::base::secret::Secret;
use crate::config::choices::ClientSocketMode;
use crate::config::options::{
    self, AUTH, GLOBAL, HEADERS, JOURNAL, Key, LIMITS, LISTEN, LOG, PLATFORM, READINESS, STORE, TLS, TOKENS, UPSTREAM,
};
use crate::config::reader::{Reader, complete};
use crate::config::sources::{Problem, Settings};
use crate::config::{
    CertificateFiles, Config, DEFAULT_UPSTREAM, Drain, LimitOptions, ListenOptions, ServerUrl, Timeouts, TokenOptions,
    print, routes, salts,
};
use crate::observability::log::LogOptions;
use crate::observability::queries::QueryText;

/// `None` only together with at least one problem.
pub(super) fn config(settings: &Settings, problems: &mut Vec<Problem>) -> Option<Config> {
    let mut reader = Reader { settings, problems };
    reader.check_values();
    reader.reject_ineffective();
    let max_body = reader.get(&LIMITS.body).unwrap_or_default();
    let salts = reader.salts();
    let upstream = reader.upstream();
    let upstreams = reader.named_upstreams();
    let names: Vec<_> = iter::once(DEFAULT_UPSTREAM).chain(upstreams.iter().map(|one| one.name.as_str())).collect();
    let mut routes = routes::merge(settings.routes.as_ref(), max_body, &names, reader.problems);
    let auth = reader.auth();
    reader.require_issuers_for_jwt_routes(&mut routes, auth.as_ref());
    let platform = reader.platform();
    let limit_rules = reader.limit_rules(&routes);
    reader.require_trust_in_salt_holders(&upstreams);
    reader.require_canonical_names(auth.as_ref(), platform.as_ref(), &upstreams, &limit_rules);
    reader.require_verifier_of_credential(auth.as_ref());
    reader.require_one_per_user_credential(upstream.as_ref(), &upstreams);
    reader.require_client_auth_for_routes(&routes);
    let listen = reader.listen();
    let all_upstreams = || upstream.iter().chain(&upstreams).map(|one| (one.name.as_str(), &one.urls[..]));
    reader.reject_own_listeners(listen.as_ref(), all_upstreams());
    complete!(Config {
        admin: reader.admin(),
        tls: reader.tls(),
        trusted_proxies: Some(reader.get(&GLOBAL.trusted_proxies).unwrap_or_default()),
        trusted_proxies_header: reader.get(&GLOBAL.trusted_proxies_header),
        dropped_headers: Some(reader.dropped_headers()),
        impersonation: reader.impersonation(),
        authorization: reader.authorization(&routes),
        tokens: TokenOptions::read(&mut reader),
        store: reader.store(salts.as_deref().unwrap_or_default()),
        timeouts: Timeouts::read(&mut reader),
        limits: LimitOptions::read(&mut reader),
        drain: Drain::read(&mut reader),
        readiness_requires_upstream: reader.get(&READINESS.upstream),
        log: reader.log(),
        audit: reader.audit(),
        journal: reader.journal(),
        core_dumps: reader.get(&GLOBAL.core_dumps),
        workers: Some(reader.get(&GLOBAL.workers).unwrap_or_else(cores)),
        effective_options: Some(print::effective_options(settings).into()),
        upstreams: Some(upstreams),
        limit_rules: Some(limit_rules),
        routes: Some(routes);
        salts, upstream, auth, platform, listen
    })
}

/// Options that have an effect only with this word of another option. A prefix stands for all its options without a
/// default. The first row that applies to an option is reported.
const EFFECTIVE_WITH: &[(&[&str], &str, &str)] = &[
    (&[AUTH.users_file.key], AUTH.verifier.key, "users-file"),
    (&["ldap."], AUTH.verifier.key, "ldap"),
    (&[PLATFORM.url.key], AUTH.verifier.key, "platform"),
    // Only keys that the backend has accepted have a user there.
    (&[TOKENS.foreign_user_query.key], TOKENS.foreign.key, "verify"),
    (&[STORE.path.key], STORE.kind.key, "file"),
    (
        &[
            STORE.urls.key,
            STORE.username.key,
            STORE.password.key,
            STORE.ca_file.key,
            STORE.client_cert_file.key,
            STORE.client_key_file.key,
            "store.sentinel_",
        ],
        STORE.kind.key,
        "redis",
    ),
    (&["store.sentinel_"], STORE.mode.key, "sentinel"),
];

const CREATE_SALT: &str = "Create one with `timbr-gateway salt`, or in Python with \
     `from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())`";

/// A bearer that no salt decrypts costs one attempt for each.
const MAX_SALTS: usize = 32;

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Whether two listeners would share an address and a port. `[::]` is all addresses, of IPv4 too.
fn is_one_address((one, other): (SocketAddr, SocketAddr)) -> bool {
    let contains = |all: SocketAddr, one: SocketAddr| all.ip().is_unspecified() && (all.is_ipv6() || one.is_ipv4());
    let shares_address = one.ip() == other.ip() || contains(one, other) || contains(other, one);
    shares_address && one.port() == other.port() && one.port() != 0
}

impl Reader<'_> {
    /// Requests would loop.
    fn reject_own_listeners<'a>(
        &mut self,
        listen: Option<&ListenOptions>,
        upstreams: impl Iterator<Item = (&'a str, &'a [ServerUrl])>,
    ) {
        let Some(listen) = listen else { return };
        let listeners = [(LISTEN.https.key, listen.https), (LISTEN.http.key, listen.http)];
        for (name, url) in upstreams.flat_map(|(name, urls)| urls.iter().map(move |url| (name, url))) {
            let host = if url.host == "localhost" { "127.0.0.1" } else { &url.host };
            let address = host.parse().ok().filter(|_| url.socket.is_none()).map(|ip| SocketAddr::new(ip, url.port));
            // Addresses of this machine other than loopback are not known here.
            let is_here = address.is_some_and(|address| address.ip().is_loopback() || address.ip().is_unspecified());
            let is_one = |pair: (SocketAddr, SocketAddr)| pair.0 == pair.1 || (is_here && is_one_address(pair));
            let is_own = |(_, listener): &&(&str, Option<SocketAddr>)| listener.zip(address).is_some_and(is_one);
            if let Some((listener, _)) = listeners.iter().find(is_own) {
                let key = match name {
                    DEFAULT_UPSTREAM if self.is_set(&UPSTREAM.urls) => UPSTREAM.urls.key,
                    DEFAULT_UPSTREAM => UPSTREAM.url.key,
                    _ => GLOBAL.upstreams.key,
                };
                let remedy = "correct the URL, or choose a different port for the gateway";
                self.problem(key, format!("{} is also the address of {listener}; {remedy}", url.name()));
            }
        }
    }

    /// Reports the options that are set and have no effect, each once.
    fn reject_ineffective(&mut self) {
        let values = &self.settings.values;
        for option in options::all().filter(|option| option.default.is_none() && values.contains_key(option.key)) {
            let missing = EFFECTIVE_WITH.iter().find(|(prefixes, other, word)| {
                prefixes.iter().any(|prefix| option.key.starts_with(prefix))
                    && values.get(other).is_some_and(|value| value.text.expose() != *word)
                    && !self.problems.iter().any(|problem| problem.subject == *other)
            });
            if let Some((_, other, word)) = missing {
                self.problem(option.key, format!("has no effect without {other}={word}"));
            }
        }
    }

    fn salts(&mut self) -> Option<Vec<Secret>> {
        let key = GLOBAL.api_auth_salt.key;
        let Some(text) = self.get(&GLOBAL.api_auth_salt) else {
            let message = format!(
                "is required: set API_AUTH_SALT (or API_AUTH_SALT_FILE) to the Fernet key of the API service. \
                 {CREATE_SALT}"
            );
            return self.missing(key, message);
        };
        let mut salts = Vec::new();
        for (index, salt) in salts::split(text.expose()).enumerate() {
            if Fernet::new(salt.expose()).is_none() {
                let (number, length) = (index + 1, salt.expose().chars().count());
                let form = "32 bytes in URL-safe base64 (44 characters that end in `=`";
                let remedy = salts::remedy(salt.expose()).unwrap_or(CREATE_SALT);
                let message =
                    format!("value {number} is not a Fernet key, which is {form}; this one has {length}). {remedy}");
                self.problem(key, message);
            } else if salts.contains(&salt) {
                self.problem(key, format!("value {} is a duplicate", index + 1));
            } else {
                salts.push(salt);
            }
        }
        if salts.len() > MAX_SALTS {
            self.problem(key, format!("has {} salts; the maximum is {MAX_SALTS}", salts.len()));
        }
        Some(salts)
    }

    fn listen(&mut self) -> Option<ListenOptions> {
        let [https, http, admin] = [&LISTEN.https, &LISTEN.http, &LISTEN.admin].map(|key| self.get(key));
        let proxy_protocol = self.proxy_protocol();
        let http_socket_mode = match self.get(&LISTEN.http_socket_mode)? {
            ClientSocketMode::Owner => 0o600,
            ClientSocketMode::Group => 0o660,
            ClientSocketMode::Everyone => 0o666,
        };
        let http_socket = self.socket_path(&LISTEN.http_socket).map(|path| (path, http_socket_mode));
        let listen =
            ListenOptions { https: https?, http: http?, http_socket, admin: admin?, proxy_protocol: proxy_protocol? };
        let all = [(LISTEN.https.key, listen.https), (LISTEN.http.key, listen.http), (LISTEN.admin.key, listen.admin)];
        for (index, (key, address)) in all.iter().enumerate() {
            let same = |(_, other): &&(&str, Option<SocketAddr>)| address.zip(*other).is_some_and(is_one_address);
            match all[..index].iter().find(same) {
                Some((other, taken)) if taken == address => {
                    self.problem(*key, format!("is the same address as {other}"));
                }
                Some((other, _)) => self.problem(*key, format!("has the port of {other}; choose a different one")),
                None => {}
            }
        }
        if listen.https.is_none() {
            let keys = [TLS.cert_file.key, TLS.certificates.key, TLS.client_ca_file.key];
            self.reject_set(&keys, "has no effect with listen.https=off");
        }
        if listen.https.is_none() && listen.http.is_none() && listen.http_socket.is_none() {
            self.problem("listen", "listen.https and listen.http are both off: nothing would be served");
        }
        Some(listen)
    }

    /// SECURITY: without `x-api-impersonate-user` a request would run as a different user than the client named. The
    /// gateway decides on that header, and rejects what it does not forward.
    fn dropped_headers(&mut self) -> Vec<Glob> {
        let dropped = self.get(&HEADERS.drop).unwrap_or_default();
        for needed in ["x-api-impersonate-user", "content-type"] {
            if Glob::any(&dropped, needed) {
                self.problem(HEADERS.drop.key, format!("must not match {needed}, which the backend needs"));
            }
        }
        dropped
    }

    /// A certificate chain and its private key, which are set together or not at all.
    pub(super) fn certificate(&mut self, chain: &Key<PathBuf>, key: &Key<PathBuf>) -> Option<CertificateFiles> {
        match (self.get(chain), self.get(key)) {
            (Some(chain_path), Some(key_path)) => {
                Some(CertificateFiles { chain: chain_path, key: key_path, options: [chain.key, key.key] })
            }
            (None, None) => None,
            (Some(_), None) => self.missing(key.key, format!("is required together with {chain}")),
            (None, Some(_)) => self.missing(chain.key, format!("is required together with {key}")),
        }
    }

    fn log(&mut self) -> Option<LogOptions> {
        complete!(LogOptions {
            level: self.get(&LOG.level),
            format: self.get(&LOG.format),
            access: self.get(&LOG.access),
        })
    }

    /// `Some(None)`: the journal is off.
    fn journal(&mut self) -> Option<Option<QueryText>> {
        let (enabled, text) = (self.get(&JOURNAL.enabled)?, self.get(&JOURNAL.text)?);
        if !enabled && text != QueryText::None {
            self.problem(JOURNAL.text.key, "has no effect without journal.enabled");
        }
        Some(enabled.then_some(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{SALT, load};
    use crate::config::{self, CredentialMode, ServerUrl, Sources, url};

    fn with(variables: &[(&str, &str)]) -> Result<Config, String> {
        load("", variables)
    }

    #[test]
    fn salt_and_upstream_suffice() {
        let config = with(&[]).expect("valid");
        assert_eq!(
            config.upstream.url(),
            &ServerUrl { tls: false, host: "127.0.0.1".into(), port: 8000, socket: None }
        );
        assert_eq!(config.listen.https.map(|a| a.port()), Some(8443));
        assert!(config.listen.http.is_none());
        assert!(config.workers >= 1);
    }

    #[test]
    fn all_problems_are_reported_together() {
        let error = with(&[
            ("API_AUTH_SALT", ""),
            ("UPSTREAM_URL", ""),
            ("LISTEN_HTTP", "8080"),
            ("TOKENS_TTL", "12"),
            ("WORKERS", "0"),
            ("LIMITS_BODY", "10MB"),
            ("LIMITS_FAILURES_PER_USER", "off"),
            ("CORE_DUMPS", "yes"),
            ("TLS_CERT_FILE", "/x"),
            ("AUTH_VERIFIER", "magic"),
        ])
        .expect_err("invalid");
        for expected in [
            "api_auth_salt: is required",
            "timbr-gateway salt",
            "listen.http: must be address:port",
            "tls.key_file: is required together with tls.cert_file",
            "upstream.url: is required",
            "auth.verifier: must be one of salt-holder, users-file, platform, delegate, ldap, not \"magic\"",
            "tokens.ttl: must be a duration with its unit",
            "workers: must be a whole number",
            "limits.body: must be a size with its unit",
            "limits.failures_per_user: must be a whole number, or 0 for no limit, not \"off\"",
            "core_dumps: must be true or false",
        ] {
            assert!(error.contains(expected), "{expected} in\n{error}");
        }
    }

    #[test]
    fn workers_have_a_maximum_so_that_a_typing_mistake_cannot_take_all_memory() {
        let error = with(&[("WORKERS", "4294967296")]).expect_err("too many");
        assert!(error.contains("workers: must be between 1 and 1024"), "{error}");
        assert_eq!(with(&[("WORKERS", "1024")]).expect("valid").workers, 1024);
    }

    #[test]
    fn unused_options_are_checked_and_no_problem_hides_another() {
        let error = with(&[
            ("LDAP_TIMEOUT", "soon"),
            ("STORE_MODE", "magic"),
            ("STORE_DATABASE", "many"),
            ("DRAIN_DELAY", "soon"),
            ("DRAIN_TIMEOUT", "later"),
        ])
        .expect_err("invalid");
        for key in ["ldap.timeout", "store.mode", "store.database", "drain.delay", "drain.timeout"] {
            assert_eq!(error.matches(&format!("{key}: ")).count(), 1, "{key} in\n{error}");
        }
    }

    #[test]
    fn dropped_headers_are_names_and_patterns() {
        let config = load("headers:\n  drop: [X-User, x-sso-*]\n", &[]).expect("valid");
        let is_dropped = |name| Glob::any(&config.dropped_headers, name);
        assert!(is_dropped("x-user") && is_dropped("x-sso-name") && !is_dropped("x-users"));
        for (wrong, expected) in [
            ("x user", "must be names of headers"),
            ("x-user,", "must be names of headers"),
            ("x-api-*", "must not match x-api-impersonate-user"),
            ("*", "must not match content-type"),
        ] {
            let error = with(&[("HEADERS_DROP", wrong)]).expect_err(wrong);
            assert!(error.contains(&format!("headers.drop: {expected}")), "{error}");
        }
    }

    #[test]
    fn invalid_salts_are_rejected_and_not_shown() {
        for salt in ["hunter2", "aGVsbG8=", &SALT[1..], "a b"] {
            let error = with(&[("API_AUTH_SALT", salt)]).expect_err(salt);
            assert!(error.contains("is not a Fernet key") && error.contains("Fernet.generate_key()"), "{error}");
            assert!(!error.contains(salt), "{error}");
        }
    }

    #[test]
    fn salts_are_separated_by_commas_in_either_base64_alphabet() {
        let other = "+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/8=";
        let config = with(&[("API_AUTH_SALT", &format!("{SALT}, {other}"))]).expect("valid");
        assert_eq!(config.salts.len(), 2);
        assert_eq!(config.salts[0].expose(), SALT);
        assert!(with(&[("API_AUTH_SALT", &format!("{SALT},{SALT}"))]).is_err());
    }

    #[test]
    fn impersonation_by_salt_holders_requires_trust_salt_holder() {
        let env = [("UPSTREAM_CREDENTIAL", "impersonate"), ("UPSTREAM_API_KEY", "tk_1")];
        let error = with(&env).expect_err("no trust");
        assert!(error.contains("auth.trust_salt_holder"), "{error}");
        let trusted = [env[0], env[1], ("AUTH_TRUST_SALT_HOLDER", "true")];
        let config = with(&trusted).expect("trusted");
        assert!(matches!(config.upstream.credential, CredentialMode::Impersonate { .. }));
        let verified = [env[0], env[1], ("AUTH_VERIFIER", "users-file"), ("AUTH_USERS_FILE", "/users")];
        assert!(with(&verified).is_ok());
    }

    #[test]
    fn a_verifier_without_the_users_name_cannot_be_combined_with_rules() {
        let impersonate = &[("UPSTREAM_CREDENTIAL", "impersonate"), ("UPSTREAM_API_KEY", "tk_1")][..];
        let may_act = &[("IMPERSONATION_RULES", "[{users: alice, act_as: '*'}]")][..];
        let authorize = &[("AUTHORIZATION_MODE", "enforce"), ("AUTHORIZATION_RULES", "[{users: alice}]")][..];
        let limit = &[("LIMITS_RULES", "[{name: a, users: alice, concurrent: 1}]")][..];
        let ldap = [("AUTH_VERIFIER", "ldap"), ("LDAP_URL", "ldaps://directory")];
        let delegate = &[("AUTH_VERIFIER", "delegate")][..];
        let platform = [("AUTH_VERIFIER", "platform"), ("PLATFORM_USER_PATH", "/api/v1/me/")];
        for (verifier, returns_name) in [
            (delegate, false),
            (&platform[..1], false),
            (&platform, true),
            (&[&ldap[..], &[("LDAP_USER_DN", "uid={user},dc=x")]].concat(), true),
            (&[&ldap[..], &[("LDAP_BASE_DN", "dc=x")]].concat(), true),
        ] {
            assert!(with(verifier).is_ok(), "{verifier:?}");
            for rules in [impersonate, may_act, authorize, limit] {
                let checked = with(&[verifier, rules].concat());
                assert_eq!(checked.is_ok(), returns_name, "{verifier:?} {rules:?} {checked:?}");
                if let Err(error) = checked {
                    assert!(error.contains("auth.verifier: does not return the name of the user"), "{error}");
                }
            }
        }
    }

    #[test]
    fn impersonation_requires_a_service_key() {
        let error =
            with(&[("UPSTREAM_CREDENTIAL", "impersonate"), ("AUTH_TRUST_SALT_HOLDER", "true")]).expect_err("no key");
        assert!(error.contains("upstream.api_key: is required"), "{error}");
    }

    #[test]
    fn an_upstream_is_scheme_host_and_port() {
        let parse = |text| url::parse_origin(text).map(|o| (o.tls, o.host, o.port));
        assert_eq!(parse("http://backend"), Ok((false, "backend".into(), 80)));
        assert_eq!(parse("https://timbr.example.com/"), Ok((true, "timbr.example.com".into(), 443)));
        assert_eq!(parse("http://[::1]:8000"), Ok((false, "::1".into(), 8000)));
        for url in
            ["backend:8000", "ftp://x", "http://", "http://u:p@x", "http://x/api", "http://x?y", "http://x:99999", ""]
        {
            assert!(url::parse_origin(url).is_err(), "{url}");
        }
    }

    #[test]
    fn passwords_in_urls_are_not_shown() {
        for url in ["http://user:sekrit@x:1", "user:sekrit@x:1", "httpx://user:sekrit@x", "http://u:sekrit@x "] {
            let error = with(&[("UPSTREAM_URL", url)]).expect_err(url);
            assert!(!error.contains("sekrit") && error.contains("without a user name"), "{error}");
        }
    }

    #[test]
    fn values_in_an_unreadable_file_are_not_reported_as_missing() {
        let sources = Sources { file: Some("/nonexistent/gateway.yaml".into()), ..Sources::default() };
        let problems = config::load(&sources).map(drop).expect_err("no such file");
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].message.contains("/nonexistent/gateway.yaml"), "{problems:?}");
    }

    #[test]
    fn options_without_effect_and_equal_addresses_are_reported() {
        let error = with(&[
            ("LISTEN_HTTPS", "off"),
            ("LISTEN_HTTP", "127.0.0.1:9180"),
            ("TLS_CERT_FILE", "/c"),
            ("TLS_KEY_FILE", "/k"),
        ])
        .expect_err("invalid");
        assert!(error.contains("tls.cert_file: has no effect with listen.https=off"), "{error}");
        assert!(error.contains("listen.admin: is the same address as listen.http"), "{error}");
    }

    #[test]
    fn the_gateway_is_not_its_own_upstream() {
        for (listener, url, is_own) in [
            ("0.0.0.0:8000", "http://127.0.0.1:8000", true),
            ("[::]:8000", "http://localhost:8000", true),
            ("127.0.0.1:8000", "http://127.0.0.1:8000", true),
            ("127.0.0.1:8000", "http://127.0.0.1:8001", false),
            ("10.0.0.5:8000", "http://127.0.0.1:8000", false),
            ("10.0.0.5:8000", "http://10.0.0.5:8000", true),
            ("0.0.0.0:8000", "http://10.0.0.5:8000", false),
            ("[::]:8000", "http://[2001:db8::5]:8000", false),
            ("0.0.0.0:8000", "http://timbr:8000", false),
            ("off", "http://timbr:8000", false),
            ("0.0.0.0:80", "unix:/run/timbr.sock", false),
        ] {
            let loaded = load("", &[("LISTEN_HTTP", listener), ("UPSTREAM_URL", url)]);
            let message = "is also the address of listen.http";
            assert_eq!(loaded.is_err_and(|error| error.contains(message)), is_own, "{listener} {url}");
        }
    }
}
