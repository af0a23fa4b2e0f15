//! The log: where its lines go and what they look like.
//!
//! Lines are handed to a writer thread over a bounded queue, so that a terminal, pipe or disk that does not take
//! them never holds up a request; what does not fit is dropped.

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

use crate::base::clock;

use line_writer::LineWriter;
pub(crate) use record::label;
pub use record::{Label, LogRecord};

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For a person at a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Least level of the gateway's own events.
    pub level: LevelFilter,
    /// Form of a line.
    pub format: LogFormat,
    /// Whether each request writes its line.
    pub access: bool,
}

/// Where lines go.
static WRITER: OnceLock<LineWriter> = OnceLock::new();

/// What is logged, and from which level on.
static FILTER: OnceLock<(reload::Handle<Targets, Registry>, Mutex<LevelFilter>)> = OnceLock::new();

/// The form of the line that each request writes, if it does.
static ACCESS_FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// The form of all lines.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// How many dropped lines the log has been told of.
static REPORTED_DROPS: AtomicUsize = AtomicUsize::new(0);

/// Dropped, it waits for what is queued to be written.
#[must_use = "the last lines are lost without it"]
pub struct LogGuard(());

impl Drop for LogGuard {
    fn drop(&mut self) {
        if let Some(lines) = WRITER.get() {
            lines.wait_until_written();
            report_dropped_lines();
            lines.close();
        }
    }
}

/// Writes the line of a request, if such lines are wanted.
pub fn write_access(fill: impl FnOnce(&mut LogRecord<'_>)) {
    if let (Some(format), Some(lines)) = (ACCESS_FORMAT.get(), WRITER.get()) {
        LogRecord::write(*format, "access", fill, |line| lines.push(line));
    }
}

/// Writes a line about a decision that somebody may be asked about later, whatever is logged besides.
pub fn write_audit(fill: impl FnOnce(&mut LogRecord<'_>)) {
    if let (Some(format), Some(lines)) = (FORMAT.get(), WRITER.get()) {
        // A line is stamped with the time that its thread read last. Only workers read the clock for each request: the
        // main thread, which writes of admin commands and reloads, may have read it at its start.
        clock::now();
        LogRecord::write(*format, "audit", fill, |line| lines.push(line));
    }
}

/// Lines that nobody took in time since the log was set up.
pub fn dropped_lines() -> usize {
    WRITER.get().map_or(0, LineWriter::dropped)
}

/// Says in the log how many lines are missing from it, if more are than it said last. Called now and then.
pub fn report_dropped_lines() {
    let total = dropped_lines();
    if REPORTED_DROPS.load(Ordering::Relaxed) != total {
        warn!(total, "log lines were dropped, as nobody took them in time");
        // This line may have been dropped like the others.
        if dropped_lines() == total {
            REPORTED_DROPS.store(total, Ordering::Relaxed);
        }
    }
}

/// Sends the process's log to standard error, panics included: the usual way to tell of them waits for the terminal.
///
/// Libraries speak from `warn` upwards only: at lower levels hyper, h2 and rustls print what they parse, and that
/// holds credentials.
pub fn init(options: LogOptions) -> anyhow::Result<LogGuard> {
    enlarge_pipe(std::io::stderr().as_fd());
    let lines = LineWriter::spawn(std::io::stderr())?;
    let (filter, handle) = reload::Layer::new(filter(options.level));
    let layer = tracing_subscriber::fmt::layer().with_writer(lines.clone());
    let layer = match options.format {
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).boxed(),
        LogFormat::Text => layer.with_ansi(is_color_enabled(&std::io::stderr())).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()?;
    let _ = FILTER.set((handle, Mutex::new(options.level)));
    let _ = WRITER.set(lines);
    let _ = FORMAT.set(options.format);
    if options.access {
        let _ = ACCESS_FORMAT.set(options.format);
    }
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        error!(at, what = panic_message(panic.payload()), "panicked; please report it");
    }));
    Ok(LogGuard(()))
}

/// What a pipe that takes the log is to hold. All pipes of a user may hold 64 MiB, and many gateways run as the same one.
const PIPE_CAPACITY: usize = 256 * 1024;

/// Has a pipe hold enough for a busy gateway's lines, which otherwise go out in pieces of 64 KiB, each of which the reader has to
/// take before the next. Where that may not be, the pipe does as it is.
fn enlarge_pipe(output: impl AsFd + Copy) {
    if fcntl_getpipe_size(output).is_ok_and(|size| size < PIPE_CAPACITY) {
        let _ = fcntl_setpipe_size(output, PIPE_CAPACITY);
    }
}

/// Whether what is written there may have colours: at a terminal, unless its user has said otherwise (no-color.org).
pub fn is_color_enabled(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// SECURITY: the level that the operator chooses never reaches the libraries; see [`init`].
fn filter(level: LevelFilter) -> Targets {
    Targets::new().with_default(level.min(LevelFilter::WARN)).with_target(env!("CARGO_CRATE_NAME"), level)
}

/// The least level of what is logged now; `None` where there is no log.
pub fn level() -> Option<LevelFilter> {
    FILTER.get().map(|(_, level)| *level.lock())
}

/// Logs from this level on, until another is set.
pub fn set_level(level: LevelFilter) {
    let Some((handle, now)) = FILTER.get() else { return };
    let mut now = now.lock();
    if handle.reload(filter(level)).is_ok() {
        *now = level;
    }
}

/// SECURITY: a message that was put together may quote what was being read, as those of `str`'s slices do. One that stands
/// in the source as it is tells nothing but itself.
fn panic_message(payload: &(dyn Any + Send)) -> &'static str {
    payload.downcast_ref::<&'static str>().copied().unwrap_or("(a message that is not shown)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_shows_no_data() {
        let said = |panic: fn()| {
            let payload = std::panic::catch_unwind(panic).expect_err("it panics");
            panic_message(&*payload)
        };
        assert_eq!(said(|| panic!("why it holds")), "why it holds");
        assert_eq!(
            said(|| panic!("wrong password: {}", "hunter2".to_owned())),
            "(a message that is not shown)"
        );
        assert_eq!(said(|| drop("hunter2é"[..8].to_owned())), "(a message that is not shown)");
    }
}
