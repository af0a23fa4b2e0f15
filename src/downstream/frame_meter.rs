//! Limits the rate of HTTP/2 control frames that cause work for the server but transfer no request.
//!
//! The protocol allows a client to send any number of them. Each one reduces a budget, which grows with time, with
//! requests and with the data that is sent to the client, so that normal clients never exhaust it.

use std::time::Instant;

/// Length of the connection preface (RFC 9113 section 3.4).
const PREFACE_LENGTH: usize = 24;

const HEADER_LENGTH: usize = 9;

/// Control frames that the budget gains with each request.
const FRAMES_PER_REQUEST: u32 = 8;

/// What a reset costs. More than a request adds, because the backend works on requests whose streams were reset.
const FRAMES_PER_RESET: u32 = FRAMES_PER_REQUEST + 1;

/// Bytes sent to the client with which the budget gains one frame, such as the `WINDOW_UPDATE` that acknowledges them.
const BYTES_PER_FRAME: usize = 1024;

/// An invalid frame, a `PING` without its 8 bytes, to which the HTTP/2 library responds with `GOAWAY` and a closed
/// connection.
pub const INVALID_PING: [u8; HEADER_LENGTH] = [0, 0, 0, 6, 0, 0, 0, 0, 0];

/// Parses the frame headers of a client's data.
#[derive(Debug)]
pub struct FrameMeter {
    /// Bytes before the next frame header.
    skip: usize,
    header: [u8; HEADER_LENGTH],
    header_read: usize,
    budget: u32,
    max_budget: u32,
    /// Sent bytes that are too few for a frame.
    uncredited_bytes: usize,
    refilled_at: Instant,
}

impl FrameMeter {
    /// A budget of `per_minute` control frames.
    pub fn new(per_minute: u32) -> FrameMeter {
        FrameMeter {
            skip: PREFACE_LENGTH,
            header: [0; HEADER_LENGTH],
            header_read: 0,
            budget: per_minute,
            max_budget: per_minute,
            uncredited_bytes: 0,
            refilled_at: Instant::now(),
        }
    }

    /// Increases the budget for data sent to the client.
    pub fn credit_sent_bytes(&mut self, bytes: usize) {
        let uncredited = self.uncredited_bytes + bytes;
        self.uncredited_bytes = uncredited % BYTES_PER_FRAME;
        self.credit(u32::try_from(uncredited / BYTES_PER_FRAME).unwrap_or(u32::MAX));
    }

    /// Increases the budget.
    pub fn credit(&mut self, frames: u32) {
        self.budget = self.budget.saturating_add(frames).min(self.max_budget);
    }

    /// Inspects received data. `Some(offset)`: the budget is exhausted, and `offset` is a boundary between two frames.
    pub fn inspect(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len() - at);
                self.skip -= skipped;
                at += skipped;
                continue;
            }
            if self.header_read == 0 && self.budget == 0 && !self.refill() {
                return Some(at);
            }
            let taken = (HEADER_LENGTH - self.header_read).min(bytes.len() - at);
            self.header[self.header_read..self.header_read + taken].copy_from_slice(&bytes[at..at + taken]);
            self.header_read += taken;
            at += taken;
            if self.header_read == HEADER_LENGTH {
                self.header_read = 0;
                self.charge_frame();
            }
        }
        None
    }

    /// Increases the budget by the elapsed time. Returns whether it grew.
    fn refill(&mut self) -> bool {
        let passed = self.refilled_at.elapsed().as_millis() * u128::from(self.max_budget) / 60_000;
        if passed > 0 {
            self.refilled_at = Instant::now();
            self.credit(u32::try_from(passed).unwrap_or(u32::MAX));
        }
        passed > 0
    }

    fn charge_frame(&mut self) {
        const DATA: u8 = 0;
        const HEADERS: u8 = 1;
        const RST_STREAM: u8 = 3;
        const CONTINUATION: u8 = 9;
        const END_STREAM: u8 = 1;
        const PADDED: u8 = 8;
        const MAX_PADDING: usize = 256;
        let [a, b, c, kind, flags, ..] = self.header;
        self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        match kind {
            HEADERS => self.credit(FRAMES_PER_REQUEST),
            RST_STREAM => self.budget = self.budget.saturating_sub(FRAMES_PER_RESET),
            // A frame that may consist of padding only.
            DATA if flags & PADDED != 0 && self.skip <= MAX_PADDING => {
                self.budget = self.budget.saturating_sub(1);
            }
            DATA if self.skip > 0 || flags & END_STREAM != 0 => {}
            // The HTTP/2 library limits these by the size of the head.
            CONTINUATION => {}
            _ => self.budget = self.budget.saturating_sub(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).expect("short");
        [&[0, 0, length, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn meter(most: u32) -> FrameMeter {
        let mut meter = FrameMeter::new(most);
        assert_eq!(meter.inspect(&[b'x'; PREFACE_LENGTH]), None);
        meter
    }

    #[test]
    fn control_frames_are_limited() {
        for idle in
            [frame(6, 0, &[0; 8]), frame(4, 0, &[]), frame(2, 0, &[0; 5]), frame(0, 0, &[]), frame(0, 8, &[3, 0, 0, 0])]
        {
            let mut meter = meter(10);
            for _ in 0..10 {
                assert_eq!(meter.inspect(&idle), None);
            }
            assert_eq!(meter.inspect(&idle), Some(0), "{idle:?}");
        }
    }

    #[test]
    fn the_offset_is_a_frame_boundary_for_any_split_of_the_data() {
        let bytes = frame(6, 0, &[0; 8]).repeat(12);
        let mut meter = meter(10);
        assert_eq!(meter.inspect(&bytes), Some(10 * 17));
        for part in 1..40 {
            let mut meter = super::tests::meter(10);
            let mut before = 0;
            let end = bytes.chunks(part).find_map(|chunk| {
                let end = meter.inspect(chunk).map(|at| before + at);
                before += chunk.len();
                end
            });
            assert_eq!(end, Some(10 * 17), "{part}");
        }
    }

    #[test]
    fn small_writes_earn_as_little_as_their_bytes() {
        let mut meter = meter(10);
        let allowed = (0..1000).take_while(|_| {
            meter.credit_sent_bytes(10);
            meter.inspect(&frame(8, 0, &[0; 4])).is_none()
        });
        assert!(allowed.count() < 20);
    }

    #[test]
    fn a_request_does_not_pay_for_its_reset() {
        let mut meter = meter(100);
        let opened_and_reset = [frame(1, 4, &[0; 20]), frame(3, 0, &[0; 4])].concat();
        let ended = (0..1000).position(|_| meter.inspect(&opened_and_reset).is_some());
        assert!(ended.is_some_and(|count| (50..150).contains(&count)), "{ended:?}");
    }

    #[test]
    fn requests_and_responses_increase_the_budget() {
        let mut meter = meter(10);
        for _ in 0..100 {
            for _ in 0..8 {
                assert_eq!(meter.inspect(&frame(6, 0, &[0; 8])), None);
            }
            assert_eq!(meter.inspect(&frame(1, 4, &[0; 20])), None);
        }
        for _ in 0..100 {
            meter.credit_sent_bytes(5000);
            for _ in 0..4 {
                assert_eq!(meter.inspect(&frame(8, 0, &[0; 4])), None);
            }
            assert_eq!(meter.inspect(&frame(0, 0, b"data")), None);
            assert_eq!(meter.inspect(&frame(0, 1, b"")), None);
        }
    }
}
