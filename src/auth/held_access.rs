//! The access of a caller whose response lasts: whether it has ended since the identity was proven. It knows no responses.

use std::sync::Arc;

use crate::auth::{Auth, Identity};
use crate::store::{HeldToken, Store};

/// The access that a response depends on while it lasts.
pub struct HeldAccess {
    store: Arc<Store>,
    identity: Identity,
    token: Option<HeldToken>,
}

impl Auth {
    /// The access of this caller.
    pub fn hold_access(&self, identity: &Identity) -> HeldAccess {
        let token = identity.token().map(|id| self.store.hold(*id));
        HeldAccess { store: Arc::clone(&self.store), identity: identity.clone(), token }
    }
}

impl HeldAccess {
    /// Checks the access again. False if the user or the credential is denied, or the token was revoked or has expired.
    /// Never waits.
    ///
    /// An unavailable store ends no access that it has confirmed before.
    pub fn recheck(&mut self) -> bool {
        let is_denied = self.store.denies(self.identity.user(), self.identity.fingerprint());
        !is_denied && self.token.as_mut().is_none_or(|token| self.store.recheck(token))
    }
}
