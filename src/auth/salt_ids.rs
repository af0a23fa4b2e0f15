//! Identifiers of salts, which the store keeps with each token instead of the salt.

use parking_lot::Mutex;
use zeroize::Zeroizing;

use crate::base::secret::Secret;
use crate::store::derive_key;

/// All salts that this process has used. A salt keeps its identifier when the configuration reorders the salts, and
/// when it is removed and added again.
#[derive(Default)]
pub struct SaltIds(Mutex<Vec<Zeroizing<[u8; 32]>>>);

impl SaltIds {
    /// The identifiers of these salts; new salts get the next ones. `None` if there are more than 256.
    pub fn assign(&self, salts: &[Secret]) -> Option<Vec<u8>> {
        let mut known = self.0.lock();
        let mut assign = |salt: &Secret| {
            let hash = derive_key(salt, "timbr-gateway salt number 1");
            let index = known.iter().position(|known| *known == hash).unwrap_or(known.len());
            if index == known.len() {
                known.push(hash);
            }
            u8::try_from(index).ok()
        };
        salts.iter().map(&mut assign).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_salt_keeps_its_identifier() {
        let salts = ["cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=", "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE="]
            .map(|salt| Secret::new(salt.to_owned()));
        let ids = SaltIds::default();
        let [old, new] = salts.clone();
        assert_eq!(ids.assign(std::slice::from_ref(&old)), Some(vec![0]));
        assert_eq!(ids.assign(&[new.clone(), old.clone()]), Some(vec![1, 0]));
        assert_eq!(ids.assign(&[new]), Some(vec![1]));
        assert_eq!(ids.assign(&[old]), Some(vec![0]));
    }
}
