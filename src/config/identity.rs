//! Who the caller is and what the backend is shown of it: `auth` and `upstream.credential`.

use http::HeaderValue;

use crate::config::reader::Reader;
use crate::config::{AuthOptions, Credential, PlatformOptions, VerifierOptions, url};

impl Reader<'_> {
    pub(super) fn credential(&mut self) -> Option<Credential> {
        let key = self.secret("upstream.api_key");
        match (self.text("upstream.credential")?.as_str(), key) {
            ("forward", None) => Some(Credential::Forward),
            ("platform", None) => Some(Credential::Platform),
            ("delegate", None) => Some(Credential::Delegate),
            (word @ ("forward" | "platform" | "delegate"), Some(_)) => {
                let message = format!("has no use with upstream.credential={word}; did you mean impersonate?");
                self.problem("upstream.api_key", message);
                None
            }
            ("impersonate", Some(service_key)) if is_field_value(service_key.expose()) => {
                Some(Credential::Impersonate { service_key })
            }
            ("impersonate", Some(_)) => {
                self.problem("upstream.api_key", "holds a byte that a header field cannot carry");
                None
            }
            ("impersonate", None) => self.missing(
                "upstream.api_key",
                "is required with upstream.credential=impersonate: a Timbr token that was granted impersonation \
                 (TIMBR_GATEWAY_UPSTREAM_API_KEY or its _FILE twin)",
            ),
            (other, _) => self.choice("upstream.credential", other),
        }
    }

    pub(super) fn auth(&mut self) -> Option<AuthOptions> {
        let users_file = self.path("auth.users_file");
        let verifier = match (self.text("auth.verifier")?.as_str(), users_file) {
            ("salt-holder", None) => Some(VerifierOptions::SaltHolder),
            ("platform", None) => Some(VerifierOptions::Platform),
            ("delegate", None) => Some(VerifierOptions::Delegate),
            ("ldap", None) => self.ldap().map(VerifierOptions::Ldap),
            (word @ ("salt-holder" | "platform" | "delegate" | "ldap"), Some(_)) => {
                let message = format!("is not read with auth.verifier={word}; did you mean users-file?");
                self.problem("auth.users_file", message);
                None
            }
            ("users-file", Some(path)) => Some(VerifierOptions::UsersFile(path)),
            ("users-file", None) => {
                self.problem("auth.users_file", "is required with auth.verifier=users-file");
                None
            }
            (other, _) => self.choice("auth.verifier", other),
        };
        if self.text("auth.verifier").as_deref() != Some("ldap") {
            self.refuse_useless_ldap();
        }
        let bearer_max_age = self.optional_duration("auth.bearer_max_age");
        let jwt = self.jwt();
        Some(AuthOptions { verifier: verifier?, bearer_max_age: bearer_max_age?, jwt: jwt? })
    }

    pub(super) fn platform(&mut self) -> Option<PlatformOptions> {
        let url = match self.text("platform.url").map(|text| url::origin(&text)).transpose() {
            Ok(url) => url,
            Err(message) => {
                self.problem(
                    "platform.url",
                    message.replace(": the client's path is forwarded as it is", ""),
                );
                None
            }
        };
        let ca_file = self.path("platform.ca_file");
        if ca_file.is_some() && !url.as_ref().is_some_and(|url| url.tls) {
            self.problem("platform.ca_file", "has no use without an https platform.url");
        }
        let used = self.text("auth.verifier").as_deref() == Some("platform");
        if url.is_some() && !used {
            self.problem("platform.url", "has no use without auth.verifier=platform");
        }
        let [login_path, token_path] = ["platform.login_path", "platform.token_path"].map(|key| {
            let path = self.text(key)?;
            let is_path =
                path.starts_with('/') && !path.contains(['?', '#']) && path.parse::<http::Uri>().is_ok();
            if !is_path {
                self.problem(key, format!("must be a path, such as \"/login/\", not {path:?}"));
            }
            Some(path)
        });
        let timeout = self.duration("platform.timeout")?;
        Some(PlatformOptions { url, ca_file, login_path: login_path?, token_path: token_path?, timeout })
    }

    /// A user's own key is found where his password is verified.
    pub(super) fn require_the_verifier_that_finds_the_credential(&mut self) {
        let words = ["upstream.credential", "auth.verifier"].map(|key| self.text(key).unwrap_or_default());
        if matches!(words[0].as_str(), "platform" | "delegate") && words[0] != words[1] {
            let message = format!(
                "must be {0} with upstream.credential={0}, which finds the user's key there",
                words[0]
            );
            self.problem("auth.verifier", message);
        }
    }

    /// SECURITY: the salt is shared with every client script. With `salt-holder` each of them may name any user,
    /// and with `impersonate` the backend then believes it: that must be somebody's decision, not a default.
    pub(super) fn require_trust_where_any_user_may_be_named(&mut self) {
        const TRUST: &str = "auth.trust_salt_holder";
        let trusted = match self.text(TRUST).as_deref() {
            Some("true") => true,
            Some("false") | None => false,
            Some(_) => {
                self.problem(TRUST, "must be true or false");
                return;
            }
        };
        let any_user = self.text("auth.verifier").as_deref() == Some("salt-holder");
        let believed = self.text("upstream.credential").as_deref() == Some("impersonate");
        if any_user && believed && !trusted {
            self.problem(
                TRUST,
                "auth.verifier=salt-holder checks no password, so with upstream.credential=impersonate every \
                 holder of the salt could act as every user. Check passwords (auth.verifier=users-file), or \
                 accept this with auth.trust_salt_holder=true",
            );
        }
        // SECURITY: a rule says what a user may do, and here anybody may be that user.
        let rules = self.text("impersonation.rules").is_some_and(|rules| rules.trim() != "[]");
        if any_user && rules && !trusted {
            self.problem(
                TRUST,
                "auth.verifier=salt-holder checks no password, so every holder of the salt could act by every rule of \
                 impersonation.rules. Check passwords (auth.verifier=users-file), or accept this with \
                 auth.trust_salt_holder=true",
            );
        }
    }
}

fn is_field_value(text: &str) -> bool {
    !text.is_empty() && !text.contains(' ') && HeaderValue::from_str(text).is_ok()
}
