//! Follows the frames that the HTTP/2 library sends, for what it does not report: requests that it rejects on its own,
//! streams that it resets because of the client's errors, and the end of the connection.

use h2::Reason;

const HEADER_LENGTH: usize = 9;

/// The longest start of a payload that is read: that of GOAWAY, with the newest stream and the error code.
const MAX_PAYLOAD: usize = 8;

/// Maximum number of streams that the gateway resets itself and that are remembered until it does.
const MAX_OWN_RESETS: usize = 128;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;

/// Why the library has rejected a request that the gateway has not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LibraryRejection {
    /// Its head is not valid.
    Malformed,
    /// Its head is too large; the client has received 431.
    TooLarge,
    /// Too many streams are open.
    Refused,
}

/// What the frames of one connection have shown.
#[derive(Debug, Default)]
pub struct SentFrames {
    /// The header of a frame, and the start of its payload if that is read.
    start: [u8; HEADER_LENGTH + MAX_PAYLOAD],
    start_read: usize,
    /// Bytes before the next frame.
    skip: usize,
    /// The newest stream whose request the gateway has received.
    newest_request: u32,
    /// The newest streams that the gateway resets itself, which are no errors that the library found.
    own_resets: Vec<u32>,
    rejected: Vec<(u32, LibraryRejection)>,
    client_errors: usize,
    has_error: bool,
}

impl SentFrames {
    /// Records that the gateway has received the request of a stream. Streams begin in ascending order, and the library
    /// rejects a request before the gateway receives a newer one, unless the client does not read.
    pub fn record_request(&mut self, stream: u32) {
        self.newest_request = stream;
        // A stream may be reset before its request is received.
        self.rejected.retain(|(other, _)| *other != stream);
    }

    /// Records that the gateway is about to reset a stream, if the client does not leave first.
    pub fn record_own_reset(&mut self, stream: u32) {
        self.own_resets.truncate(MAX_OWN_RESETS - 1);
        self.own_resets.insert(0, stream);
    }

    /// Takes the rejections since the last call.
    pub fn take_rejected(&mut self) -> Vec<(u32, LibraryRejection)> {
        std::mem::take(&mut self.rejected)
    }

    /// Number of streams that were reset because of the client's errors.
    pub fn client_errors(&self) -> usize {
        self.client_errors
    }

    /// Returns whether the connection was closed because of an error or a limit.
    pub fn has_error(&self) -> bool {
        self.has_error
    }

    /// Reads the next bytes that are sent.
    pub fn inspect(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let wanted = self.start_length() - self.start_read;
            let (part, rest) = bytes.split_at(wanted.min(bytes.len()));
            self.start[self.start_read..self.start_read + part.len()].copy_from_slice(part);
            self.start_read += part.len();
            bytes = rest;
            if self.start_read == self.start_length() {
                self.read_start();
            }
        }
    }

    /// Number of bytes of the current frame that are read.
    fn start_length(&self) -> usize {
        match self.start[3] {
            _ if self.start_read < HEADER_LENGTH => HEADER_LENGTH,
            RST_STREAM => HEADER_LENGTH + 4,
            GOAWAY => HEADER_LENGTH + 8,
            _ => HEADER_LENGTH,
        }
    }

    fn read_start(&mut self) {
        let number = |at: usize| u32::from_be_bytes(*self.start[at..].first_chunk().expect("four bytes"));
        let (length, kind) = (number(0) >> 8, self.start[3]);
        let stream = number(5);
        match kind {
            HEADERS => self.reject(stream, LibraryRejection::TooLarge),
            RST_STREAM => self.record_reset(stream, number(HEADER_LENGTH).into()),
            GOAWAY => self.has_error |= number(HEADER_LENGTH + 4) != u32::from(Reason::NO_ERROR),
            _ => {}
        }
        self.skip = length as usize - (self.start_read - HEADER_LENGTH);
        self.start_read = 0;
    }

    fn record_reset(&mut self, stream: u32, code: Reason) {
        if let Some(at) = self.own_resets.iter().position(|own| *own == stream) {
            self.own_resets.remove(at);
            return;
        }
        match code {
            Reason::REFUSED_STREAM => self.reject(stream, LibraryRejection::Refused),
            // Follows the response.
            _ if self.rejected.iter().any(|(other, _)| *other == stream) => {}
            Reason::PROTOCOL_ERROR | Reason::FLOW_CONTROL_ERROR | Reason::STREAM_CLOSED => {
                self.client_errors += 1;
                self.reject(stream, LibraryRejection::Malformed);
            }
            _ => {}
        }
    }

    /// Records a rejection, unless the gateway has received the request.
    fn reject(&mut self, stream: u32, rejection: LibraryRejection) {
        if stream > self.newest_request {
            self.rejected.push((stream, rejection));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).expect("short");
        [&[0, 0, length, kind, 0, 0, 0, 0, stream], payload].concat()
    }

    fn reset(stream: u8, code: Reason) -> Vec<u8> {
        frame(RST_STREAM, stream, &u32::from(code).to_be_bytes())
    }

    #[test]
    fn rejections_are_found_in_any_segmentation() {
        use LibraryRejection::{Malformed, Refused, TooLarge};
        let bytes = [
            frame(4, 0, &[0; 12]),
            // The response and the reset of requests that the gateway has received.
            frame(HEADERS, 1, &[RST_STREAM; 30]),
            frame(0, 1, &[RST_STREAM; 40]),
            reset(3, Reason::PROTOCOL_ERROR),
            reset(5, Reason::PROTOCOL_ERROR),
            frame(HEADERS, 7, &[0; 3]),
            frame(HEADERS, 9, &[0; 3]),
            reset(7, Reason::PROTOCOL_ERROR),
            reset(11, Reason::REFUSED_STREAM),
            reset(13, Reason::CANCEL),
            frame(GOAWAY, 0, &[0; 8]),
        ]
        .concat();
        for part in 1..bytes.len() {
            let mut sent = SentFrames::default();
            sent.record_request(1);
            sent.record_request(3);
            bytes.chunks(part).for_each(|part| sent.inspect(part));
            assert_eq!(sent.take_rejected(), [(5, Malformed), (7, TooLarge), (9, TooLarge), (11, Refused)], "{part}");
            assert_eq!((sent.client_errors(), sent.has_error()), (2, false), "{part}");
            sent.inspect(&frame(GOAWAY, 0, &[0, 0, 0, 1, 0, 0, 0, 11]));
            assert!(sent.has_error() && sent.take_rejected().is_empty());
        }
    }

    #[test]
    fn a_request_that_is_received_after_its_reset_is_not_rejected() {
        let mut sent = SentFrames::default();
        sent.inspect(&[reset(1, Reason::PROTOCOL_ERROR), reset(3, Reason::PROTOCOL_ERROR)].concat());
        sent.record_request(1);
        assert_eq!(sent.take_rejected(), [(3, LibraryRejection::Malformed)]);
    }

    #[test]
    fn streams_that_the_gateway_resets_are_no_errors_of_the_client() {
        let mut sent = SentFrames::default();
        for stream in (1..=199).step_by(2) {
            sent.record_request(stream.into());
            sent.record_own_reset(stream.into());
            sent.inspect(&reset(stream, Reason::PROTOCOL_ERROR));
        }
        assert_eq!((sent.client_errors(), sent.take_rejected().len()), (0, 0));
    }
}
