//! Decodes the chunked transfer coding (RFC 9112 section 7.1).

use bytes::{Buf, Bytes, BytesMut};

use crate::base::byte_class::ByteClass;
use crate::http::headers::is_value_byte;

/// Maximum size of all chunk extensions and trailers of a body. They are discarded, so a legitimate client needs few.
const MAX_OVERHEAD: usize = 8 * 1024;

/// Maximum number of hexadecimal digits in a chunk size, so that it does not overflow.
const MAX_SIZE_DIGITS: u8 = 15;

/// Decodes one chunked body.
#[derive(Debug)]
pub struct ChunkedDecoder {
    state: ChunkState,
    /// Bytes of extensions and trailers so far.
    overhead: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    Size {
        size: u64,
        digits: u8,
    },
    /// Blanks between the size and `;`.
    SizeBlank {
        size: u64,
    },
    ExtensionStart {
        size: u64,
    },
    Extension {
        size: u64,
    },
    SizeLf {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    FinalLf,
    Done,
}

/// The result of one decoding step.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Bytes of the body.
    Data(Bytes),
    /// More bytes are needed.
    NeedsMore,
    /// The body is complete; bytes left in the buffer do not belong to it.
    End,
}

/// The body is malformed, so its end is ambiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ChunkError(pub &'static str);

impl Default for ChunkedDecoder {
    fn default() -> ChunkedDecoder {
        ChunkedDecoder { state: ChunkState::Size { size: 0, digits: 0 }, overhead: 0 }
    }
}

impl ChunkedDecoder {
    /// Decodes bytes from the front of `buffer` and removes them.
    ///
    /// SECURITY: a size consists of hexadecimal digits only, and a line ends with CR LF only. Programs that accept more
    /// disagree about where a body ends. Blanks are accepted around the `;` of an extension, as RFC 9112 section 7.1.1
    /// demands, and nowhere else.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, ChunkError> {
        loop {
            if let ChunkState::Data { left } = self.state {
                if buffer.is_empty() {
                    return Ok(Decoded::NeedsMore);
                }
                let taken = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
                let left = left - taken as u64;
                self.state = if left == 0 { ChunkState::DataCr } else { ChunkState::Data { left } };
                let data = buffer.split_to(taken).freeze();
                self.skip_line_end(buffer)?;
                return Ok(Decoded::Data(data));
            }
            if self.state == ChunkState::Done {
                return Ok(Decoded::End);
            }
            if !buffer.has_remaining() {
                return Ok(Decoded::NeedsMore);
            }
            let byte = buffer.get_u8();
            self.state = self.step(byte)?;
        }
    }

    /// Whether the whole body was decoded.
    pub fn is_done(&self) -> bool {
        self.state == ChunkState::Done
    }

    /// The end of a chunk or body usually arrives with the data. Consuming it here detects the end without a further
    /// read.
    fn skip_line_end(&mut self, buffer: &mut BytesMut) -> Result<(), ChunkError> {
        while !matches!(self.state, ChunkState::Data { .. } | ChunkState::Done) && buffer.has_remaining() {
            let byte = buffer.get_u8();
            self.state = self.step(byte)?;
        }
        Ok(())
    }

    fn step(&mut self, byte: u8) -> Result<ChunkState, ChunkError> {
        const SIZE: ChunkError = ChunkError("the size of a chunk must be hexadecimal digits");
        const LINE: ChunkError = ChunkError("a line within a chunked body must end with CR LF");
        Ok(match self.state {
            ChunkState::Size { size, digits } => match (byte, char::from(byte).to_digit(16)) {
                (_, Some(_)) if digits == MAX_SIZE_DIGITS => return Err(SIZE),
                (_, Some(digit)) => ChunkState::Size { size: size * 16 + u64::from(digit), digits: digits + 1 },
                _ if digits == 0 => return Err(SIZE),
                (b';', _) => ChunkState::ExtensionStart { size },
                (b' ' | b'\t', _) => self.count_overhead(ChunkState::SizeBlank { size })?,
                (b'\r', _) => ChunkState::SizeLf { size },
                _ => return Err(SIZE),
            },
            ChunkState::SizeBlank { size } => match byte {
                b' ' | b'\t' => self.count_overhead(ChunkState::SizeBlank { size })?,
                b';' => ChunkState::ExtensionStart { size },
                _ => return Err(SIZE),
            },
            ChunkState::ExtensionStart { size } if matches!(byte, b' ' | b'\t') => {
                self.count_overhead(ChunkState::ExtensionStart { size })?
            }
            ChunkState::ExtensionStart { size } if ByteClass::TOKEN.contains(byte) => {
                self.count_overhead(ChunkState::Extension { size })?
            }
            ChunkState::ExtensionStart { .. } => return Err(ChunkError("a chunk extension has no name")),
            ChunkState::Extension { size } => match byte {
                b'\r' => ChunkState::SizeLf { size },
                byte if is_value_byte(byte) => self.count_overhead(ChunkState::Extension { size })?,
                _ => return Err(LINE),
            },
            ChunkState::SizeLf { size } => match (byte, size) {
                (b'\n', 0) => ChunkState::TrailerStart,
                (b'\n', left) => ChunkState::Data { left },
                _ => return Err(LINE),
            },
            ChunkState::DataCr if byte == b'\r' => ChunkState::DataLf,
            ChunkState::DataLf if byte == b'\n' => ChunkState::Size { size: 0, digits: 0 },
            ChunkState::DataCr | ChunkState::DataLf => {
                return Err(ChunkError("a chunk is longer than its size"));
            }
            ChunkState::TrailerStart if byte == b'\r' => ChunkState::FinalLf,
            ChunkState::TrailerStart if ByteClass::TOKEN.contains(byte) => {
                self.count_overhead(ChunkState::TrailerName)?
            }
            ChunkState::TrailerName if ByteClass::TOKEN.contains(byte) => {
                self.count_overhead(ChunkState::TrailerName)?
            }
            ChunkState::TrailerName if byte == b':' => self.count_overhead(ChunkState::TrailerValue)?,
            ChunkState::TrailerStart | ChunkState::TrailerName => {
                return Err(ChunkError("a trailer must be a name, a colon and a value"));
            }
            ChunkState::TrailerValue => match byte {
                b'\r' => ChunkState::TrailerLf,
                byte if is_value_byte(byte) => self.count_overhead(ChunkState::TrailerValue)?,
                _ => return Err(LINE),
            },
            ChunkState::TrailerLf if byte == b'\n' => ChunkState::TrailerStart,
            ChunkState::FinalLf if byte == b'\n' => ChunkState::Done,
            ChunkState::TrailerLf | ChunkState::FinalLf => return Err(LINE),
            ChunkState::Data { .. } | ChunkState::Done => {
                unreachable!("`decode` handles these states")
            }
        })
    }

    fn count_overhead(&mut self, next: ChunkState) -> Result<ChunkState, ChunkError> {
        self.overhead += 1;
        if self.overhead > MAX_OVERHEAD {
            return Err(ChunkError("too many chunk extensions or trailers"));
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type BodyAndRest = (Vec<u8>, Vec<u8>);

    /// Returns the body and the bytes after it; the input is fed in parts of `part` bytes.
    fn decode(text: &[u8], part: usize) -> Result<Option<BodyAndRest>, ChunkError> {
        let (mut decoder, mut buffer, mut body) = (ChunkedDecoder::default(), BytesMut::new(), Vec::new());
        let mut parts = text.chunks(part);
        loop {
            match decoder.decode(&mut buffer)? {
                Decoded::Data(data) => body.extend_from_slice(&data),
                Decoded::End => {
                    let rest = [&buffer[..], &parts.collect::<Vec<_>>().concat()].concat();
                    return Ok(Some((body, rest)));
                }
                Decoded::NeedsMore => match parts.next() {
                    Some(part) => buffer.extend_from_slice(part),
                    None => return Ok(None),
                },
            }
        }
    }

    #[test]
    fn bodies_end_after_the_last_chunk() {
        let text = b"5\r\nhello\r\nA;x=\"y z\"\r\n0123456789\r\n0\r\nx-trailer: t\r\n\r\nGET /";
        for part in 1..=text.len() {
            let (body, rest) = decode(text, part).expect("good").expect("whole");
            assert_eq!((&body[..], &rest[..]), (&b"hello0123456789"[..], &b"GET /"[..]), "{part}");
        }
        assert_eq!(decode(b"5\r\nhel", 2), Ok(None));
    }

    #[test]
    fn blanks_around_extensions_are_accepted() {
        for size in ["5 ;x", "5\t; x", "5; x", "5 \t ; \tx = \"y\" ; z ", "5;x ;y"] {
            let text = format!("{size}\r\nhello\r\n0 ; x\r\n\r\nGET /");
            for part in [1, text.len()] {
                let (body, rest) = decode(text.as_bytes(), part).expect(size).expect("whole");
                assert_eq!((&body[..], &rest[..]), (&b"hello"[..], &b"GET /"[..]), "{size:?}");
            }
        }
    }

    #[test]
    fn the_end_is_known_with_the_last_data() {
        let mut decoder = ChunkedDecoder::default();
        let mut buffer = BytesMut::from(&b"2\r\nhi\r\n0\r\n\r\n"[..]);
        assert_eq!(decoder.decode(&mut buffer), Ok(Decoded::Data(Bytes::from_static(b"hi"))));
        assert!(decoder.is_done());
    }

    #[test]
    fn ambiguous_sizes_and_line_ends_are_rejected() {
        for text in [
            "10000000000000005\r\nhello\r\n0\r\n\r\n",
            "FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "5 \r\nhello\r\n0\r\n\r\n",
            "5 x\r\nhello\r\n0\r\n\r\n",
            "5\r ;x\nhello\r\n0\r\n\r\n",
            "5; \r\nhello\r\n0\r\n\r\n",
            "5 ; \r\nhello\r\n0\r\n\r\n",
            "5;;x\r\nhello\r\n0\r\n\r\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "-5\r\nhello\r\n0\r\n\r\n",
            "_5\r\nhello\r\n0\r\n\r\n",
            "\r\nhello\r\n0\r\n\r\n",
            ";x\r\nhello\r\n0\r\n\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5\r\rhello\r\n0\r\n\r\n",
            "5;a\nb\r\nhello\r\n0\r\n\r\n",
            "5;a\rb\r\nhello\r\n0\r\n\r\n",
            "5\r\nhelloXX0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "0\r\nx: y\n\r\n",
            "0\r\nx: y\r\r\n",
            "0\r\n\n",
            "0\r\n x: y\r\n\r\n",
            "0\r\n: y\r\n\r\n",
            "0\r\nxy\r\n\r\n",
            "0\r\nx : y\r\n\r\n",
            "0\r\nx: y\r\n z\r\n\r\n",
            "5;\r\nhello\r\n0\r\n\r\n",
        ] {
            assert!(decode(text.as_bytes(), 3).is_err(), "{text:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(MAX_OVERHEAD + 1));
        assert!(decode(extension.as_bytes(), 1000).is_err());
        let trailers = format!("0\r\n{}\r\n", "x: y\r\n".repeat(MAX_OVERHEAD / 4 + 1));
        assert!(decode(trailers.as_bytes(), 1000).is_err());
        for blanks in [format!("5{};x", " ".repeat(MAX_OVERHEAD + 1)), format!("5;{}x", "\t".repeat(MAX_OVERHEAD + 1))]
        {
            assert!(decode(format!("{blanks}\r\nhello\r\n0\r\n\r\n").as_bytes(), 1000).is_err());
        }
        let chunks = "1;x\r\na\r\n".repeat(MAX_OVERHEAD + 1);
        assert!(decode(chunks.as_bytes(), 1000).is_err(), "over all chunks together");
    }
}
