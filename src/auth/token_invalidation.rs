//! Whose tokens end because another configuration comes into force.

use std::collections::HashSet;
use std::mem::discriminant;

use crate::auth::verifier::Verifier;
use crate::config::ldap::{LdapLookup, LdapOptions};
use crate::config::{Config, UpstreamUrl, VerifierOptions};

/// Whose tokens end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All stay as they are.
    Nobody,
    /// Those of these users.
    Users(HashSet<String>),
    /// Everybody's.
    All,
}

/// Whose tokens end with the second one. A verifier that is the very same has ended by itself what there was to end.
///
/// SECURITY: a token says that its login was right once. Who would have to say so now has not said it.
pub(super) fn ended(before: (&Config, &Verifier), now: (&Config, &Verifier)) -> Ended {
    if is_another_authority(before.0, now.0) || is_another_keeper(before.0, now.0) {
        return Ended::All;
    }
    let users: HashSet<_> = now.1.ended_since(before.1).into_iter().collect();
    if users.is_empty() { Ended::Nobody } else { Ended::Users(users) }
}

/// Whether somebody else says that passwords are right. A users file is compared user by user instead.
fn is_another_authority(before: &Config, now: &Config) -> bool {
    use VerifierOptions::{Delegate, Ldap, Platform, SaltHolder, UsersFile};
    match (&before.auth.verifier, &now.auth.verifier) {
        (SaltHolder, SaltHolder) | (UsersFile(_), UsersFile(_)) => false,
        (Platform, Platform) => platform(before) != platform(now),
        (Delegate, Delegate) => has_another_backend(before, now),
        (Ldap(before), Ldap(now)) => is_another_directory(before, now),
        _ => true,
    }
}

/// Whether keys that tokens stand for would be shown to somebody who has not given them, or belong to another kind of
/// credential. All tokens that are of use stand for one then.
fn is_another_keeper(before: &Config, now: &Config) -> bool {
    let (credential, next) = (&before.upstream.credential, &now.upstream.credential);
    let another_kind = discriminant(credential) != discriminant(next);
    (credential.is_of_each_user() && (another_kind || has_another_backend(before, now)))
        || (next.is_of_each_user() && another_kind)
}

/// One that is left out is no other one.
fn has_another_backend(before: &Config, now: &Config) -> bool {
    now.upstream.urls.iter().any(|url| !before.upstream.urls.contains(url))
}

fn platform(config: &Config) -> &UpstreamUrl {
    config.platform.url.as_ref().unwrap_or(config.upstream.url())
}

/// How it is spoken with, and as whom it is searched, does not count.
fn is_another_directory(before: &LdapOptions, now: &LdapOptions) -> bool {
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
        match ended((&config(before), &verifier), (&config(now), &verifier)) {
            Ended::All => true,
            Ended::Nobody => false,
            Ended::Users(_) => panic!("there is no users file"),
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
