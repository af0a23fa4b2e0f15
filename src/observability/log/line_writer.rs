//! Lines on their way to standard error: gathered in memory and written by one thread, many at a time.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tracing_subscriber::fmt::MakeWriter;

/// Most bytes that wait to be taken.
const MAX_BUFFERED_BYTES: usize = 4 * 1024 * 1024;

/// So much memory is kept for lines to come: growing it anew for each batch would cost as much as filling it.
const RETAINED_CAPACITY: usize = 1024 * 1024;

/// Lines that come within so short a time are written together. A system call for each would cost more than all else
/// about a line.
const BATCH_INTERVAL: Duration = Duration::from_millis(10);

/// How long the end of the process waits for somebody to take the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The lines that wait. Clones are the same queue.
#[derive(Clone)]
pub struct LineWriter(Arc<WriterState>);

struct WriterState {
    queue: Mutex<LineQueue>,
    /// There is something to write, or nothing will come any more.
    work_available: Condvar,
    /// All was written.
    all_written: Condvar,
}

#[derive(Default)]
struct LineQueue {
    buffer: Vec<u8>,
    is_writing: bool,
    is_closing: bool,
    dropped: usize,
}

impl LineWriter {
    /// Starts the thread that writes to `output`.
    pub fn spawn(output: impl Write + Send + 'static) -> io::Result<LineWriter> {
        let (came, drained) = (Condvar::new(), Condvar::new());
        let lines = LineWriter(Arc::new(WriterState {
            queue: Mutex::default(),
            work_available: came,
            all_written: drained,
        }));
        let shared = Arc::clone(&lines.0);
        thread::Builder::new().name("log".into()).spawn(move || shared.run(output))?;
        Ok(lines)
    }

    /// Adds lines, or counts them as dropped if too much waits already. Never waits for the output.
    pub fn push(&self, line: &[u8]) {
        let mut queue = self.0.queue.lock();
        if queue.buffer.len() + line.len() > MAX_BUFFERED_BYTES {
            queue.dropped += 1;
            return;
        }
        let was_empty = queue.buffer.is_empty();
        queue.buffer.extend_from_slice(line);
        drop(queue);
        if was_empty {
            self.0.work_available.notify_one();
        }
    }

    /// Lines that nobody took in time.
    pub fn dropped(&self) -> usize {
        self.0.queue.lock().dropped
    }

    /// Waits until all is written, but not for ever.
    pub fn wait_until_written(&self) {
        self.wait(self.0.queue.lock());
    }

    /// The same, and writes nothing that comes later.
    pub fn close(&self) {
        let mut queue = self.0.queue.lock();
        queue.is_closing = true;
        self.0.work_available.notify_one();
        self.wait(queue);
    }

    fn wait(&self, mut queue: MutexGuard<'_, LineQueue>) {
        let unfinished = |queue: &mut LineQueue| queue.is_writing || !queue.buffer.is_empty();
        self.0.all_written.wait_while_for(&mut queue, unfinished, FLUSH_TIMEOUT);
    }
}

impl WriterState {
    fn run(&self, mut output: impl Write) {
        let mut writing = Vec::new();
        let mut is_inside = false;
        loop {
            let nothing = |queue: &mut LineQueue| queue.buffer.is_empty() && !queue.is_closing;
            let mut queue = self.queue.lock();
            self.work_available.wait_while(&mut queue, nothing);
            let is_closing = queue.is_closing;
            drop(queue);
            if !is_closing {
                thread::sleep(BATCH_INTERVAL);
            }
            let mut queue = self.queue.lock();
            std::mem::swap(&mut queue.buffer, &mut writing);
            queue.is_writing = true;
            drop(queue);
            // An output that is gone, or a full disk, takes nothing.
            let lost = write_batch(&mut output, &writing, &mut is_inside);
            writing.clear();
            writing.shrink_to(RETAINED_CAPACITY);
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

/// Writes, and tells how many lines did not get through whole. `is_inside`: what was written before ended inside a line,
/// which is ended first, so that it spoils no other one.
fn write_batch(output: &mut impl Write, lines: &[u8], is_inside: &mut bool) -> usize {
    if *is_inside {
        *is_inside = write_while_accepted(output, b"\n") == 0;
    }
    let written = if *is_inside { 0 } else { write_while_accepted(output, lines) };
    let (through, lost) = lines.split_at(written);
    *is_inside |= through.last().is_some_and(|last| *last != b'\n');
    memchr::memchr_iter(b'\n', lost).count()
}

/// Writes until the output takes no more, and tells how many bytes it took.
fn write_while_accepted(output: &mut impl Write, bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while !rest.is_empty() {
        match output.write(rest) {
            Ok(count @ 1..) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Whoever shares the output has it not wait: so this does.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(BATCH_INTERVAL),
            Ok(_) | Err(_) => break,
        }
    }
    let _ = output.flush();
    bytes.len() - rest.len()
}

impl Write for LineWriter {
    /// A whole line.
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

    /// Takes a batch each time the test lets it.
    struct BlockingOutput(Receiver<()>, Sender<Vec<u8>>);

    impl Write for BlockingOutput {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_in_order_and_together_and_nobody_waits() {
        let ((go, gate), (out, written)) = (channel(), channel());
        let lines = LineWriter::spawn(BlockingOutput(gate, out)).expect("a thread");
        lines.push(b"one\n");
        lines.push(b"two\n");
        go.send(()).expect("it waits");
        assert_eq!(written.recv().expect("written"), b"one\ntwo\n");
        let mut large = vec![b'x'; MAX_BUFFERED_BYTES];
        large[MAX_BUFFERED_BYTES - 1] = b'\n';
        lines.push(&large);
        lines.push(b"too many\n");
        assert_eq!(lines.dropped(), 1);
        go.send(()).expect("it waits");
        assert_eq!(written.recv().expect("written").len(), MAX_BUFFERED_BYTES);
        lines.push(b"room again\n");
        drop(go);
        lines.close();
        assert_eq!(written.recv().expect("written"), b"room again\n");
    }

    #[test]
    fn lines_that_a_full_disk_does_not_take_are_counted() {
        /// Has room for so many bytes, and what it took.
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
        let mut is_inside = false;
        assert_eq!(write_batch(&mut FullDisk(100, Vec::new()), b"one\ntwo\n", &mut is_inside), 0);
        assert!(!is_inside);
        let mut disk = FullDisk(6, Vec::new());
        assert_eq!(
            write_batch(&mut disk, b"one\ntwo\nthree\n", &mut is_inside),
            2,
            "half a line is lost too"
        );
        assert_eq!(write_batch(&mut disk, b"four\n", &mut is_inside), 1);
        assert!(is_inside);
        disk.0 = 100;
        assert_eq!(write_batch(&mut disk, b"five\nsix\n", &mut is_inside), 0);
        assert!(!is_inside);
        assert_eq!(disk.1, b"one\ntw\nfive\nsix\n", "half a line spoils no other one");
    }

    #[test]
    fn an_output_that_takes_nothing_does_not_keep_the_process() {
        let ((_go, gate), (out, _written)) = (channel(), channel());
        let lines = LineWriter::spawn(BlockingOutput(gate, out)).expect("a thread");
        lines.push(b"lost\n");
        lines.close();
    }
}
