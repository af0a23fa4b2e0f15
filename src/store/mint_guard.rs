//! Which logins still count when their token comes to be kept.
//!
//! A password takes its time to be verified. Who is taken out of the users file meanwhile, or is verified in another way
//! from now on, must not get a token all the same.

use parking_lot::{RwLock, RwLockReadGuard};

/// By which verifier a login is proven, and what had ended when that began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    verifier: u64,
    endings: u64,
}

/// What a new token must come from.
#[derive(Debug, Default)]
pub(super) struct Acceptance {
    rules: RwLock<Rules>,
}

#[derive(Debug, Default)]
struct Rules {
    /// The numbers of salts that are in use; `None`: all.
    salts: Option<Vec<u8>>,
    now: Proof,
}

/// Whoever ends tokens waits until this is dropped, and then finds what was kept.
pub(super) struct Permit<'a>(#[allow(dead_code, reason = "held")] RwLockReadGuard<'a, Rules>);

impl Acceptance {
    /// What proves a login from now on, with the verifier of this number.
    pub fn proof(&self, verifier: u64) -> Proof {
        Proof { verifier, ..self.rules.read().now }
    }

    /// Whether nothing has ended since.
    pub fn accepts(&self, proof: Proof) -> bool {
        self.rules.read().now == proof
    }

    /// To be held until the token is kept, or is on its way to where it is.
    pub fn permit(&self, proof: Proof, salt: u8) -> Option<Permit<'_>> {
        let rules = self.rules.read();
        let known_salt = rules.salts.as_ref().is_none_or(|salts| salts.contains(&salt));
        (known_salt && rules.now == proof).then(|| Permit(rules))
    }

    /// No other salts from now on.
    pub fn only_salts(&self, numbers: &[u8]) {
        self.rules.write().salts = Some(numbers.to_vec());
    }

    /// No other verifier from now on.
    pub fn only_verifier(&self, number: u64) {
        self.rules.write().now.verifier = number;
    }

    /// Nothing that was proven before counts any more. To be called before what was kept is searched.
    pub fn end(&self) {
        self.rules.write().now.endings += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_counts_until_something_ends_and_only_by_the_verifier_in_force() {
        let acceptance = Acceptance::default();
        let before = acceptance.proof(0);
        assert!(acceptance.accepts(before) && acceptance.permit(before, 7).is_some());
        acceptance.end();
        assert!(!acceptance.accepts(before) && acceptance.permit(before, 7).is_none());
        let after = acceptance.proof(0);
        assert!(acceptance.permit(after, 7).is_some());
        acceptance.only_salts(&[1]);
        assert!(acceptance.permit(after, 7).is_none() && acceptance.permit(after, 1).is_some());
        acceptance.only_verifier(1);
        assert!(acceptance.permit(after, 1).is_none());
        assert!(acceptance.permit(acceptance.proof(0), 1).is_none(), "asked for late, by the one before");
        assert!(acceptance.permit(acceptance.proof(1), 1).is_some());
    }
}
