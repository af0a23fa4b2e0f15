//! Limits the rate of HTTP/2 control frames that cause work for the server but transfer no request, and passes the heads
//! of requests to [`HeadBlocks`].
//!
//! The protocol allows a client to send any number of them. Each one reduces a budget, which grows with time, with
//! requests and with the data that is sent to the client, so that normal clients never exhaust it.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::time::Instant;

use crate::downstream::head_block::{HeadBlocks, HeadFault};

/// Length of the connection preface (RFC 9113 section 3.4).
const PREFACE_LENGTH: usize = 24;

const HEADER_LENGTH: usize = 9;

/// Maximum length of a payload: the library ends the connection for a longer one.
const MAX_PAYLOAD: usize = 16 * 1024;

/// Control frames that the budget gains with each request.
const FRAMES_PER_REQUEST: u32 = 8;

/// What a reset costs. More than a request adds, because the backend works on requests whose streams were reset.
const FRAMES_PER_RESET: u32 = FRAMES_PER_REQUEST + 1;

/// Bytes sent to the client with which the budget gains one frame, such as the `WINDOW_UPDATE` that acknowledges them.
const BYTES_PER_FRAME: usize = 1024;

/// Maximum number of streams that are known to be malformed and have not begun.
const MAX_MALFORMED: usize = 1024;

/// The connection ends when it has sent this multiple of the frames that a head may have for heads that are not read.
const MAX_UNREAD_FACTOR: usize = 4;

/// An invalid frame, a `PING` without its 8 bytes, to which the HTTP/2 library responds with `GOAWAY` and a closed
/// connection.
pub const INVALID_PING: [u8; HEADER_LENGTH] = [0, 0, 0, 6, 0, 0, 0, 0, 0];

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
/// A type that no standard defines: the library ignores such frames.
const UNKNOWN: u8 = 0xff;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// `:method: GET`, `:scheme: https` and `:path: /`.
const ANY_REQUEST: [u8; 3] = [0x82, 0x87, 0x84];

/// Sets the size of the dynamic table to 0.
const EMPTY_TABLE: u8 = 0x20;

/// What the reader of a connection's frames and its streams tell each other.
#[derive(Debug, Default)]
pub struct FrameState {
    /// The `WINDOW_UPDATE` frames that normal clients send for the frames that they receive.
    credit: Cell<u32>,
    /// Streams whose head was changed.
    faults: RefCell<Vec<(u32, HeadFault)>>,
    /// The stream with whose head the compression state was lost.
    lost_with: Cell<Option<u32>>,
}

impl FrameState {
    /// Allows the client further control frames.
    pub fn add_credit(&self, frames: u32) {
        self.credit.set(self.credit.get().saturating_add(frames));
    }

    /// Returns what is wrong with the head of a stream, once. Streams begin in ascending order.
    pub fn take_fault(&self, stream: u32) -> Option<HeadFault> {
        let mut faults = self.faults.borrow_mut();
        let found = faults.iter().find(|(other, _)| *other == stream).map(|(_, fault)| *fault);
        faults.retain(|(other, _)| *other > stream);
        let is_unreadable = self.lost_with.get().is_some_and(|lost| stream > lost);
        found.or(is_unreadable.then_some(HeadFault::Unreadable))
    }

    /// Returns whether no further request of the connection can be read.
    pub fn is_lost(&self) -> bool {
        self.lost_with.get().is_some()
    }

    /// SECURITY: a malformed head of which nothing is known any more would be served with the bytes that were changed.
    fn is_full(&self) -> bool {
        self.faults.borrow().len() >= MAX_MALFORMED
    }
}

/// What [`FrameMeter::inspect`] has found behind the bytes that may be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing.
    Empty,
    /// A head or the header of a frame that lacks this number of bytes, with which it must be inspected again.
    Incomplete(usize),
    /// The budget is exhausted, or too many heads are malformed or endless. The bytes before are whole frames.
    Excess,
}

/// The header of a frame.
#[derive(Clone, Copy, Debug)]
struct FrameHeader {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl FrameHeader {
    /// The header at the start of `bytes`, or the number of bytes that it lacks.
    fn read(bytes: &[u8]) -> Result<FrameHeader, usize> {
        let Some(&[a, b, c, kind, flags, ref stream @ ..]) = bytes.first_chunk::<HEADER_LENGTH>() else {
            return Err(HEADER_LENGTH - bytes.len());
        };
        let stream = u32::from_be_bytes(*stream) & (u32::MAX >> 1);
        Ok(FrameHeader { length: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c), kind, flags, stream })
    }

    /// The part of a frame with this header that is a part of a head.
    fn block(&self, frame: &[u8]) -> Range<usize> {
        let has = |flag| self.kind == HEADERS && self.flags & flag != 0;
        let padding = if has(PADDED) { frame.get(HEADER_LENGTH).map_or(0, |length| usize::from(*length)) } else { 0 };
        let prefix = usize::from(has(PADDED)) + if has(PRIORITY) { 5 } else { 0 };
        let start = (HEADER_LENGTH + prefix).min(frame.len());
        start..frame.len().saturating_sub(padding).max(start)
    }

    /// Whether its stream depends on itself. The library resets such a stream without reading the head.
    fn depends_on_itself(&self, frame: &[u8]) -> bool {
        let at = HEADER_LENGTH + usize::from(self.flags & PADDED != 0);
        let dependency = frame.get(at..).and_then(|rest| rest.first_chunk()).map(|bytes| u32::from_be_bytes(*bytes));
        self.flags & PRIORITY != 0 && dependency.is_some_and(|other| other & (u32::MAX >> 1) == self.stream)
    }
}

/// Parses the frame headers of a client's data.
#[derive(Debug)]
pub struct FrameMeter {
    /// Bytes before the next frame header.
    skip: usize,
    budget: u32,
    max_budget: u32,
    /// Sent bytes that are too few for a frame.
    uncredited_bytes: usize,
    heads: HeadBlocks,
    /// Maximum number of frames of a head before the last one.
    max_head_frames: usize,
    /// Number of frames that belong to replaced heads.
    unread_frames: usize,
    refilled_at: Instant,
}

impl FrameMeter {
    /// A budget of `per_minute` control frames, for a library that limits heads to `max_head_size`.
    pub fn new(per_minute: u32, max_head_size: usize) -> FrameMeter {
        FrameMeter {
            skip: PREFACE_LENGTH,
            budget: per_minute,
            max_budget: per_minute,
            uncredited_bytes: 0,
            heads: HeadBlocks::new(max_head_size),
            // The library ends the connection for more.
            max_head_frames: 1 + (max_head_size / MAX_PAYLOAD * 5 / 4).max(5),
            unread_frames: 0,
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

    /// Inspects received data, and changes what is not allowed in heads. Returns the number of bytes that may be passed
    /// on, and what follows them.
    pub fn inspect(&mut self, bytes: &mut [u8], state: &FrameState) -> (usize, Rest) {
        self.credit(state.credit.take());
        let mut at = 0;
        while at < bytes.len() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len() - at);
                self.skip -= skipped;
                at += skipped;
                continue;
            }
            let is_endless = self.unread_frames > MAX_UNREAD_FACTOR * self.max_head_frames;
            if self.budget == 0 && !self.refill() || state.is_full() || is_endless {
                return (at, Rest::Excess);
            }
            match self.read_frame(&mut bytes[at..], state) {
                Ok(read) => at += read,
                Err(missing) => return (at, Rest::Incomplete(missing)),
            }
        }
        (at, Rest::Empty)
    }

    /// Reads a whole head, or the header of a frame. Returns its length, or the number of bytes that it lacks.
    fn read_frame(&mut self, bytes: &mut [u8], state: &FrameState) -> Result<usize, usize> {
        let header = FrameHeader::read(bytes)?;
        let read = match header.kind {
            HEADERS if header.length <= MAX_PAYLOAD => self.read_head(header, bytes, state)?,
            kind => {
                // The end of a head whose beginning was replaced.
                if kind == CONTINUATION && self.heads.is_lost() {
                    bytes[3] = UNKNOWN;
                    self.unread_frames += 1;
                }
                if kind == PUSH_PROMISE {
                    // An error of the connection (RFC 9113 section 8.4). With a stream, the library could only reset
                    // that, after it has read the head.
                    bytes[5..HEADER_LENGTH].fill(0);
                }
                self.skip = header.length;
                HEADER_LENGTH
            }
        };
        self.charge_frame(header);
        Ok(read)
    }

    fn read_head(&mut self, first: FrameHeader, bytes: &mut [u8], state: &FrameState) -> Result<usize, usize> {
        let mut length = self.head_length(bytes)?;
        if !self.heads.is_lost() {
            let mut fault = match length {
                Some(length) => self.filter_head(first, &mut bytes[..length]),
                None => {
                    self.heads.lose();
                    Some(HeadFault::TooLarge)
                }
            };
            if first.depends_on_itself(bytes) {
                self.heads.lose();
            }
            if self.heads.is_lost() {
                // SECURITY: also if its rest is not HPACK, as a different head is passed on.
                fault = fault.or(Some(HeadFault::Malformed));
                state.lost_with.set(Some(first.stream));
                length = None;
            }
            if let Some(fault) = fault {
                state.faults.borrow_mut().push((first.stream, fault));
            }
        }
        Ok(length.unwrap_or_else(|| replace_head(first, bytes)))
    }

    /// The length of the head at the start of `bytes`, with its CONTINUATION frames; `None` if only the first frame is
    /// needed. `Err`: the number of bytes that it lacks.
    fn head_length(&self, bytes: &[u8]) -> Result<Option<usize>, usize> {
        let mut length = 0;
        for frame in 0..=self.max_head_frames {
            let header = FrameHeader::read(&bytes[length..])?;
            // An error for which the library ends the connection.
            if frame > 0 && (header.kind != CONTINUATION || header.length > MAX_PAYLOAD) {
                return Ok(Some(length));
            }
            length += HEADER_LENGTH + header.length;
            if bytes.len() < length {
                return Err(length - bytes.len());
            }
            if self.heads.is_lost() {
                return Ok(None);
            }
            if header.flags & END_HEADERS != 0 {
                return Ok(Some(length));
            }
        }
        Ok(None)
    }

    fn filter_head(&mut self, first: FrameHeader, head: &mut [u8]) -> Option<HeadFault> {
        if first.flags & END_HEADERS != 0 {
            let block = first.block(head);
            return self.heads.filter(&mut head[block], 0);
        }
        let (mut ranges, mut at) = (Vec::new(), 0);
        while let Ok(header) = FrameHeader::read(&head[at..]) {
            let end = at + HEADER_LENGTH + header.length;
            let block = header.block(&head[at..end]);
            ranges.push(at + block.start..at + block.end);
            at = end;
        }
        let mut block: Vec<u8> = ranges.iter().flat_map(|range| &head[range.clone()]).copied().collect();
        let fault = self.heads.filter(&mut block, MAX_PAYLOAD);
        let mut rest = &block[..];
        for range in ranges {
            let (part, after) = rest.split_at(range.len());
            head[range].copy_from_slice(part);
            rest = after;
        }
        fault
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

    fn charge_frame(&mut self, header: FrameHeader) {
        /// The length of a frame that may consist of padding only.
        const MAX_PADDING: usize = 256;
        let FrameHeader { length, kind, flags, .. } = header;
        match kind {
            HEADERS => self.credit(FRAMES_PER_REQUEST),
            RST_STREAM => self.budget = self.budget.saturating_sub(FRAMES_PER_RESET),
            DATA if flags & PADDED != 0 && length <= MAX_PADDING => self.budget = self.budget.saturating_sub(1),
            DATA if length > 0 || flags & END_STREAM != 0 => {}
            // These are limited by the size of the head.
            CONTINUATION => {}
            _ => self.budget = self.budget.saturating_sub(1),
        }
    }
}

/// Replaces a head that cannot be read by one that is valid in any compression state, in its first frame. Returns the
/// length of the frame.
///
/// SECURITY: nothing of it is served, as the library may decode it differently than the client means.
fn replace_head(first: FrameHeader, bytes: &mut [u8]) -> usize {
    let frame = &mut bytes[..HEADER_LENGTH + first.length];
    frame[4] |= END_HEADERS;
    let block = first.block(frame);
    let block = &mut frame[block];
    block.fill(EMPTY_TABLE);
    if let Some(request) = block.last_chunk_mut() {
        *request = ANY_REQUEST;
    }
    frame.len()
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).expect("short");
        [&[0, 0, length, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// The boundary at which the budget is exhausted.
    fn inspect(meter: &mut FrameMeter, bytes: &[u8]) -> Option<usize> {
        let (at, rest) = meter.inspect(&mut bytes.to_vec(), &FrameState::default());
        (rest == Rest::Excess).then_some(at)
    }

    /// Inspects bytes that arrive in parts, as [`super::super::watched_io`] does. Returns those that are passed on.
    fn pass<'a>(meter: &mut FrameMeter, state: &FrameState, parts: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, Rest) {
        let (mut passed, mut held) = (Vec::new(), Vec::new());
        let mut rest = Rest::Empty;
        for part in parts {
            held.extend_from_slice(part);
            let passable;
            (passable, rest) = meter.inspect(&mut held, state);
            passed.extend(held.drain(..passable));
            if rest == Rest::Excess {
                break;
            }
        }
        (passed, rest)
    }

    fn meter(most: u32) -> FrameMeter {
        let mut meter = FrameMeter::new(most, 1 << 16);
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
        for part in 1..40 {
            let (passed, rest) = pass(&mut meter(10), &FrameState::default(), bytes.chunks(part));
            assert_eq!((passed.len(), rest), (10 * 17, Rest::Excess), "{part}");
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
            meter.inspect(&mut bytes, &state).1 == Rest::Excess
        });
        assert_eq!(ended, Some(MAX_MALFORMED + 1), "the connection ends before it is read");
        assert!((1..=MAX_MALFORMED).all(|stream| state.take_fault(number(stream)).is_some()));
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
                let (mut meter, state) = (meter(10), FrameState::default());
                let (first, second) = frames.split_at(at);
                let (passed, rest) = pass(&mut meter, &state, [first, second].into_iter());
                assert_eq!((passed.len(), rest), (frames.len(), Rest::Empty));
                let changed: Vec<_> = passed.iter().zip(&frames).filter(|(new, old)| new != old).collect();
                assert_eq!(changed, [(&b'x', &b'a'), (&b'x', &b'#'), (&b'x', &b'b')], "{passed:?}");
                assert_eq!((state.take_fault(0), state.take_fault(1)), (None, Some(HeadFault::Malformed)));
                assert_eq!(state.take_fault(1), None);
            }
        }
    }

    #[test]
    fn no_head_is_read_once_the_compression_state_is_lost() {
        let (mut meter, state) = (meter(100), FrameState::default());
        let too_long = [frame(1, 1, b"\x82abcdef"), frame(9, 0, b"x").repeat(20), frame(9, 4, b"y")].concat();
        let later = [frame(1, 8 | 4, b"\x01\x82\xbe\x84\x86p"), frame(0, 1, b"data")].concat();
        let (passed, rest) = pass(&mut meter, &state, [&too_long[..], &later].concat().chunks(7));
        let expected = [
            frame(1, 1 | 4, b"\x20\x20\x20\x20\x82\x87\x84"),
            frame(UNKNOWN, 0, b"x").repeat(20),
            frame(UNKNOWN, 4, b"y"),
            frame(1, 8 | 4, b"\x01\x20\x82\x87\x84p"),
            frame(0, 1, b"data"),
        ];
        assert_eq!((passed, rest), (expected.concat(), Rest::Empty));
        assert!(state.is_lost());
        assert_eq!(
            (state.take_fault(1), state.take_fault(3)),
            (Some(HeadFault::TooLarge), Some(HeadFault::Unreadable))
        );
    }

    #[test]
    fn a_lost_state_always_has_a_fault() {
        let depends_on_itself = frame(1, 4 | 0x20, b"\x80\0\0\x01\x05\x82\x87\x84");
        let padded = frame(1, 4 | 8 | 0x20, b"\0\0\0\0\x01\x05\x82\x87\x84");
        let without_name = frame(1, 4, b"\x82\x87\x84\0\0");
        let without_value = frame(1, 4, b"\x82\x87\x84\x40\x84\xff\xff\xff\xf3\x05a");
        for head in [depends_on_itself, padded, without_name, without_value] {
            let (mut meter, state) = (meter(100), FrameState::default());
            let (passed, _) = pass(&mut meter, &state, [&head[..]].into_iter());
            assert!(passed.len() == head.len() && passed.ends_with(&ANY_REQUEST), "{passed:?}");
            assert_eq!((state.is_lost(), state.take_fault(1)), (true, Some(HeadFault::Malformed)), "{head:?}");
        }
        let (mut meter, state) = (meter(100), FrameState::default());
        let (passed, _) = pass(&mut meter, &state, [&frame(1, 4 | 0x20, b"\0\0\0\x03\x05\x82")[..]].into_iter());
        assert_eq!((passed.len(), state.is_lost()), (15, false), "it depends on a different stream");
        let (passed, _) = pass(&mut meter, &state, [&frame(5, 4, b"\0\0\0\x02\x82")[..]].into_iter());
        assert_eq!(passed[..HEADER_LENGTH], [0, 0, 5, 5, 4, 0, 0, 0, 0], "an error of the connection");
    }

    /// Heads of literals and indexed fields that are valid HPACK, with anything in them.
    struct RandomHeads {
        seed: u64,
        /// Entries that the client has added to the dynamic table.
        entries: u8,
    }

    impl RandomHeads {
        fn below(&mut self, limit: usize) -> usize {
            self.seed ^= self.seed << 13;
            self.seed ^= self.seed >> 7;
            self.seed ^= self.seed << 17;
            usize::try_from(self.seed >> 16).expect("64 bits") % limit
        }

        fn string(&mut self, text: &[u8]) -> Vec<u8> {
            let is_coded = self.below(2) == 0;
            let bytes = if is_coded { crate::downstream::huffman::encode(text) } else { text.to_vec() };
            let length = u8::try_from(bytes.len()).expect("short");
            [&[length | u8::from(is_coded) << 7], &bytes[..]].concat()
        }

        fn field(&mut self) -> Vec<u8> {
            const NAMES: [&[u8]; 12] = [
                b"x",
                b"x-long-name",
                b"X",
                b"x\0",
                b"\xff",
                b"",
                b":path",
                b":method",
                b":scheme",
                b":authority",
                b":status",
                b":bad",
            ];
            const BYTES: [u8; 16] = *b"a/?0\"#>Z \0\n\x16\x7f\xc3\xa9\xff";
            if self.entries > 0 && self.below(4) == 0 {
                let entry = self.below(usize::from(self.entries).min(60));
                return vec![0xbe + u8::try_from(entry).expect("few")];
            }
            let first = [0, 0x10, 0x40][self.below(3)];
            self.entries += u8::from(first == 0x40);
            let name = match self.below(3) {
                0 => vec![first | u8::try_from(1 + self.below(14)).expect("few")],
                _ => {
                    let name = NAMES[self.below(NAMES.len())];
                    [vec![first], self.string(name)].concat()
                }
            };
            let value: Vec<_> = (0..self.below(7)).map(|_| BYTES[self.below(BYTES.len())]).collect();
            [name, self.string(&value)].concat()
        }

        /// A probe that enters the dynamic table first, heads, and a reference to the probe.
        fn heads(&mut self) -> Vec<Vec<u8>> {
            let good = |more: &[u8]| [&ANY_REQUEST[..], more].concat();
            let mut heads = vec![good(b"\x40\x07x-probe\x01p")];
            for _ in 0..self.below(6) {
                let fields = (0..1 + self.below(3)).flat_map(|_| self.field()).collect::<Vec<_>>();
                heads.push(good(&fields));
            }
            heads.push(good(&[0xbe + self.entries]));
            heads
        }
    }

    /// The library decides; it ends the connection for none of these, and its dynamic table is that of the client.
    #[test]
    fn no_content_of_a_head_ends_the_connection_or_changes_another_head() {
        const MAX_HEAD_SIZE: u32 = 1 << 16;
        let serve = async |seed: u64| {
            let heads = RandomHeads { seed: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), entries: 0 }.heads();
            let (mut meter, state) = (FrameMeter::new(1000, MAX_HEAD_SIZE as usize), FrameState::default());
            let mut bytes = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
            for (number, head) in (0_u8..).zip(&heads) {
                let mut frame = frame(HEADERS, END_HEADERS | END_STREAM, head);
                frame[8] = 2 * number + 1;
                bytes.extend(frame);
            }
            assert_eq!(meter.inspect(&mut bytes, &state), (bytes.len(), Rest::Empty));
            let (mut client, server) = tokio::io::duplex(1 << 20);
            tokio::io::AsyncWriteExt::write_all(&mut client, &bytes).await.expect("there is room");
            let mut library = h2::server::Builder::new();
            library.max_header_list_size(MAX_HEAD_SIZE);
            let mut connection = library.handshake::<_, bytes::Bytes>(server).await.expect("a preface");
            let mut served = Vec::new();
            // All of it has arrived.
            while let Poll::Ready(accepted) = poll_fn(|cx| Poll::Ready(connection.poll_accept(cx))).await {
                let accepted = accepted.expect("the client is connected");
                let (request, respond) = accepted.unwrap_or_else(|error| panic!("{seed}: {error}: {heads:?}"));
                served.push((respond.stream_id().as_u32(), request));
            }
            let last = 2 * u32::try_from(heads.len()).expect("few") - 1;
            let probe = served.iter().find(|(stream, _)| *stream == last).map(|(_, request)| request.headers());
            let is_served = probe.is_some_and(|headers| headers.get("x-probe").is_some_and(|value| value == "p"));
            assert!(is_served || state.is_lost(), "{seed}: {heads:?}");
            assert!(state.is_lost() == (state.take_fault(last) == Some(HeadFault::Unreadable)));
            !state.is_lost()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let kept = (1..2000).filter(|seed| runtime.block_on(serve(*seed))).count();
        assert!(kept > 500, "{kept}");
    }
}
