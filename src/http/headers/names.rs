//! A set of header names, as one bit for each known name.

use crate::http::headers::HeaderName;

/// A set of known names. [`HeaderName::Other`] stands for all names that are not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeaderNames(u128);

const _: () = assert!((HeaderName::Other as u32) < u128::BITS, "each name has a bit");

impl HeaderNames {
    /// The set of these names.
    pub const fn new(names: &[HeaderName]) -> HeaderNames {
        let (mut set, mut at) = (0, 0);
        while at < names.len() {
            set |= 1 << names[at] as u8;
            at += 1;
        }
        HeaderNames(set)
    }

    /// Whether the name is in the set.
    pub const fn contains(self, name: HeaderName) -> bool {
        self.0 & (1 << name as u8) != 0
    }

    /// Whether the sets have a name in common.
    pub const fn intersects(self, other: HeaderNames) -> bool {
        self.0 & other.0 != 0
    }

    /// Adds a name. Returns whether it is new.
    pub fn insert(&mut self, name: HeaderName) -> bool {
        let is_new = !self.contains(name);
        self.0 |= 1 << name as u8;
        is_new
    }

    /// Removes a name.
    pub fn remove(&mut self, name: HeaderName) {
        self.0 &= !(1 << name as u8);
    }
}
