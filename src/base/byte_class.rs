//! Which characters may stand where.
//!
//! Each request is looked at for several of these sets, so all are in one table: a look at it costs a character less than
//! comparisons, and nothing depends on what comes.

/// A set of ASCII characters.
#[derive(Clone, Copy, Debug)]
pub struct ByteClass(u8);

impl ByteClass {
    /// Visible characters: no blank, no control character.
    pub const VISIBLE: ByteClass = ByteClass(1);
    /// What a request's target may be made of: visible characters but `#`, which begins what is no part of it.
    pub const TARGET: ByteClass = ByteClass(1 << 1);
    /// What stands in a path without further meaning.
    pub const PATH: ByteClass = ByteClass(1 << 2);
    /// What a host's name or address of IPv4 is made of.
    pub const HOST: ByteClass = ByteClass(1 << 3);
    /// RFC 9110 section 5.6.2.
    pub const TOKEN: ByteClass = ByteClass(1 << 4);
    /// What a key is made of: visible characters but `,`, by which values of a field are joined.
    pub const API_KEY: ByteClass = ByteClass(1 << 5);
    /// What can stand between quotes as it is, in a log and in JSON.
    pub const QUOTED: ByteClass = ByteClass(1 << 6);

    /// Whether all of `bytes` are among these.
    pub fn contains_all(self, bytes: &[u8]) -> bool {
        bytes.iter().fold(self.0, |left, byte| left & SETS[usize::from(*byte)]) != 0
    }

    /// Where the first of `bytes` is that is none of these.
    pub fn first_outside(self, bytes: &[u8]) -> Option<usize> {
        bytes.iter().position(|byte| SETS[usize::from(*byte)] & self.0 == 0)
    }
}

/// The sets that each byte is in.
static SETS: [u8; 256] = sets();

const fn sets() -> [u8; 256] {
    let mut sets = [0; 256];
    let mut byte = 0;
    while byte < 128 {
        let b = byte as u8;
        let visible = b.is_ascii_graphic();
        let alphanumeric = b.is_ascii_alphanumeric();
        let mut set = 0;
        if visible {
            set |= ByteClass::VISIBLE.0;
        }
        if visible && b != b'#' {
            set |= ByteClass::TARGET.0;
        }
        if visible && !is_one_of(b, b"/\\;#%\"<>^`{|}") {
            set |= ByteClass::PATH.0;
        }
        if alphanumeric || is_one_of(b, b"-._~") {
            set |= ByteClass::HOST.0;
        }
        if alphanumeric || is_one_of(b, b"!#$%&'*+-.^_`|~") {
            set |= ByteClass::TOKEN.0;
        }
        if visible && b != b',' {
            set |= ByteClass::API_KEY.0;
        }
        if (visible || b == b' ') && !is_one_of(b, b"\"\\") {
            set |= ByteClass::QUOTED.0;
        }
        sets[byte] = set;
        byte += 1;
    }
    sets
}

const fn is_one_of(byte: u8, set: &[u8]) -> bool {
    let mut at = 0;
    while at < set.len() {
        if set[at] == byte {
            return true;
        }
        at += 1;
    }
    false
}

/// Whether all of a text can stand between quotes as it is: [`ByteClass::QUOTED`], sixteen at a time, as whole sentences and paths
/// are looked at for this set.
pub fn is_quotable(text: &[u8]) -> bool {
    let (chunks, rest) = text.as_chunks::<16>();
    let is_other = |byte: &u8| u8::from(*byte < b' ' || *byte > b'~' || *byte == b'"' || *byte == b'\\');
    // One chunk after the other: the compiler compares its bytes at once.
    let is_plain = |chunk: &[u8; 16]| chunk.iter().map(is_other).fold(0, std::ops::BitOr::bitor) == 0;
    chunks.iter().all(is_plain) && ByteClass::QUOTED.contains_all(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_has_its_bytes() {
        let members =
            |set: ByteClass| (0..=u8::MAX).filter(|byte| set.contains_all(&[*byte])).collect::<Vec<_>>();
        let of = |is_in: fn(u8) -> bool| (0..=u8::MAX).filter(|byte| is_in(*byte)).collect::<Vec<_>>();
        assert_eq!(members(ByteClass::VISIBLE), of(|b| b.is_ascii_graphic()));
        assert_eq!(members(ByteClass::TARGET), of(|b| b.is_ascii_graphic() && b != b'#'));
        assert_eq!(members(ByteClass::API_KEY), of(|b| b.is_ascii_graphic() && b != b','));
        assert_eq!(members(ByteClass::HOST), of(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b)));
        assert_eq!(members(ByteClass::QUOTED), of(|b| (b' '..0x7f).contains(&b) && b != b'"' && b != b'\\'));
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        assert_eq!(members(ByteClass::TOKEN), of(is_token));
        let is_plain = |b: u8| b.is_ascii_graphic() && !b"/\\;#%\"<>^`{|}".contains(&b);
        assert_eq!(members(ByteClass::PATH), of(is_plain));
    }

    #[test]
    fn is_quotable_agrees_with_the_table_at_every_position() {
        for byte in 0..=u8::MAX {
            for (length, at) in [(1, 0), (15, 14), (16, 0), (16, 15), (17, 16), (40, 31), (40, 39)] {
                let mut text = vec![b'a'; length];
                text[at] = byte;
                assert_eq!(
                    is_quotable(&text),
                    ByteClass::QUOTED.contains_all(&text),
                    "{byte} at {at} of {length}"
                );
            }
        }
        assert!(is_quotable(b""));
    }

    #[test]
    fn first_outside_finds_the_first_byte() {
        assert!(
            ByteClass::TOKEN.contains_all(b"")
                && ByteClass::TOKEN.contains_all(b"text")
                && !ByteClass::TOKEN.contains_all(b"te xt")
        );
        assert_eq!(ByteClass::TOKEN.first_outside(b"text/plain"), Some(4));
        assert_eq!(ByteClass::TOKEN.first_outside(b"text"), None);
        assert_eq!(ByteClass::VISIBLE.first_outside(&[b'a', 0x80]), Some(1));
    }
}
