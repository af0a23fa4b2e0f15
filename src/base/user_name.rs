//! User names that are valid as header values.

use std::fmt;
use std::sync::Arc;

/// A user name: 1 to 256 printable ASCII characters except `:` and `,`, without spaces at either end. Cheap to clone.
///
/// SECURITY: the name is sent upstream in a header that the backend believes. Names that a header cannot carry, or that
/// two parsers could read differently, are rejected here, once. A comma separates the values of a header, so a backend
/// could read `alice,bob` as two users.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserName(Arc<str>);

/// The text is not a valid user name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a user name is 1 to 256 printable ASCII characters without `:` and `,` and without spaces at its ends")]
pub struct InvalidUserName;

impl UserName {
    /// Validates a name.
    pub fn parse(name: &[u8]) -> Result<UserName, InvalidUserName> {
        let printable = |byte: &u8| (b' '..=b'~').contains(byte) && !b":,".contains(byte);
        let valid = !name.is_empty() && name.len() <= 256 && name.iter().all(printable);
        if !valid || name.first() == Some(&b' ') || name.last() == Some(&b' ') {
            return Err(InvalidUserName);
        }
        std::str::from_utf8(name).map(|name| UserName(name.into())).map_err(|_| InvalidUserName)
    }

    /// The name, in the case that the client sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name in lower case.
    pub fn to_lower_case(&self) -> UserName {
        let has_upper_case = self.0.bytes().any(|byte| byte.is_ascii_uppercase());
        if has_upper_case { UserName(self.0.to_ascii_lowercase().into()) } else { self.clone() }
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_header_can_carry_are_accepted() {
        for name in ["alice", "alice@example.com", "CORP\\alice", "Alice B", "a", &"x".repeat(256)] {
            assert_eq!(UserName::parse(name.as_bytes()).expect(name).as_str(), name);
        }
    }

    #[test]
    fn ambiguous_names_are_rejected() {
        let long = "x".repeat(257);
        for name in
            ["", " alice", "alice ", "a\nb", "a\r\nx-api-key: b", "a\0", "a\tb", "josé", "a:b", "a,b", "a, b", &long]
        {
            assert!(UserName::parse(name.as_bytes()).is_err(), "{name:?}");
        }
        assert!(UserName::parse(b"a\xff").is_err());
    }
}
