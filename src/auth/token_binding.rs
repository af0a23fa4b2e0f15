//! Binds tokens to what has proven their login, so that a token ends with its proof: with the user's line in the users
//! file, with the verifier, or, where no password is checked, with the salt.
//!
//! SECURITY: nothing has to be recorded when a user is removed or the verifier changes. The proof is compared when a
//! token is used. So a change takes effect after a crash too, and while the gateway or its store was down.

use std::sync::atomic::{AtomicU32, Ordering};

use aws_lc_rs::hmac::{Context, HMAC_SHA256, Key};

use crate::auth::verifier::{UsersFile, Verifier};
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::config::jwt::IssuerOptions;
use crate::config::ldap::{LdapGroups, LdapLookup};
use crate::config::{Config, CredentialMode, ServerUrl, VerifierOptions};
use crate::store::{KeyNumber, KeyRing, PRIMARY_KEY, TokenBinding, TokenRecord};

/// What has proven a login, besides the verifier: the user's line in the users file, or the salt. Empty where the
/// verifier keeps that to itself.
pub type Evidence = Vec<u8>;

/// The last number that [`next_generation`] has returned.
static LAST_GENERATION: AtomicU32 = AtomicU32::new(0);

/// A number that is greater than all earlier ones. A change of a verifier begins a new generation.
pub(super) fn next_generation() -> u32 {
    LAST_GENERATION.fetch_add(1, Ordering::AcqRel) + 1
}

/// The evidence of a login with a JWT of this issuer. The blank distinguishes it from a salt and from a password hash.
///
/// SECURITY: no token has groups of other claims, or none although rules now depend on them.
pub fn jwt_evidence(issuer: &IssuerOptions) -> Evidence {
    let IssuerOptions { issuer, groups_claims, .. } = issuer;
    let groups = if groups_claims.is_empty() { String::new() } else { format!(" groups {groups_claims:?}") };
    format!("jwt {issuer}{groups}").into_bytes()
}

/// Makes and checks the bindings of tokens for one configuration.
pub struct TokenBinder {
    /// One for each key of the store.
    keys: Vec<Key>,
    verifier_id: String,
    salts: Vec<Secret>,
    /// The evidence of each issuer.
    jwt_issuers: Vec<Evidence>,
    generation: u32,
}

impl TokenBinder {
    /// For this configuration, with keys derived from those of the store.
    pub fn new(config: &Config, ring: &KeyRing) -> TokenBinder {
        TokenBinder {
            keys: ring.derive("token binding 1").map(|key| Key::new(HMAC_SHA256, &*key)).collect(),
            verifier_id: verifier_id(config),
            salts: config.salts.clone(),
            jwt_issuers: config.auth.jwt.issuers.iter().map(jwt_evidence).collect(),
            generation: next_generation(),
        }
    }

    /// The evidence of a login that was accepted because its bearer was made with this salt.
    pub fn salt_evidence(&self, salt: usize) -> Evidence {
        self.salts[salt].expose().as_bytes().to_vec()
    }

    /// Binds a new token.
    pub fn bind(&self, user: &UserName, evidence: &[u8]) -> TokenBinding {
        self.binding(PRIMARY_KEY, user, evidence)
    }

    fn binding(&self, key: KeyNumber, user: &UserName, evidence: &[u8]) -> TokenBinding {
        let mut context = Context::with_key(&self.keys[usize::from(key)]);
        // A user name contains no NUL, and an identity of a verifier neither, so the encoding is unambiguous.
        for part in [self.verifier_id.as_bytes(), b"\0", user.as_str().as_bytes(), b"\0", evidence] {
            context.update(part);
        }
        TokenBinding(*context.sign().as_ref().first_chunk().expect("SHA-256 has 32 bytes"))
    }

    /// True if the verifier still confirms the login of the token. Cheap while the verifier has not changed since the
    /// last call for this token.
    pub fn is_bound(&self, record: &TokenRecord, verifier: &Verifier) -> bool {
        let generation = self.generation.max(verifier.users_file().map_or(0, UsersFile::generation));
        record.is_confirmed_by(generation) || {
            let is_bound = self.compare(record, verifier);
            if is_bound {
                record.set_confirmed_by(generation);
            }
            is_bound
        }
    }

    fn compare(&self, record: &TokenRecord, verifier: &Verifier) -> bool {
        let is_proven_by = |evidence: &[u8]| self.binding(record.key, &record.user, evidence) == record.binding;
        let is_proven_by_verifier = match verifier {
            Verifier::SaltHolder => self.salts.iter().any(|salt| is_proven_by(salt.expose().as_bytes())),
            Verifier::UsersFile(users) => users.evidence(&record.user).is_some_and(|evidence| is_proven_by(&evidence)),
            Verifier::Remote(..) => is_proven_by(&[]),
        };
        is_proven_by_verifier || self.jwt_issuers.iter().any(|evidence| is_proven_by(evidence))
    }

    /// True if both accept the same bindings with the same verifier.
    pub fn is_same_as(&self, other: &TokenBinder) -> bool {
        self.verifier_id == other.verifier_id && self.salts == other.salts && self.jwt_issuers == other.jwt_issuers
    }
}

/// Identifies the authority that verifies passwords and, where tokens have upstream keys, the backends that issued
/// them. Settings of the connection to it do not matter.
fn verifier_id(config: &Config) -> String {
    let authority = match &config.auth.verifier {
        VerifierOptions::SaltHolder => "salt-holder".to_owned(),
        // Users are compared one by one, by the evidence.
        VerifierOptions::UsersFile(_) => "users-file".to_owned(),
        VerifierOptions::Platform => {
            // SECURITY: without the page, the names of users are those that clients sent.
            let user_path = config.platform.user_path.as_deref().unwrap_or_default();
            format!("platform {} {user_path:?}", origin(config.platform.url.as_ref().unwrap_or(config.upstream.url())))
        }
        VerifierOptions::Delegate => format!("delegate {}", backends(config)),
        VerifierOptions::Ldap(ldap) => {
            let entries = match &ldap.lookup {
                LdapLookup::Template { dn, .. } => format!("{dn:?}"),
                LdapLookup::Search { base, filter, attribute, .. } => format!("{base:?} {filter:?} {attribute:?}"),
            };
            // SECURITY: no token has groups of another source, or none although rules now depend on them.
            let groups = match &ldap.groups {
                None => String::new(),
                Some(LdapGroups::Attribute(attribute)) => format!(" groups {attribute:?}"),
                Some(LdapGroups::Search { base, filter }) => format!(" groups {base:?} {filter:?}"),
            };
            format!("ldap {} {entries}{groups}", origin(&ldap.url))
        }
    };
    // SECURITY: a stored upstream key must not reach a backend that did not issue it, nor be used in a different way.
    let upstream_keys = match &config.upstream.credential {
        credential if !credential.is_per_user() => String::new(),
        CredentialMode::Platform => format!("platform keys {}", backends(config)),
        CredentialMode::ShowToken => format!("shown keys {}", backends(config)),
        _ => format!("delegate keys {}", backends(config)),
    };
    format!("{authority} {upstream_keys}").replace('\0', "")
}

fn backends(config: &Config) -> String {
    let mut urls: Vec<String> = config.upstream.urls.iter().map(origin).collect();
    urls.sort();
    urls.join(",")
}

fn origin(url: &ServerUrl) -> String {
    if url.socket.is_some() {
        return url.name();
    }
    format!("{}://{}:{}", if url.tls { "tls" } else { "plain" }, url.host, url.port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    const SALT: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";
    const OTHER: &str = "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE=";
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

    /// True if all tokens end that were made for JWTs of the only issuer.
    fn all_of_jwts_end(before: &str, now: &str) -> bool {
        let binder = |more| {
            let issuer = format!("[{{issuer: 'https://idp', jwks_url: 'https://idp/k', audiences: [timbr]{more}}}]");
            TokenBinder::new(&config(&[ONE, ("AUTH_JWT_ISSUERS", &issuer)]), &KeyRing::new(&[]))
        };
        let [before, now] = [before, now].map(binder);
        let ends = !now.jwt_issuers.contains(&before.jwt_issuers[0]);
        assert_eq!(now.is_same_as(&before), !ends);
        ends
    }

    fn all_end(before: &[(&str, &str)], now: &[(&str, &str)]) -> bool {
        verifier_id(&config(before)) != verifier_id(&config(now))
    }

    #[test]
    fn a_different_verifier_ends_all_tokens() {
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
        assert!(all_end(&ldap(&[]), &ldap(&[("LDAP_GROUPS_ATTRIBUTE", "memberOf")])));
        assert!(all_end(&ldap(&[("LDAP_GROUPS_BASE_DN", "dc=x")]), &ldap(&[("LDAP_GROUPS_BASE_DN", "dc=y")])));
        assert!(all_end(&delegate(&[ONE]), &delegate(&[TWO])));
        assert!(!all_end(&delegate(&[ONE]), &delegate(&[ONE, SLOW])));
        let [none, groups, roles] = ["", ", groups_claims: [groups]", ", groups_claims: [groups, roles]"];
        for (before, now) in [(none, groups), (groups, roles), (roles, none)] {
            assert!(all_of_jwts_end(before, now) && all_of_jwts_end(now, before), "{before} {now}");
        }
        for same in [none, groups, roles] {
            assert!(!all_of_jwts_end(same, &format!("{same}, user_claim: email")));
        }
    }

    #[test]
    fn a_different_backend_for_stored_keys_ends_all_tokens() {
        let both = [("UPSTREAM_URLS", "http://one,http://two")];
        let swapped = [("UPSTREAM_URLS", "http://two,http://one")];
        let keys = |more: &[(&'static str, &'static str)]| [&DELEGATE, more].concat();
        assert!(all_end(&keys(&[ONE]), &keys(&both)));
        assert!(!all_end(&keys(&both), &keys(&swapped)));
        assert!(!all_end(&[ONE], &[TWO, SLOW]), "the backend verifies the client's own credential");
        let service = |key| [ONE, TRUST, ("UPSTREAM_CREDENTIAL", "impersonate"), ("UPSTREAM_API_KEY", key)];
        assert!(!all_end(&service("tk_1"), &service("tk_2")));
        assert!(all_end(&keys(&[ONE]), &[ONE, ("AUTH_VERIFIER", "delegate")]));
        assert!(all_end(&[ONE, ("AUTH_VERIFIER", "delegate")], &keys(&[ONE])));
    }

    #[test]
    fn a_binding_depends_on_the_verifier_the_user_the_evidence_and_the_key() {
        let keys = [SALT, OTHER].map(|key| crate::config::StoreKey::parse(key).expect("32 bytes"));
        let binder = |options: &[(&str, &str)], keys| TokenBinder::new(&config(options), &KeyRing::new(keys));
        let user = |name: &str| UserName::parse(name.as_bytes()).expect("valid");
        let salt_holder = binder(&[ONE], &keys);
        let binding = salt_holder.bind(&user("alice"), b"evidence");
        assert_eq!(binding, binder(&[ONE, SLOW], &keys).bind(&user("alice"), b"evidence"));
        assert_ne!(binding, salt_holder.bind(&user("bob"), b"evidence"));
        assert_ne!(binding, salt_holder.bind(&user("alice"), b"other"));
        assert_ne!(binding, binder(&[ONE, ("AUTH_VERIFIER", "delegate")], &keys).bind(&user("alice"), b"evidence"));
        let rotated = binder(&[ONE], &[keys[1].clone(), keys[0].clone()]);
        assert_ne!(binding, rotated.bind(&user("alice"), b"evidence"));
        assert_eq!(binding, rotated.binding(1, &user("alice"), b"evidence"), "the key that made the token");
    }
}
