//! The log: its outputs, formats and levels. It decides nothing about a request, and knows nothing of the options that
//! configure it.
//!
//! Lines go through a bounded buffer to a writer thread, so that a terminal, pipe or disk that blocks never delays a
//! request. Lines that do not fit are dropped and counted.

mod audit;
mod audit_file;
mod line_writer;
mod record;

use std::any::Any;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};
use tracing::level_filters::LevelFilter;
use tracing::{error, warn};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::base::label_values::label_values;

pub use audit::{
    AuditGuard, AuditLineLost, lost_lines as lost_audit_lines, start as start_audit, write_audit, write_audit_required,
};
pub use audit_file::RotatingFile;
use line_writer::LineWriter;
pub(crate) use record::label;
pub use record::{Label, LogRecord, is_unsafe_to_print};

label_values! {
    /// Format of all log lines.
    LogFormat {
        /// Human-readable text.
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }
}

/// What [`init`] sets up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Minimum level of the gateway's own events.
    pub level: LevelFilter,
    /// Format of all lines.
    pub format: LogFormat,
    /// Whether the access log is written.
    pub access: bool,
}

/// The output, once the log is initialized.
static WRITER: OnceLock<LineWriter> = OnceLock::new();

/// The filter of events, and the level that it was set to.
static FILTER: OnceLock<(reload::Handle<Targets, Registry>, Mutex<LevelFilter>)> = OnceLock::new();

/// Format of the access log; unset if it is off.
static ACCESS_FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Format of all other lines.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// The number of dropped lines that was last logged.
static REPORTED_DROPS: AtomicUsize = AtomicUsize::new(0);

/// Writes the remaining lines when dropped.
#[must_use = "without it the last lines are lost"]
pub struct LogGuard(());

impl Drop for LogGuard {
    fn drop(&mut self) {
        if let Some(writer) = WRITER.get() {
            writer.wait_until_written();
            report_dropped_lines();
            writer.close();
        }
    }
}

/// Writes a line to the access log, if it is on.
pub fn write_access(fill: impl FnOnce(&mut LogRecord<'_>)) {
    if let (Some(format), Some(writer)) = (ACCESS_FORMAT.get(), WRITER.get()) {
        LogRecord::write(*format, "access", fill, |line| writer.push(line));
    }
}

/// Writes a line about a statement, with the target `query`.
pub fn write_query(fill: impl FnOnce(&mut LogRecord<'_>)) {
    if let (Some(format), Some(writer)) = (FORMAT.get(), WRITER.get()) {
        LogRecord::write(*format, "query", fill, |line| writer.push(line));
    }
}

/// Number of lines of all outputs dropped since the log was initialized.
pub fn dropped_lines() -> usize {
    WRITER.get().map_or(0, LineWriter::dropped) + lost_audit_lines()
}

/// Logs the number of dropped lines if it has grown since the last call. Called periodically.
pub fn report_dropped_lines() {
    let total = dropped_lines();
    if REPORTED_DROPS.load(Ordering::Relaxed) != total {
        warn!(total, "log lines lost: an output did not keep up, or its disk is full");
        // This line may have been dropped as well.
        if dropped_lines() == total {
            REPORTED_DROPS.store(total, Ordering::Relaxed);
        }
    }
}

/// Sends the log of this process to standard error. This includes panics: the default panic hook would block on the
/// output.
///
/// Libraries log from `warn` only: at lower levels hyper, h2 and rustls print what they parse, which includes
/// credentials.
pub fn init(options: LogOptions) -> anyhow::Result<LogGuard> {
    enlarge_pipe(std::io::stderr().as_fd());
    let writer = LineWriter::spawn(std::io::stderr())?;
    let (filter, handle) = reload::Layer::new(filter(options.level));
    let layer = tracing_subscriber::fmt::layer().with_writer(writer.clone());
    let layer = match options.format {
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).boxed(),
        LogFormat::Text => layer.with_ansi(is_color_enabled(&std::io::stderr())).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()?;
    let _ = FILTER.set((handle, Mutex::new(options.level)));
    let _ = WRITER.set(writer);
    let _ = FORMAT.set(options.format);
    if options.access {
        let _ = ACCESS_FORMAT.set(options.format);
    }
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        error!(at, what = panic_message(panic.payload()), "panic; please report it");
    }));
    Ok(LogGuard(()))
}

/// Capacity of a pipe that receives the log. The pipes of one user may hold 64 MiB together, and many gateways may run
/// as the same user.
const PIPE_CAPACITY: usize = 256 * 1024;

/// Enlarges a pipe to hold the lines of a busy gateway. The default of 64 KiB would split each batch into pieces, each
/// of which the reader must consume before the next is written. A failure is ignored: a smaller pipe works too.
fn enlarge_pipe(output: impl AsFd + Copy) {
    if fcntl_getpipe_size(output).is_ok_and(|size| size < PIPE_CAPACITY) {
        let _ = fcntl_setpipe_size(output, PIPE_CAPACITY);
    }
}

/// True for a terminal, unless `NO_COLOR` is set (no-color.org).
pub fn is_color_enabled(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// SECURITY: the level that an operator sets never applies to libraries; see [`init`]. `h2` warns of what a client
/// sends, such as each PING acknowledgement for which there was no PING: metrics count what ends a connection.
fn filter(level: LevelFilter) -> Targets {
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("h2", level.min(LevelFilter::ERROR))
        .with_target(env!("CARGO_CRATE_NAME"), level)
}

/// Current minimum level; `None` before [`init`].
pub fn level() -> Option<LevelFilter> {
    FILTER.get().map(|(_, level)| *level.lock())
}

/// Changes the minimum level. Does nothing before [`init`].
pub fn set_level(level: LevelFilter) {
    let Some((handle, current)) = FILTER.get() else { return };
    let mut current = current.lock();
    if handle.reload(filter(level)).is_ok() {
        *current = level;
    }
}

/// SECURITY: a formatted message may quote the data being processed, as those of `str` slicing do. Only a message that
/// is a literal in the source code is shown.
fn panic_message(payload: &(dyn Any + Send)) -> &'static str {
    payload.downcast_ref::<&'static str>().copied().unwrap_or("(message hidden, it may contain data)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_message_shows_no_data() {
        let message = |panic: fn()| {
            let payload = std::panic::catch_unwind(panic).expect_err("it panics");
            panic_message(&*payload)
        };
        const HIDDEN: &str = "(message hidden, it may contain data)";
        assert_eq!(message(|| panic!("why it holds")), "why it holds");
        assert_eq!(message(|| panic!("wrong password: {}", "hunter2".to_owned())), HIDDEN);
        assert_eq!(message(|| drop("hunter2é"[..8].to_owned())), HIDDEN);
    }
}
