//! Finds what the HTTP/2 library would not report in the heads of requests: a fragment in `:path`, which it removes,
//! and names and values that are not allowed, after which it ends the connection and not the stream.
//!
//! It follows the instructions of HPACK (RFC 7541). A string that is not allowed is replaced by one of the same length,
//! with the same encoding and, if it is indexed, the same decoded length: the compression state of both sides stays the
//! same. Where that is not possible, the compression state is lost, and no later head of the connection can be read.

use std::borrow::Cow;
use std::collections::VecDeque;

use http::StatusCode;
use http::uri::PathAndQuery;

use crate::base::byte_class::ByteClass;
use crate::downstream::huffman::{self, Filler};
use crate::http::headers::is_value_byte;

/// Number of entries in the static table.
const STATIC_ENTRIES: usize = 61;

/// The entry of the static table for `transfer-encoding`.
const TRANSFER_ENCODING: usize = 57;

/// Maximum length of a name that `http` can hold.
const MAX_NAME: usize = 65_535;

/// Maximum number of entries in the dynamic table: 4096 bytes, of at least 32 each.
const MAX_ENTRIES: usize = 128;

/// What a field costs beyond its name and its value (RFC 9113 section 6.5.2).
const FIELD_COST: usize = 32;

/// More than the size of each entry in the static table.
const MAX_STATIC_SIZE: usize = 64;

/// Maximum number of bytes of an integer that the library reads.
const MAX_INTEGER: usize = 5;

/// The library ends the connection for a head of more than this multiple of its limit.
const MAX_SIZE_FACTOR: usize = 4;

/// What is wrong with a head; the last of several decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HeadFault {
    /// `:path` is not a path, or has characters that must be percent-encoded.
    Target,
    /// A name or a value is not allowed in HTTP/2.
    Malformed,
    TooLarge,
    /// It cannot be read, because the compression state is lost.
    Unreadable,
}

/// The compression state of a connection, as far as it decides which heads are valid.
#[derive(Debug)]
pub struct HeadBlocks {
    /// The dynamic table, the newest entry first. It may have entries that the library has evicted.
    entries: VecDeque<Entry>,
    /// Maximum size of a head, by the measure of HTTP/2.
    max_size: usize,
    is_lost: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: NameKind,
    is_forbidden: bool,
    /// SECURITY: the library has a different value, or a different name.
    fault: Option<HeadFault>,
    /// Maximum sizes of the name, and of the field.
    name_size: usize,
    size: usize,
}

/// What the library requires of a value, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NameKind {
    Header,
    /// Of an HTTP/1 connection (RFC 9113 section 8.2.2).
    Connection,
    /// Allowed with the value `trailers`.
    Te,
    Path,
    Method,
    Status,
    Authority,
    Scheme,
    Protocol,
    /// Replaced by the name of a header.
    Invalid,
}

/// The position of a string.
#[derive(Clone, Copy, Debug)]
struct Text {
    /// Its length, and whether it has Huffman coding.
    length_at: usize,
    start: usize,
    end: usize,
    is_coded: bool,
}

struct Field {
    name: Option<NameKind>,
    is_forbidden: bool,
    end: usize,
    size: usize,
    fault: Option<HeadFault>,
}

/// The rules of HTTP/2 for a head as a whole.
#[derive(Default)]
struct HeadRules {
    has_header: bool,
    pseudo_headers: Vec<NameKind>,
}

impl HeadRules {
    /// Returns whether the head breaks the rules with its next field.
    fn break_with(&mut self, field: &Field) -> bool {
        let Some(name) = field.name else { return false };
        if !name.is_pseudo() {
            self.has_header = true;
            return field.is_forbidden;
        }
        let is_repeated = self.pseudo_headers.contains(&name);
        self.pseudo_headers.push(name);
        is_repeated || self.has_header
    }
}

impl HeadBlocks {
    /// The state at the beginning of a connection, for a library that limits heads to `max_size`.
    pub fn new(max_size: usize) -> HeadBlocks {
        HeadBlocks { entries: VecDeque::new(), max_size, is_lost: false }
    }

    /// Returns whether the compression state is lost.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Gives up the compression state.
    pub fn lose(&mut self) {
        (self.is_lost, self.entries) = (true, VecDeque::new());
    }

    /// Reads, and perhaps changes, a head, which must not be passed on if the state is lost then. `frame_size` is the
    /// maximum size of a frame if the head has several, and 0 otherwise.
    pub fn filter(&mut self, block: &mut [u8], frame_size: usize) -> Option<HeadFault> {
        let (mut at, mut size, mut fault, mut rules) = (0, 0, None, HeadRules::default());
        while at < block.len() {
            // What is not HPACK ends the connection (RFC 9113 section 4.3).
            let Some(field) = self.read_field(block, at) else { break };
            // Once a head is too large, the library also limits what it holds of a field: the frames with its parts.
            let held = if frame_size > 0 && size >= self.max_size { field.end - at + 2 * frame_size } else { 0 };
            size += field.size;
            if size > MAX_SIZE_FACTOR * self.max_size || held > self.max_size {
                self.lose();
                return Some(HeadFault::TooLarge);
            }
            // SECURITY: for a head in several frames that breaks the rules, the library ends the connection, or serves
            // it without the fields that break them.
            if frame_size > 0 && rules.break_with(&field) {
                self.lose();
                return Some(HeadFault::Malformed);
            }
            fault = fault.max(field.fault);
            at = field.end;
        }
        fault
    }

    fn read_field(&mut self, block: &mut [u8], at: usize) -> Option<Field> {
        let first = block[at];
        let prefix = match first {
            0x80.. => 7,
            0x40.. => 6,
            0x20.. => 5,
            _ => 4,
        };
        let (index, at) = read_integer(block, at, prefix)?;
        match first {
            0x80.. => {
                let Entry { name, is_forbidden, size, fault, .. } = self.entry(index);
                Some(Field { name: Some(name), is_forbidden, end: at, size, fault })
            }
            0x20..0x40 => Some(Field { name: None, is_forbidden: false, end: at, size: 0, fault: None }),
            _ => self.read_literal(block, index, at, first >= 0x40),
        }
    }

    fn read_literal(&mut self, block: &mut [u8], index: usize, at: usize, is_indexed: bool) -> Option<Field> {
        let (name, name_size, at) = match index {
            0 => {
                let text = Text::read(block, at)?;
                let decoded = text.decode(block)?;
                let name = NameKind::new(&decoded);
                let length = decoded.len();
                // A string that is empty or too long cannot be replaced.
                let mut is_replaced =
                    || (1..=MAX_NAME).contains(&length) && text.replace(block, length, is_indexed, Filler::Token);
                if name == NameKind::Invalid && !is_replaced() {
                    self.lose();
                }
                (name, length, text.end)
            }
            _ => {
                let Entry { name, name_size, .. } = self.entry(index);
                (name, name_size, at)
            }
        };
        let value = Text::read(block, at)?;
        let mut fault = (name == NameKind::Invalid).then_some(HeadFault::Malformed);
        let mut is_forbidden = name == NameKind::Connection;
        if !value.is_coded || name.needs_decoding(&block[value.start..value.end]) {
            let decoded = value.decode(block)?;
            is_forbidden |= name == NameKind::Te && *decoded != *b"trailers";
            if let Some(found) = name.fault(&decoded) {
                fault = fault.max(Some(found));
                let length = decoded.len();
                let is_replaced = match name {
                    NameKind::Header | NameKind::Connection | NameKind::Te | NameKind::Invalid => {
                        value.replace(block, length, is_indexed, Filler::Value)
                    }
                    NameKind::Path => value.replace(block, length, is_indexed, Filler::Path),
                    NameKind::Authority | NameKind::Scheme | NameKind::Protocol => {
                        value.replace(block, length, is_indexed, Filler::Token)
                    }
                    NameKind::Method => length > 0 && value.replace(block, length, is_indexed, Filler::Token),
                    NameKind::Status => false,
                };
                if !is_replaced {
                    self.lose();
                }
            }
        }
        let size = FIELD_COST + name_size + value.max_size();
        if is_indexed {
            self.entries.push_front(Entry { name, is_forbidden, fault, name_size, size });
            self.entries.truncate(MAX_ENTRIES);
        }
        Some(Field { name: Some(name), is_forbidden, end: value.end, size, fault })
    }

    /// An entry of the static or the dynamic table. The library detects those that do not exist.
    fn entry(&self, index: usize) -> Entry {
        let name = match index {
            1 => NameKind::Authority,
            2 | 3 => NameKind::Method,
            4 | 5 => NameKind::Path,
            6 | 7 => NameKind::Scheme,
            8..=14 => NameKind::Status,
            TRANSFER_ENCODING => NameKind::Connection,
            _ => NameKind::Header,
        };
        let of_static = Entry {
            name,
            is_forbidden: name == NameKind::Connection,
            fault: None,
            name_size: MAX_STATIC_SIZE - FIELD_COST,
            size: MAX_STATIC_SIZE,
        };
        let dynamic = index.checked_sub(STATIC_ENTRIES + 1).and_then(|index| self.entries.get(index));
        dynamic.copied().unwrap_or(of_static)
    }
}

impl NameKind {
    fn new(name: &[u8]) -> NameKind {
        let is_lowercase_token = |byte: &u8| ByteClass::TOKEN.contains(*byte) && !byte.is_ascii_uppercase();
        match name {
            b":path" => NameKind::Path,
            b":method" => NameKind::Method,
            b":status" => NameKind::Status,
            b":authority" => NameKind::Authority,
            b":scheme" => NameKind::Scheme,
            b":protocol" => NameKind::Protocol,
            b"connection" | b"transfer-encoding" | b"upgrade" | b"keep-alive" | b"proxy-connection" => {
                NameKind::Connection
            }
            b"te" => NameKind::Te,
            [_, ..] if name.len() <= MAX_NAME && name.iter().all(is_lowercase_token) => NameKind::Header,
            _ => NameKind::Invalid,
        }
    }

    /// Whether a value with Huffman coding may be invalid. The codes of most bytes that are valid anywhere are short;
    /// that of a blank in a path, for which the library resets the stream, is not found.
    fn needs_decoding(self, coded: &[u8]) -> bool {
        match self {
            NameKind::Header
            | NameKind::Connection
            | NameKind::Authority
            | NameKind::Scheme
            | NameKind::Protocol
            | NameKind::Invalid => huffman::has_rare_byte(coded, false),
            NameKind::Path => !huffman::begins_with_slash(coded) || huffman::has_rare_byte(coded, true),
            NameKind::Method | NameKind::Status | NameKind::Te => true,
        }
    }

    fn is_pseudo(self) -> bool {
        !matches!(self, NameKind::Header | NameKind::Connection | NameKind::Te | NameKind::Invalid)
    }

    fn fault(self, value: &[u8]) -> Option<HeadFault> {
        let is_text = || value.iter().all(|byte| is_value_byte(*byte)) && std::str::from_utf8(value).is_ok();
        let is_valid = match self {
            NameKind::Header | NameKind::Connection | NameKind::Te | NameKind::Invalid => {
                value.iter().all(|byte| is_value_byte(*byte))
            }
            NameKind::Authority | NameKind::Scheme | NameKind::Protocol => is_text(),
            NameKind::Method => !value.is_empty() && ByteClass::TOKEN.contains_all(value),
            NameKind::Status => StatusCode::from_bytes(value).is_ok(),
            // SECURITY: the library silently drops a fragment; a program that keeps it sees a different path.
            NameKind::Path if is_plain_path(value) => true,
            NameKind::Path if is_text() && !value.contains(&b'#') => {
                return PathAndQuery::try_from(value).is_err().then_some(HeadFault::Target);
            }
            NameKind::Path => false,
        };
        (!is_valid).then_some(HeadFault::Malformed)
    }
}

/// Whether a path has only characters that `http` accepts in each part.
fn is_plain_path(path: &[u8]) -> bool {
    let is_plain = |byte: &u8| matches!(byte, b'!' | b'$'..=b';' | b'=' | b'?'..=b'_' | b'a'..=b'z' | b'|' | b'~');
    path.first() == Some(&b'/') && path.iter().all(is_plain)
}

impl Text {
    fn read(block: &[u8], length_at: usize) -> Option<Text> {
        let is_coded = block.get(length_at)? & 0x80 != 0;
        let (length, start) = read_integer(block, length_at, 7)?;
        let end = start + length;
        (end <= block.len()).then_some(Text { length_at, start, end, is_coded })
    }

    fn decode<'a>(&self, block: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        let bytes = &block[self.start..self.end];
        if self.is_coded { huffman::decode(bytes).map(Cow::Owned) } else { Some(Cow::Borrowed(bytes)) }
    }

    fn max_size(&self) -> usize {
        let length = self.end - self.start;
        if self.is_coded { huffman::max_decoded(length) } else { length }
    }

    /// Replaces a string of `length` decoded bytes by one that is allowed. Returns whether there is one.
    fn replace(&self, block: &mut [u8], length: usize, is_indexed: bool, filler: Filler) -> bool {
        if self.is_coded && is_indexed {
            return huffman::fill(&mut block[self.start..self.end], length, filler);
        }
        block[self.length_at] &= 0x7f;
        let text = &mut block[self.start..self.end];
        text.fill(b'x');
        if let (Filler::Path, Some(first)) = (filler, text.first_mut()) {
            *first = b'/';
        }
        true
    }
}

/// An integer with a prefix of `prefix` bits, and the position after it (RFC 7541 section 5.1).
fn read_integer(block: &[u8], at: usize, prefix: u32) -> Option<(usize, usize)> {
    let max = (1 << prefix) - 1;
    let mut value = usize::from(*block.get(at)?) & max;
    if value < max {
        return Some((value, at + 1));
    }
    for (number, byte) in block[at + 1..].iter().take(MAX_INTEGER - 1).enumerate() {
        value += usize::from(byte & 0x7f) << (7 * number);
        if byte & 0x80 == 0 {
            return Some((value, at + 2 + number));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_SIZE: usize = 1000;

    fn blocks() -> HeadBlocks {
        HeadBlocks::new(MAX_SIZE)
    }

    fn string(text: &[u8], is_coded: bool) -> Vec<u8> {
        let bytes = if is_coded { huffman::encode(text) } else { text.to_vec() };
        let length = u8::try_from(bytes.len()).ok().filter(|length| *length < 0x7f).expect("short");
        [&[length | u8::from(is_coded) << 7], &bytes[..]].concat()
    }

    /// A literal with a raw name and value.
    fn literal(first: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
        [vec![first], string(name, false), string(value, false)].concat()
    }

    fn filtered(blocks: &mut HeadBlocks, block: &[u8]) -> (Vec<u8>, Option<HeadFault>) {
        let mut bytes = block.to_vec();
        let fault = blocks.filter(&mut bytes, 0);
        (bytes, fault)
    }

    #[test]
    fn strings_that_are_not_allowed_are_replaced() {
        use HeadFault::{Malformed, Target};
        for (name, value, fault) in [
            (&b"x"[..], &b"a\0b"[..], Malformed),
            (b"x", b"a\nb\r", Malformed),
            (b"x", b"\x7f--------", Malformed),
            (b"X", b"a", Malformed),
            (b"x y", b"a\0", Malformed),
            (b"\xff\x01 ", b"a", Malformed),
            (b":unknown", b"a", Malformed),
            (b":path", b"/a#b", Malformed),
            (b":path", b"/abc\xff", Malformed),
            (b":path", b"/a\0", Malformed),
            (b":path", b"/a?b>c", Target),
            (b":path", b"/a?b=\"c\"", Target),
            (b":path", b"/a b", Target),
            (b":path", b"x/123a", Target),
            (b":method", b"P T", Malformed),
            (b":authority", b"a\xffb", Malformed),
            (b":scheme", b"htt\xc3", Malformed),
            (b":protocol", b"\xff", Malformed),
        ] {
            for first in [0, 0x10, 0x40] {
                for (is_name_coded, is_coded) in [(false, false), (false, true), (true, false), (true, true)] {
                    let block = [vec![first], string(name, is_name_coded), string(value, is_coded)].concat();
                    // The library resets the stream.
                    if is_coded && value == b"/a b" {
                        continue;
                    }
                    let context = format!("{first} {} {}: {block:?}", name.escape_ascii(), value.escape_ascii());
                    let mut blocks = super::tests::blocks();
                    let (bytes, found) = filtered(&mut blocks, &block);
                    assert_eq!((found, bytes.len()), (Some(fault), block.len()), "{context}");
                    // Many control characters have a longer code than any string that is valid everywhere.
                    if blocks.is_lost() {
                        assert!(first == 0x40 && [&b"\xff\x01 "[..], b":protocol"].contains(&name), "{context}");
                        continue;
                    }
                    // The name has the same length, too.
                    let (changed, _) = filtered(&mut super::tests::blocks(), &bytes);
                    assert_eq!(changed, bytes, "{context}");
                    let lengths = |block: &[u8]| {
                        let name = Text::read(block, 1).expect("valid");
                        let value = Text::read(block, name.end).expect("valid");
                        let length = |text: Text| text.decode(block).expect("valid").len();
                        (length(name), length(value), value.end)
                    };
                    if first == 0x40 {
                        assert_eq!(lengths(&bytes), lengths(&block), "{context}");
                        assert_eq!(filtered(&mut blocks, &[0xbe]).1, Some(fault), "{context}");
                    } else {
                        assert_eq!(lengths(&bytes).2, block.len(), "{context}");
                    }
                }
            }
        }
    }

    #[test]
    fn valid_heads_are_not_changed() {
        for is_coded in [false, true] {
            for (name, value) in [
                (&b":method"[..], &b"PATCH"[..]),
                (b":path", b"/a?b=c&d='e'+|"),
                (b":path", b"/\"{a}\"?b={c}"),
                (b":path", b"/caf\xc3\xa9?x=\xc3\xa9"),
                (b":path", b"*"),
                (b":authority", b"[::1]:8443"),
                (b":status", b"200"),
                (b"x-note", b"a\tb \xff\"#"),
                (b"x_~!y", b""),
            ] {
                let block = [vec![0x40], string(name, is_coded), string(value, is_coded)].concat();
                assert_eq!(filtered(&mut blocks(), &block), (block.clone(), None), "{:?}", value.escape_ascii());
            }
        }
        let block = [vec![0x82, 0x3f, 0xe1, 0x1f], literal(0, b"a", b"b")].concat();
        assert_eq!(filtered(&mut blocks(), &block), (block, None));
    }

    #[test]
    fn a_fragment_is_found_in_a_path_only() {
        let (raw, coded) = (string(b"/a#b", false), string(b"/a#b", true));
        for (start, is_path) in [(&[0x04][..], true), (&[0x45], true), (&[0x15], true), (&[0x0f, 0x24], false)] {
            for text in [&raw, &coded] {
                let (_, fault) = filtered(&mut blocks(), &[start, text].concat());
                assert_eq!(fault, is_path.then_some(HeadFault::Malformed), "{start:?}");
            }
        }
    }

    #[test]
    fn entries_of_the_dynamic_table_are_known() {
        let blocks = &mut blocks();
        assert_eq!(filtered(blocks, &literal(0x40, b":path", b"/a")).1, None);
        assert_eq!(filtered(blocks, &literal(0x40, b"x-note", b"/a#")).1, None);
        assert_eq!(filtered(blocks, &literal(0x40, b"x-bad", b"a\0")).1, Some(HeadFault::Malformed));
        // Entry 62 is the newest one.
        let with_name = |index: u8| [&[0x0f, index - 15, 3][..], b"/a#"].concat();
        assert_eq!(filtered(blocks, &with_name(62)).1, None);
        assert_eq!(filtered(blocks, &with_name(63)).1, None);
        assert_eq!(filtered(blocks, &with_name(64)).1, Some(HeadFault::Malformed));
        assert_eq!(filtered(blocks, &with_name(65)).1, None, "the table has no entry 65");
        // SECURITY: the library has another value for it.
        assert_eq!(filtered(blocks, &[0xbe]).1, Some(HeadFault::Malformed));
        assert_eq!(filtered(blocks, &[0xbf, 0xc0]).1, None);
    }

    #[test]
    fn the_state_is_lost_if_no_string_fits() {
        for block in [
            literal(0, b"", b"a"),
            literal(0x40, b":method", b""),
            literal(0x40, b":status", b"xyz"),
            [&[0x40, 1, b'x'][..], &string(b"\n\n\n\n\n\n\n\n", true)].concat(),
        ] {
            let mut blocks = blocks();
            assert_eq!(filtered(&mut blocks, &block).1, Some(HeadFault::Malformed), "{block:?}");
            assert!(blocks.is_lost(), "{block:?}");
        }
        let long_name = [&[0, 0x7f, 0x81, 0xff, 3][..], &[b'x'; MAX_NAME + 1], &string(b"a", false)].concat();
        let mut blocks = HeadBlocks::new(2 * MAX_NAME);
        assert_eq!((filtered(&mut blocks, &long_name).1, blocks.is_lost()), (Some(HeadFault::Malformed), true));
    }

    #[test]
    fn heads_for_which_the_library_ends_the_connection_are_too_large() {
        let large = literal(0x40, b"x", &[b'a'; 100]);
        let mut block = large.clone();
        // Each entry has 133 bytes.
        block.extend([0xbe; 29]);
        assert_eq!(filtered(&mut blocks(), &block).1, None);
        block.push(0xbe);
        let mut too_large = blocks();
        assert_eq!(filtered(&mut too_large, &block).1, Some(HeadFault::TooLarge));
        assert!(too_large.is_lost());
        // A part of the last field may wait for the next frame.
        for (frame_size, fault) in [(0, None), (400, None), (500, Some(HeadFault::TooLarge))] {
            assert_eq!(blocks().filter(&mut large.repeat(9), frame_size), fault);
        }
    }

    #[test]
    fn a_head_in_several_frames_keeps_the_rules() {
        let request = [literal(0x40, b":method", b"GET"), literal(0x40, b":path", b"/")].concat();
        let header = literal(0x40, b"te", b"trailers");
        for (more, is_broken) in [
            (literal(0, b"te", b"trailers"), false),
            (vec![0xbe], false),
            (literal(0, b"te", b"gzip"), true),
            ([vec![0], string(b"te", true), string(b"gzip", true)].concat(), true),
            (literal(0, b"connection", b"close"), true),
            ([&[0x0f, 57 - 15, 1][..], b"x"].concat(), true),
            (literal(0, b":path", b"/other"), true),
            (literal(0, b":scheme", b"https"), true),
            (vec![0xbf], true),
            ([literal(0x40, b"upgrade", b"x"), vec![0xbe]].concat(), true),
        ] {
            for frame_size in [0, 400] {
                let mut blocks = blocks();
                let fault = blocks.filter(&mut [&request[..], &header, &more].concat(), frame_size);
                // The library resets the stream of a head in one frame.
                let expected = (is_broken && frame_size > 0).then_some(HeadFault::Malformed);
                assert_eq!((fault, blocks.is_lost()), (expected, expected.is_some()), "{more:?}");
            }
        }
    }

    #[test]
    fn what_is_not_hpack_is_left_to_the_library() {
        for block in [&[0xff][..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[0x40, 5, b'x'], &[0, 0x81, 0xff, 0]] {
            assert_eq!(filtered(&mut blocks(), block), (block.to_vec(), None));
        }
    }
}
