//! Whose tokens end because another configuration comes into force.

use std::collections::HashSet;
use std::mem::discriminant;

use crate::auth::verifier::Verifier;
use crate::config::ldap::{LdapLookup, LdapOptions};
use crate::config::{Config, ServerUrl, VerifierOptions};

/// Whose tokens end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvalidatedTokens {
    /// All stay as they are.
    None,
    /// Those of these users.
    Users(HashSet<String>),
    /// Everybody's.
    All,
}

/// Whose tokens end with the second one. A verifier that is the very same has ended by itself what there was to end.
///
/// SECURITY: a token says that its login was right once. Who would have to say so now has not said it.
pub(super) fn invalidated_tokens(
    before: (&Config, &Verifier),
    now: (&Config, &Verifier),
) -> InvalidatedTokens {
    if has_authority_changed(before.0, now.0) || has_upstream_key_owner_changed(before.0, now.0) {
        return InvalidatedTokens::All;
    }
    let users: HashSet<_> = now.1.changed_users_since(before.1).into_iter().collect();
    if users.is_empty() { InvalidatedTokens::None } else { InvalidatedTokens::Users(users) }
}

/// Whether somebody else says that passwords are right. A users file is compared user by user instead.
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

/// Whether keys that tokens stand for would be shown to somebody who has not given them, or belong to another kind of
/// credential. All tokens that are of use stand for one then.
fn has_upstream_key_owner_changed(before: &Config, now: &Config) -> bool {
    let (credential, next) = (&before.upstream.credential, &now.upstream.credential);
    let another_kind = discriminant(credential) != discriminant(next);
    (credential.is_per_user() && (another_kind || has_new_backend(before, now)))
        || (next.is_per_user() && another_kind)
}

/// One that is left out is no other one.
fn has_new_backend(before: &Config, now: &Config) -> bool {
    now.upstream.urls.iter().any(|url| !before.upstream.urls.contains(url))
}

fn platform_url(config: &Config) -> &ServerUrl {
    config.platform.url.as_ref().unwrap_or(config.upstream.url())
}

/// How it is spoken with, and as whom it is searched, does not count.
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
        let own =
            options.iter().map(|(name, value)| (format!("TIMBR_GATEWAY_{name}").into(), (*value).into()));
        let environment = [("API_AUTH_SALT".into(), SALT.into())].into_iter().chain(own).collect();
        load(&Sources { environment, ..Sources::default() }).expect("valid").0
    }

    fn all_end(before: &[(&str, &str)], now: &[(&str, &str)]) -> bool {
        let verifier = Verifier::SaltHolder;
        match invalidated_tokens((&config(before), &verifier), (&config(now), &verifier)) {
            InvalidatedTokens::All => true,
            InvalidatedTokens::None => false,
            InvalidatedTokens::Users(_) => panic!("there is no users file"),
        }
    }

    #[test]
    fn tokens_end_where_somebody_else_would_have_to_say_yes() {
        let ldap = |more: &[(&'static str, &'static str)]| {
            let usual =
                [("AUTH_VERIFIER", "ldap"), ("LDAP_URL", "ldaps://one"), ("LDAP_USER_DN", "uid={user}")];
            let given = |name: &str| more.iter().any(|(other, _)| *other == name);
            usual
                .into_iter()
                .filter(|(name, _)| !given(name))
                .chain([ONE])
                .chain(more.to_vec())
                .collect::<Vec<_>>()
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
    fn and_where_another_backend_would_be_shown_keys_that_it_did_not_give() {
        let both = [("UPSTREAM_URLS", "http://one,http://two")];
        let keys = |more: &[(&'static str, &'static str)]| [&DELEGATE, more].concat();
        assert!(all_end(&keys(&[ONE]), &keys(&both)));
        assert!(!all_end(&keys(&both), &keys(&[ONE])), "it is left out");
        assert!(!all_end(&[ONE], &[TWO, SLOW]), "what the client itself shows is the backend's to judge");
        let service = |key| [ONE, TRUST, ("UPSTREAM_CREDENTIAL", "impersonate"), ("UPSTREAM_API_KEY", key)];
        assert!(!all_end(&service("tk_1"), &service("tk_2")));
        assert!(all_end(&keys(&[ONE]), &[ONE, ("AUTH_VERIFIER", "delegate")]));
        assert!(all_end(&[ONE, ("AUTH_VERIFIER", "delegate")], &keys(&[ONE])));
    }
}
