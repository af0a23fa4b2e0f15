//! Tokens and logins as they are kept outside: what is sealed, and how it is read back.

use zeroize::Zeroizing;

use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::store::{LoginId, NewToken, Seed, Stamp, TokenId};

/// The first byte of everything; another one is of another version, and not read.
const VERSION: u8 = 1;

/// A token, all of it.
#[derive(Clone, Debug)]
pub struct KeptToken {
    pub id: TokenId,
    pub seed: Seed,
    pub minted: Stamp,
    pub expires: Stamp,
    pub token: NewToken,
}

/// A login's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptLogin {
    pub seed: Seed,
    pub id: TokenId,
}

impl KeptToken {
    /// The bytes that are sealed.
    pub fn write(&self) -> Zeroizing<Vec<u8>> {
        let (user, key) = (self.token.user.as_str().as_bytes(), self.token.upstream_key.as_ref());
        let key = key.map_or(&[][..], |key| key.expose().as_bytes());
        // With its whole room from the start: bytes that grow leave their beginnings behind in memory.
        let mut bytes = Zeroizing::new(Vec::with_capacity(71 + user.len() + key.len()));
        bytes.push(VERSION);
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
    pub fn read(bytes: &[u8]) -> Option<KeptToken> {
        let mut rest = Rest::of_this_version(bytes)?;
        let (minted, expires) = (Stamp(rest.number()?), Stamp(rest.number()?));
        let (id, login, seed) = (TokenId::from_bytes(rest.array()?), LoginId(rest.array()?), rest.array()?);
        let length = u16::from_be_bytes(rest.array()?);
        let user = UserName::parse(rest.take(usize::from(length))?).ok()?;
        let key = std::str::from_utf8(rest.0).ok()?;
        let upstream_key = (!key.is_empty()).then(|| Secret::new(key.to_owned()));
        Some(KeptToken { id, seed, minted, expires, token: NewToken { login, user, upstream_key, salt: 0 } })
    }
}

impl KeptLogin {
    /// The bytes that are sealed.
    pub fn write(&self) -> Vec<u8> {
        [&[VERSION][..], &self.seed, self.id.bytes()].concat()
    }

    /// The login in bytes that were sealed.
    pub fn read(bytes: &[u8]) -> Option<KeptLogin> {
        let mut rest = Rest::of_this_version(bytes)?;
        let login = KeptLogin { seed: rest.array()?, id: TokenId::from_bytes(rest.array()?) };
        rest.0.is_empty().then_some(login)
    }
}

/// What was not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn of_this_version(bytes: &'a [u8]) -> Option<Rest<'a>> {
        bytes.strip_prefix(&[VERSION]).map(Rest)
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
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
            let kept = KeptToken {
                id: TokenId::of(b"x"),
                seed: [7; 20],
                minted: Stamp(5),
                expires: Stamp(9),
                token,
            };
            let bytes = kept.write();
            let read = KeptToken::read(&bytes).expect("it is whole");
            assert_eq!(
                (read.id, read.seed, read.minted, read.expires),
                (kept.id, kept.seed, Stamp(5), Stamp(9))
            );
            assert_eq!((read.token.login, read.token.user), (kept.token.login, kept.token.user));
            assert_eq!(read.token.upstream_key, kept.token.upstream_key);
            for end in 0..76 {
                assert!(KeptToken::read(&bytes[..end]).is_none(), "{end}");
            }
            let other_version = [&[2][..], &bytes[1..]].concat();
            assert!(KeptToken::read(&other_version).is_none());
        }
        let login = KeptLogin { seed: [7; 20], id: TokenId::of(b"x") };
        assert_eq!(KeptLogin::read(&login.write()), Some(login));
        assert_eq!(KeptLogin::read(&login.write()[..36]), None);
        assert_eq!(KeptLogin::read(&[login.write(), vec![0]].concat()), None);
    }
}
