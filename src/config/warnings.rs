//! Reports settings that are valid but probably not intended.

use crate::config::audit::SyslogServer;
use crate::config::options::{AUDIT, AUTH, AUTHORIZATION, GLOBAL, IMPERSONATION, LIMIT_RULES, PLATFORM, STORE, TLS};
use crate::config::sources::{Problem, Settings};
use crate::config::{Config, StoreKind, VerifierOptions, url};

/// Warnings for `config check`, `doctor` and the log at start.
pub fn warnings(config: &Config, settings: &Settings) -> Vec<Problem> {
    let settings = weak_settings(config).into_iter().chain(rules_without_effect(config, settings));
    let problems = settings.filter(|(applies, ..)| *applies).map(|(_, key, message)| Problem::new(key, message));
    problems.chain(secrets_in_clear_text(config)).collect()
}

/// Whether a warning applies, its option and its text.
type Warning = (bool, &'static str, &'static str);

/// Settings that are meant for trials or for trusted clients. The first two are the defaults.
fn weak_settings(config: &Config) -> [Warning; 4] {
    [
        (
            config.listen.https.is_some() && config.tls.certificates.is_empty(),
            TLS.cert_file.key,
            "HTTPS uses a self-signed certificate that is made at start, which clients cannot verify; set tls.cert_file \
             and tls.key_file",
        ),
        (
            config.auth.verifier == VerifierOptions::SaltHolder,
            AUTH.verifier.key,
            "salt-holder checks no password: every holder of API_AUTH_SALT can get a token for any user. Choose a verifier \
             that checks passwords, unless you trust all holders",
        ),
        (
            config.core_dumps,
            GLOBAL.core_dumps.key,
            "core dumps and debuggers can read every secret of the process; set false unless you are debugging",
        ),
        (
            config.trusted_proxies.iter().any(|network| network.prefix_len() == 0),
            GLOBAL.trusted_proxies.key,
            "contains all addresses, so each client chooses the address for which limits and logs count it; set the \
             addresses of your proxies",
        ),
    ]
}

/// Rules that name users whose names anyone can use, or groups that no login has.
///
/// SECURITY: with `salt-holder` any holder of the salt can use any user name. This is a warning and not a problem,
/// because rules can be intended to separate cooperating clients.
fn rules_without_effect(config: &Config, settings: &Settings) -> [Warning; 4] {
    const NO_GROUPS: &str =
        "names groups, but no caller has any: set groups_claims in auth.jwt_issuers, or ldap.groups_attribute";
    let trusted = settings.values.get(AUTH.trust_salt_holder.key).is_some_and(|word| word.text.expose() == "true");
    let anyone = config.auth.verifier == VerifierOptions::SaltHolder && !trusted;
    let from_ldap = matches!(&config.auth.verifier, VerifierOptions::Ldap(ldap) if ldap.groups.is_some());
    let no_groups = !from_ldap && config.auth.jwt.issuers.iter().all(|issuer| issuer.groups_claims.is_empty());
    let authorization = config.authorization.as_ref().map_or(&[][..], |authorization| &authorization.rules);
    let impersonation = &config.impersonation.rules;
    [
        (
            anyone && !authorization.is_empty(),
            AUTHORIZATION.rules.key,
            "auth.verifier=salt-holder checks no password, so every holder of the salt can use any user name, and no rule \
             restricts it. Check passwords (auth.verifier=users-file), or accept this with \
             auth.trust_salt_holder=true",
        ),
        (no_groups && config.limit_rules.iter().any(|rule| !rule.groups.is_empty()), LIMIT_RULES.rules.key, NO_GROUPS),
        (no_groups && authorization.iter().any(|rule| !rule.groups.is_empty()), AUTHORIZATION.rules.key, NO_GROUPS),
        (no_groups && impersonation.iter().any(|rule| !rule.groups.is_empty()), IMPERSONATION.rules.key, NO_GROUPS),
    ]
}

/// SECURITY: who can read the network between two machines gets every secret that is sent without TLS. This is a
/// warning and not a problem, because the network may encrypt what the gateway does not (a service mesh, a VPN).
fn secrets_in_clear_text(config: &Config) -> Vec<Problem> {
    let sends_passwords = match &config.auth.verifier {
        VerifierOptions::Platform => config.platform.url.is_none(),
        VerifierOptions::Delegate => true,
        VerifierOptions::SaltHolder | VerifierOptions::UsersFile(_) | VerifierOptions::Ldap(_) => false,
    };
    let mut found = Vec::new();
    for (index, upstream) in config.all_upstreams().enumerate() {
        let key = if index == 0 { "upstream" } else { GLOBAL.upstreams.key };
        let host = first_in_clear(upstream.urls.iter().map(|url| (url.tls, url.host.as_str())));
        if sends_passwords && index == 0 {
            found.push((key, host.clone(), "the passwords of users", "https://"));
        }
        if upstream.credential.is_impersonate() {
            found.push((key, host, "the service key (upstream.api_key)", "https://"));
        }
    }
    let platform = config.platform.url.iter().map(|url| (url.tls, url.host.as_str()));
    found.push((PLATFORM.url.key, first_in_clear(platform), "the passwords of users", "https://"));
    if let StoreKind::Redis(redis) = &config.store.kind {
        let host = first_in_clear(redis.nodes.iter().map(|node| (node.tls, node.host.as_str())));
        found.push((STORE.urls.key, host, "the password of the store and all records", "rediss://"));
    }
    if let Some(SyslogServer::Tcp { host, tls, .. }) = &config.audit.syslog {
        let host = first_in_clear([(*tls, host.as_str())].into_iter());
        found.push((AUDIT.syslog.key, host, "user names and client addresses", "tls://"));
    }
    let warning = |(key, host, what, scheme): (&str, Option<String>, &str, &str)| {
        let message = format!("sends {what} to {} without encryption; use {scheme}", host?);
        Some(Problem::new(key, message))
    };
    found.into_iter().filter_map(warning).collect()
}

/// The first host that is reached without TLS and not on the loopback interface.
fn first_in_clear<'a>(mut servers: impl Iterator<Item = (bool, &'a str)>) -> Option<String> {
    servers.find(|(tls, host)| !tls && !url::is_loopback(host)).map(|(_, host)| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::load_with_settings;

    #[test]
    fn settings_for_trials_cause_a_warning() {
        let keys = |options: &[(&str, &str)]| {
            let (config, settings) = load_with_settings("", options).expect("valid");
            warnings(&config, &settings).into_iter().map(|warning| warning.subject).collect::<Vec<_>>()
        };
        assert_eq!(keys(&[]), ["tls.cert_file", "auth.verifier"]);
        let strict = [
            ("TLS_CERT_FILE", "/c"),
            ("TLS_KEY_FILE", "/k"),
            ("AUTH_VERIFIER", "users-file"),
            ("AUTH_USERS_FILE", "/users"),
        ];
        assert_eq!(keys(&strict), [""; 0]);
        assert_eq!(keys(&[&strict[..], &[("CORE_DUMPS", "true")]].concat()), ["core_dumps"]);
        assert_eq!(keys(&[&strict[..], &[("TRUSTED_PROXIES", "::/0")]].concat()), ["trusted_proxies"]);
        let groups = [("LIMITS_RULES", "[{name: a, groups: staff, concurrent: 1}]")];
        assert_eq!(keys(&[&strict[..], &groups].concat()), ["limits.rules"]);
        let issuer =
            [("AUTH_JWT_ISSUERS", "[{issuer: 'https://i', audiences: [a], jwks_file: /j, groups_claims: [g]}]")];
        assert_eq!(keys(&[&strict[..], &groups, &issuer].concat()), [""; 0]);
        let plain = [("LISTEN_HTTPS", "off"), ("LISTEN_HTTP", "127.0.0.1:1")];
        assert_eq!(keys(&[&strict[2..], &plain].concat()), [""; 0]);
    }

    #[test]
    fn secrets_without_encryption_cause_a_warning() {
        let impersonate =
            [("UPSTREAM_CREDENTIAL", "impersonate"), ("UPSTREAM_API_KEY", "tk_1"), ("AUTH_TRUST_SALT_HOLDER", "true")];
        let redis = |url| [("STORE_KIND", "redis"), ("STORE_URLS", url)];
        let platform = |url| [("AUTH_VERIFIER", "platform"), ("PLATFORM_URL", url)];
        let backend = ("UPSTREAM_URL", "http://timbr:8000");
        for (options, expected) in [
            (&[&impersonate[..], &[backend]].concat()[..], &["upstream: sends the service key"][..]),
            (&[&impersonate[..], &[("UPSTREAM_URL", "https://timbr")]].concat(), &[]),
            (&impersonate, &[]),
            (&[backend], &[]),
            (&[("AUTH_VERIFIER", "delegate"), backend], &["upstream: sends the passwords of users to timbr"]),
            (&[("AUTH_VERIFIER", "platform"), backend], &["upstream: sends the passwords of users to timbr"]),
            (&platform("http://timbr"), &["platform.url: sends the passwords of users to timbr"]),
            (&platform("http://localhost"), &[]),
            (&redis("redis://127.0.0.1"), &[]),
            (&redis("redis://[::1]:1"), &[]),
            (&redis("rediss://cache"), &[]),
            (&redis("redis://cache"), &["store.urls: sends the password of the store and all records to cache"]),
        ] {
            let (config, _) = load_with_settings("", options).expect("valid");
            let warnings: Vec<_> = secrets_in_clear_text(&config).iter().map(ToString::to_string).collect();
            assert_eq!(warnings.len(), expected.len(), "{options:?}: {warnings:?}");
            assert!(warnings.iter().zip(expected).all(|(warning, start)| warning.starts_with(start)), "{warnings:?}");
        }
    }

    #[test]
    fn rules_without_password_check_cause_a_warning() {
        let warned = |more: &[(&str, &str)]| {
            let (config, settings) = load_with_settings("", more).expect("valid");
            let all = warnings(&config, &settings).into_iter();
            all.filter(|one| one.subject == AUTHORIZATION.rules.key).map(|one| one.to_string()).collect::<Vec<_>>()
        };
        let rules = [("AUTHORIZATION_MODE", "enforce"), ("AUTHORIZATION_RULES", "[{users: '*'}]")];
        let warnings = warned(&rules);
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].starts_with("authorization.rules: auth.verifier=salt-holder checks no password"),
            "{warnings:?}"
        );
        let trusted = [rules[0], rules[1], ("AUTH_TRUST_SALT_HOLDER", "true")];
        let checked = [rules[0], rules[1], ("AUTH_VERIFIER", "users-file"), ("AUTH_USERS_FILE", "/users")];
        for silent in [&trusted[..], &checked, &[]] {
            assert_eq!(warned(silent), [""; 0]);
        }
    }

    #[test]
    fn an_unencrypted_audit_log_causes_a_warning() {
        for (server, count) in [("tcp://siem:601", 1), ("tcp://[::1]:601", 0), ("tls://siem:6514", 0), ("unix:/x", 0)] {
            let (config, _) = load_with_settings("", &[("AUDIT_SYSLOG", server)]).expect("valid");
            assert_eq!(secrets_in_clear_text(&config).len(), count, "{server}");
        }
    }
}
