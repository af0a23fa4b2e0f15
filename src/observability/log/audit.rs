//! The audit log: who did what, in numbered lines. Each line goes to the log and to outputs of its own; a caller can
//! wait until these have accepted it.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::base::clock;
use crate::observability::log::line_writer::LineWriter;
use crate::observability::log::{FORMAT, LogFormat, LogRecord, WRITER, label};

/// How long a login waits for its line to be written.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(2);

/// Set by [`start`].
static OUTPUTS: OnceLock<Outputs> = OnceLock::new();

/// The number of the next line. A gap in an output means that it has lost lines.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

struct Outputs {
    writers: Vec<LineWriter>,
    is_required: bool,
}

/// Writes the remaining lines when dropped.
#[must_use = "without it the last lines are lost"]
pub struct AuditGuard(());

impl Drop for AuditGuard {
    fn drop(&mut self) {
        for writer in OUTPUTS.get().into_iter().flat_map(|outputs| &outputs.writers) {
            writer.close();
        }
    }
}

/// A line that an output has not accepted.
#[derive(Debug)]
pub struct AuditLineLost;

/// Adds the outputs, each with a thread of its own. `is_required`: [`write_audit_required`] waits for them.
pub fn start(outputs: Vec<Box<dyn Write + Send>>, is_required: bool) -> io::Result<AuditGuard> {
    let writers = outputs.into_iter().map(LineWriter::spawn).collect::<Result<_, _>>()?;
    let _ = OUTPUTS.set(Outputs { writers, is_required });
    Ok(AuditGuard(()))
}

/// Writes a line to the audit log, regardless of the level.
pub fn write_audit(fill: impl Fn(&mut LogRecord<'_>)) {
    write(fill, LineWriter::push);
}

/// Writes a line to the audit log. If it is required, waits until every output has accepted it.
///
/// SECURITY: an error means that there may be no line, so that the caller must not do what it describes.
pub async fn write_audit_required(fill: impl Fn(&mut LogRecord<'_>)) -> Result<(), AuditLineLost> {
    if !OUTPUTS.get().is_some_and(|outputs| outputs.is_required) {
        write_audit(fill);
        return Ok(());
    }
    let mut confirmations: Vec<oneshot::Receiver<()>> = Vec::new();
    write(fill, |writer, line| confirmations.push(writer.push_confirmed(line)));
    let all_confirmed = async {
        for confirmation in confirmations {
            confirmation.await.map_err(|_| AuditLineLost)?;
        }
        Ok(())
    };
    timeout(CONFIRMATION_TIMEOUT, all_confirmed).await.unwrap_or(Err(AuditLineLost))
}

fn write(fill: impl Fn(&mut LogRecord<'_>), mut push: impl FnMut(&LineWriter, &[u8])) {
    // A line is stamped with the time that its thread read last. Only workers read the clock for each request: the main
    // thread, which writes about admin commands and reloads, may have read it at its start.
    clock::now();
    let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
    let fill = |record: &mut LogRecord<'_>| {
        record.number(label!("sequence"), number);
        fill(record);
    };
    if let (Some(format), Some(writer)) = (FORMAT.get(), WRITER.get()) {
        LogRecord::write(*format, "audit", fill, |line| writer.push(line));
    }
    if let Some(Outputs { writers, .. }) = OUTPUTS.get().filter(|outputs| !outputs.writers.is_empty()) {
        LogRecord::write(LogFormat::Json, "audit", fill, |line| writers.iter().for_each(|writer| push(writer, line)));
    }
}

/// Number of lines that the outputs have lost.
pub fn lost_lines() -> usize {
    OUTPUTS.get().map_or(0, |outputs| outputs.writers.iter().map(LineWriter::dropped).sum())
}
