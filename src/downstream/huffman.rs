//! The Huffman code of HPACK (RFC 7541 appendix B).

/// The bytes in the order of their codes, which is canonical: the codes of each length follow those of shorter ones.
const BYTES: [u8; 256] =
    *b"012aceiost\x20%-./3456789=A_bdfghlmnpru:BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz&*,;XZ!\"()?'+|#>\0$@[]~^}<`{\\\xc3\xd0\
    \x80\x82\x83\xa2\xb8\xc2\xe0\xe2\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\xd8\xd9\xe3\xe5\xe6\x81\x84\x85\x86\x88\x92\x9a\
    \x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\xba\xbb\xbd\xbe\xc4\xc6\xe4\xe8\xe9\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\
    \x95\x96\x97\x98\x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4\xb6\xb7\xbc\xbf\xc5\xe7\xef\t\x8e\x90\x91\x94\x9f\xab\xce\
    \xd7\xe1\xec\xed\xc7\xcf\xea\xeb\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\xf2\xf3\xff\xcb\xcc\xd3\xd4\xd6\
    \xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\
    \x13\x14\x15\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\x7f\xdc\xf9\n\r\x16";

/// Each length of a code in bits, with the last code, and the position in [`BYTES`] after the byte that has it.
const LENGTHS: [(u32, u32, usize); 21] = [
    (5, 0x9, 10),
    (6, 0x2d, 36),
    (7, 0x7b, 68),
    (8, 0xfd, 74),
    (10, 0x3fc, 79),
    (11, 0x7fc, 82),
    (12, 0xffb, 84),
    (13, 0x1ffd, 90),
    (14, 0x3ffd, 92),
    (15, 0x7ffe, 95),
    (19, 0x7_fff2, 98),
    (20, 0xf_ffed, 106),
    (21, 0x1f_ffe8, 119),
    (22, 0x3f_ffeb, 145),
    (23, 0x7f_fff4, 174),
    (24, 0xff_fff5, 186),
    (25, 0x1ff_ffef, 190),
    (26, 0x3ff_ffee, 205),
    (27, 0x7ff_fff0, 224),
    (28, 0xfff_fffe, 253),
    (30, 0x3fff_fffe, 256),
];

const SHORTEST_CODE: usize = 5;

/// The codes of 0xf9, 0x80 and `~!&j30`, the longest first. They can fill any number of bits.
const FILLERS: [(usize, u32); 8] =
    [(28, 0xfff_fffe), (20, 0xf_ffe6), (13, 0x1ffd), (10, 0x3f8), (8, 0xf8), (7, 0x74), (6, 0x19), (SHORTEST_CODE, 0)];

/// The code of `/`.
const SLASH: (usize, u32) = (6, 0x18);

/// What [`fill`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filler {
    /// Valid everywhere.
    Token,
    /// Begins with `/`.
    Path,
    /// Valid in the value of a header.
    Value,
}

/// Decodes a string; `None` if it is not valid.
pub fn decode(coded: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(max_decoded(coded.len()));
    let (mut window, mut bits, mut rest) = (0_u64, 0_u32, coded.iter());
    loop {
        while bits <= 56
            && let Some(byte) = rest.next()
        {
            window |= u64::from(*byte) << (56 - bits);
            bits += 8;
        }
        // The last byte is filled with ones.
        if bits < 8 && window == !(u64::MAX >> bits) {
            return Some(decoded);
        }
        let (length, code, last, end) = LENGTHS.iter().find_map(|(length, last, end)| {
            let code = u32::try_from(window >> (64 - length)).expect("at most 30 bits");
            (code <= *last).then_some((*length, code, *last, *end))
        })?;
        bits = bits.checked_sub(length)?;
        window <<= length;
        decoded.push(BYTES[end - 1 - (last - code) as usize]);
    }
}

/// Maximum length of a string that has `coded` bytes with Huffman coding.
pub fn max_decoded(coded: usize) -> usize {
    coded * 8 / SHORTEST_CODE
}

/// Returns whether a string may contain a byte that is not a letter, a digit or one of ` !%&()*,-./:;=?_`, or, if
/// `with_quote`, a `"`. All other codes begin with at least nine ones, except those of `'` and `+`.
pub fn has_rare_byte(coded: &[u8], with_quote: bool) -> bool {
    let is_rare = |window: u64| {
        let two = window & window << 1;
        let four = two & two << 2;
        let nine = four & four << 4 & window << 8;
        // 1111111001
        let quote = four & two << 4 & window << 6 & !(window << 7) & !(window << 8) & window << 9;
        nine != 0 || with_quote && quote != 0
    };
    let Some(last) = coded.last_chunk() else {
        return is_rare(coded.iter().fold(0, |window, byte| window << 8 | u64::from(*byte)));
    };
    // Windows share two bytes, so that one of them contains each sequence of ten bits.
    let mut windows = coded.windows(8).step_by(6).filter_map(|window| window.first_chunk());
    windows.any(|window| is_rare(u64::from_be_bytes(*window))) || is_rare(u64::from_be_bytes(*last))
}

/// Returns whether a string begins with `/`.
pub fn begins_with_slash(coded: &[u8]) -> bool {
    coded.first().is_some_and(|byte| u32::from(byte >> 2) == SLASH.1)
}

/// Fills `coded` with a string of `length` bytes. Returns whether one has this coded length.
pub fn fill(coded: &mut [u8], length: usize, filler: Filler) -> bool {
    let bits = 8 * coded.len();
    let mut at = 0;
    coded.fill(u8::MAX);
    for left in (0..length).rev() {
        let room = (bits - at).saturating_sub(SHORTEST_CODE * left);
        let fillers = match filler {
            Filler::Path if left + 1 == length => &[SLASH][..],
            Filler::Token | Filler::Path => &FILLERS[2..],
            Filler::Value => &FILLERS,
        };
        let Some((code_bits, code)) = fillers.iter().find(|(bits, _)| *bits <= room) else { return false };
        for bit in (0..*code_bits).rev() {
            if code >> bit & 1 == 0 {
                coded[at / 8] &= !(0x80 >> (at % 8));
            }
            at += 1;
        }
    }
    bits - at < 8
}

/// The code of a byte: its bits, and their number.
#[cfg(test)]
pub fn code(byte: u8) -> (u32, u32) {
    let at = BYTES.iter().position(|other| *other == byte).expect("all bytes");
    let (bits, last, end) = LENGTHS.iter().find(|(_, _, end)| at < *end).expect("all bytes");
    (last - u32::try_from(end - 1 - at).expect("few"), *bits)
}

/// Encodes a string.
#[cfg(test)]
pub fn encode(text: &[u8]) -> Vec<u8> {
    let mut bits: Vec<u8> = text
        .iter()
        .flat_map(|byte| {
            let (code, length) = code(*byte);
            (0..length).rev().map(move |bit| u8::try_from(code >> bit & 1).expect("a bit"))
        })
        .collect();
    bits.resize(bits.len().next_multiple_of(8), 1);
    bits.chunks(8).map(|byte| byte.iter().fold(0, |value, bit| value << 1 | bit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples of RFC 7541 appendices B and C.4.
    #[test]
    fn codes_are_those_of_the_standard() {
        for (byte, expected) in [
            (b'0', (0, 5)),
            (b' ', (0x14, 6)),
            (b':', (0x5c, 7)),
            (b'Z', (0xfd, 8)),
            (b'"', (0x3f9, 10)),
            (b'#', (0xffa, 12)),
            (0, (0x1ff8, 13)),
            (b'\\', (0x7_fff0, 19)),
            (0xc3, (0x7_fff1, 19)),
            (b'\t', (0xff_ffea, 24)),
            (0x7f, (0xfff_fffc, 28)),
            (b'\n', (0x3fff_fffc, 30)),
            (0x16, (0x3fff_fffe, 30)),
            (0xff, (0x3ff_ffee, 26)),
        ] {
            assert_eq!(code(byte), expected, "{byte:#x}");
        }
        let example = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decode(&example).as_deref(), Some(&b"www.example.com"[..]));
    }

    #[test]
    fn strings_are_decoded() {
        for start in 0..=u8::MAX {
            for length in 0..40 {
                let text: Vec<u8> = (0..length).map(|at: u8| start.wrapping_add(at.wrapping_mul(7))).collect();
                assert_eq!(decode(&encode(&text)), Some(text));
            }
        }
        // The end of a string, a byte of padding, and padding that is not ones.
        for invalid in [&[0xff; 4][..], &[0xff], &[0x07, 0xff], &[0], &[0x06]] {
            assert_eq!(decode(invalid), None, "{invalid:?}");
        }
    }

    #[test]
    fn rare_bytes_are_found_at_each_position() {
        let rare = |byte: u8| byte == b'"' || matches!(code(byte), (_, 11..)) && !b"'+".contains(&byte);
        for byte in 0..=u8::MAX {
            for before in 0..30 {
                for after in [0, 1, 30] {
                    let coded = encode(&[&b"0".repeat(before)[..], &[byte], &b"0".repeat(after)].concat());
                    let (found, without_quote) = (has_rare_byte(&coded, true), has_rare_byte(&coded, false));
                    // The ones at the end may look like one.
                    let may_differ = after == 0 && !rare(byte);
                    assert!(found == rare(byte) || may_differ, "{byte:#x} after {before} bytes");
                    assert!(without_quote == (rare(byte) && byte != b'"') || may_differ, "{byte:#x}");
                }
            }
        }
    }

    #[test]
    fn a_filled_string_has_the_same_lengths() {
        for (length, bytes) in (0..60).flat_map(|length| (0..120).map(move |bytes| (length, bytes))) {
            for (filler, longest) in [(Filler::Token, 13), (Filler::Value, 28)] {
                let mut coded = vec![0; bytes];
                let is_possible = (SHORTEST_CODE * length..=longest * length + 7).contains(&(8 * bytes));
                assert_eq!(fill(&mut coded, length, filler), is_possible, "{length} in {bytes}");
                if is_possible {
                    assert_eq!(decode(&coded).map(|text| text.len()), Some(length), "{length} in {bytes}");
                }
            }
            let mut coded = vec![0; bytes];
            if length > 0 && fill(&mut coded, length, Filler::Path) {
                assert!(begins_with_slash(&coded));
                assert!(decode(&coded).is_some_and(|text| text.len() == length && text[0] == b'/'));
            }
        }
    }
}
