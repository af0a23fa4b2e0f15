//! The log: where its lines go and what they look like.
//!
//! Lines are handed to a writer thread over a bounded queue, so that a terminal, pipe or disk that does not take
//! them never holds up a request; what does not fit is dropped.

use std::any::Any;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::level_filters::LevelFilter;
use tracing::{error, warn};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// Target of the one line that each request writes.
pub const ACCESS: &str = "access";

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
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
    pub format: Format,
    /// Whether each request writes its line.
    pub access: bool,
}

/// Most lines that wait for the log's reader: with the longest access lines some 10 MiB.
const MOST_WAITING: usize = 8192;

/// Counts lines that found the queue full.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// How many of them the log has been told of.
static TOLD: AtomicUsize = AtomicUsize::new(0);

/// Keeps the writer thread alive; dropping it flushes what is queued.
#[must_use = "the log ends when this is dropped"]
pub struct LogGuard(#[allow(dead_code, reason = "held for its Drop")] WorkerGuard);

impl Drop for LogGuard {
    fn drop(&mut self) {
        tell_dropped_lines();
    }
}

/// Lines that nobody took in time since the log was set up.
pub fn dropped_lines() -> usize {
    DROPPED.get().map_or(0, ErrorCounter::dropped_lines)
}

/// Says in the log how many lines are missing from it, if more are than it said last. Called now and then.
pub fn tell_dropped_lines() {
    let total = dropped_lines();
    if TOLD.swap(total, Ordering::Relaxed) != total {
        warn!(total, "log lines were dropped, as nobody took them in time");
    }
}

/// Sends the process's log to standard error, panics included: the usual way to tell of them waits for the terminal.
///
/// Libraries speak from `warn` upwards only: at lower levels hyper, h2 and rustls print what they parse, and that
/// holds credentials.
pub fn init(options: LogOptions) -> Result<LogGuard, TryInitError> {
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(MOST_WAITING)
        .lossy(true)
        .finish(std::io::stderr());
    let _ = DROPPED.set(writer.error_counter());
    let access = if options.access { LevelFilter::INFO } else { LevelFilter::OFF };
    // SECURITY: the level that the operator chooses never reaches the libraries; see above.
    let filter = Targets::new()
        .with_default(options.level.min(LevelFilter::WARN))
        .with_target(env!("CARGO_CRATE_NAME"), options.level)
        .with_target(ACCESS, access);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let layer = match options.format {
        Format::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
        Format::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()?;
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        error!(at, what = what_a_panic_says(panic.payload()), "panicked; please report it");
    }));
    Ok(LogGuard(guard))
}

/// SECURITY: a message that was put together may quote what was being read, as those of `str`'s slices do. One that stands
/// in the source as it is tells nothing but itself.
fn what_a_panic_says(payload: &(dyn Any + Send)) -> &'static str {
    payload.downcast_ref::<&'static str>().copied().unwrap_or("(a message that is not shown)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_shows_no_data() {
        let said = |panic: fn()| {
            let payload = std::panic::catch_unwind(panic).expect_err("it panics");
            what_a_panic_says(&*payload)
        };
        assert_eq!(said(|| panic!("why it holds")), "why it holds");
        assert_eq!(
            said(|| panic!("wrong password: {}", "hunter2".to_owned())),
            "(a message that is not shown)"
        );
        assert_eq!(said(|| drop("hunter2é"[..8].to_owned())), "(a message that is not shown)");
    }
}
