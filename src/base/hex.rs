//! Hexadecimal encoding: written in lower case, read in either case.

/// The two digits of each byte, in lower case.
pub static BYTES: [[u8; 2]; 256] = {
    let (digits, mut pairs, mut byte) = (b"0123456789abcdef", [[0; 2]; 256], 0);
    while byte < 256 {
        pairs[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    pairs
};

/// The eight digits of a number, computed in parallel: each half byte is moved into a separate byte.
pub fn digits(value: u32) -> [u8; 8] {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let mut digits = u64::from(value);
    digits = (digits << 16 | digits) & 0x0000_ffff_0000_ffff;
    digits = (digits << 8 | digits) & 0x00ff_00ff_00ff_00ff;
    digits = (digits << 4 | digits) & 0x0f0f_0f0f_0f0f_0f0f;
    // Ones where a digit is a letter: there, six more make sixteen.
    let letters = (digits + 6 * EACH) >> 4 & EACH;
    (digits + u64::from(b'0') * EACH + letters * u64::from(b'a' - b'0' - 10)).to_be_bytes()
}

/// Encodes bytes. The text never grows, so a secret leaves no earlier copy in memory.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    text.extend(bytes.iter().flat_map(|byte| BYTES[usize::from(*byte)]).map(char::from));
    text
}

/// Decodes `2 * N` digits; `None` for any other text.
pub fn decode<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    // No branch per digit: a keys file may have many keys.
    let are_hex = digits.iter().fold(true, |so_far, digit| so_far & digit.is_ascii_hexdigit());
    if digits.len() != 2 * N || !are_hex {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = value(pair[0]) << 4 | value(pair[1]);
    }
    Some(bytes)
}

/// Decodes the two digits at the start of `text`; `None` if they are not digits.
pub fn decode_first(text: &[u8]) -> Option<u8> {
    decode::<1>(text.get(..2)?).map(|[byte]| byte)
}

/// The value of a digit. Letters of either case are at 1 to 6 in their columns of ASCII, 9 less than their value.
fn value(digit: u8) -> u8 {
    (digit & 0xf) + 9 * (digit >> 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_agree_with_the_formatter() {
        let spread = (0..=u32::from(u16::MAX)).flat_map(|low| [low, low << 16, low.wrapping_mul(0x9e37_79b9)]);
        for value in spread.chain([u32::MAX]) {
            assert_eq!(digits(value), format!("{value:08x}").as_bytes(), "{value}");
        }
    }

    #[test]
    fn encoded_bytes_decode_to_themselves() {
        for byte in 0..=u8::MAX {
            let text = encode(&[byte, !byte]);
            assert_eq!(text, format!("{byte:02x}{:02x}", !byte));
            assert_eq!(decode(text.as_bytes()), Some([byte, !byte]));
            assert_eq!(decode(text.to_uppercase().as_bytes()), Some([byte, !byte]));
        }
    }

    #[test]
    fn only_digits_are_decoded() {
        for byte in 0..=u8::MAX {
            assert_eq!(decode::<1>(&[b'0', byte]).is_some(), char::from(byte).is_ascii_hexdigit(), "{byte}");
        }
        for text in ["", "0", "000", "+1", "0x"] {
            assert_eq!(decode::<1>(text.as_bytes()), None, "{text}");
        }
        assert_eq!((decode_first(b"4a5"), decode_first(b"4"), decode_first(b"4g")), (Some(0x4a), None, None));
    }
}
