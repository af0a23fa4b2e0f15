//! Admin commands for the process: reload, drain, quit and the log level. Access control is in `access`.
//!
//! ```text
//! POST /reload      reloads the configuration: {"status": "success", "needs_restart": []}, or 422 with "problems"
//! POST /drain       shuts down gracefully, like SIGTERM
//! POST /quit        shuts down immediately
//! GET  /log-level   {"level": "info"}
//! PUT  /log-level   {"level": "debug"}, until it is set again, log.level changes at a reload, or the gateway restarts
//! ```

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::level_filters::LevelFilter;
use tracing::warn;

use crate::admin::control::{ControlHandle, ReloadResult};
use crate::admin::routes::{AdminError, Call, CallResult};
use crate::config::options::OptionType;
use crate::observability::log::{self, label};

/// A reload may read many files, and a file system may hang forever.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for the response to reach the operator before the process exits.
const QUIT_DELAY: Duration = Duration::from_millis(100);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogLevelRequest {
    level: String,
}

/// Reloads the configuration, and waits until it is active or rejected.
pub async fn reload(control: &ControlHandle) -> CallResult {
    match timeout(RELOAD_TIMEOUT, control.reload("the admin listener")).await {
        Ok(Ok(ReloadResult::Applied { needs_restart })) => {
            Ok(json!({ "status": "success", "needs_restart": needs_restart }))
        }
        Ok(Ok(ReloadResult::Rejected(problems))) => {
            let lines: String = problems.iter().map(|problem| format!("\n  {problem}")).collect();
            let message = format!("the configuration is invalid; the previous one stays active:{lines}");
            let details = problems
                .iter()
                .map(|problem| json!({ "option": problem.subject, "message": problem.message }))
                .collect();
            let error = AdminError::new(StatusCode::UNPROCESSABLE_ENTITY, message);
            Err(AdminError { problems: Some(details), ..error })
        }
        Ok(Ok(ReloadResult::Unavailable(reason))) => Err(AdminError::unavailable(reason)),
        Ok(Err(_)) => Err(AdminError::unavailable("the gateway is shutting down")),
        Err(_) => Err(AdminError::unavailable("the reload is still in progress; see the log for its result")),
    }
}

/// Starts a graceful shutdown.
pub fn drain(control: &ControlHandle) -> Value {
    control.drain();
    json!({ "status": "success" })
}

/// Shuts down once the response has been sent.
pub fn quit(control: &ControlHandle) -> Value {
    let control = control.clone();
    tokio::task::spawn_local(async move {
        tokio::time::sleep(QUIT_DELAY).await;
        control.quit();
    });
    json!({ "status": "success" })
}

/// The minimum level of log lines.
pub fn log_level() -> CallResult {
    Ok(json!({ "level": log::level().ok_or_else(no_log)?.to_string() }))
}

/// Sets the minimum level of log lines.
pub fn set_log_level(call: &Call<'_>) -> CallResult {
    let level = parse_level(&call.body).ok_or_else(|| {
        AdminError::bad_request("the body must be {\"level\": …} with error, warn, info, debug or trace")
    })?;
    call.note(label!("old"), &log::level().ok_or_else(no_log)?);
    call.note(label!("new"), &level);
    log::set_level(level);
    // At a level that is always logged, so that the log shows why its level changes.
    warn!(new = %level, "log level changed by an operator");
    Ok(json!({ "level": level.to_string() }))
}

fn no_log() -> AdminError {
    AdminError::new(StatusCode::NOT_FOUND, "logging is off")
}

fn parse_level(body: &[u8]) -> Option<LevelFilter> {
    let LogLevelRequest { level } = serde_json::from_slice(body).ok()?;
    <LevelFilter as OptionType>::parse(&level).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_level_is_one_of_five_words() {
        assert_eq!(parse_level(br#"{"level": "debug"}"#), Some(LevelFilter::DEBUG));
        for wrong in ["", "{}", r#"{"level": "off"}"#, r#"{"level": "info", "for": "1h"}"#, r#""info""#] {
            assert_eq!(parse_level(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
