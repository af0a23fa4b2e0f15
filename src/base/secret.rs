//! A string that never prints itself and is wiped when dropped.

use std::fmt;
use std::io;
use std::path::Path;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A password, salt, key or token. `Debug` shows that there is one, never what it is; there is no `Display`.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over.
    pub fn new(text: String) -> Secret {
        Secret(Zeroizing::new(text))
    }

    /// Reads a secret from a file, without the line break that editors and `echo` leave at its end.
    pub fn read_file(path: &Path) -> io::Result<Secret> {
        let text = Zeroizing::new(std::fs::read_to_string(path)?);
        let trimmed = text.strip_suffix('\n').unwrap_or(&text);
        let trimmed = trimmed.strip_suffix('\r').unwrap_or(trimmed);
        Ok(Secret::new(trimmed.to_owned()))
    }

    /// The text itself. The word at the call site is there to be searched for in a review.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

// SECURITY: equality takes the same time wherever the first difference is.
impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Secret {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_text() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".into())), "Secret(…)");
    }

    #[test]
    fn one_line_break_at_the_end_of_a_file_is_not_part_of_the_secret() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secret");
        for (written, meant) in [("a b", "a b"), ("ab\n", "ab"), ("ab\r\n", "ab"), ("ab\n\n", "ab\n")] {
            std::fs::write(&path, written).expect("written");
            assert_eq!(Secret::read_file(&path).expect("read").expose(), meant);
        }
    }
}
