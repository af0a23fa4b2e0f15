//! The access of a caller whose response lasts: whether it has ended since the identity was proven. It knows no responses.

use std::sync::Arc;

use crate::auth::{Auth, Identity};
use crate::store::Store;

/// The access that a response depends on while it lasts.
pub struct HeldAccess {
    store: Arc<Store>,
    identity: Identity,
}

impl Auth {
    /// The access of this caller.
    pub fn hold_access(&self, identity: &Identity) -> HeldAccess {
        HeldAccess { store: Arc::clone(&self.store), identity: identity.clone() }
    }
}

impl HeldAccess {
    /// Whether the user or the credential is denied, or the token has ended. Never waits.
    pub fn has_ended(&self) -> bool {
        self.store.denies(self.identity.user(), self.identity.fingerprint())
            || self.identity.token().is_some_and(|id| self.store.find(id).is_none())
    }
}
