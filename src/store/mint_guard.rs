//! Decides whether a verified login may still receive a token when that is about to be stored.
//!
//! Verifying a password takes time. If the user is removed from the users file meanwhile, or the verifier is replaced,
//! the login must not receive a token. This module knows neither logins nor tokens, only counters.

use parking_lot::{RwLock, RwLockReadGuard};

/// Which verifier proved a login, and how often tokens had been invalidated when that began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoginProof {
    verifier: u64,
    invalidations: u64,
}

/// Compares the proof of a login with the active verifier and salts.
#[derive(Debug, Default)]
pub(super) struct MintGuard {
    rules: RwLock<MintRules>,
}

#[derive(Debug, Default)]
struct MintRules {
    /// The numbers of the active salts; `None`: all.
    salts: Option<Vec<u8>>,
    /// The only valid proof.
    current: LoginProof,
}

/// While this exists, an invalidation waits. It then finds the token that was stored under the permit.
pub(super) struct MintPermit<'a>(#[allow(dead_code, reason = "held")] RwLockReadGuard<'a, MintRules>);

impl MintGuard {
    /// The proof of a login that the verifier with this number starts to verify now.
    pub fn proof_for(&self, verifier: u64) -> LoginProof {
        LoginProof { verifier, ..self.rules.read().current }
    }

    /// False if tokens were invalidated, or the verifier was replaced, since the proof began.
    pub fn is_valid(&self, proof: LoginProof) -> bool {
        self.rules.read().current == proof
    }

    /// A permit to store a token, or `None` if the proof or the salt is no longer valid. The caller holds it until the
    /// token is stored, or queued for the store.
    pub fn try_permit(&self, proof: LoginProof, salt: u8) -> Option<MintPermit<'_>> {
        let rules = self.rules.read();
        let is_active = rules.salts.as_ref().is_none_or(|salts| salts.contains(&salt));
        (is_active && rules.current == proof).then(|| MintPermit(rules))
    }

    /// Makes these the only active salts.
    pub fn set_salts(&self, numbers: &[u8]) {
        self.rules.write().salts = Some(numbers.to_vec());
    }

    /// Makes this the only active verifier.
    pub fn set_verifier(&self, number: u64) {
        self.rules.write().current.verifier = number;
    }

    /// Invalidates all earlier proofs. Call it before searching for tokens to remove.
    pub fn invalidate_proofs(&self) {
        self.rules.write().current.invalidations += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_valid_until_an_invalidation_and_only_for_the_active_verifier() {
        let guard = MintGuard::default();
        let before = guard.proof_for(0);
        assert!(guard.is_valid(before) && guard.try_permit(before, 7).is_some());
        guard.invalidate_proofs();
        assert!(!guard.is_valid(before) && guard.try_permit(before, 7).is_none());
        let after = guard.proof_for(0);
        assert!(guard.try_permit(after, 7).is_some());
        guard.set_salts(&[1]);
        assert!(guard.try_permit(after, 7).is_none() && guard.try_permit(after, 1).is_some());
        guard.set_verifier(1);
        assert!(guard.try_permit(after, 1).is_none());
        assert!(guard.try_permit(guard.proof_for(0), 1).is_none(), "by the replaced verifier");
        assert!(guard.try_permit(guard.proof_for(1), 1).is_some());
    }
}
