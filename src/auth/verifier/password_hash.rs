//! Password hashes: bcrypt as written by Apache's `htpasswd -B`, and Argon2id in the PHC string format. Knows no users.

use argon2::password_hash::phc;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use aws_lc_rs::rand;

use crate::base::secret::Secret;

/// bcrypt ignores further bytes.
const MAX_BCRYPT_PASSWORD_BYTES: usize = 72;

/// Higher costs take seconds per login; bcrypt's own limit of 31 takes hours.
const MAX_BCRYPT_COST: u32 = 16;

/// The cost of new bcrypt hashes: 2^12 rounds.
const DEFAULT_BCRYPT_COST: u32 = 12;

/// Maximum memory of an Argon2id hash, and maximum memory times passes. Beyond these, each login would take seconds.
const MAX_ARGON2ID_MEMORY_KIB: u32 = 256 * 1024;
const MAX_ARGON2ID_WORK_KIB: u32 = 2 * 1024 * 1024;

/// The hash of one password. Has no `Debug`, so that it cannot be logged.
pub struct PasswordHash(ParsedHash);

enum ParsedHash {
    Bcrypt { text: Box<str>, cost: u32 },
    Argon2id { hash: Box<phc::PasswordHash>, cost: Argon2Cost },
}

/// The algorithm of a new hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// Argon2id with OWASP's parameters: 19 MiB, two passes, one lane.
    Argon2id,
    /// bcrypt, for files that Apache reads too.
    Bcrypt,
}

/// The cost parameters of an Argon2id hash. Memory is in KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Argon2Cost {
    memory: u32,
    passes: u32,
    lanes: u32,
}

impl PasswordHash {
    /// Parses a hash. The error completes a sentence such as "line 2: …", and does not contain the hash.
    pub fn parse(text: &str) -> Result<PasswordHash, String> {
        if text.starts_with("$argon2") { PasswordHash::parse_argon2id(text) } else { PasswordHash::parse_bcrypt(text) }
    }

    fn parse_bcrypt(text: &str) -> Result<PasswordHash, String> {
        let parts: bcrypt::HashParts = text.parse().map_err(|_| {
            "is neither a bcrypt nor an Argon2id hash; make one with `htpasswd -B` or `timbr-gateway users add`, and \
                 write no spaces or quotes around it"
        })?;
        let cost = parts.get_cost();
        if cost > MAX_BCRYPT_COST {
            return Err(format!("has a cost above {MAX_BCRYPT_COST}: each login would take seconds"));
        }
        Ok(PasswordHash(ParsedHash::Bcrypt { text: text.into(), cost }))
    }

    fn parse_argon2id(text: &str) -> Result<PasswordHash, String> {
        let broken = "is not a complete Argon2id hash ($argon2id$v=19$m=…,t=…,p=…$salt$hash)";
        let hash = phc::PasswordHash::new(text).map_err(|_| broken)?;
        if hash.algorithm.as_str() != "argon2id" {
            return Err("is an Argon2 hash, but not Argon2id".to_owned());
        }
        let params = Params::try_from(&hash).map_err(|_| broken)?;
        let whole = hash.salt.is_some() && hash.hash.as_ref().is_some_and(|output| output.len() >= 16);
        if !whole || hash.version != Some(Version::V0x13.into()) {
            return Err(broken.to_owned());
        }
        let work = Argon2Cost { memory: params.m_cost(), passes: params.t_cost(), lanes: params.p_cost() };
        if work.memory > MAX_ARGON2ID_MEMORY_KIB || work.memory.saturating_mul(work.passes) > MAX_ARGON2ID_WORK_KIB {
            return Err("is too expensive: each login would take seconds (maximum m=262144 and m*t=2097152)".to_owned());
        }
        Ok(PasswordHash(ParsedHash::Argon2id { hash: Box::new(hash), cost: work }))
    }

    /// Makes a new hash, as text.
    pub fn hash_password(password: &Secret, method: HashAlgorithm) -> Result<String, String> {
        let password = password.expose();
        let mut salt = [0; 16];
        rand::fill(&mut salt).expect("the system's random source works");
        match method {
            HashAlgorithm::Argon2id => {
                let hash = Argon2::default().hash_password_with_salt(password.as_bytes(), &salt);
                hash.map(|hash| hash.to_string()).map_err(|error| error.to_string())
            }
            HashAlgorithm::Bcrypt if password.len() > MAX_BCRYPT_PASSWORD_BYTES || password.contains('\0') => {
                Err(format!(
                    "bcrypt uses only the first {MAX_BCRYPT_PASSWORD_BYTES} bytes of a password, and none after a NUL"
                ))
            }
            HashAlgorithm::Bcrypt => {
                let parts = bcrypt::hash_with_salt(password, DEFAULT_BCRYPT_COST, salt);
                parts.map(|parts| parts.format_for_version(bcrypt::Version::TwoY)).map_err(|error| error.to_string())
            }
        }
    }

    /// The text of the hash, as in the file.
    pub fn to_text(&self) -> String {
        match &self.0 {
            ParsedHash::Bcrypt { text, .. } => text.to_string(),
            ParsedHash::Argon2id { hash, .. } => hash.to_string(),
        }
    }

    /// Returns whether both are the same hash, salt included.
    pub fn is_same_as(&self, other: &PasswordHash) -> bool {
        match (&self.0, &other.0) {
            (ParsedHash::Bcrypt { text: one, .. }, ParsedHash::Bcrypt { text: other, .. }) => one == other,
            (ParsedHash::Argon2id { hash: one, .. }, ParsedHash::Argon2id { hash: other, .. }) => one == other,
            _ => false,
        }
    }

    /// The name of the algorithm, as in `users list`.
    pub fn algorithm_name(&self) -> &'static str {
        match self.0 {
            ParsedHash::Bcrypt { .. } => "bcrypt",
            ParsedHash::Argon2id { .. } => "argon2id",
        }
    }

    /// Returns whether this is the hash of the password.
    pub fn is_hash_of(&self, password: &Secret) -> bool {
        match &self.0 {
            ParsedHash::Bcrypt { text, .. } => is_bcrypt_hash_of(text, password),
            ParsedHash::Argon2id { hash, .. } => {
                Argon2::default().verify_password(password.expose().as_bytes(), &**hash).is_ok()
            }
        }
    }
}

/// SECURITY: bcrypt uses only the first 72 bytes and stops at a NUL. A password that it would truncate is rejected, in
/// the same time as any other wrong password.
fn is_bcrypt_hash_of(hash: &str, password: &Secret) -> bool {
    let password = password.expose();
    let judged_whole = password.len() <= MAX_BCRYPT_PASSWORD_BYTES && !password.contains('\0');
    let seen = if judged_whole { password } else { "x" };
    bcrypt::verify(seen, hash).unwrap_or(false) && judged_whole
}

/// The computation of each rejection, the same for all users, so that its duration reveals nothing about a user or a
/// hash: the highest bcrypt cost in the file, and one Argon2id hash for each set of parameters in it.
#[derive(Debug, Default)]
pub struct RejectionCost {
    max_bcrypt_cost: Option<u32>,
    argon2id_costs: Vec<Argon2Cost>,
}

impl RejectionCost {
    /// Includes the cost of this hash.
    pub fn include(&mut self, hash: &PasswordHash) {
        match hash.0 {
            ParsedHash::Bcrypt { cost, .. } => self.max_bcrypt_cost = self.max_bcrypt_cost.max(Some(cost)),
            ParsedHash::Argon2id { cost: work, .. } if self.argon2id_costs.contains(&work) => {}
            ParsedHash::Argon2id { cost: work, .. } => self.argon2id_costs.push(work),
        }
    }

    /// The number of different Argon2id parameter sets; each rejection computes one hash for each of them.
    pub fn argon2id_kind_count(&self) -> usize {
        self.argon2id_costs.len()
    }

    /// Spends what remains after the password was compared with the hash `done`; everything if there was no hash.
    ///
    /// Each bcrypt cost is twice the work of the next lower one: 2^c + 2^c + 2^(c+1) + … + 2^(h-1) = 2^h.
    pub fn spend_remaining(&self, done: Option<&PasswordHash>) {
        if let Some(highest) = self.max_bcrypt_cost {
            match done {
                Some(PasswordHash(ParsedHash::Bcrypt { cost, .. })) => {
                    (*cost..highest).for_each(spend_bcrypt);
                }
                _ => spend_bcrypt(highest),
            }
        }
        let paid = match done {
            Some(PasswordHash(ParsedHash::Argon2id { cost: work, .. })) => Some(work),
            _ => None,
        };
        self.argon2id_costs.iter().filter(|work| Some(*work) != paid).for_each(Argon2Cost::spend);
    }
}

fn spend_bcrypt(cost: u32) {
    let _ = bcrypt::verify("x", &decoy(cost));
}

/// A well-formed hash of no known password.
fn decoy(cost: u32) -> String {
    format!("$2b${cost:02}${}{}", "abcdefghijklmnopqrstuu", "abcdefghijklmnopqrstuvwxyzABCDC")
}

impl Argon2Cost {
    fn spend(&self) {
        if let Ok(params) = Params::new(self.memory, self.passes, self.lanes, None) {
            let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
            let _ = argon2.hash_password_into(b"x", &[0; 16], &mut [0; 32]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    #[test]
    fn a_new_hash_matches_only_its_password() {
        for (method, start) in
            [(HashAlgorithm::Argon2id, "$argon2id$v=19$m=19456,t=2,p=1$"), (HashAlgorithm::Bcrypt, "$2y$12$")]
        {
            let text = PasswordHash::hash_password(&secret("wonder"), method).expect("made");
            assert!(text.starts_with(start), "{text}");
            let hash = PasswordHash::parse(&text).unwrap_or_else(|error| panic!("{text} {error}"));
            assert!(hash.is_hash_of(&secret("wonder")) && !hash.is_hash_of(&secret("wonder ")), "{text}");
        }
        assert!(PasswordHash::hash_password(&secret(&"x".repeat(73)), HashAlgorithm::Bcrypt).is_err());
    }

    /// The reference implementation of RFC 9106 and Python's `argon2-cffi` give this hash.
    #[test]
    fn hashes_of_other_programs_are_accepted() {
        let text = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        let hash = PasswordHash::parse(text).unwrap_or_else(|error| panic!("{error}"));
        assert!(hash.is_hash_of(&secret("password")) && !hash.is_hash_of(&secret("Password")));
    }

    #[test]
    fn invalid_and_too_expensive_hashes_are_rejected() {
        let rest = "$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        for (text, expected) in [
            (format!("$argon2id$v=19$m=262145,t=1,p=1{rest}"), "seconds"),
            (format!("$argon2id$v=19$m=131072,t=17,p=1{rest}"), "seconds"),
            (format!("$argon2i$v=19$m=65536,t=2,p=1{rest}"), "not Argon2id"),
            (format!("$argon2id$v=16$m=65536,t=2,p=1{rest}"), "not a complete"),
            ("$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ".to_owned(), "not a complete"),
            (decoy(17), "cost above 16"),
            ("$apr1$abc$def".to_owned(), "neither a bcrypt nor"),
        ] {
            let error = PasswordHash::parse(&text).err().expect(&text);
            assert!(error.contains(expected) && !error.contains("c29tZXNhbHQ"), "{text}: {error}");
        }
    }

    #[test]
    fn the_decoy_is_well_formed() {
        let parts: bcrypt::HashParts = decoy(4).parse().expect("well formed");
        assert_eq!(parts.get_cost(), 4);
        assert_eq!(bcrypt::verify("x", &decoy(4)).ok(), Some(false));
    }
}
