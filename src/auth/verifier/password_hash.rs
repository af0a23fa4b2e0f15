//! Hashes of passwords: bcrypt as Apache's `htpasswd -B` writes them, and Argon2id in the PHC string format.

use argon2::password_hash::phc;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use aws_lc_rs::rand;

use crate::base::secret::Secret;

/// As many bytes of a password bcrypt looks at.
const MAX_BCRYPT_PASSWORD_BYTES: usize = 72;

/// Costs beyond this take seconds for each login; bcrypt's own bound is 31, some hours.
const MAX_BCRYPT_COST: u32 = 16;

/// The cost of new bcrypt hashes.
const DEFAULT_BCRYPT_COST: u32 = 12;

/// Most memory of an Argon2id hash in KiB, and most of it times the passes over it: beyond, each login would take seconds.
const MAX_ARGON2ID_MEMORY_KIB: u32 = 256 * 1024;
const MAX_ARGON2ID_WORK_KIB: u32 = 2 * 1024 * 1024;

/// The hash of one password. Not even `Debug` shows it.
pub struct PasswordHash(ParsedHash);

enum ParsedHash {
    Bcrypt { text: Box<str>, cost: u32 },
    Argon2id { hash: Box<phc::PasswordHash>, cost: Argon2Cost },
}

/// How new hashes are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// OWASP's parameters: 19 MiB, two passes, one lane.
    Argon2id,
    /// For files that Apache reads too.
    Bcrypt,
}

/// What tells the work of one Argon2id hash from that of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Argon2Cost {
    memory: u32,
    passes: u32,
    lanes: u32,
}

impl PasswordHash {
    /// Reads a hash. The error is the end of a sentence, and does not show it.
    pub fn parse(text: &str) -> Result<PasswordHash, String> {
        if text.starts_with("$argon2") {
            PasswordHash::parse_argon2id(text)
        } else {
            PasswordHash::parse_bcrypt(text)
        }
    }

    fn parse_bcrypt(text: &str) -> Result<PasswordHash, String> {
        let parts: bcrypt::HashParts = text.parse().map_err(|_| {
            "is neither a bcrypt nor an Argon2id hash; make one with `htpasswd -B` or `timbr-gateway users add`"
        })?;
        let cost = parts.get_cost();
        if cost > MAX_BCRYPT_COST {
            return Err(format!("has a cost above {MAX_BCRYPT_COST}: each login would take seconds"));
        }
        Ok(PasswordHash(ParsedHash::Bcrypt { text: text.into(), cost }))
    }

    fn parse_argon2id(text: &str) -> Result<PasswordHash, String> {
        let broken = "is no whole Argon2id hash ($argon2id$v=19$m=…,t=…,p=…$salt$hash)";
        let hash = phc::PasswordHash::new(text).map_err(|_| broken)?;
        if hash.algorithm.as_str() != "argon2id" {
            return Err("is of another Argon2 than Argon2id".to_owned());
        }
        let params = Params::try_from(&hash).map_err(|_| broken)?;
        let whole = hash.salt.is_some() && hash.hash.as_ref().is_some_and(|output| output.len() >= 16);
        if !whole || hash.version != Some(Version::V0x13.into()) {
            return Err(broken.to_owned());
        }
        let work = Argon2Cost { memory: params.m_cost(), passes: params.t_cost(), lanes: params.p_cost() };
        if work.memory > MAX_ARGON2ID_MEMORY_KIB
            || work.memory.saturating_mul(work.passes) > MAX_ARGON2ID_WORK_KIB
        {
            return Err(
                "costs so much that each login would take seconds (at most m=262144 and m*t=2097152)"
                    .to_owned(),
            );
        }
        Ok(PasswordHash(ParsedHash::Argon2id { hash: Box::new(hash), cost: work }))
    }

    /// A new hash as text.
    pub fn hash_password(password: &Secret, method: HashAlgorithm) -> Result<String, String> {
        let password = password.expose();
        let mut salt = [0; 16];
        rand::fill(&mut salt).expect("the system's random source works");
        match method {
            HashAlgorithm::Argon2id => {
                let hash = Argon2::default().hash_password_with_salt(password.as_bytes(), &salt);
                hash.map(|hash| hash.to_string()).map_err(|error| error.to_string())
            }
            HashAlgorithm::Bcrypt
                if password.len() > MAX_BCRYPT_PASSWORD_BYTES || password.contains('\0') =>
            {
                Err(format!(
                    "bcrypt looks at {MAX_BCRYPT_PASSWORD_BYTES} bytes only, and takes a NUL for the end"
                ))
            }
            HashAlgorithm::Bcrypt => {
                let parts = bcrypt::hash_with_salt(password, DEFAULT_BCRYPT_COST, salt);
                parts
                    .map(|parts| parts.format_for_version(bcrypt::Version::TwoY))
                    .map_err(|error| error.to_string())
            }
        }
    }

    /// Whether both are the same text.
    pub fn is_same_as(&self, other: &PasswordHash) -> bool {
        match (&self.0, &other.0) {
            (ParsedHash::Bcrypt { text: one, .. }, ParsedHash::Bcrypt { text: other, .. }) => one == other,
            (ParsedHash::Argon2id { hash: one, .. }, ParsedHash::Argon2id { hash: other, .. }) => {
                one == other
            }
            _ => false,
        }
    }

    /// What it is, for people.
    pub fn algorithm_name(&self) -> &'static str {
        match self.0 {
            ParsedHash::Bcrypt { .. } => "bcrypt",
            ParsedHash::Argon2id { .. } => "argon2id",
        }
    }

    /// Whether this is the password's hash.
    pub fn is_hash_of(&self, password: &Secret) -> bool {
        match &self.0 {
            ParsedHash::Bcrypt { text, .. } => is_bcrypt_hash_of(text, password),
            ParsedHash::Argon2id { hash, .. } => {
                Argon2::default().verify_password(password.expose().as_bytes(), &**hash).is_ok()
            }
        }
    }
}

/// SECURITY: bcrypt looks at 72 bytes and takes a NUL for the end. What lies behind must not be let in unseen, and takes
/// as long as any other wrong password.
fn is_bcrypt_hash_of(hash: &str, password: &Secret) -> bool {
    let password = password.expose();
    let judged_whole = password.len() <= MAX_BCRYPT_PASSWORD_BYTES && !password.contains('\0');
    let seen = if judged_whole { password } else { "x" };
    bcrypt::verify(seen, hash).unwrap_or(false) && judged_whole
}

/// The work that each refusal takes, so that the clock tells nothing about a user or his hash: the highest cost of all
/// bcrypt hashes, and one Argon2id hash of each kind that there is.
#[derive(Debug, Default)]
pub struct RejectionCost {
    max_bcrypt_cost: Option<u32>,
    argon2id_costs: Vec<Argon2Cost>,
}

impl RejectionCost {
    /// Takes a hash into account.
    pub fn include(&mut self, hash: &PasswordHash) {
        match hash.0 {
            ParsedHash::Bcrypt { cost, .. } => self.max_bcrypt_cost = self.max_bcrypt_cost.max(Some(cost)),
            ParsedHash::Argon2id { cost: work, .. } if self.argon2id_costs.contains(&work) => {}
            ParsedHash::Argon2id { cost: work, .. } => self.argon2id_costs.push(work),
        }
    }

    /// How many kinds of Argon2id hashes there are; each is paid for by each refusal.
    pub fn argon2id_kind_count(&self) -> usize {
        self.argon2id_costs.len()
    }

    /// Does the work that is left after a password was compared with `done`; all of it if there was nothing to compare.
    ///
    /// Each cost of bcrypt is twice the work of the one below: 2^c + 2^c + 2^(c+1) + … + 2^(h-1) = 2^h.
    pub fn spend_remaining(&self, done: Option<&PasswordHash>) {
        if let Some(highest) = self.max_bcrypt_cost {
            match done {
                Some(PasswordHash(ParsedHash::Bcrypt { cost, .. })) => {
                    (*cost..highest).for_each(spend_bcrypt)
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

/// A well-formed hash that no password is known for.
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
    fn what_is_made_is_of_its_password_and_of_no_other() {
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

    /// RFC 9106's reference program and Python's `argon2-cffi` agree on these.
    #[test]
    fn others_hashes_are_read() {
        let text = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        let hash = PasswordHash::parse(text).unwrap_or_else(|error| panic!("{error}"));
        assert!(hash.is_hash_of(&secret("password")) && !hash.is_hash_of(&secret("Password")));
    }

    #[test]
    fn hashes_that_are_none_or_too_dear_are_refused() {
        let rest = "$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        for (text, expected) in [
            (format!("$argon2id$v=19$m=262145,t=1,p=1{rest}"), "seconds"),
            (format!("$argon2id$v=19$m=131072,t=17,p=1{rest}"), "seconds"),
            (format!("$argon2i$v=19$m=65536,t=2,p=1{rest}"), "another Argon2"),
            (format!("$argon2id$v=16$m=65536,t=2,p=1{rest}"), "no whole"),
            ("$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ".to_owned(), "no whole"),
            (decoy(17), "cost above 16"),
            ("$apr1$abc$def".to_owned(), "neither a bcrypt nor"),
        ] {
            let error = PasswordHash::parse(&text).err().expect(&text);
            assert!(error.contains(expected) && !error.contains("c29tZXNhbHQ"), "{text}: {error}");
        }
    }

    #[test]
    fn the_decoy_is_a_hash() {
        let parts: bcrypt::HashParts = decoy(4).parse().expect("well formed");
        assert_eq!(parts.get_cost(), 4);
        assert_eq!(bcrypt::verify("x", &decoy(4)).ok(), Some(false));
    }
}
