//! The groups or roles of a user, as its directory or the issuer of its JWT names them.

use std::fmt;
use std::sync::Arc;

/// Bounds the memory of each token. A group of a directory has two names.
const MAX_NAMES: usize = 1024;
const MAX_BYTES: usize = 32 * 1024;

/// Names of groups, sorted. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups(Arc<Vec<Box<str>>>);

impl Groups {
    /// `None` if there are more names than a token may keep: 1024 names, and 32 KiB.
    pub fn new(mut names: Vec<Box<str>>) -> Option<Groups> {
        names.sort_unstable();
        names.dedup();
        let bytes: usize = names.iter().map(|name| name.len()).sum();
        (names.len() <= MAX_NAMES && bytes <= MAX_BYTES).then(|| Groups(Arc::new(names)))
    }

    /// The names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(|name| &**name)
    }
}

/// For operators.
impl fmt::Display for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().collect::<Vec<_>>().join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_bounded() {
        let groups = |count: usize, length: usize| {
            Groups::new((0..count).map(|number| format!("{number:length$}").into()).collect())
        };
        assert!(groups(MAX_NAMES, 32).is_some() && groups(1, MAX_BYTES).is_some());
        assert!(groups(MAX_NAMES + 1, 4).is_none() && groups(2, MAX_BYTES / 2 + 1).is_none());
    }

    #[test]
    fn the_sequence_does_not_matter() {
        let groups = |names: &[&str]| Groups::new(names.iter().map(|name| Box::from(*name)).collect()).expect("few");
        assert_eq!(groups(&["b", "a", "b"]), groups(&["a", "b"]));
        assert_eq!(groups(&["b", "a"]).to_string(), "a; b");
    }
}
