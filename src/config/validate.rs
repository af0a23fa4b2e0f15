//! From text to meaning. All problems are collected before anybody is told.

use fernet::Fernet;
use tracing::level_filters::LevelFilter;

use crate::base::secret::Secret;
use crate::config::options::API_AUTH_SALT;
use crate::config::reader::Reader;
use crate::config::sources::{Problem, Settings};
use crate::config::{
    CertificateFiles, Config, Drain, FailureLimits, Foreign, Limits, Listen, Timeouts, TokenOptions, print,
    routes, salts,
};
use crate::observability::log::{Format, LogOptions};

/// `None` only together with at least one problem.
pub(super) fn config(settings: &Settings, problems: &mut Vec<Problem>) -> Option<Config> {
    let mut reader = Reader { settings, problems };
    let max_body = reader.size("limits.body");
    let mut routes = routes::merge(settings.routes.as_ref(), max_body.unwrap_or_default(), reader.problems);
    let salts = reader.salts();
    let listen = reader.listen();
    let tls = reader.tls();
    let trusted_proxies = reader.trusted_proxies();
    let upstream = reader.upstream();
    let auth = reader.auth();
    reader.require_issuers_where_routes_take_jwts(&mut routes, auth.as_ref());
    let platform = reader.platform();
    let impersonation = reader.impersonation();
    let authorization = reader.authorization(&routes);
    let tokens = reader.tokens();
    let store = reader.store();
    let failures = reader.failures();
    let timeouts = reader.timeouts();
    let limits = reader.limits();
    let drain = reader.drain();
    let ready_with_upstream = reader.flag("readiness.upstream");
    let log = reader.log();
    let core_dumps = reader.flag("core_dumps");
    let workers = reader.count("workers").or_else(cores);
    reader.require_trust_where_any_user_may_be_named();
    reader.require_the_verifier_that_finds_the_credential();
    reader.require_what_routes_rely_on(&routes);
    reader.judge_the_unread();
    Some(Config {
        salts: salts?,
        listen: listen?,
        tls: tls?,
        trusted_proxies,
        upstream: upstream?,
        auth: auth?,
        platform: platform?,
        impersonation: impersonation?,
        authorization: authorization?,
        tokens: tokens?,
        store: store?,
        failures: failures?,
        timeouts: timeouts?,
        limits: limits?,
        drain: drain?,
        ready_with_upstream: ready_with_upstream?,
        log: log?,
        core_dumps: core_dumps?,
        workers: workers?,
        routes,
        entries: print::entries(settings).into(),
    })
}

/// How to make a salt, for the errors about it.
const MAKE_A_SALT: &str = "Make one with `timbr-gateway salt`, or in Python with \
     `from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())`";

/// Each is tried with every bearer that does not open.
const MOST_SALTS: usize = 32;

fn cores() -> Option<usize> {
    Some(std::thread::available_parallelism().map_or(1, usize::from))
}

impl Reader<'_> {
    fn salts(&mut self) -> Option<Vec<Secret>> {
        let Some(text) = self.secret(API_AUTH_SALT) else {
            let message = format!(
                "is required: set API_AUTH_SALT (or API_AUTH_SALT_FILE) to the Fernet key of the API service. \
                 {MAKE_A_SALT}"
            );
            return self.missing(API_AUTH_SALT, message);
        };
        let mut salts = Vec::new();
        for (index, salt) in salts::split(text.expose()).enumerate() {
            if Fernet::new(salt.expose()).is_none() {
                let message = format!(
                    "value {} is no Fernet key, which is 32 bytes in URL-safe base64 (44 characters that end \
                     in `=`; this one has {}). {MAKE_A_SALT}",
                    index + 1,
                    salt.expose().chars().count()
                );
                self.problem(API_AUTH_SALT, message);
            } else if salts.contains(&salt) {
                self.problem(API_AUTH_SALT, format!("value {} stands there twice", index + 1));
            } else {
                salts.push(salt);
            }
        }
        if salts.len() > MOST_SALTS {
            self.problem(API_AUTH_SALT, format!("holds {} salts; {MOST_SALTS} are enough", salts.len()));
        }
        Some(salts)
    }

    fn listen(&mut self) -> Option<Listen> {
        let (https, http, admin) =
            (self.address("listen.https"), self.address("listen.http"), self.address("listen.admin"));
        let proxy_protocol = self.proxy_protocol();
        let listen = Listen { https: https?, http: http?, admin: admin?, proxy_protocol: proxy_protocol? };
        let all =
            [("listen.https", listen.https), ("listen.http", listen.http), ("listen.admin", listen.admin)];
        for (index, (key, address)) in all.iter().enumerate() {
            let same = |(_, other): &&(&str, _)| other == address;
            if let (Some(address), Some((other, _))) = (address, all[..index].iter().find(same))
                && address.port() != 0
            {
                self.problem(key, format!("is the same address as {other}"));
            }
        }
        for key in ["tls.cert_file", "tls.certificates", "tls.client_ca_file"] {
            if listen.https.is_none() && self.text(key).is_some() {
                self.problem(key, "has no use with listen.https=off");
            }
        }
        if listen.https.is_none() && listen.http.is_none() {
            self.problem("listen", "both listen.https and listen.http are off: nothing would be served");
        }
        Some(listen)
    }

    pub(super) fn certificate(&mut self, chain: &'static str, key: &'static str) -> Option<CertificateFiles> {
        match (self.path(chain), self.path(key)) {
            (Some(chain_path), Some(key_path)) => {
                Some(CertificateFiles { chain: chain_path, key: key_path, options: [chain, key] })
            }
            (None, None) => None,
            (Some(_), None) => {
                self.problem(key, format!("is required together with {chain}"));
                None
            }
            (None, Some(_)) => {
                self.problem(chain, format!("is required together with {key}"));
                None
            }
        }
    }

    fn tokens(&mut self) -> Option<TokenOptions> {
        let foreign = match self.text("tokens.foreign")?.as_str() {
            "verify" => Some(Foreign::Verify),
            "forward" => Some(Foreign::Forward),
            "reject" => Some(Foreign::Reject),
            other => self.choice("tokens.foreign", other),
        };
        let keys_file = self.path("tokens.keys_file");
        let max = self.count("tokens.max");
        let idle_ttl = self.optional_duration("tokens.idle_ttl");
        let [ttl, accept, reject] = ["tokens.ttl", "tokens.foreign_accept_ttl", "tokens.foreign_reject_ttl"]
            .map(|key| self.duration(key));
        Some(TokenOptions {
            ttl: ttl?,
            idle_ttl: idle_ttl?,
            max: max?,
            keys_file,
            foreign: foreign?,
            foreign_accept_ttl: accept?,
            foreign_reject_ttl: reject?,
        })
    }

    fn failures(&mut self) -> Option<FailureLimits> {
        let per_address = self.limit("limits.failures_per_address");
        let per_user = self.limit("limits.failures_per_user");
        Some(FailureLimits { per_address: per_address?, per_user: per_user? })
    }

    fn timeouts(&mut self) -> Option<Timeouts> {
        let [handshake, header, idle, body, write] =
            ["timeouts.handshake", "timeouts.header", "timeouts.idle", "timeouts.body", "timeouts.write"]
                .map(|key| self.duration(key));
        let connection_age = self.optional_duration("timeouts.connection_age");
        Some(Timeouts {
            handshake: handshake?,
            header: header?,
            idle: idle?,
            body: body?,
            write: write?,
            connection_age: connection_age?,
        })
    }

    fn limits(&mut self) -> Option<Limits> {
        let [connections, connections_per_address, requests, requests_per_identity, resets] = [
            "limits.connections",
            "limits.connections_per_address",
            "limits.requests",
            "limits.requests_per_identity",
            "limits.resets",
        ]
        .map(|key| self.count(key));
        let turns = self.turns();
        let headers = self.count_up_to("limits.headers", 1000);
        let requests_per_connection = self.count("limits.requests_per_connection");
        let [streams, control_frames] =
            ["limits.streams", "limits.control_frames"].map(|key| self.count_up_to(key, 1_000_000));
        let header_size = self.size_within("limits.header_size", 1024, 256 * 1024);
        let uri = self.size_within("limits.uri", 256, 64 * 1024);
        Some(Limits {
            headers: headers?,
            header_size: usize::try_from(header_size?).ok()?,
            uri: usize::try_from(uri?).ok()?,
            body_rate: self.size("limits.body_rate")?,
            connections: connections?,
            connections_per_address: connections_per_address?,
            requests: requests?,
            requests_per_identity: requests_per_identity?,
            requests_per_connection: u64::try_from(requests_per_connection?).ok()?,
            streams: u32::try_from(streams?).ok()?,
            resets: resets?,
            control_frames: u32::try_from(control_frames?).ok()?,
            turns: turns?,
        })
    }

    fn drain(&mut self) -> Option<Drain> {
        // A delay of nothing is meaningful: do not wait for load balancers.
        let delay = self.any_duration("drain.delay");
        Some(Drain { delay: delay?, timeout: self.duration("drain.timeout")? })
    }

    fn log(&mut self) -> Option<LogOptions> {
        let level = match self.text("log.level")?.as_str() {
            "error" => Some(LevelFilter::ERROR),
            "warn" => Some(LevelFilter::WARN),
            "info" => Some(LevelFilter::INFO),
            "debug" => Some(LevelFilter::DEBUG),
            "trace" => Some(LevelFilter::TRACE),
            other => self.choice("log.level", other),
        };
        let format = match self.text("log.format")?.as_str() {
            "text" => Some(Format::Text),
            "json" => Some(Format::Json),
            other => self.choice("log.format", other),
        };
        let access = self.flag("log.access");
        Some(LogOptions { level: level?, format: format?, access: access? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Credential, Sources, UpstreamUrl, load, url};

    const SALT: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";

    fn loaded(env: &[(&str, &str)]) -> Result<Config, String> {
        let sources = Sources {
            environment: env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            ..Sources::default()
        };
        let lines =
            |problems: Vec<Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        load(&sources).map(|(config, _)| config).map_err(lines)
    }

    fn with(env: &[(&str, &str)]) -> Result<Config, String> {
        let mut all = vec![("API_AUTH_SALT", SALT), ("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:8000")];
        all.retain(|(name, _)| !env.iter().any(|(other, _)| other == name));
        all.extend_from_slice(env);
        loaded(&all)
    }

    #[test]
    fn salt_and_upstream_suffice() {
        let config = with(&[]).expect("valid");
        assert_eq!(config.upstream.url(), &UpstreamUrl { tls: false, host: "127.0.0.1".into(), port: 8000 });
        assert_eq!(config.listen.https.map(|a| a.port()), Some(8443));
        assert!(config.listen.http.is_none());
        assert!(config.workers >= 1);
    }

    #[test]
    fn all_errors_come_at_once() {
        let error = loaded(&[
            ("TIMBR_GATEWAY_LISTEN_HTTP", "8080"),
            ("TIMBR_GATEWAY_TOKENS_TTL", "12"),
            ("TIMBR_GATEWAY_WORKERS", "0"),
            ("TIMBR_GATEWAY_LIMITS_BODY", "10MB"),
            ("TIMBR_GATEWAY_LIMITS_FAILURES_PER_USER", "off"),
            ("TIMBR_GATEWAY_CORE_DUMPS", "yes"),
            ("TIMBR_GATEWAY_TLS_CERT_FILE", "/x"),
            ("TIMBR_GATEWAY_AUTH_VERIFIER", "magic"),
        ])
        .expect_err("invalid");
        for expected in [
            "api_auth_salt: is required",
            "timbr-gateway salt",
            "listen.http: must be address:port",
            "tls.key_file: is required together with tls.cert_file",
            "upstream.url: is required",
            "auth.verifier: must be one of salt-holder, users-file, platform, delegate, ldap, not \"magic\"",
            "tokens.ttl: must be a span with its unit",
            "workers: must be a whole number",
            "limits.body: must be a size with its unit",
            "limits.failures_per_user: must be a whole number, or 0 for no limit, not \"off\"",
            "core_dumps: must be true or false",
        ] {
            assert!(error.contains(expected), "{expected} in\n{error}");
        }
    }

    #[test]
    fn options_without_a_use_are_judged_too_and_none_hides_another() {
        let error = with(&[
            ("TIMBR_GATEWAY_LDAP_TIMEOUT", "soon"),
            ("TIMBR_GATEWAY_STORE_MODE", "magic"),
            ("TIMBR_GATEWAY_STORE_DATABASE", "many"),
            ("TIMBR_GATEWAY_DRAIN_DELAY", "soon"),
            ("TIMBR_GATEWAY_DRAIN_TIMEOUT", "later"),
        ])
        .expect_err("invalid");
        for key in ["ldap.timeout", "store.mode", "store.database", "drain.delay", "drain.timeout"] {
            assert_eq!(error.matches(&format!("{key}: ")).count(), 1, "{key} in\n{error}");
        }
    }

    #[test]
    fn a_salt_that_is_no_fernet_key_is_refused_without_being_shown() {
        for salt in ["hunter2", "aGVsbG8=", &SALT[1..], "a b"] {
            let error = with(&[("API_AUTH_SALT", salt)]).expect_err(salt);
            assert!(error.contains("no Fernet key") && error.contains("Fernet.generate_key()"), "{error}");
            assert!(!error.contains(salt), "{error}");
        }
    }

    #[test]
    fn salts_are_separated_by_commas_in_either_alphabet() {
        let other = "+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/8=";
        let config = with(&[("API_AUTH_SALT", &format!("{SALT}, {other}"))]).expect("valid");
        assert_eq!(config.salts.len(), 2);
        assert_eq!(config.salts[0].expose(), SALT);
        assert!(with(&[("API_AUTH_SALT", &format!("{SALT},{SALT}"))]).is_err());
    }

    #[test]
    fn impersonation_by_salt_holders_needs_a_decision() {
        let env = [
            ("TIMBR_GATEWAY_UPSTREAM_CREDENTIAL", "impersonate"),
            ("TIMBR_GATEWAY_UPSTREAM_API_KEY", "tk_1"),
        ];
        let error = with(&env).expect_err("no trust");
        assert!(error.contains("auth.trust_salt_holder"), "{error}");
        let trusted = [env[0], env[1], ("TIMBR_GATEWAY_AUTH_TRUST_SALT_HOLDER", "true")];
        let config = with(&trusted).expect("trusted");
        assert!(matches!(config.upstream.credential, Credential::Impersonate { .. }));
        let verified = [
            env[0],
            env[1],
            ("TIMBR_GATEWAY_AUTH_VERIFIER", "users-file"),
            ("TIMBR_GATEWAY_AUTH_USERS_FILE", "/users"),
        ];
        assert!(with(&verified).is_ok());
    }

    #[test]
    fn impersonation_needs_a_service_key() {
        let error = with(&[
            ("TIMBR_GATEWAY_UPSTREAM_CREDENTIAL", "impersonate"),
            ("TIMBR_GATEWAY_AUTH_TRUST_SALT_HOLDER", "true"),
        ])
        .expect_err("no key");
        assert!(error.contains("upstream.api_key: is required"), "{error}");
    }

    #[test]
    fn an_upstream_is_scheme_host_and_port() {
        let parse = |text| url::origin(text).map(|o| (o.tls, o.host, o.port));
        assert_eq!(parse("http://backend"), Ok((false, "backend".into(), 80)));
        assert_eq!(parse("https://timbr.example.com/"), Ok((true, "timbr.example.com".into(), 443)));
        assert_eq!(parse("http://[::1]:8000"), Ok((false, "::1".into(), 8000)));
        for url in [
            "backend:8000",
            "ftp://x",
            "http://",
            "http://u:p@x",
            "http://x/api",
            "http://x?y",
            "http://x:99999",
            "",
        ] {
            assert!(url::origin(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_not_shown() {
        for url in
            ["http://user:sekrit@x:1", "user:sekrit@x:1", "httpx://user:sekrit@x", "http://u:sekrit@x "]
        {
            let error = with(&[("TIMBR_GATEWAY_UPSTREAM_URL", url)]).expect_err(url);
            assert!(!error.contains("sekrit") && error.contains("without a user name"), "{error}");
        }
    }

    #[test]
    fn what_could_not_be_read_is_not_called_missing_too() {
        let sources = Sources { file: Some("/nonexistent/gateway.yaml".into()), ..Sources::default() };
        let problems = load(&sources).map(drop).expect_err("no such file");
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].message.contains("/nonexistent/gateway.yaml"), "{problems:?}");
    }

    #[test]
    fn what_has_no_use_or_clashes_is_told() {
        let error = with(&[
            ("TIMBR_GATEWAY_LISTEN_HTTPS", "off"),
            ("TIMBR_GATEWAY_LISTEN_HTTP", "127.0.0.1:9180"),
            ("TIMBR_GATEWAY_TLS_CERT_FILE", "/c"),
            ("TIMBR_GATEWAY_TLS_KEY_FILE", "/k"),
        ])
        .expect_err("useless and clashing");
        assert!(error.contains("tls.cert_file: has no use with listen.https=off"), "{error}");
        assert!(error.contains("listen.admin: is the same address as listen.http"), "{error}");
    }
}
