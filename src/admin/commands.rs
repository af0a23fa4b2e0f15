//! What operators on this machine order the process to do.
//!
//! ```text
//! POST /reload      reads the configuration again: {"status": "success", "needs_restart": []}, or 422 with all "problems"
//! POST /drain       ends in good order, as SIGTERM does
//! POST /quit        ends at once
//! GET  /log-level   {"level": "info"}
//! PUT  /log-level   {"level": "debug"}, until it is set again, reloaded with another log.level, or started anew
//! ```

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::level_filters::LevelFilter;
use tracing::warn;

use crate::admin::api::AdminError;
use crate::admin::control::{ControlHandle, ReloadResult};
use crate::observability::log;

/// Reading everything may take its time; a file system that hangs may take for ever.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(30);

/// So long the answer has to reach who has ordered the end.
const QUIT_DELAY: Duration = Duration::from_millis(100);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogLevelRequest {
    level: String,
}

/// Has the configuration read again, and waits until it is in force or refused.
pub async fn reload(control: &ControlHandle) -> Result<Value, AdminCommandError> {
    let reloaded = timeout(RELOAD_TIMEOUT, control.reload("the admin listener")).await;
    match reloaded {
        Ok(Ok(ReloadResult::Applied { needs_restart })) => {
            Ok(json!({ "status": "success", "needs_restart": needs_restart }))
        }
        Ok(Ok(ReloadResult::Rejected(problems))) => {
            let lines: String = problems.iter().map(|problem| format!("\n  {problem}")).collect();
            let each: Vec<_> = problems
                .iter()
                .map(|problem| json!({ "option": problem.subject, "message": problem.message }))
                .collect();
            let told = format!("the configuration cannot be used, and the one before stays in force:{lines}");
            let body = json!({ "status": "error", "data": told, "problems": each });
            Err(AdminCommandError::Document(StatusCode::UNPROCESSABLE_ENTITY, body))
        }
        Ok(Ok(ReloadResult::Unavailable(why))) => {
            Err(AdminCommandError::Message((StatusCode::SERVICE_UNAVAILABLE, why.to_owned())))
        }
        Ok(Err(_)) => Err(unavailable("the gateway is about to end")),
        Err(_) => Err(unavailable("it is still being read; the log will tell what becomes of it")),
    }
}

fn unavailable(why: &str) -> AdminCommandError {
    AdminCommandError::Message((StatusCode::SERVICE_UNAVAILABLE, why.to_owned()))
}

/// What an order that was not carried out is answered.
pub enum AdminCommandError {
    /// A sentence.
    Message(AdminError),
    /// More than that.
    Document(StatusCode, Value),
}

impl From<AdminError> for AdminCommandError {
    fn from(refusal: AdminError) -> AdminCommandError {
        AdminCommandError::Message(refusal)
    }
}

/// Ends the gateway in good order.
pub fn drain(control: &ControlHandle) -> Value {
    control.drain();
    json!({ "status": "success" })
}

/// Ends the gateway as soon as who has ordered it was answered.
pub fn quit(control: &ControlHandle) -> Value {
    let control = control.clone();
    tokio::task::spawn_local(async move {
        tokio::time::sleep(QUIT_DELAY).await;
        control.quit();
    });
    json!({ "status": "success" })
}

/// The least level of what is logged.
pub fn log_level() -> Result<Value, AdminError> {
    let level = log::level().ok_or((StatusCode::NOT_FOUND, "there is no log".to_owned()))?;
    Ok(json!({ "level": level.to_string() }))
}

/// Logs from another level on.
pub fn set_log_level(body: &[u8]) -> Result<Value, AdminError> {
    let level = parse_level(body).ok_or((
        StatusCode::BAD_REQUEST,
        "the body is {\"level\": …}, which is one of error, warn, info, debug and trace".to_owned(),
    ))?;
    if log::level().is_none() {
        return Err((StatusCode::NOT_FOUND, "there is no log".to_owned()));
    }
    log::set_level(level);
    // At a level that is always logged, so that the log tells why it changes from here on.
    warn!(level = %level, "the log has another level, as an operator wants it");
    Ok(json!({ "level": level.to_string() }))
}

fn parse_level(body: &[u8]) -> Option<LevelFilter> {
    let LogLevelRequest { level } = serde_json::from_slice(body).ok()?;
    match level.as_str() {
        "error" => Some(LevelFilter::ERROR),
        "warn" => Some(LevelFilter::WARN),
        "info" => Some(LevelFilter::INFO),
        "debug" => Some(LevelFilter::DEBUG),
        "trace" => Some(LevelFilter::TRACE),
        _ => None,
    }
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
