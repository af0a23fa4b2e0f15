//! What an operator should look at, for the banner of the dashboard. It only reads what the rest of the process publishes,
//! and changes nothing.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::admin::AdminContext;
use crate::admin::control::ReloadResult;
use crate::admin::dashboard::backend_attention;
use crate::admin::dashboard::history::TrafficHistory;
use crate::admin::dashboard::overview::phase;
use crate::config::{Config, VerifierOptions};
use crate::gateway::rejection::Rejection;
use crate::observability::log;
use crate::observability::metrics::Metrics;
use crate::store::ActiveStop;
use crate::tls::{CertificateFault, CertificateStatus};

/// Rejections of wrong credentials.
const FAILED_LOGINS: [Rejection; 4] =
    [Rejection::CredentialsWrong, Rejection::ApiKeyUnknown, Rejection::BearerInvalid, Rejection::JwtInvalid("")];

/// This number of failed logins in five minutes needs attention.
const MANY_FAILED_LOGINS: u64 = 10;

/// How long a rare event is shown.
const EVENT_DURATION: Duration = Duration::from_secs(15 * 60);

/// Requests that have been queued for this time need attention.
const LONG_QUEUE: Duration = Duration::from_secs(20);

/// The severity of a problem that clients notice.
const BAD: &str = "bad";

/// A problem that an operator should look at.
pub struct AttentionItem {
    severity: &'static str,
    pub(super) message: String,
    remedy: String,
    /// The section of the page with details.
    section: Option<&'static str>,
}

/// Rare events of the last minutes, and how long requests have been queued.
#[derive(Debug, Default)]
pub struct RecentEvents {
    evicted: RecentIncrease,
    dropped_lines: RecentIncrease,
    lost_audit_lines: RecentIncrease,
    refused_connections: RecentIncrease,
    queued: u64,
    queued_since: Option<Instant>,
}

/// A counter that increases rarely.
#[derive(Debug, Default)]
struct RecentIncrease {
    last: u64,
    /// The value before the increases that are shown, and the time of the last one.
    shown: Option<(u64, Instant)>,
}

impl RecentIncrease {
    fn add(&mut self, total: u64) {
        let is_over = self.shown.is_some_and(|(_, at)| at.elapsed() > EVENT_DURATION);
        if total > self.last {
            let before = self.shown.filter(|_| !is_over).map_or(self.last, |(before, _)| before);
            self.shown = Some((before, Instant::now()));
        } else if is_over {
            self.shown = None;
        }
        self.last = total;
    }

    fn count(&self) -> Option<u64> {
        self.shown.map(|(before, _)| self.last - before)
    }
}

impl RecentEvents {
    /// Adds a sample of the counters.
    pub fn add(&mut self, metrics: &Metrics) {
        self.evicted.add(metrics.tokens_evicted.get());
        let lost = log::lost_audit_lines();
        self.dropped_lines.add((log::dropped_lines() - lost) as u64);
        self.lost_audit_lines.add(lost as u64);
        self.refused_connections.add(metrics.refused_connections());
        self.queued = u64::try_from(metrics.requests_queued.get()).unwrap_or_default();
        self.queued_since = (self.queued > 0).then(|| self.queued_since.unwrap_or_else(Instant::now));
    }

    fn items(&self) -> Vec<AttentionItem> {
        let mut items = Vec::new();
        if let Some(count) = self.refused_connections.count() {
            items.push(AttentionItem::bad(
                format!("{count} client connections were refused"),
                "Clients cannot connect: `limits.connections` or the number of open files (`ulimit -n`) is reached. \
                 `limits.connections_per_address` keeps one address from that.",
                None,
            ));
        }
        if let Some(count) = self.lost_audit_lines.count() {
            items.push(AttentionItem::bad(
                format!("{count} lines of the audit log are lost"),
                "Check the disk of `audit.file` and the server of `audit.syslog`.",
                None,
            ));
        }
        if let Some(count) = self.dropped_lines.count() {
            items.push(AttentionItem::warn(
                format!("{count} log lines were dropped"),
                "The output of the log does not keep up: a full disk or a stopped reader.",
                None,
            ));
        }
        if let Some(count) = self.evicted.count() {
            items.push(AttentionItem::warn(
                format!("{count} live tokens were evicted"),
                "`tokens.max` or `tokens.max_per_user` is reached; their users must log in again.",
                Some("tokens"),
            ));
        }
        if self.queued_since.is_some_and(|since| since.elapsed() >= LONG_QUEUE) {
            items.push(AttentionItem::warn(
                format!("Requests have been queued without a pause; now {}", self.queued),
                "The backends are at `upstream.requests`. `timbr-gateway queries running` shows what they work on, if \
                 `journal.enabled` is set.",
                Some("upstreams"),
            ));
        }
        items
    }
}

impl AttentionItem {
    pub(super) fn bad(message: impl Into<String>, remedy: &str, section: Option<&'static str>) -> AttentionItem {
        AttentionItem { severity: BAD, message: message.into(), remedy: remedy.to_owned(), section }
    }

    pub(super) fn warn(message: impl Into<String>, remedy: &str, section: Option<&'static str>) -> AttentionItem {
        AttentionItem { severity: "warn", message: message.into(), remedy: remedy.to_owned(), section }
    }

    pub fn to_json(&self) -> Value {
        json!({ "severity": self.severity, "what": self.message, "todo": self.remedy, "section": self.section })
    }
}

/// All problems, the worst first.
pub fn attention(admin: &AdminContext, config: &Config, history: &TrafficHistory) -> Vec<AttentionItem> {
    let mut items = Vec::new();
    if phase(admin) == "draining" {
        items.push(AttentionItem::warn(
            "The gateway is draining",
            "A shutdown was requested: the gateway accepts no new connections, and completes requests in flight for at \
             most `drain.timeout`.",
            None,
        ));
    } else if let Err(reason) = admin.health.readiness() {
        items.push(AttentionItem::bad(format!("The gateway is not ready: {reason}"), "See its log for details.", None));
    }
    let snapshot = admin.snapshot.get();
    items.extend(snapshot.upstreams.iter().flat_map(|backends| backend_attention::items(backends)));
    if snapshot.admission.memory().is_exhausted() {
        items.push(AttentionItem::bad(
            "Memory is exhausted",
            "The gateway uses more than `limits.memory`. All requests get 503 `memory_exhausted` until some of it is free. \
             Raise the limit, or lower `limits.connections` and `limits.requests`.",
            None,
        ));
    }
    if admin.metrics.store.up.get() != 1 {
        items.push(AttentionItem::bad(
            "The token store is unavailable",
            "Tokens in this gateway's cache stay valid; requests with other tokens get 503 `token_store_unavailable`. Check the \
             store that `store.kind` selects; the log has the cause.",
            Some("store"),
        ));
    }
    if history.has_high_failure_rate() {
        items.push(AttentionItem::bad(
            "More than 5 % of the requests of the last minute failed",
            "Failed requests have a status of 500 or above, except those that an operator has stopped. The reasons under \
             Rejections show whether the gateway or the backend failed.",
            Some("rejections"),
        ));
    }
    items.extend(history.long_median().map(backend_attention::slow_item));
    items.extend(admin.dashboard.recent_events.borrow().items());
    items.extend(stop_items(admin));
    items.extend(rejection_items(history));
    items.extend(certificate_items(admin));
    items.extend(file_items(admin));
    items.extend(reload_items(admin));
    if matches!(config.auth.verifier, VerifierOptions::SaltHolder) && config.salts.len() > 1 {
        items.push(AttentionItem::warn(
            "Several salts are active, and passwords are not verified",
            "A client with any of these salts can get a token for any user. End the rotation when `timbr-gateway salt status` \
             shows that the older salts are unused.",
            Some("configuration"),
        ));
    }
    items.sort_by_key(|item| item.severity != BAD);
    items
}

fn certificate_items(admin: &AdminContext) -> Vec<AttentionItem> {
    let item = |CertificateStatus { names, fault, .. }| {
        let fault = fault?;
        let message = format!("The certificate for {names} {fault}");
        let section = Some("certificates");
        Some(match fault {
            CertificateFault::ExpiresSoon(_) => {
                AttentionItem::warn(message, "New files are loaded within a second.", section)
            }
            _ => AttentionItem::bad(message, "Clients reject it. New files are loaded within a second.", section),
        })
    };
    admin.dashboard.certificates().into_iter().filter_map(item).collect()
}

/// What operators have stopped.
fn stop_items(admin: &AdminContext) -> Vec<AttentionItem> {
    let stops = admin.snapshot.get().auth.store().stops();
    let item = |stop: &ActiveStop| {
        let (kind, name) = (stop.target.kind.as_str(), shell_word(stop.target.name()));
        let remedy = format!(
            "`timbr-gateway resume {kind} {name}` ends that. Its requests get 503 `stopped_by_operator` with the text \"{}\"",
            stop.note.why
        );
        AttentionItem::warn(format!("Stopped by an operator: {}", stop.target), &remedy, None)
    };
    stops.iter().map(item).collect()
}

/// Many rejections, and failed logins.
fn rejection_items(history: &TrafficHistory) -> Vec<AttentionItem> {
    let section = Some("rejections");
    let mut items = Vec::new();
    if let Some(percentage) = history.high_rejection_percentage() {
        items.push(AttentionItem::warn(
            format!("{percentage} % of the requests of the last minute were rejected"),
            "The reasons and the busiest callers are below; `timbr-gateway top` prints them.",
            Some("callers"),
        ));
    }
    let locked_out = history.recent_count_of(&[Rejection::TooManyFailures(Duration::ZERO).reason()]);
    let failed = history.recent_count_of(&FAILED_LOGINS.map(|rejection| rejection.reason()));
    if locked_out > 0 {
        items.push(AttentionItem::warn(
            format!("Clients are locked out after failed logins: {locked_out} requests in 5 minutes"),
            "An address has reached `limits.failures_per_address` or `limits.failures_per_user`. `timbr-gateway top` names \
             the addresses, the audit log `claimed_user` of each failed login.",
            section,
        ));
    } else if failed >= MANY_FAILED_LOGINS {
        items.push(AttentionItem::warn(
            format!("{failed} wrong credentials in 5 minutes"),
            "Someone guesses, or a client has an old password, key or salt. If the reason is `bearer_invalid`, compare \
             `timbr-gateway salt status` at all replicas. `timbr-gateway top` names the addresses, the audit log \
             `claimed_user` of each wrong password.",
            section,
        ));
    }
    items
}

/// A reload that failed, and changes that need a restart.
fn reload_items(admin: &AdminContext) -> Vec<AttentionItem> {
    let section = Some("configuration");
    let mut items = Vec::new();
    let last = admin.dashboard.last_reload.get().as_ref().map(|last| last.outcome.clone());
    if let Some(ReloadResult::Rejected(problems)) = &last {
        let all: Vec<_> = problems.iter().map(ToString::to_string).collect();
        let remedy = format!("The previous configuration stays active. {}", all.join("; "));
        items.push(AttentionItem::warn("The last reload of the configuration failed", &remedy, section));
    }
    if admin.metrics.restart_pending.get() > 0 {
        let message = match &last {
            Some(ReloadResult::Applied { needs_restart }) if !needs_restart.is_empty() => {
                format!("A restart is needed for {}", needs_restart.join(", "))
            }
            _ => "A restart is needed for changed options".to_owned(),
        };
        items.push(AttentionItem::warn(message, "The other options are active.", section));
    }
    items
}

/// Files that could not be reloaded.
fn file_items(admin: &AdminContext) -> Vec<AttentionItem> {
    let metrics = &admin.metrics;
    [
        (metrics.certificates_unusable.get(), "Certificate files cannot be loaded", "certificates"),
        (metrics.users_unusable.get(), "The users file cannot be loaded", "configuration"),
        (metrics.issuers_unusable.get(), "The keys of a token issuer cannot be fetched", "configuration"),
    ]
    .into_iter()
    .filter(|(unusable, ..)| *unusable > 0)
    .map(|(_, message, section)| {
        AttentionItem::warn(message, "The previous version stays active. The log has the cause.", Some(section))
    })
    .collect()
}

/// A name as one argument in a shell.
fn shell_word(name: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_.@/".contains(c);
    if name.chars().all(is_plain) { name.to_owned() } else { format!("'{}'", name.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_for_the_shell() {
        let words = ["alice@example.com", "häfen", "a b", "it's"].map(shell_word);
        assert_eq!(words, ["alice@example.com", "häfen", "'a b'", r"'it'\''s'"]);
    }

    #[test]
    fn increases_are_shown_with_their_sum() {
        let mut counter = RecentIncrease::default();
        counter.add(0);
        assert_eq!(counter.count(), None);
        counter.add(3);
        counter.add(3);
        counter.add(5);
        assert_eq!(counter.count(), Some(5));
    }
}
