//! Finds what the HTTP/2 library would not report in the heads of requests: a fragment in `:path`, which it removes, and
//! bytes that are not allowed in a literal, after which it ends the connection and not the stream.
//!
//! It follows the instructions of HPACK (RFC 7541). It changes such a byte to one of the same length, so that the
//! compression state of both sides stays the same, and reports the stream as malformed.

use crate::base::byte_class::ByteClass;
use crate::http::headers::is_value_byte;

/// Entries of the static table whose name is `:path`.
const PATH_INDEXES: [u32; 2] = [4, 5];

/// Number of entries in the static table.
const STATIC_ENTRIES: u32 = 61;

/// `:path` with Huffman coding.
const CODED_PATH: [u8; 4] = [0xb9, 0x58, 0xd3, 0x3f];

/// The last code of each length in bits, 0 if there is none (RFC 7541 appendix B; the code is canonical).
const LAST_CODES: [u32; 31] = [
    0,
    0,
    0,
    0,
    0,
    0x9,
    0x2d,
    0x7b,
    0xfd,
    0,
    0x3fc,
    0x7fc,
    0xffb,
    0x1ffd,
    0x3ffd,
    0x7ffe,
    0,
    0,
    0,
    0x7_fff2,
    0xf_ffed,
    0x1f_ffe8,
    0x3f_ffeb,
    0x7f_fff4,
    0xff_fff5,
    0x1ff_ffef,
    0x3ff_ffee,
    0x7ff_fff0,
    0xfff_fffe,
    0,
    0x3fff_ffff,
];

/// The code of `#`. The next one is that of `>`, which is not valid in a path either.
const FRAGMENT_CODE: u32 = 0xffa;

/// The state of a connection's heads, between two bytes.
#[derive(Debug, Default)]
pub struct HeadBlocks {
    step: Step,
    /// Whether an entry of the dynamic table has the name `:path`, the newest one in the lowest bit. The table holds at
    /// most 128 entries: 4096 bytes, of at least 32 each.
    path_entries: u128,
    literal: Literal,
    /// A byte of this head was changed.
    is_malformed: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum Step {
    #[default]
    Instruction,
    /// The rest of an integer.
    Integer {
        value: u32,
        shift: u32,
        then: AfterInteger,
    },
    NameLength,
    Name {
        left: u32,
    },
    ValueLength,
    Value {
        left: u32,
    },
}

#[derive(Clone, Copy, Debug)]
enum AfterInteger {
    /// An indexed field or a table size.
    Nothing,
    NameIndex,
    NameLength,
    ValueLength,
}

/// The literal that is being read.
#[derive(Clone, Copy, Debug, Default)]
struct Literal {
    is_indexed: bool,
    is_path: bool,
    /// The string that is being read has Huffman coding.
    is_coded: bool,
    /// The bits of an incomplete code, and their number.
    code: u32,
    bits: usize,
    /// The first bytes of the name, and its length so far.
    name: [u8; 5],
    name_length: usize,
}

impl HeadBlocks {
    /// Begins a new head.
    pub fn begin(&mut self) {
        self.step = Step::Instruction;
        self.is_malformed = false;
    }

    /// Returns whether a byte of the current head was changed.
    pub fn is_malformed(&self) -> bool {
        self.is_malformed
    }

    /// Reads, and perhaps changes, the next bytes of the head.
    pub fn filter(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let used = match self.step {
                Step::Name { left } | Step::Value { left } => {
                    let (part, _) = bytes.split_at_mut(bytes.len().min(left as usize));
                    let used = u32::try_from(part.len()).expect("at most `left`");
                    match self.step {
                        Step::Name { .. } => self.read_name(part, left - used),
                        _ => self.read_value(part, left - used),
                    }
                    used as usize
                }
                _ => {
                    self.read_byte(bytes[0]);
                    1
                }
            };
            bytes = &mut bytes[used..];
        }
    }

    fn read_byte(&mut self, byte: u8) {
        match self.step {
            Step::Instruction => {
                self.literal = Literal { is_indexed: byte & 0xc0 == 0x40, ..Literal::default() };
                match byte {
                    0x80.. => self.begin_integer(byte, 7, AfterInteger::Nothing),
                    0x40.. => self.begin_integer(byte, 6, AfterInteger::NameIndex),
                    0x20.. => self.begin_integer(byte, 5, AfterInteger::Nothing),
                    _ => self.begin_integer(byte, 4, AfterInteger::NameIndex),
                }
            }
            Step::Integer { value, shift, then } => {
                // A larger number is an error of the library.
                let value = value.saturating_add(u32::from(byte & 0x7f).checked_shl(shift).unwrap_or(u32::MAX));
                match byte {
                    0x80.. => self.step = Step::Integer { value, shift: shift + 7, then },
                    _ => self.end_integer(value, then),
                }
            }
            Step::NameLength => self.begin_string(byte, AfterInteger::NameLength),
            _ => self.begin_string(byte, AfterInteger::ValueLength),
        }
    }

    fn begin_string(&mut self, byte: u8, then: AfterInteger) {
        self.literal.is_coded = byte & 0x80 != 0;
        (self.literal.code, self.literal.bits) = (0, 0);
        self.begin_integer(byte, 7, then);
    }

    fn begin_integer(&mut self, byte: u8, prefix: u32, then: AfterInteger) {
        let max = (1 << prefix) - 1;
        match u32::from(byte) & max {
            value if value == max => self.step = Step::Integer { value, shift: 0, then },
            value => self.end_integer(value, then),
        }
    }

    fn end_integer(&mut self, value: u32, then: AfterInteger) {
        match then {
            AfterInteger::Nothing => self.step = Step::Instruction,
            AfterInteger::NameIndex if value == 0 => self.step = Step::NameLength,
            AfterInteger::NameIndex => {
                let dynamic = value.checked_sub(STATIC_ENTRIES + 1);
                self.literal.is_path = PATH_INDEXES.contains(&value)
                    || dynamic.is_some_and(|entry| entry < u128::BITS && self.path_entries >> entry & 1 == 1);
                self.step = Step::ValueLength;
            }
            AfterInteger::NameLength => self.read_name(&mut [], value),
            AfterInteger::ValueLength => self.read_value(&mut [], value),
        }
    }

    /// Reads a part of a name, of which `left` bytes follow.
    fn read_name(&mut self, part: &mut [u8], left: u32) {
        for byte in part {
            let Literal { name, name_length, is_coded, .. } = &mut self.literal;
            let is_pseudo = *byte == b':' && *name_length == 0;
            if !*is_coded && !is_pseudo && (!ByteClass::TOKEN.contains(*byte) || byte.is_ascii_uppercase()) {
                *byte = b'x';
                self.is_malformed = true;
            }
            if let Some(slot) = name.get_mut(*name_length) {
                *slot = *byte;
            }
            *name_length += 1;
        }
        self.step = Step::Name { left };
        if left == 0 {
            let Literal { name, name_length, is_coded, .. } = self.literal;
            self.literal.is_path = match is_coded {
                true => name_length == CODED_PATH.len() && name.starts_with(&CODED_PATH),
                false => name_length == name.len() && &name == b":path",
            };
            self.step = Step::ValueLength;
        }
    }

    /// Reads a part of a value, of which `left` bytes follow.
    fn read_value(&mut self, part: &mut [u8], left: u32) {
        let Literal { is_coded, is_path, .. } = self.literal;
        match (is_coded, is_path) {
            (false, _) => {
                for byte in part.iter_mut().filter(|byte| !is_value_byte(**byte) || (is_path && **byte == b'#')) {
                    *byte = if is_path { b'>' } else { b'x' };
                    self.is_malformed = true;
                }
            }
            // Nothing of a code is read yet, and no `#` follows.
            (true, true) if self.literal.bits == 0 && left == 0 && !has_fragment_bits(part) => {}
            (true, true) => part.iter_mut().for_each(|byte| self.read_coded(byte)),
            (true, false) => {}
        }
        self.step = Step::Value { left };
        if left == 0 {
            if self.literal.is_indexed {
                self.path_entries = self.path_entries << 1 | u128::from(is_path);
            }
            self.step = Step::Instruction;
        }
    }

    /// Reads a byte of a path with Huffman coding.
    fn read_coded(&mut self, byte: &mut u8) {
        let Literal { code, bits, .. } = &mut self.literal;
        for position in (0..8).rev() {
            *code = *code << 1 | u32::from(*byte >> position & 1);
            *bits += 1;
            if *code == FRAGMENT_CODE && *bits == 12 {
                *byte |= 1 << position;
                self.is_malformed = true;
            }
            // The end of a string is filled with the beginning of the longest code.
            if *bits >= LAST_CODES.len() || (LAST_CODES[*bits] > 0 && *code <= LAST_CODES[*bits]) {
                (*code, *bits) = (0, 0);
            }
        }
    }
}

/// Whether nine bits in sequence are set, as at the beginning of [`FRAGMENT_CODE`]. The codes of most other characters of a
/// path are shorter.
fn has_fragment_bits(bytes: &[u8]) -> bool {
    let has_nine = |window: u64| {
        let four = window & window << 1 & window << 2 & window << 3;
        four & four << 4 & window << 8 != 0
    };
    let Some(last) = bytes.last_chunk() else {
        return has_nine(bytes.iter().fold(0, |window, byte| window << 8 | u64::from(*byte)));
    };
    // Windows share a byte, so that one of them contains each sequence of nine bits.
    let mut windows = bytes.windows(8).step_by(7).filter_map(|window| window.first_chunk());
    windows.any(|window| has_nine(u64::from_be_bytes(*window))) || has_nine(u64::from_be_bytes(*last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_bits_in_sequence_are_found_at_each_position() {
        for length in 0..40_usize {
            for start in 0..(8 * length).saturating_sub(8) {
                for (count, expected) in [(8, false), (9, true)] {
                    let mut bytes = vec![0; length];
                    (start..start + count).for_each(|bit| bytes[bit / 8] |= 0x80 >> (bit % 8));
                    assert_eq!(has_fragment_bits(&bytes), expected, "{count} bits from {start} in {length} bytes");
                }
            }
        }
    }

    /// A literal with a raw name and value.
    fn literal(first: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
        let length = |text: &[u8]| u8::try_from(text.len()).expect("short");
        [&[first, length(name)], name, &[length(value)], value].concat()
    }

    fn filtered(blocks: &mut HeadBlocks, block: &[u8]) -> (Vec<u8>, bool) {
        let mut bytes = block.to_vec();
        blocks.begin();
        blocks.filter(&mut bytes);
        (bytes, blocks.is_malformed())
    }

    #[test]
    fn a_fragment_is_found_in_a_path_only() {
        // `:path: /a#b` with the name of the static table, and as a literal; with Huffman coding: `/` is 011000, `a`
        // is 00011, `#` is 111111111010, `b` is 100011.
        let coded = [0x60, 0xff, 0xf4, 0x8f];
        let coded_changed = [0x60, 0xff, 0xf6, 0x8f];
        for (block, expected) in [
            ([&[0x04, 4][..], b"/a#b"].concat(), [&[0x04, 4][..], b"/a>b"].concat()),
            (literal(0, b":path", b"/a#b"), literal(0, b":path", b"/a>b")),
            (literal(0x10, b"x-note", b"/a#b"), literal(0x10, b"x-note", b"/a#b")),
            ([&[0x05, 0x84][..], &coded].concat(), [&[0x05, 0x84][..], &coded_changed].concat()),
            ([&[0x44, 0x84][..], &coded].concat(), [&[0x44, 0x84][..], &coded_changed].concat()),
            ([&[0, 0x84][..], &CODED_PATH, &[0x84], &coded].concat(), {
                [&[0, 0x84][..], &CODED_PATH, &[0x84], &coded_changed].concat()
            }),
            ([&[0x0f, 0x24, 0x84][..], &coded].concat(), [&[0x0f, 0x24, 0x84][..], &coded].concat()),
        ] {
            let result = filtered(&mut HeadBlocks::default(), &block);
            assert_eq!(result, (expected.clone(), expected != block), "{block:?}");
            // The same for any split of the bytes.
            for at in 0..block.len() {
                let (mut bytes, mut blocks) = (block.clone(), HeadBlocks::default());
                let (first, second) = bytes.split_at_mut(at);
                blocks.filter(first);
                blocks.filter(second);
                assert_eq!(bytes, expected, "{at}");
            }
        }
    }

    #[test]
    fn names_of_the_dynamic_table_are_known() {
        let blocks = &mut HeadBlocks::default();
        assert!(!filtered(blocks, &literal(0x40, b":path", b"/a")).1);
        assert!(!filtered(blocks, &literal(0x40, b"x-note", b"/a#")).1);
        // Entry 62 is the newest one.
        let with_name = |index: u8| [&[0x0f, index - 15, 3][..], b"/a#"].concat();
        assert!(!filtered(blocks, &with_name(62)).1);
        assert!(filtered(blocks, &with_name(63)).1);
        assert!(!filtered(blocks, &with_name(64)).1, "the table has no entry 64");
    }

    #[test]
    fn forbidden_bytes_of_literals_are_replaced() {
        for (name, value) in [(&b"x"[..], &b"a\0b"[..]), (b"x", b"a\nb"), (b"x", b"\x7f"), (b"X", b"a"), (b"x y", b"a")]
        {
            let (bytes, is_malformed) = filtered(&mut HeadBlocks::default(), &literal(0, name, value));
            assert!(is_malformed, "{name:?} {value:?}");
            assert_eq!(bytes.len(), literal(0, name, value).len());
            assert!(!filtered(&mut HeadBlocks::default(), &bytes).1);
        }
        let valid =
            [literal(0x40, b":method", b"GET"), literal(0, b"x-note", b"a\tb \xff"), vec![0x82, 0x3f, 0xe1, 0x1f]];
        assert!(!filtered(&mut HeadBlocks::default(), &valid.concat()).1);
    }
}
