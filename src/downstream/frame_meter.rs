//! Limits the rate of HTTP/2 control frames that cause work for the server but transfer no request, and passes the heads
//! of requests to [`HeadBlocks`].
//!
//! The protocol allows a client to send any number of them. Each one reduces a budget, which grows with time, with
//! requests and with the data that is sent to the client, so that normal clients never exhaust it.

use std::cell::{Cell, RefCell};
use std::time::Instant;

use crate::downstream::head_block::HeadBlocks;

/// Length of the connection preface (RFC 9113 section 3.4).
const PREFACE_LENGTH: usize = 24;

const HEADER_LENGTH: usize = 9;

/// Control frames that the budget gains with each request.
const FRAMES_PER_REQUEST: u32 = 8;

/// What a reset costs. More than a request adds, because the backend works on requests whose streams were reset.
const FRAMES_PER_RESET: u32 = FRAMES_PER_REQUEST + 1;

/// Bytes sent to the client with which the budget gains one frame, such as the `WINDOW_UPDATE` that acknowledges them.
const BYTES_PER_FRAME: usize = 1024;

/// Maximum number of streams that are known to be malformed and have not begun.
const MAX_MALFORMED: usize = 1024;

/// An invalid frame, a `PING` without its 8 bytes, to which the HTTP/2 library responds with `GOAWAY` and a closed
/// connection.
pub const INVALID_PING: [u8; HEADER_LENGTH] = [0, 0, 0, 6, 0, 0, 0, 0, 0];

/// What the reader of a connection's frames and its streams tell each other.
#[derive(Debug, Default)]
pub struct FrameState {
    /// The `WINDOW_UPDATE` frames that normal clients send for the frames that they receive.
    credit: Cell<u32>,
    /// Streams whose head has a byte that is not allowed.
    malformed: RefCell<Vec<u32>>,
}

impl FrameState {
    /// Allows the client further control frames.
    pub fn add_credit(&self, frames: u32) {
        self.credit.set(self.credit.get().saturating_add(frames));
    }

    /// Returns whether the head of a stream has a byte that is not allowed. Streams begin in ascending order.
    pub fn take_malformed(&self, stream: u32) -> bool {
        let mut malformed = self.malformed.borrow_mut();
        let found = malformed.contains(&stream);
        malformed.retain(|other| *other > stream);
        found
    }

    /// SECURITY: a malformed head of which nothing is known any more would be served with the bytes that were changed.
    fn is_full(&self) -> bool {
        self.malformed.borrow().len() >= MAX_MALFORMED
    }
}

/// The payload of a frame with a part of a head.
#[derive(Clone, Copy, Debug)]
struct HeadFrame {
    /// The first byte is the length of the padding.
    is_padding_unknown: bool,
    padding: usize,
    /// Bytes before the block: the priority.
    prefix: usize,
    stream: u32,
    is_last: bool,
}

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
    heads: HeadBlocks,
    head_frame: Option<HeadFrame>,
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
            heads: HeadBlocks::default(),
            head_frame: None,
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

    /// Inspects received data, and changes bytes of heads that are not allowed. `Some(offset)`: the budget is exhausted,
    /// or too many heads are malformed, and `offset` is a boundary between two frames.
    pub fn inspect(&mut self, bytes: &mut [u8], state: &FrameState) -> Option<usize> {
        self.credit(state.credit.take());
        let mut at = 0;
        while at < bytes.len() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len() - at);
                self.read_payload(&mut bytes[at..at + skipped]);
                self.skip -= skipped;
                at += skipped;
                if self.skip == 0 {
                    self.end_frame(state);
                }
                continue;
            }
            if self.header_read == 0 && (self.budget == 0 && !self.refill() || state.is_full()) {
                return Some(at);
            }
            let taken = (HEADER_LENGTH - self.header_read).min(bytes.len() - at);
            self.header[self.header_read..self.header_read + taken].copy_from_slice(&bytes[at..at + taken]);
            self.header_read += taken;
            at += taken;
            if self.header_read == HEADER_LENGTH {
                self.header_read = 0;
                self.charge_frame();
                if self.skip == 0 {
                    self.end_frame(state);
                }
            }
        }
        None
    }

    /// Reads the next bytes of a payload, of which `skip` are left with these.
    fn read_payload(&mut self, bytes: &mut [u8]) {
        let Some(frame) = &mut self.head_frame else { return };
        let mut start = 0;
        if std::mem::take(&mut frame.is_padding_unknown) {
            (frame.padding, start) = (usize::from(bytes[0]), 1);
        }
        let prefix = frame.prefix.min(bytes.len() - start);
        frame.prefix -= prefix;
        start += prefix;
        let end = self.skip.saturating_sub(frame.padding).min(bytes.len());
        if start < end {
            self.heads.filter(&mut bytes[start..end]);
        }
    }

    /// The last frame of a head may be empty.
    fn end_frame(&mut self, state: &FrameState) {
        if let Some(frame) = self.head_frame.take()
            && frame.is_last
            && self.heads.is_malformed()
        {
            state.malformed.borrow_mut().push(frame.stream);
        }
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
        const END_HEADERS: u8 = 4;
        const PRIORITY: u8 = 0x20;
        const PRIORITY_LENGTH: usize = 5;
        let [a, b, c, kind, flags, stream @ ..] = self.header;
        self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.head_frame = matches!(kind, HEADERS | CONTINUATION).then(|| HeadFrame {
            is_padding_unknown: kind == HEADERS && flags & PADDED != 0,
            padding: 0,
            prefix: if kind == HEADERS && flags & PRIORITY != 0 { PRIORITY_LENGTH } else { 0 },
            stream: u32::from_be_bytes(stream) & (u32::MAX >> 1),
            is_last: flags & END_HEADERS != 0,
        });
        match kind {
            HEADERS => {
                self.heads.begin();
                self.credit(FRAMES_PER_REQUEST);
            }
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

    fn inspect(meter: &mut FrameMeter, bytes: &[u8]) -> Option<usize> {
        meter.inspect(&mut bytes.to_vec(), &FrameState::default())
    }

    fn meter(most: u32) -> FrameMeter {
        let mut meter = FrameMeter::new(most);
        assert_eq!(inspect(&mut meter, &[b'x'; PREFACE_LENGTH]), None);
        meter
    }

    #[test]
    fn control_frames_are_limited() {
        for idle in
            [frame(6, 0, &[0; 8]), frame(4, 0, &[]), frame(2, 0, &[0; 5]), frame(0, 0, &[]), frame(0, 8, &[3, 0, 0, 0])]
        {
            let mut meter = meter(10);
            for _ in 0..10 {
                assert_eq!(inspect(&mut meter, &idle), None);
            }
            assert_eq!(inspect(&mut meter, &idle), Some(0), "{idle:?}");
        }
    }

    #[test]
    fn the_offset_is_a_frame_boundary_for_any_split_of_the_data() {
        let bytes = frame(6, 0, &[0; 8]).repeat(12);
        let mut meter = meter(10);
        assert_eq!(inspect(&mut meter, &bytes), Some(10 * 17));
        for part in 1..40 {
            let mut meter = super::tests::meter(10);
            let mut before = 0;
            let end = bytes.chunks(part).find_map(|chunk| {
                let end = inspect(&mut meter, chunk).map(|at| before + at);
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
            inspect(&mut meter, &frame(8, 0, &[0; 4])).is_none()
        });
        assert!(allowed.count() < 20);
    }

    #[test]
    fn a_request_does_not_pay_for_its_reset() {
        let mut meter = meter(100);
        let opened_and_reset = [frame(1, 4, &[0; 20]), frame(3, 0, &[0; 4])].concat();
        let ended = (0..1000).position(|_| inspect(&mut meter, &opened_and_reset).is_some());
        assert!(ended.is_some_and(|count| (50..150).contains(&count)), "{ended:?}");
    }

    #[test]
    fn requests_and_responses_increase_the_budget() {
        let mut meter = meter(10);
        for _ in 0..100 {
            for _ in 0..8 {
                assert_eq!(inspect(&mut meter, &frame(6, 0, &[0; 8])), None);
            }
            assert_eq!(inspect(&mut meter, &frame(1, 4, &[0; 20])), None);
        }
        for _ in 0..100 {
            meter.credit_sent_bytes(5000);
            for _ in 0..4 {
                assert_eq!(inspect(&mut meter, &frame(8, 0, &[0; 4])), None);
            }
            assert_eq!(inspect(&mut meter, &frame(0, 0, b"data")), None);
            assert_eq!(inspect(&mut meter, &frame(0, 1, b"")), None);
        }
    }

    #[test]
    fn no_malformed_head_is_forgotten() {
        let (mut meter, state) = (meter(10), FrameState::default());
        let number = |number: usize| u32::try_from(number).expect("few");
        let ended = (1..2 * MAX_MALFORMED).find(|stream| {
            let mut bytes = frame(1, 4, b"\x04\x04/a#b");
            bytes[5..HEADER_LENGTH].copy_from_slice(&number(*stream).to_be_bytes());
            meter.inspect(&mut bytes, &state).is_some()
        });
        assert_eq!(ended, Some(MAX_MALFORMED + 1), "the connection ends before it is read");
        assert!((1..=MAX_MALFORMED).all(|stream| state.take_malformed(number(stream))));
    }

    #[test]
    fn heads_are_filtered_whatever_their_frames() {
        const BLOCK: &[u8] = b"\x04\x04/a#b";
        let (padded, priority) = ([&[3], BLOCK, &[b'#'; 3]].concat(), [&[b'#'; 5], BLOCK].concat());
        for frames in [
            frame(1, 4, BLOCK),
            frame(1, 4 | 8, &padded),
            frame(1, 4 | 0x20, &priority),
            [frame(1, 0, &BLOCK[..4]), frame(9, 4, &BLOCK[4..])].concat(),
            [frame(1, 0, BLOCK), frame(9, 4, &[])].concat(),
        ] {
            for at in 0..frames.len() {
                let (mut meter, state, mut bytes) = (meter(10), FrameState::default(), frames.clone());
                let (first, second) = bytes.split_at_mut(at);
                assert_eq!((meter.inspect(first, &state), meter.inspect(second, &state)), (None, None));
                let changed: Vec<_> = (0..bytes.len()).filter(|index| bytes[*index] != frames[*index]).collect();
                assert!(changed.len() == 1 && bytes[changed[0]] == b'>', "{bytes:?}");
                assert!(!state.take_malformed(0) && state.take_malformed(1) && !state.take_malformed(1));
            }
        }
    }
}
