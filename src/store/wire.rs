//! The format of tokens and logins in a file or in Redis: encoded, then sealed.
//!
//! It knows neither where a value is stored nor how keys are derived. Integers are big-endian.
//!
//! | token | bytes | | login | bytes |
//! | --- | --- | --- | --- | --- |
//! | version | 1 | | version | 1 |
//! | minted, expires | 8 + 8 | | seed | 20 |
//! | token id | 16 | | token id | 16 |
//! | login id | 16 | | | |
//! | seed | 20 | | | |
//! | binding | 8 | | | |
//! | length of the user name, user name | 2 + n | | | |
//! | version 3: number of groups, then length and name of each | 2 + … | | | |
//! | upstream key, possibly empty | rest | | | |

use std::time::Duration;

use zeroize::Zeroizing;

use crate::base::groups::Groups;
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::store::keys::{KeyNumber, PRIMARY_KEY, StoreKeys};
use crate::store::time::StoreClock;
use crate::store::{LoginId, NewToken, Seed, Timestamp, TokenBinding, TokenId, TokenRecord};

/// The first byte of every value. Values with a different version are not read.
const WIRE_VERSION: u8 = 2;

/// The first byte of a token with groups. Others have the version that earlier releases read, too.
const VERSION_WITH_GROUPS: u8 = 3;

/// The first byte of the value that replaces a revoked token.
const TOMBSTONE: u8 = 0xff;

/// The length of an encoded token without user name and upstream key.
const FIXED_LENGTH: usize = 1 + 8 + 8 + 16 + 16 + 20 + 8 + 2;

/// A token as the store holds it, except for its last use, which is not sealed.
#[derive(Clone, Debug)]
pub struct StoredToken {
    pub id: TokenId,
    pub seed: Seed,
    pub minted: Timestamp,
    pub expires: Timestamp,
    /// Its `key` is not encoded: it is the one that opens the value.
    pub token: NewToken,
}

/// Which token a login receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredLogin {
    pub seed: Seed,
    pub id: TokenId,
}

impl StoredToken {
    /// The token in this process's memory.
    pub fn from_record(id: TokenId, record: &TokenRecord, store_clock: &StoreClock) -> StoredToken {
        let (minted, expires) = (record.minted(), store_clock.timestamp(record.expires));
        StoredToken { id, seed: record.seed, minted, expires, token: record.token() }
    }

    /// SECURITY: `ttl` limits the lifetime from now on, whatever the time was when the token was minted.
    pub fn limit_lifetime(&mut self, store_clock: &StoreClock, ttl: Duration) {
        self.expires = self.expires.min(store_clock.now().after(ttl));
    }

    /// A record for this process's memory, which counts as used now.
    pub fn into_record(self, store_clock: &StoreClock) -> TokenRecord {
        let (now, expires) = (store_clock.now_tick(), store_clock.tick(self.expires));
        TokenRecord::new(self.id, self.token, self.seed, self.minted, now, expires)
    }

    /// Which token its login receives, if it is this one.
    pub fn login(&self) -> StoredLogin {
        StoredLogin { seed: self.seed, id: self.id }
    }

    /// Encodes and seals the token for `context`, with the key that made it.
    pub fn seal(&self, keys: &StoreKeys, context: &[u8]) -> Vec<u8> {
        keys.seal(self.token.key, context, &self.encode())
    }

    /// `None` if no key opens it, or its version is unknown.
    pub fn open(keys: &StoreKeys, context: &[u8], sealed: &[u8]) -> Option<StoredToken> {
        let (key, bytes) = keys.open(context, sealed)?;
        StoredToken::decode(&bytes, key)
    }

    /// A sealed value in the place of a revoked token. `key` is the key that made the token.
    pub fn seal_tombstone(keys: &StoreKeys, key: KeyNumber, context: &[u8]) -> Vec<u8> {
        keys.seal(key, context, &[TOMBSTONE])
    }

    /// True if this is the sealed value in the place of a revoked token.
    pub fn is_tombstone(keys: &StoreKeys, context: &[u8], sealed: &[u8]) -> bool {
        keys.open(context, sealed).is_some_and(|(_, bytes)| **bytes == [TOMBSTONE])
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let (user, key) = (self.token.user.as_str().as_bytes(), self.token.upstream_key.as_ref());
        let key = key.map_or(&[][..], |key| key.expose().as_bytes());
        // SECURITY: the full capacity from the start, because growing would leave copies of the key behind in memory.
        let groups = self.token.groups.as_ref().map(encode_groups).unwrap_or_default();
        let mut bytes = Zeroizing::new(Vec::with_capacity(FIXED_LENGTH + user.len() + groups.len() + key.len()));
        bytes.push(if self.token.groups.is_some() { VERSION_WITH_GROUPS } else { WIRE_VERSION });
        bytes.extend(self.minted.0.to_be_bytes());
        bytes.extend(self.expires.0.to_be_bytes());
        bytes.extend(self.id.bytes());
        bytes.extend(self.token.login.0);
        bytes.extend(self.seed);
        bytes.extend(self.token.binding.0);
        bytes.extend(encode_length(user.len()));
        bytes.extend(user);
        bytes.extend(groups);
        bytes.extend(key);
        bytes
    }

    fn decode(bytes: &[u8], key: KeyNumber) -> Option<StoredToken> {
        let (version, bytes) = bytes.split_first()?;
        let has_groups = [WIRE_VERSION, VERSION_WITH_GROUPS].iter().position(|known| known == version)? == 1;
        let mut reader = ByteReader(bytes);
        let (minted, expires) = (Timestamp(reader.read_u64()?), Timestamp(reader.read_u64()?));
        let id = TokenId::from_bytes(reader.read_array()?);
        let (login, seed) = (LoginId(reader.read_array()?), reader.read_array()?);
        let binding = TokenBinding(reader.read_array()?);
        let user = UserName::parse(reader.read_text()?.as_bytes()).ok()?;
        let groups = if has_groups { Some(reader.read_groups()?) } else { None };
        let upstream_key = std::str::from_utf8(reader.0).ok()?;
        let upstream_key = (!upstream_key.is_empty()).then(|| Secret::new(upstream_key.to_owned()));
        let token = NewToken { login, user, groups, upstream_key, binding, key };
        Some(StoredToken { id, seed, minted, expires, token })
    }
}

fn encode_groups(groups: &Groups) -> Vec<u8> {
    let mut bytes = encode_length(groups.iter().len()).to_vec();
    for name in groups.iter() {
        bytes.extend(encode_length(name.len()));
        bytes.extend(name.as_bytes());
    }
    bytes
}

fn encode_length(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("names of users and groups are bounded").to_be_bytes()
}

impl StoredLogin {
    /// Encodes and seals the login for `context`, with the primary key.
    pub fn seal(&self, keys: &StoreKeys, context: &[u8]) -> Vec<u8> {
        keys.seal(PRIMARY_KEY, context, &self.encode())
    }

    /// `None` if no key opens it, or its version is unknown.
    pub fn open(keys: &StoreKeys, context: &[u8], sealed: &[u8]) -> Option<StoredLogin> {
        let (_, bytes) = keys.open(context, sealed)?;
        StoredLogin::decode(&bytes)
    }

    fn encode(&self) -> Vec<u8> {
        [&[WIRE_VERSION][..], &self.seed, self.id.bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<StoredLogin> {
        let mut reader = ByteReader::after_version(bytes)?;
        let login = StoredLogin { seed: reader.read_array()?, id: TokenId::from_bytes(reader.read_array()?) };
        reader.0.is_empty().then_some(login)
    }
}

/// The bytes that have not been read yet.
struct ByteReader<'a>(&'a [u8]);

impl<'a> ByteReader<'a> {
    /// `None` if the version is unknown.
    fn after_version(bytes: &'a [u8]) -> Option<ByteReader<'a>> {
        bytes.strip_prefix(&[WIRE_VERSION]).map(ByteReader)
    }

    fn read_bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    fn read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.read_bytes(N)?.try_into().ok()
    }

    fn read_u64(&mut self) -> Option<u64> {
        self.read_array().map(u64::from_be_bytes)
    }

    fn read_length(&mut self) -> Option<usize> {
        self.read_array().map(|bytes| u16::from_be_bytes(bytes).into())
    }

    fn read_text(&mut self) -> Option<&'a str> {
        let length = self.read_length()?;
        std::str::from_utf8(self.read_bytes(length)?).ok()
    }

    fn read_groups(&mut self) -> Option<Groups> {
        let count = self.read_length()?;
        Groups::new((0..count).map(|_| self.read_text().map(Box::from)).collect::<Option<_>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_logins_are_decoded_only_when_complete_and_of_this_version() {
        let groups = |names: &[&str]| Groups::new(names.iter().map(|name| Box::from(*name)).collect());
        let key = || Some(Secret::new("tk_upstream".into()));
        for (upstream_key, groups, length) in [
            (None, None, 0),
            (key(), None, 0),
            (key(), groups(&["bi", "cn=bi,dc=x"]), 2 + 2 + 2 + 2 + 10),
            (None, groups(&[]), 2),
        ] {
            let user = UserName::parse(b"alice").expect("valid");
            let binding = TokenBinding([4; 8]);
            let token = NewToken { login: LoginId([3; 16]), user, groups, upstream_key, binding, key: 2 };
            let stored = StoredToken {
                id: TokenId::from_token(b"x"),
                seed: [7; 20],
                minted: Timestamp(5),
                expires: Timestamp(9),
                token,
            };
            let bytes = stored.encode();
            let decoded = StoredToken::decode(&bytes, 2).expect("it is complete");
            assert_eq!(
                (decoded.id, decoded.seed, decoded.minted, decoded.expires),
                (stored.id, stored.seed, Timestamp(5), Timestamp(9))
            );
            assert_eq!((decoded.token.login, decoded.token.user), (stored.token.login, stored.token.user));
            assert_eq!((decoded.token.upstream_key, decoded.token.key), (stored.token.upstream_key, 2));
            assert_eq!((decoded.token.groups, decoded.token.binding), (stored.token.groups, binding));
            for end in 0..FIXED_LENGTH + "alice".len() + length {
                assert!(StoredToken::decode(&bytes[..end], 2).is_none(), "{end}");
            }
            for version in [1, 4] {
                let other_version = [&[version][..], &bytes[1..]].concat();
                assert!(StoredToken::decode(&other_version, 2).is_none());
            }
        }
        let login = StoredLogin { seed: [7; 20], id: TokenId::from_token(b"x") };
        assert_eq!(StoredLogin::decode(&login.encode()), Some(login));
        assert_eq!(StoredLogin::decode(&login.encode()[..36]), None);
        assert_eq!(StoredLogin::decode(&[login.encode(), vec![0]].concat()), None);
    }
}
