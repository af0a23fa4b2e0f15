//! The chunked transfer coding (RFC 9112 section 7.1): reading it.

use bytes::{Buf, Bytes, BytesMut};

/// Most bytes of all chunk extensions and trailers of a body. Nobody reads them, so there is no use in many.
const MOST_OVERHEAD: usize = 8 * 1024;

/// Hexadecimal digits of a chunk's size at most: no integer overflows.
const MOST_DIGITS: u8 = 15;

/// Reads a chunked body.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// Bytes of extensions and trailers so far.
    overhead: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size { size: u64, digits: u8 },
    ExtensionStart { size: u64 },
    Extension { size: u64 },
    SizeEnd { size: u64 },
    Data { left: u64 },
    DataReturn,
    DataEnd,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerEnd,
    LastEnd,
    Done,
}

/// What a look at the buffer gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Bytes of the body.
    Data(Bytes),
    /// Nothing until more bytes come.
    NeedsMore,
    /// The body has ended; what the buffer still holds is behind it.
    End,
}

/// Why a body has no end that all agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ChunkError(pub &'static str);

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder { state: State::Size { size: 0, digits: 0 }, overhead: 0 }
    }
}

impl Decoder {
    /// Takes from the front of `buffer` what it can use.
    ///
    /// SECURITY: sizes are hexadecimal digits and nothing else, lines end with CR LF and nothing else. Programs that
    /// read more into them disagree about where a body ends.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, ChunkError> {
        loop {
            if let State::Data { left } = self.state {
                if buffer.is_empty() {
                    return Ok(Decoded::NeedsMore);
                }
                let taken = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
                let left = left - taken as u64;
                self.state = if left == 0 { State::DataReturn } else { State::Data { left } };
                let data = buffer.split_to(taken).freeze();
                self.pass_line_end(buffer)?;
                return Ok(Decoded::Data(data));
            }
            if self.state == State::Done {
                return Ok(Decoded::End);
            }
            if !buffer.has_remaining() {
                return Ok(Decoded::NeedsMore);
            }
            let byte = buffer.get_u8();
            self.state = self.step(byte)?;
        }
    }

    /// Whether the whole body was read.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// What ends a chunk, and a body, is mostly there together with the data. Then the end is known without waiting.
    fn pass_line_end(&mut self, buffer: &mut BytesMut) -> Result<(), ChunkError> {
        while !matches!(self.state, State::Data { .. } | State::Done) && buffer.has_remaining() {
            let byte = buffer.get_u8();
            self.state = self.step(byte)?;
        }
        Ok(())
    }

    fn step(&mut self, byte: u8) -> Result<State, ChunkError> {
        const SIZE: ChunkError = ChunkError("the size of a chunk must be hexadecimal digits");
        const LINE: ChunkError = ChunkError("a line within a chunked body must end with CR LF");
        Ok(match self.state {
            State::Size { size, digits } => match (byte, char::from(byte).to_digit(16)) {
                (_, Some(_)) if digits == MOST_DIGITS => return Err(SIZE),
                (_, Some(digit)) => State::Size { size: size * 16 + u64::from(digit), digits: digits + 1 },
                _ if digits == 0 => return Err(SIZE),
                (b';', _) => State::ExtensionStart { size },
                (b'\r', _) => State::SizeEnd { size },
                _ => return Err(SIZE),
            },
            State::ExtensionStart { size } if is_token(byte) => {
                self.passed_over(State::Extension { size })?
            }
            State::ExtensionStart { .. } => return Err(ChunkError("a chunk extension has no name")),
            State::Extension { size } => match byte {
                b'\r' => State::SizeEnd { size },
                byte if is_text(byte) => self.passed_over(State::Extension { size })?,
                _ => return Err(LINE),
            },
            State::SizeEnd { size } => match (byte, size) {
                (b'\n', 0) => State::TrailerStart,
                (b'\n', left) => State::Data { left },
                _ => return Err(LINE),
            },
            State::DataReturn if byte == b'\r' => State::DataEnd,
            State::DataEnd if byte == b'\n' => State::Size { size: 0, digits: 0 },
            State::DataReturn | State::DataEnd => {
                return Err(ChunkError("a chunk is longer than its size says"));
            }
            State::TrailerStart if byte == b'\r' => State::LastEnd,
            State::TrailerStart if is_token(byte) => self.passed_over(State::TrailerName)?,
            State::TrailerName if is_token(byte) => self.passed_over(State::TrailerName)?,
            State::TrailerName if byte == b':' => self.passed_over(State::TrailerValue)?,
            State::TrailerStart | State::TrailerName => {
                return Err(ChunkError("a trailer is not a name, a colon and a value"));
            }
            State::TrailerValue => match byte {
                b'\r' => State::TrailerEnd,
                byte if is_text(byte) => self.passed_over(State::TrailerValue)?,
                _ => return Err(LINE),
            },
            State::TrailerEnd if byte == b'\n' => State::TrailerStart,
            State::LastEnd if byte == b'\n' => State::Done,
            State::TrailerEnd | State::LastEnd => return Err(LINE),
            State::Data { .. } | State::Done => unreachable!("dealt with before bytes are taken one by one"),
        })
    }

    fn passed_over(&mut self, next: State) -> Result<State, ChunkError> {
        self.overhead += 1;
        if self.overhead > MOST_OVERHEAD {
            return Err(ChunkError("too many chunk extensions or trailers"));
        }
        Ok(next)
    }
}

/// A character of a field's name (RFC 9110 section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A character of a field's value.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    type BodyAndRest = (Vec<u8>, Vec<u8>);

    /// The body, and what stands behind it; fed in parts of `part` bytes.
    fn decode(text: &[u8], part: usize) -> Result<Option<BodyAndRest>, ChunkError> {
        let (mut decoder, mut buffer, mut body) = (Decoder::default(), BytesMut::new(), Vec::new());
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
    fn bodies_end_where_they_say() {
        let text = b"5\r\nhello\r\nA;x=\"y z\"\r\n0123456789\r\n0\r\nx-trailer: t\r\n\r\nGET /";
        for part in 1..=text.len() {
            let (body, rest) = decode(text, part).expect("good").expect("whole");
            assert_eq!((&body[..], &rest[..]), (&b"hello0123456789"[..], &b"GET /"[..]), "{part}");
        }
        assert_eq!(decode(b"5\r\nhel", 2), Ok(None));
    }

    #[test]
    fn the_end_is_known_with_the_last_data() {
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::from(&b"2\r\nhi\r\n0\r\n\r\n"[..]);
        assert_eq!(decoder.decode(&mut buffer), Ok(Decoded::Data(Bytes::from_static(b"hi"))));
        assert!(decoder.is_done());
    }

    #[test]
    fn sizes_and_lines_with_two_readings_are_refused() {
        for text in [
            "10000000000000005\r\nhello\r\n0\r\n\r\n",
            "FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "5 \r\nhello\r\n0\r\n\r\n",
            "5 ;x\r\nhello\r\n0\r\n\r\n",
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
    fn what_nobody_reads_is_bounded() {
        let extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(MOST_OVERHEAD + 1));
        assert!(decode(extension.as_bytes(), 1000).is_err());
        let trailers = format!("0\r\n{}\r\n", "x: y\r\n".repeat(MOST_OVERHEAD / 4 + 1));
        assert!(decode(trailers.as_bytes(), 1000).is_err());
        let chunks = "1;x\r\na\r\n".repeat(MOST_OVERHEAD + 1);
        assert!(decode(chunks.as_bytes(), 1000).is_err(), "over all chunks together");
    }
}
