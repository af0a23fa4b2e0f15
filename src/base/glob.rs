//! Patterns of names: `*` matches any characters and `?` matches one.

use std::fmt;

/// A pattern from the configuration, matched against a whole text.
#[derive(Clone, PartialEq, Eq)]
pub struct Glob(String);

impl Glob {
    /// Creates a pattern; every text is a valid one.
    pub fn new(pattern: impl Into<String>) -> Glob {
        Glob(pattern.into())
    }

    /// The pattern for text in lower case.
    pub fn to_lower_case(&self) -> Glob {
        Glob(self.0.to_ascii_lowercase())
    }

    /// Whether one of the patterns matches the whole text.
    pub fn any(patterns: &[Glob], text: &str) -> bool {
        patterns.iter().any(|pattern| pattern.matches(text))
    }

    /// Whether the pattern matches the whole text, case-sensitively. Takes at most the product of both lengths.
    pub fn matches(&self, text: &str) -> bool {
        self.matches_bytes(text.as_bytes())
    }

    /// As `matches`, for text that is known to be ASCII.
    pub fn matches_bytes(&self, text: &[u8]) -> bool {
        let pattern = self.0.as_bytes();
        let (mut p, mut t) = (0, 0);
        // Position of the last star in the pattern, and how far it has matched in the text.
        let mut star: Option<(usize, usize)> = None;
        while t < text.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p, t));
                    p += 1;
                }
                Some(byte) if *byte == b'?' || *byte == text[t] => (p, t) = (p + 1, t + 1),
                _ => {
                    let Some((at, reached)) = star else { return false };
                    star = Some((at, reached + 1));
                    (p, t) = (at + 1, reached + 1);
                }
            }
        }
        pattern[p..].iter().all(|byte| *byte == b'*')
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_the_whole_text() {
        for (pattern, text) in [
            ("alice", "alice"),
            ("*", ""),
            ("*", "alice"),
            ("svc-*", "svc-"),
            ("svc-*", "svc-etl"),
            ("*@example.com", "alice@example.com"),
            ("a*b*c", "axxbybxc"),
            ("a?c", "abc"),
            ("**a", "ba"),
        ] {
            assert!(Glob::new(pattern).matches(text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("alice", "alice2"),
            ("alice", "Alice"),
            ("alice", "malice"),
            ("", "a"),
            ("svc-*", "svc"),
            ("*@example.com", "alice@example.com.evil"),
            ("a?c", "ac"),
            ("a*b", "abx"),
            ("?", ""),
            ("a.c", "abc"),
        ] {
            assert!(!Glob::new(pattern).matches(text), "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_do_not_take_forever() {
        let begun = std::time::Instant::now();
        assert!(!Glob::new("*a".repeat(40)).matches(&"a".repeat(250).replace("aaaaaaaaaa", "ab")));
        assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    }
}
