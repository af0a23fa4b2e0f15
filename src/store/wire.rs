//! Tokens and logins as they are kept outside: what is sealed, and how it is read back.

use zeroize::Zeroizing;

use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::store::{LoginId, NewToken, Seed, Timestamp, TokenId};

/// The first byte of everything; another one is of another version, and not read.
const WIRE_VERSION: u8 = 1;

/// A token, all of it.
#[derive(Clone, Debug)]
pub struct StoredToken {
    pub id: TokenId,
    pub seed: Seed,
    pub minted: Timestamp,
    pub expires: Timestamp,
    pub token: NewToken,
}

/// A login's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredLogin {
    pub seed: Seed,
    pub id: TokenId,
}

impl StoredToken {
    /// The bytes that are sealed.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let (user, key) = (self.token.user.as_str().as_bytes(), self.token.upstream_key.as_ref());
        let key = key.map_or(&[][..], |key| key.expose().as_bytes());
        // With its whole room from the start: bytes that grow leave their beginnings behind in memory.
        let mut bytes = Zeroizing::new(Vec::with_capacity(71 + user.len() + key.len()));
        bytes.push(WIRE_VERSION);
        bytes.extend(self.minted.0.to_be_bytes());
        bytes.extend(self.expires.0.to_be_bytes());
        bytes.extend(self.id.bytes());
        bytes.extend(self.token.login.0);
        bytes.extend(self.seed);
        bytes.extend(u16::try_from(user.len()).expect("a name has 256 characters at most").to_be_bytes());
        bytes.extend(user);
        bytes.extend(key);
        bytes
    }

    /// The token in bytes that were sealed.
    pub fn decode(bytes: &[u8]) -> Option<StoredToken> {
        let mut rest = ByteReader::after_version(bytes)?;
        let (minted, expires) = (Timestamp(rest.read_u64()?), Timestamp(rest.read_u64()?));
        let (id, login, seed) =
            (TokenId::from_bytes(rest.read_array()?), LoginId(rest.read_array()?), rest.read_array()?);
        let length = u16::from_be_bytes(rest.read_array()?);
        let user = UserName::parse(rest.read_bytes(usize::from(length))?).ok()?;
        let key = std::str::from_utf8(rest.0).ok()?;
        let upstream_key = (!key.is_empty()).then(|| Secret::new(key.to_owned()));
        Some(StoredToken {
            id,
            seed,
            minted,
            expires,
            token: NewToken { login, user, upstream_key, salt: 0 },
        })
    }
}

impl StoredLogin {
    /// The bytes that are sealed.
    pub fn encode(&self) -> Vec<u8> {
        [&[WIRE_VERSION][..], &self.seed, self.id.bytes()].concat()
    }

    /// The login in bytes that were sealed.
    pub fn decode(bytes: &[u8]) -> Option<StoredLogin> {
        let mut rest = ByteReader::after_version(bytes)?;
        let login = StoredLogin { seed: rest.read_array()?, id: TokenId::from_bytes(rest.read_array()?) };
        rest.0.is_empty().then_some(login)
    }
}

/// What was not read yet.
struct ByteReader<'a>(&'a [u8]);

impl<'a> ByteReader<'a> {
    fn after_version(bytes: &'a [u8]) -> Option<ByteReader<'a>> {
        bytes.strip_prefix(&[WIRE_VERSION]).map(ByteReader)
    }

    fn read_bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.read_bytes(N)?.try_into().ok()
    }

    fn read_u64(&mut self) -> Option<u64> {
        self.read_array().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_shorter_is() {
        for key in [None, Some(Secret::new("tk_upstream".into()))] {
            let user = UserName::parse(b"alice").expect("valid");
            let token = NewToken { login: LoginId([3; 16]), user, upstream_key: key, salt: 0 };
            let kept = StoredToken {
                id: TokenId::from_token(b"x"),
                seed: [7; 20],
                minted: Timestamp(5),
                expires: Timestamp(9),
                token,
            };
            let bytes = kept.encode();
            let read = StoredToken::decode(&bytes).expect("it is whole");
            assert_eq!(
                (read.id, read.seed, read.minted, read.expires),
                (kept.id, kept.seed, Timestamp(5), Timestamp(9))
            );
            assert_eq!((read.token.login, read.token.user), (kept.token.login, kept.token.user));
            assert_eq!(read.token.upstream_key, kept.token.upstream_key);
            for end in 0..76 {
                assert!(StoredToken::decode(&bytes[..end]).is_none(), "{end}");
            }
            let other_version = [&[2][..], &bytes[1..]].concat();
            assert!(StoredToken::decode(&other_version).is_none());
        }
        let login = StoredLogin { seed: [7; 20], id: TokenId::from_token(b"x") };
        assert_eq!(StoredLogin::decode(&login.encode()), Some(login));
        assert_eq!(StoredLogin::decode(&login.encode()[..36]), None);
        assert_eq!(StoredLogin::decode(&[login.encode(), vec![0]].concat()), None);
    }
}
