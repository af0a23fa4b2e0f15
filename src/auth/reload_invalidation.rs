//! Decides which tokens a reload invalidates. Compares configurations; revokes nothing.

use std::collections::HashSet;
use std::mem::discriminant;

use crate::auth::verifier::Verifier;
use crate::config::ldap::{LdapLookup, LdapOptions};
use crate::config::{Config, ServerUrl, VerifierOptions};

/// The tokens that a reload invalidates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReloadInvalidation {
    /// No tokens.
    None,
    /// The tokens of these users.
    Users(HashSet<String>),
    /// All tokens.
    All,
}

/// The tokens that become invalid when `now` replaces `before`. If the verifier is the same instance, it has already
/// invalidated the tokens of changed users.
///
/// SECURITY: a token proves a login that the previous verifier accepted. A different verifier has not accepted it.
pub(super) fn invalidated_tokens(before: (&Config, &Verifier), now: (&Config, &Verifier)) -> ReloadInvalidation {
    if has_authority_changed(before.0, now.0) || has_upstream_key_owner_changed(before.0, now.0) {
        return ReloadInvalidation::All;
    }
    let users: HashSet<_> = now.1.changed_users_since(before.1).into_iter().collect();
    if users.is_empty() { ReloadInvalidation::None } else { ReloadInvalidation::Users(users) }
}

/// Returns whether a different authority verifies passwords. Users files are compared user by user instead.
fn has_authority_changed(before: &Config, now: &Config) -> bool {
    use VerifierOptions::{Delegate, Ldap, Platform, SaltHolder, UsersFile};
    match (&before.auth.verifier, &now.auth.verifier) {
        (SaltHolder, SaltHolder) | (UsersFile(_), UsersFile(_)) => false,
        (Platform, Platform) => platform_url(before) != platform_url(now),
        (Delegate, Delegate) => has_new_backend(before, now),
        (Ldap(before), Ldap(now)) => has_directory_changed(before, now),
        _ => true,
    }
}

/// Returns whether stored upstream keys would be sent to a backend that did not issue them, or belong to a different
/// `upstream.credential`. With such a credential, every usable token has an upstream key.
fn has_upstream_key_owner_changed(before: &Config, now: &Config) -> bool {
    let (credential, next) = (&before.upstream.credential, &now.upstream.credential);
    let is_different_kind = discriminant(credential) != discriminant(next);
    (credential.is_per_user() && (is_different_kind || has_new_backend(before, now)))
        || (next.is_per_user() && is_different_kind)
}

/// A removed backend is not a new one.
fn has_new_backend(before: &Config, now: &Config) -> bool {
    now.upstream.urls.iter().any(|url| !before.upstream.urls.contains(url))
}

fn platform_url(config: &Config) -> &ServerUrl {
    config.platform.url.as_ref().unwrap_or(config.upstream.url())
}

/// The connection settings and the bind credentials do not matter, only the URL and how entries are found.
fn has_directory_changed(before: &LdapOptions, now: &LdapOptions) -> bool {
    let same_entries = match (&before.lookup, &now.lookup) {
        (LdapLookup::Template(before), LdapLookup::Template(now)) => before == now,
        (
            LdapLookup::Search { base, filter, attribute, .. },
            LdapLookup::Search { base: other_base, filter: other_filter, attribute: other, .. },
        ) => (base, filter, attribute) == (other_base, other_filter, other),
        _ => false,
    };
    before.url != now.url || !same_entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    const SALT: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";
    const ONE: (&str, &str) = ("UPSTREAM_URL", "http://one");
    const TWO: (&str, &str) = ("UPSTREAM_URL", "http://two");
    const TRUST: (&str, &str) = ("AUTH_TRUST_SALT_HOLDER", "true");
    const SLOW: (&str, &str) = ("UPSTREAM_RESPONSE_TIMEOUT", "77s");
    const DELEGATE: [(&str, &str); 2] = [("AUTH_VERIFIER", "delegate"), ("UPSTREAM_CREDENTIAL", "delegate")];

    fn config(options: &[(&str, &str)]) -> Config {
        let own = options.iter().map(|(name, value)| (format!("TIMBR_GATEWAY_{name}").into(), (*value).into()));
        let environment = [("API_AUTH_SALT".into(), SALT.into())].into_iter().chain(own).collect();
        load(&Sources { environment, ..Sources::default() }).expect("valid").0
    }

    fn all_end(before: &[(&str, &str)], now: &[(&str, &str)]) -> bool {
        let verifier = Verifier::SaltHolder;
        match invalidated_tokens((&config(before), &verifier), (&config(now), &verifier)) {
            ReloadInvalidation::All => true,
            ReloadInvalidation::None => false,
            ReloadInvalidation::Users(_) => panic!("there is no users file"),
        }
    }

    #[test]
    fn a_different_verifier_invalidates_all_tokens() {
        let ldap = |more: &[(&'static str, &'static str)]| {
            let usual = [("AUTH_VERIFIER", "ldap"), ("LDAP_URL", "ldaps://one"), ("LDAP_USER_DN", "uid={user}")];
            let given = |name: &str| more.iter().any(|(other, _)| *other == name);
            usual.into_iter().filter(|(name, _)| !given(name)).chain([ONE]).chain(more.to_vec()).collect::<Vec<_>>()
        };
        let delegate = |more: &[(&'static str, &'static str)]| [&DELEGATE, more].concat();
        assert!(all_end(&[ONE], &ldap(&[])));
        assert!(all_end(&[ONE], &delegate(&[ONE])));
        assert!(all_end(&ldap(&[]), &ldap(&[("LDAP_URL", "ldaps://two")])));
        assert!(all_end(&ldap(&[]), &ldap(&[("LDAP_USER_DN", "cn={user}")])));
        assert!(!all_end(&ldap(&[]), &ldap(&[("LDAP_TIMEOUT", "7s"), SLOW])));
        assert!(all_end(&delegate(&[ONE]), &delegate(&[TWO])));
        assert!(!all_end(&delegate(&[ONE]), &delegate(&[ONE, SLOW])));
    }

    #[test]
    fn a_new_backend_for_stored_keys_invalidates_all_tokens() {
        let both = [("UPSTREAM_URLS", "http://one,http://two")];
        let keys = |more: &[(&'static str, &'static str)]| [&DELEGATE, more].concat();
        assert!(all_end(&keys(&[ONE]), &keys(&both)));
        assert!(!all_end(&keys(&both), &keys(&[ONE])), "a removed backend");
        assert!(!all_end(&[ONE], &[TWO, SLOW]), "the backend verifies the client's own credential");
        let service = |key| [ONE, TRUST, ("UPSTREAM_CREDENTIAL", "impersonate"), ("UPSTREAM_API_KEY", key)];
        assert!(!all_end(&service("tk_1"), &service("tk_2")));
        assert!(all_end(&keys(&[ONE]), &[ONE, ("AUTH_VERIFIER", "delegate")]));
        assert!(all_end(&[ONE, ("AUTH_VERIFIER", "delegate")], &keys(&[ONE])));
    }
}
