//! Keys from a file, `tokens.keys_file`. Knows only hashes of keys.
//!
//! ```text
//! # user : SHA-256 of the key in hex [ : the key to send to the backend instead ]
//! alice:2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90
//! etl:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08:tk_platform
//! ```

use std::collections::HashMap;
use std::path::Path;

use http::HeaderValue;

use crate::auth::credential_file::{self, CredentialFileError};
use crate::auth::upstream_keys::sensitive_header_value;
use crate::base::identity_hasher::IdentityHasher;
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::store::TokenId;

/// The user of a key, and the key to send to the backend.
#[derive(Clone, Debug)]
pub struct KnownKey {
    /// The user that the key identifies.
    pub user: UserName,
    /// The key to send to the backend instead; marked as sensitive. Boxed, because few keys have one.
    pub upstream_key: Option<Box<HeaderValue>>,
}

/// The keys of the file, by their hash.
#[derive(Debug, Default)]
pub struct KnownKeys(HashMap<TokenId, KnownKey, IdentityHasher>);

impl KnownKeys {
    /// Reads the file. The error reports all invalid lines.
    pub fn read(path: &Path) -> Result<KnownKeys, CredentialFileError> {
        credential_file::read(path, KnownKeys::parse)
    }

    fn parse(text: &str) -> Result<KnownKeys, Vec<String>> {
        // Capacity for one key per line, so that the map never grows.
        let lines = memchr::memchr_iter(b'\n', text.as_bytes()).count() + 1;
        let mut keys = HashMap::with_capacity_and_hasher(lines, IdentityHasher::default());
        let problems = credential_file::parse_lines(text, |entry| {
            let (id, key) = parse_entry(entry)?;
            match keys.insert(id, key) {
                None => Ok(()),
                Some(_) => Err("duplicate key".to_owned()),
            }
        });
        if problems.is_empty() { Ok(KnownKeys(keys)) } else { Err(problems) }
    }

    /// The entry of this key, if the file has one.
    pub fn find(&self, id: &TokenId) -> Option<&KnownKey> {
        self.0.get(id)
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

fn parse_entry(entry: &str) -> Result<(TokenId, KnownKey), &'static str> {
    let mut fields = entry.splitn(3, ':');
    let (Some(user), Some(hash)) = (fields.next(), fields.next()) else {
        return Err("must be user:sha256-of-the-key[:upstream key]");
    };
    let user = UserName::parse(user.as_bytes()).map_err(|_| "invalid user name before the first `:`")?;
    let id = TokenId::from_hex(hash)
        .ok_or("the second field must be the key's SHA-256 in 64 hex digits (printf %s KEY | sha256sum)")?;
    let upstream_key = match fields.next() {
        None => None,
        Some(key) if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) => {
            return Err("the upstream key must be printable ASCII without spaces");
        }
        Some(key) => sensitive_header_value(&Secret::new(key.to_owned())).map(Box::new),
    };
    Ok((id, KnownKey { user, upstream_key }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90";

    #[test]
    fn valid_lines_are_parsed() {
        let text = format!("# keys\n\nalice:{HASH}\r\netl:{}:tk_a:b\n", HASH.replace('2', "3"));
        let keys = KnownKeys::parse(&text).expect("valid");
        assert_eq!(keys.len(), 2);
        let alice = keys.find(&TokenId::from_token(b"alice")).expect("known");
        assert_eq!((alice.user.as_str(), &alice.upstream_key), ("alice", &None));
        let etl = keys.find(&TokenId::from_hex(&HASH.replace('2', "3")).expect("hex")).expect("known");
        let upstream_key = etl.upstream_key.as_deref().expect("an upstream key");
        assert_eq!(upstream_key, "tk_a:b");
        assert!(upstream_key.is_sensitive());
    }

    #[test]
    fn invalid_lines_are_reported_by_number_only() {
        let text = format!("alice\nbob:1234\n:{HASH}\neve:{HASH}:\neve:{HASH}:a b\nok:{HASH}\nok:{HASH}\n");
        let problems = KnownKeys::parse(&text).expect_err("wrong").join("\n");
        for expected in [
            "line 1: must be",
            "line 2: the second",
            "line 3: invalid user",
            "line 4: the up",
            "line 5: the up",
            "line 7: duplicate",
        ] {
            assert!(problems.contains(expected), "{expected}: {problems}");
        }
        assert!(!problems.contains(HASH) && !problems.contains("1234"), "{problems}");
    }

    #[test]
    fn a_missing_file_is_reported_by_name() {
        let error = KnownKeys::read(Path::new("/nonexistent/keys")).expect_err("missing").to_string();
        assert!(error.contains("/nonexistent/keys: cannot be read"), "{error}");
    }
}
