//! The access of a caller whose response lasts: whether it has ended since the identity was proven. It knows no responses.

use std::sync::Arc;

use crate::auth::jwt::JwtVerifier;
use crate::auth::{Auth, Identity};
use crate::base::user_name::UserName;
use crate::store::{HeldToken, Store};

/// The access that a response depends on while it lasts.
pub struct HeldAccess {
    store: Arc<Store>,
    jwt_verifier: Arc<JwtVerifier>,
    identity: Identity,
    acts_as: Option<UserName>,
    token: Option<HeldToken>,
}

impl Auth {
    /// The access of this caller. `acts_as` is the user that it may act as, by a rule or by the backend's decision.
    pub fn hold_access(&self, identity: &Identity, acts_as: Option<&str>) -> HeldAccess {
        HeldAccess {
            store: Arc::clone(&self.store),
            jwt_verifier: Arc::clone(&self.jwt_verifier),
            identity: identity.clone(),
            acts_as: acts_as.and_then(|name| UserName::parse(name.as_bytes()).ok()),
            token: identity.token().map(|id| self.store.hold(*id)),
        }
    }
}

impl HeldAccess {
    /// Checks the access again. False if a user or the credential is denied, the token was revoked, or the token or JWT
    /// has expired. Never waits.
    ///
    /// An unavailable store ends no access that it has confirmed before.
    pub fn recheck(&mut self) -> bool {
        let (store, credential) = (&self.store, self.identity.fingerprint());
        // SECURITY: as for a new request, neither the caller nor the user that it acts as may be denied.
        let is_denied =
            [self.identity.user(), self.acts_as.as_ref()].iter().any(|user| store.denies(*user, credential));
        !is_denied
            && !self.identity.jwt_expires_at().is_some_and(|at| self.jwt_verifier.has_expired(at))
            && self.token.as_mut().is_none_or(|token| store.recheck(token))
    }
}
