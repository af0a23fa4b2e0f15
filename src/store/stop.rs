//! What an operator has stopped: an ontology, a user or a route, with the text for its clients. It is an entry of the
//! deny list; this module knows neither requests nor replicas.

use std::fmt;
use std::sync::Arc;

use crate::base::label_values::label_values;
use crate::store::Timestamp;

label_values! {
    /// What kind of thing is stopped.
    StopKind {
        /// Requests that name this ontology.
        Ontology = "ontology",
        /// Requests of this user, or on behalf of this user, and the user's logins.
        User = "user",
        /// Requests of this route.
        Route = "route",
    }
}

/// What is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StopTarget {
    /// The kind of the name.
    pub kind: StopKind,
    name: Arc<str>,
}

/// The maximum length of a name, in bytes.
const MAX_NAME: usize = 256;

impl StopTarget {
    /// `None` if the name is empty, too long or has control characters. The case of a user's name does not matter, as for
    /// [`DeniedSubject::user`](crate::store::DeniedSubject::user).
    pub fn new(kind: StopKind, name: &str) -> Option<StopTarget> {
        let is_valid = (1..=MAX_NAME).contains(&name.len()) && !name.chars().any(char::is_control);
        let name = if kind == StopKind::User { name.to_ascii_lowercase().into() } else { name.into() };
        is_valid.then_some(StopTarget { kind, name })
    }

    /// The name of the ontology, the user or the route.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for StopTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// Why and since when something is stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopNote {
    /// The text for the clients.
    pub why: Arc<str>,
    /// When the operator stopped it.
    pub since: Timestamp,
    /// Whether the operator named an end. Otherwise it ends with `resume`, or when the entry is removed.
    pub has_end: bool,
}

/// The maximum length of the text for the clients, in bytes.
const MAX_WHY: usize = 500;

impl StopNote {
    /// Returns whether a text may be sent to clients and written to logs.
    pub fn is_valid_text(why: &str) -> bool {
        (1..=MAX_WHY).contains(&why.len()) && !why.chars().any(char::is_control)
    }
}

/// One entry of the list of what is stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveStop {
    /// What is stopped.
    pub target: StopTarget,
    /// Why and since when.
    pub note: StopNote,
    /// When the entry ends.
    pub until: Timestamp,
}

/// `kind`, length of the name, name; then, unless the note is left out, since when, whether it has an end, and the text.
pub(super) fn encode(target: &StopTarget, note: Option<&StopNote>) -> Vec<u8> {
    let name = target.name.as_bytes();
    let length = u16::try_from(name.len()).expect("a name has at most 256 bytes").to_be_bytes();
    let kind = target.kind.as_str().as_bytes()[0];
    let mut bytes = [&[kind][..], &length, name].concat();
    if let Some(note) = note {
        bytes.extend(note.since.0.to_be_bytes());
        bytes.push(note.has_end.into());
        bytes.extend(note.why.as_bytes());
    }
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Option<(StopTarget, Option<StopNote>)> {
    let (kind, rest) = bytes.split_first()?;
    let kind = StopKind::ALL.iter().copied().find(|known| known.as_str().as_bytes()[0] == *kind)?;
    let (length, rest) = rest.split_first_chunk()?;
    let (name, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    let target = StopTarget::new(kind, std::str::from_utf8(name).ok()?)?;
    if rest.is_empty() {
        return Some((target, None));
    }
    let (since, rest) = rest.split_first_chunk()?;
    let (has_end, why) = rest.split_first()?;
    let why = std::str::from_utf8(why).ok().filter(|why| StopNote::is_valid_text(why))?;
    let since = Timestamp(u64::from_be_bytes(*since));
    Some((target, Some(StopNote { why: why.into(), since, has_end: *has_end != 0 })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_survives_encoding() {
        for kind in StopKind::ALL.iter().copied() {
            assert_eq!(StopKind::parse(kind.as_str()), Some(kind));
            let target = StopTarget::new(kind, "größe").expect("valid");
            let note = StopNote { why: "Too slow.".into(), since: Timestamp(7), has_end: true };
            for note in [None, Some(note)] {
                let bytes = encode(&target, note.as_ref());
                assert_eq!(decode(&bytes), Some((target.clone(), note)));
                assert_eq!(decode(&bytes[..8]), None);
            }
        }
        assert_eq!(decode(b""), None);
        assert_eq!(decode(b"x\0\x01a"), None);
    }

    #[test]
    fn texts_are_limited() {
        for name in ["", "a\nb", &"x".repeat(257)] {
            assert_eq!(StopTarget::new(StopKind::Ontology, name), None, "{name:?}");
        }
        for why in ["", "a\u{1b}[2J", &"x".repeat(501)] {
            assert!(!StopNote::is_valid_text(why), "{why:?}");
        }
    }
}
