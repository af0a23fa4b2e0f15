//! Secrets: strings that are never printed and are wiped on drop.

use std::fmt;
use std::io;
use std::path::Path;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::base::input_file;

/// A password, salt, key or token. `Debug` prints a placeholder; there is no `Display`.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of a text, which is wiped when the secret is dropped.
    pub fn new(text: String) -> Secret {
        Secret(Zeroizing::new(text))
    }

    /// Reads a secret from a file. Removes one line break at its end, which editors and `echo` write.
    pub fn read_file(path: &Path) -> io::Result<Secret> {
        let text = input_file::read_text(path)?;
        let trimmed = text.strip_suffix('\n').unwrap_or(&text);
        let trimmed = trimmed.strip_suffix('\r').unwrap_or(trimmed);
        Ok(Secret::new(trimmed.to_owned()))
    }

    /// The text. The name makes every use easy to find in a review.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

// SECURITY: comparison takes constant time, independent of the position of the first difference.
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
