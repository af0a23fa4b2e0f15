//! Who the caller is and what the backend is shown of it: `auth` and `upstream.credential`.

use http::HeaderValue;

use crate::config::reader::Reader;
use crate::config::{AuthOptions, Credential, VerifierOptions};

impl Reader<'_> {
    pub(super) fn credential(&mut self) -> Option<Credential> {
        let key = self.secret("upstream.api_key");
        match (self.text("upstream.credential")?.as_str(), key) {
            ("forward", None) => Some(Credential::Forward),
            ("forward", Some(_)) => {
                self.problem(
                    "upstream.api_key",
                    "has no use with upstream.credential=forward; did you mean impersonate?",
                );
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
            ("salt-holder", Some(_)) => {
                self.problem(
                    "auth.users_file",
                    "is not read with auth.verifier=salt-holder; did you mean users-file?",
                );
                None
            }
            ("users-file", Some(path)) => Some(VerifierOptions::UsersFile(path)),
            ("users-file", None) => {
                self.problem("auth.users_file", "is required with auth.verifier=users-file");
                None
            }
            (other, _) => self.choice("auth.verifier", other),
        };
        let bearer_max_age = self.optional_duration("auth.bearer_max_age");
        let jwt = self.jwt();
        Some(AuthOptions { verifier: verifier?, bearer_max_age: bearer_max_age?, jwt: jwt? })
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
    }
}

fn is_field_value(text: &str) -> bool {
    !text.is_empty() && !text.contains(' ') && HeaderValue::from_str(text).is_ok()
}
