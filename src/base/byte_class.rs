//! Classes of ASCII bytes: which characters are valid in a header, a path, a host or a log line. It knows no syntax
//! beyond single bytes.
//!
//! Every request is checked against several classes, so all classes share one table: a lookup costs one load for each
//! byte, and the time does not depend on the content.

/// A class of ASCII characters: one bit in the table.
#[derive(Clone, Copy, Debug)]
pub struct ByteClass(u8);

impl ByteClass {
    /// Visible characters: no blanks and no control characters.
    pub const VISIBLE: ByteClass = ByteClass(1);
    /// Characters of a request target: visible characters except `#`, which starts a fragment.
    pub const TARGET: ByteClass = ByteClass(1 << 1);
    /// Characters of a path that have no special meaning there.
    pub const PATH: ByteClass = ByteClass(1 << 2);
    /// Characters of a host name or an IPv4 address.
    pub const HOST: ByteClass = ByteClass(1 << 3);
    /// Characters of a token (RFC 9110 section 5.6.2), such as a header name.
    pub const TOKEN: ByteClass = ByteClass(1 << 4);
    /// Characters of an API key: visible characters except `,`, which separates the values of a combined header.
    pub const API_KEY: ByteClass = ByteClass(1 << 5);
    /// Characters that need no escape in a quoted string, in the log and in JSON.
    pub const QUOTED: ByteClass = ByteClass(1 << 6);

    /// Whether a byte belongs to the class.
    pub fn contains(self, byte: u8) -> bool {
        CLASSES[usize::from(byte)] & self.0 != 0
    }

    /// Whether every byte belongs to the class.
    pub fn contains_all(self, bytes: &[u8]) -> bool {
        bytes.iter().fold(self.0, |left, byte| left & CLASSES[usize::from(*byte)]) != 0
    }

    /// The position of the first byte that does not belong to the class.
    pub fn first_outside(self, bytes: &[u8]) -> Option<usize> {
        bytes.iter().position(|byte| CLASSES[usize::from(*byte)] & self.0 == 0)
    }
}

/// The classes of each byte, one bit for each class.
static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 128 {
        let b = byte as u8;
        let visible = b.is_ascii_graphic();
        let alphanumeric = b.is_ascii_alphanumeric();
        let mut bits = 0;
        if visible {
            bits |= ByteClass::VISIBLE.0;
        }
        if visible && b != b'#' {
            bits |= ByteClass::TARGET.0;
        }
        if visible && !is_one_of(b, b"/\\;#%\"<>^`{|}") {
            bits |= ByteClass::PATH.0;
        }
        if alphanumeric || is_one_of(b, b"-._~") {
            bits |= ByteClass::HOST.0;
        }
        if alphanumeric || is_one_of(b, b"!#$%&'*+-.^_`|~") {
            bits |= ByteClass::TOKEN.0;
        }
        if visible && b != b',' {
            bits |= ByteClass::API_KEY.0;
        }
        if (visible || b == b' ') && !is_one_of(b, b"\"\\") {
            bits |= ByteClass::QUOTED.0;
        }
        classes[byte] = bits;
        byte += 1;
    }
    classes
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

/// Whether a text needs no escapes in quotes. Equivalent to [`ByteClass::QUOTED`], but checks sixteen bytes at a time,
/// because messages and paths are long.
pub fn is_quotable(text: &[u8]) -> bool {
    let (chunks, rest) = text.as_chunks::<16>();
    let is_other = |byte: &u8| u8::from(*byte < b' ' || *byte > b'~' || *byte == b'"' || *byte == b'\\');
    // One chunk at a time: the compiler vectorizes the comparison of its bytes.
    let is_plain = |chunk: &[u8; 16]| chunk.iter().map(is_other).fold(0, std::ops::BitOr::bitor) == 0;
    chunks.iter().all(is_plain) && ByteClass::QUOTED.contains_all(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_has_its_bytes() {
        let members = |class: ByteClass| (0..=u8::MAX).filter(|byte| class.contains_all(&[*byte])).collect::<Vec<_>>();
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
                assert_eq!(is_quotable(&text), ByteClass::QUOTED.contains_all(&text), "{byte} at {at} of {length}");
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
