//! Which logins still count when their token comes to be kept.
//!
//! A password takes its time to be verified. Who is taken out of the users file meanwhile, or is verified in another way
//! from now on, must not get a token all the same.

use parking_lot::{RwLock, RwLockReadGuard};

/// By which verifier a login is proven, and what had ended when that began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoginProof {
    verifier: u64,
    invalidations: u64,
}

/// What a new token must come from.
#[derive(Debug, Default)]
pub(super) struct MintGuard {
    rules: RwLock<MintRules>,
}

#[derive(Debug, Default)]
struct MintRules {
    /// The numbers of salts that are in use; `None`: all.
    salts: Option<Vec<u8>>,
    current: LoginProof,
}

/// Whoever ends tokens waits until this is dropped, and then finds what was kept.
pub(super) struct MintPermit<'a>(#[allow(dead_code, reason = "held")] RwLockReadGuard<'a, MintRules>);

impl MintGuard {
    /// What proves a login from now on, with the verifier of this number.
    pub fn proof_for(&self, verifier: u64) -> LoginProof {
        LoginProof { verifier, ..self.rules.read().current }
    }

    /// Whether nothing has ended since.
    pub fn is_valid(&self, proof: LoginProof) -> bool {
        self.rules.read().current == proof
    }

    /// To be held until the token is kept, or is on its way to where it is.
    pub fn try_permit(&self, proof: LoginProof, salt: u8) -> Option<MintPermit<'_>> {
        let rules = self.rules.read();
        let known_salt = rules.salts.as_ref().is_none_or(|salts| salts.contains(&salt));
        (known_salt && rules.current == proof).then(|| MintPermit(rules))
    }

    /// No other salts from now on.
    pub fn set_salts(&self, numbers: &[u8]) {
        self.rules.write().salts = Some(numbers.to_vec());
    }

    /// No other verifier from now on.
    pub fn set_verifier(&self, number: u64) {
        self.rules.write().current.verifier = number;
    }

    /// Nothing that was proven before counts any more. To be called before what was kept is searched.
    pub fn invalidate_proofs(&self) {
        self.rules.write().current.invalidations += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_counts_until_something_ends_and_only_by_the_verifier_in_force() {
        let acceptance = MintGuard::default();
        let before = acceptance.proof_for(0);
        assert!(acceptance.is_valid(before) && acceptance.try_permit(before, 7).is_some());
        acceptance.invalidate_proofs();
        assert!(!acceptance.is_valid(before) && acceptance.try_permit(before, 7).is_none());
        let after = acceptance.proof_for(0);
        assert!(acceptance.try_permit(after, 7).is_some());
        acceptance.set_salts(&[1]);
        assert!(acceptance.try_permit(after, 7).is_none() && acceptance.try_permit(after, 1).is_some());
        acceptance.set_verifier(1);
        assert!(acceptance.try_permit(after, 1).is_none());
        assert!(
            acceptance.try_permit(acceptance.proof_for(0), 1).is_none(),
            "asked for late, by the one before"
        );
        assert!(acceptance.try_permit(acceptance.proof_for(1), 1).is_some());
    }
}
