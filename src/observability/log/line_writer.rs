//! Buffers log lines in memory and writes them to the output from one thread, many lines at a time. It knows nothing of
//! what a line contains.
//!
//! `tracing-appender` is not used: it bounds the number of lines instead of their bytes, allocates for each line and
//! writes each with a call of its own. Nor does it count lines that the output rejects or accepts in part.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;
use tracing_subscriber::fmt::MakeWriter;

/// Maximum size of the buffer.
const MAX_BUFFERED_BYTES: usize = 4 * 1024 * 1024;

/// Capacity that the buffer keeps between batches: growing it again for each batch would cost as much as filling it.
const RETAINED_CAPACITY: usize = 1024 * 1024;

/// Delay before a batch is written, so that it contains more lines. One system call per line would cost more than
/// everything else about the line.
const BATCH_INTERVAL: Duration = Duration::from_millis(10);

/// How long [`LineWriter::close`] and [`LineWriter::wait_until_written`] wait for an output that blocks.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// A handle to the buffer and its thread. Clones share them.
#[derive(Clone)]
pub struct LineWriter(Arc<WriterState>);

struct WriterState {
    queue: Mutex<LineQueue>,
    /// Signalled when the buffer is no longer empty, and on close.
    work_available: Condvar,
    /// Signalled when everything has been written.
    all_written: Condvar,
}

#[derive(Default)]
struct LineQueue {
    buffer: Vec<u8>,
    is_writing: bool,
    is_closing: bool,
    dropped: usize,
    /// Receive a value once the buffer has been written without loss.
    confirmations: Vec<oneshot::Sender<()>>,
}

impl LineWriter {
    /// Starts the thread that writes to `output`.
    pub fn spawn(output: impl Write + Send + 'static) -> io::Result<LineWriter> {
        let (work_available, all_written) = (Condvar::new(), Condvar::new());
        let writer = LineWriter(Arc::new(WriterState { queue: Mutex::default(), work_available, all_written }));
        let state = Arc::clone(&writer.0);
        thread::Builder::new().name("log".into()).spawn(move || state.run(output))?;
        Ok(writer)
    }

    /// Appends one line to the buffer, or counts it as dropped if the buffer is full. Never waits for the output.
    pub fn push(&self, line: &[u8]) {
        self.push_with(line, None);
    }

    /// Like [`LineWriter::push`]. The receiver gets a value when the output has accepted the line, and an error if it has
    /// not, or has lost a line that was written together with it.
    pub fn push_confirmed(&self, line: &[u8]) -> oneshot::Receiver<()> {
        let (confirmation, receiver) = oneshot::channel();
        self.push_with(line, Some(confirmation));
        receiver
    }

    fn push_with(&self, line: &[u8], confirmation: Option<oneshot::Sender<()>>) {
        let mut queue = self.0.queue.lock();
        if queue.buffer.len() + line.len() > MAX_BUFFERED_BYTES {
            queue.dropped += 1;
            return;
        }
        let was_empty = queue.buffer.is_empty();
        queue.buffer.extend_from_slice(line);
        queue.confirmations.extend(confirmation);
        drop(queue);
        if was_empty {
            self.0.work_available.notify_one();
        }
    }

    /// Number of lines that did not fit into the buffer, or that the output did not accept whole.
    pub fn dropped(&self) -> usize {
        self.0.queue.lock().dropped
    }

    /// Waits until the buffer is written, or for [`FLUSH_TIMEOUT`].
    pub fn wait_until_written(&self) {
        self.wait_for_writer(self.0.queue.lock());
    }

    /// Ends the thread once the buffer is written, and waits for that as [`LineWriter::wait_until_written`] does. Lines
    /// that are pushed later are not written.
    pub fn close(&self) {
        let mut queue = self.0.queue.lock();
        queue.is_closing = true;
        self.0.work_available.notify_one();
        self.wait_for_writer(queue);
    }

    fn wait_for_writer(&self, mut queue: MutexGuard<'_, LineQueue>) {
        let unfinished = |queue: &mut LineQueue| queue.is_writing || !queue.buffer.is_empty();
        self.0.all_written.wait_while_for(&mut queue, unfinished, FLUSH_TIMEOUT);
    }
}

impl WriterState {
    fn run(&self, mut output: impl Write) {
        let mut batch = Vec::new();
        let mut is_inside_line = false;
        loop {
            let is_idle = |queue: &mut LineQueue| queue.buffer.is_empty() && !queue.is_closing;
            let mut queue = self.queue.lock();
            self.work_available.wait_while(&mut queue, is_idle);
            let is_closing = queue.is_closing;
            drop(queue);
            if !is_closing {
                thread::sleep(BATCH_INTERVAL);
            }
            let mut queue = self.queue.lock();
            std::mem::swap(&mut queue.buffer, &mut batch);
            queue.is_writing = true;
            let confirmations = std::mem::take(&mut queue.confirmations);
            drop(queue);
            // A closed output or a full disk accepts nothing.
            let lost = write_batch(&mut output, &batch, &mut is_inside_line);
            if lost == 0 {
                for confirmation in confirmations {
                    let _ = confirmation.send(());
                }
            }
            batch.clear();
            batch.shrink_to(RETAINED_CAPACITY);
            let mut queue = self.queue.lock();
            queue.is_writing = false;
            queue.dropped += lost;
            if queue.buffer.is_empty() {
                self.all_written.notify_all();
                if queue.is_closing {
                    return;
                }
            }
        }
    }
}

/// Writes `lines` and returns the number of lines that were not written whole. `is_inside_line` is set if the output
/// ends within a line; that line is terminated before the next batch, so that it corrupts no other line.
fn write_batch(output: &mut impl Write, lines: &[u8], is_inside_line: &mut bool) -> usize {
    if *is_inside_line {
        *is_inside_line = write_while_accepted(output, b"\n") == 0;
    }
    let written = if *is_inside_line { 0 } else { write_while_accepted(output, lines) };
    let (accepted, lost) = lines.split_at(written);
    *is_inside_line |= accepted.last().is_some_and(|last| *last != b'\n');
    memchr::memchr_iter(b'\n', lost).count()
}

/// Writes until the output fails or accepts nothing, and returns the number of bytes written.
fn write_while_accepted(output: &mut impl Write, bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while !rest.is_empty() {
        match output.write(rest) {
            Ok(count @ 1..) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A process that shares the file description made it non-blocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(BATCH_INTERVAL),
            Ok(_) | Err(_) => break,
        }
    }
    // What a disk has not stored is lost.
    if output.flush().is_ok() { bytes.len() - rest.len() } else { 0 }
}

impl Write for LineWriter {
    /// Expects one whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LineWriter {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Reports each write, and then blocks until the test sends a unit.
    struct BlockingOutput(Receiver<()>, Sender<Vec<u8>>);

    impl Write for BlockingOutput {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.1.send(bytes.to_vec());
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_written_in_order_and_in_batches_without_blocking_the_sender() {
        let ((go, gate), (out, written)) = (channel(), channel());
        let lines = LineWriter::spawn(BlockingOutput(gate, out)).expect("a thread");
        lines.push(b"first\n");
        assert_eq!(written.recv().expect("written"), b"first\n");
        // The output blocks now, so these wait.
        let mut large = vec![b'x'; MAX_BUFFERED_BYTES - b"one\ntwo\n".len()];
        *large.last_mut().expect("not empty") = b'\n';
        for line in [&b"one\n"[..], b"two\n", &large, b"too many\n"] {
            lines.push(line);
        }
        assert_eq!(lines.dropped(), 1);
        go.send(()).expect("it waits");
        let batch = written.recv().expect("written");
        assert!(batch.starts_with(b"one\ntwo\nx") && batch.len() == MAX_BUFFERED_BYTES);
        lines.push(b"fits again\n");
        drop(go);
        lines.close();
        assert_eq!(written.recv().expect("written"), b"fits again\n");
    }

    #[test]
    fn lines_that_a_full_disk_rejects_are_counted() {
        /// Free bytes, and what was written.
        struct FullDisk(usize, Vec<u8>);
        impl Write for FullDisk {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let taken = bytes.len().min(self.0);
                self.0 -= taken;
                self.1.extend_from_slice(&bytes[..taken]);
                if taken > 0 { Ok(taken) } else { Err(io::ErrorKind::StorageFull.into()) }
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut is_inside_line = false;
        assert_eq!(write_batch(&mut FullDisk(100, Vec::new()), b"one\ntwo\n", &mut is_inside_line), 0);
        assert!(!is_inside_line);
        let mut disk = FullDisk(6, Vec::new());
        let lost = write_batch(&mut disk, b"one\ntwo\nthree\n", &mut is_inside_line);
        assert_eq!(lost, 2, "a partly written line is lost too");
        assert_eq!(write_batch(&mut disk, b"four\n", &mut is_inside_line), 1);
        assert!(is_inside_line);
        disk.0 = 100;
        assert_eq!(write_batch(&mut disk, b"five\nsix\n", &mut is_inside_line), 0);
        assert!(!is_inside_line);
        assert_eq!(disk.1, b"one\ntw\nfive\nsix\n", "a partly written line corrupts no other line");
    }

    #[test]
    fn close_does_not_wait_forever_for_a_blocked_output() {
        let ((_go, gate), (out, _written)) = (channel(), channel());
        let lines = LineWriter::spawn(BlockingOutput(gate, out)).expect("a thread");
        lines.push(b"lost\n");
        lines.close();
    }
}
