//! Reads `auth`, `platform` and `upstream.credential`: how callers are authenticated, and what the backend receives.

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderValue;

use crate::config::choices::{AuthorizationMode, CredentialKind, VerifierKind};
use crate::config::options::{AUTH, AUTHORIZATION, IMPERSONATION, LIMIT_RULES, PLATFORM, TOKENS, UPSTREAM};
use crate::config::reader::{Reader, complete};
use crate::config::{
    CredentialMode, JwtOptions, LdapOptions, LimitRule, PlatformOptions, ShowTokenPolicy, UpstreamOptions,
};

/// Verification of credentials.
#[derive(Clone, Debug)]
pub struct AuthOptions {
    /// How passwords are verified.
    pub verifier: VerifierOptions,
    /// Maximum age of a bearer.
    pub bearer_max_age: Option<Duration>,
    /// JSON Web Tokens of identity providers.
    pub jwt: JwtOptions,
}

/// How passwords are verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerifierOptions {
    /// Not at all: a client that holds the salt may name any user.
    SaltHolder,
    /// By a file of names and password hashes.
    UsersFile(PathBuf),
    /// By the platform's login form.
    Platform,
    /// By the backend's own `get_token`.
    Delegate,
    /// By an LDAP directory.
    Ldap(Box<LdapOptions>),
}

impl Reader<'_> {
    pub(super) fn credential(&mut self) -> Option<CredentialMode> {
        let kind = self.get(&UPSTREAM.credential)?;
        let key = UPSTREAM.api_key.key;
        match (kind, self.get(&UPSTREAM.api_key)) {
            (CredentialKind::Forward, None) => Some(CredentialMode::Forward),
            (CredentialKind::Platform, None) => Some(CredentialMode::Platform),
            (CredentialKind::Delegate, None) => Some(CredentialMode::Delegate),
            (CredentialKind::ShowToken, None) => Some(CredentialMode::ShowToken),
            (CredentialKind::Impersonate, Some(service_key)) if is_header_value(service_key.expose()) => {
                Some(CredentialMode::Impersonate { service_key })
            }
            (CredentialKind::Impersonate, Some(_)) => {
                self.problem(key, "contains a byte that is not allowed in a header");
                None
            }
            (CredentialKind::Impersonate, None) => self.missing(
                key,
                "is required with upstream.credential=impersonate: a Timbr token that is allowed to impersonate \
                 (TIMBR_GATEWAY_UPSTREAM_API_KEY or TIMBR_GATEWAY_UPSTREAM_API_KEY_FILE)",
            ),
            (_, Some(_)) => {
                self.problem(key, "has no effect without upstream.credential=impersonate");
                None
            }
        }
    }

    pub(super) fn auth(&mut self) -> Option<AuthOptions> {
        complete!(AuthOptions {
            verifier: self.get(&AUTH.verifier).and_then(|kind| self.verifier(kind)),
            bearer_max_age: self.get(&AUTH.bearer_max_age),
            jwt: self.jwt(),
        })
    }

    fn verifier(&mut self, kind: VerifierKind) -> Option<VerifierOptions> {
        match kind {
            VerifierKind::SaltHolder => Some(VerifierOptions::SaltHolder),
            VerifierKind::Platform => Some(VerifierOptions::Platform),
            VerifierKind::Delegate => Some(VerifierOptions::Delegate),
            VerifierKind::Ldap => self.ldap().map(|ldap| VerifierOptions::Ldap(Box::new(ldap))),
            VerifierKind::UsersFile => match self.get(&AUTH.users_file) {
                Some(path) => Some(VerifierOptions::UsersFile(path)),
                None => self.missing(AUTH.users_file.key, "is required with auth.verifier=users-file"),
            },
        }
    }

    pub(super) fn platform(&mut self) -> Option<PlatformOptions> {
        if self.is_set(&PLATFORM.ca_file) && !self.get(&PLATFORM.url).is_some_and(|url| url.tls) {
            self.problem(PLATFORM.ca_file.key, "has no effect without an https platform.url");
        }
        for key in [&PLATFORM.login_path, &PLATFORM.token_path, &PLATFORM.user_path] {
            let Some(path) = self.get(key) else { continue };
            if !path.starts_with('/') || path.contains(['?', '#']) || path.parse::<http::Uri>().is_err() {
                self.problem(key.key, format!("must be a path, such as \"/login/\", not {path:?}"));
            }
        }
        PlatformOptions::read(self)
    }

    /// Requires the verifier of the same name for `platform` and `delegate`: only that verifier returns the user's own
    /// key. `show-token` needs any login that the backend accepts.
    ///
    /// SECURITY: a client must not receive the key that `show-token` keeps from it.
    pub(super) fn require_verifier_of_credential(&mut self, auth: Option<&AuthOptions>) {
        if self.get(&UPSTREAM.credential) == Some(CredentialKind::ShowToken) {
            if self.get(&TOKENS.show_token) == Some(ShowTokenPolicy::Backend) {
                let message = "must be deny or mint with upstream.credential=show-token: the backend would return the \
                               user's key to the client";
                self.problem(TOKENS.show_token.key, message);
            }
            let returns_key = |auth: &AuthOptions| {
                matches!(auth.verifier, VerifierOptions::Platform | VerifierOptions::Delegate)
                    || !auth.jwt.issuers.is_empty()
            };
            if !auth.is_none_or(returns_key) {
                let message = "must be platform or delegate with upstream.credential=show-token, or set \
                               auth.jwt_issuers: the backend must accept the login";
                self.problem(AUTH.verifier.key, message);
            }
        }
        let (word, needed) = match self.get(&UPSTREAM.credential) {
            Some(CredentialKind::Platform) => ("platform", VerifierKind::Platform),
            Some(CredentialKind::Delegate) => ("delegate", VerifierKind::Delegate),
            _ => return,
        };
        if self.get(&AUTH.verifier) != Some(needed) {
            let message = format!("must be {word} with upstream.credential={word}: the login returns the user's key");
            self.problem(AUTH.verifier.key, message);
        }
    }

    /// A token represents one key of its user, which is sent to every upstream, or to none.
    pub(super) fn require_one_per_user_credential(
        &mut self,
        default: Option<&UpstreamOptions>,
        upstreams: &[UpstreamOptions],
    ) {
        let Some(default) = default else { return };
        for (index, upstream) in upstreams.iter().enumerate() {
            if upstream.credential == default.credential {
                continue;
            }
            let message = match (default.credential.is_per_user(), upstream.credential.is_per_user()) {
                (true, _) => {
                    "must be left out: with upstream.credential=platform, delegate or show-token, all upstreams get \
                              the user's own key"
                }
                (false, true) => "must be forward or impersonate, because upstream.credential is",
                (false, false) => continue,
            };
            self.problem(format!("upstreams[{index}].credential"), message);
        }
    }

    /// SECURITY: a server may accept several spellings of a user's name. If it does not return the right one, a client
    /// could choose the spelling that a rule does not match, or that the backend takes for a different user.
    pub(super) fn require_canonical_names(
        &mut self,
        auth: Option<&AuthOptions>,
        platform: Option<&PlatformOptions>,
        upstreams: &[UpstreamOptions],
        limit_rules: &[LimitRule],
    ) {
        let (Some(auth), Some(platform)) = (auth, platform) else { return };
        let remedy = match &auth.verifier {
            VerifierOptions::SaltHolder | VerifierOptions::UsersFile(_) | VerifierOptions::Ldap(_) => return,
            VerifierOptions::Platform if platform.user_path.is_some() => return,
            VerifierOptions::Platform => "set platform.user_path",
            VerifierOptions::Delegate => "use a different verifier",
        };
        let what = if self.impersonates(upstreams) {
            "upstream.credential=impersonate"
        } else if self.get(&IMPERSONATION.rules).is_some_and(|rules| !rules.is_empty()) {
            IMPERSONATION.rules.key
        } else if self.get(&AUTHORIZATION.mode) != Some(AuthorizationMode::Off) {
            AUTHORIZATION.rules.key
        } else if limit_rules.iter().any(|rule| rule.users.is_some()) {
            LIMIT_RULES.rules.key
        } else {
            return;
        };
        let message =
            format!("does not return the name of the user as the server spells it, which {what} relies on: {remedy}");
        self.problem(AUTH.verifier.key, message);
    }

    /// Whether a backend receives the gateway's own key, and believes which user it names.
    fn impersonates(&mut self, upstreams: &[UpstreamOptions]) -> bool {
        self.get(&UPSTREAM.credential) == Some(CredentialKind::Impersonate)
            || upstreams.iter().any(|upstream| upstream.credential.is_impersonate())
    }

    /// SECURITY: every client script holds the salt. With `salt-holder` each of them may name any user, and with
    /// `impersonate` the backend trusts that name: an operator has to decide this explicitly, it is not a default.
    pub(super) fn require_trust_in_salt_holders(&mut self, upstreams: &[UpstreamOptions]) {
        let salt_holder = self.get(&AUTH.verifier) == Some(VerifierKind::SaltHolder);
        if !salt_holder || self.get(&AUTH.trust_salt_holder) != Some(false) {
            return;
        }
        if self.impersonates(upstreams) {
            self.problem(
                AUTH.trust_salt_holder.key,
                "auth.verifier=salt-holder checks no password, so with upstream.credential=impersonate every \
                 holder of the salt could act as every user. Check passwords (auth.verifier=users-file), or \
                 accept this with auth.trust_salt_holder=true",
            );
        }
        // SECURITY: a rule grants rights to a user name, and here any client may use that name.
        if self.get(&IMPERSONATION.rules).is_some_and(|rules| !rules.is_empty()) {
            self.problem(
                AUTH.trust_salt_holder.key,
                "auth.verifier=salt-holder checks no password, so every holder of the salt could use every rule of \
                 impersonation.rules. Check passwords (auth.verifier=users-file), or accept this with \
                 auth.trust_salt_holder=true",
            );
        }
    }
}

fn is_header_value(text: &str) -> bool {
    !text.is_empty() && !text.contains(' ') && HeaderValue::from_str(text).is_ok()
}
