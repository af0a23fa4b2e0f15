//! The contents of the dashboard, section by section, as JSON. It only reads what the rest of the process publishes,
//! and changes nothing.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::admin::AdminContext;
use crate::admin::control::ReloadResult;
use crate::admin::dashboard::LastReload;
use crate::admin::dashboard::event_stream::{Section, Sections};
use crate::admin::dashboard::history::TrafficHistory;
use crate::admin::rejections;
use crate::base::shutdown_phase::ShutdownPhase;
use crate::config::options::{AUTH, STORE};
use crate::config::{Config, DEFAULT_UPSTREAM, StoreKind, VerifierOptions};
use crate::upstream::{Backends, UpstreamStatus};

/// Maximum number of rejections on the page.
const MAX_RECENT_REJECTIONS: usize = 50;

/// Certificates that expire within this number of seconds need attention.
const EXPIRY_WARNING: i64 = 14 * 24 * 60 * 60;

/// A problem that an operator should look at.
struct AttentionItem {
    severity: &'static str,
    message: String,
    remedy: String,
    /// The section of the page with details.
    section: Option<&'static str>,
}

/// All sections, in the sequence that the page needs.
pub fn sections(admin: &AdminContext) -> Sections {
    let snapshot = admin.snapshot.get();
    let config = &snapshot.config;
    let history = admin.dashboard.history.borrow();
    let recent: Vec<_> = admin
        .recent_rejections
        .newest(MAX_RECENT_REJECTIONS, |_| true)
        .iter()
        .map(rejections::rejection_json)
        .collect();
    let attention: Vec<_> = attention(admin, config, &history).iter().map(AttentionItem::to_json).collect();
    let section = |(name, value): (&'static str, Value)| Section { name, json: value.to_string().into() };
    [
        ("state", state(admin, config)),
        ("upstreams", json!(UpstreamStatus::of_all(&admin.snapshot.get().upstreams))),
        ("traffic", history.to_json()),
        ("attention", attention.into()),
        ("refusals", recent.into()),
        ("certificates", certificates(admin)),
        ("store", store(admin, config)),
        ("configuration", json!({ "options": &config.effective_options[..] })),
    ]
    .map(section)
    .into_iter()
    .collect()
}

/// All sections as one JSON document.
pub fn document(sections: &[Section]) -> String {
    let members: Vec<_> = sections.iter().map(|section| format!("{:?}:{}", section.name, section.json)).collect();
    format!("{{{}}}\n", members.join(","))
}

fn state(admin: &AdminContext, config: &Config) -> Value {
    let readiness = admin.health.readiness();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "phase": phase(admin),
        "ready": readiness.is_ok(),
        "why": readiness.err(),
        "started": admin.dashboard.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        "now": SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        "workers": config.workers,
        "in_flight": admin.metrics.requests_in_flight.get(),
        "connections": admin.metrics.connections.get(),
        "reload": admin.dashboard.last_reload.get().as_ref().map(reload),
    })
}

fn reload(last: &LastReload) -> Value {
    let at = last.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    json!({ "at": at, "by": last.by, "taken": matches!(last.outcome, ReloadResult::Applied { .. }) })
}

fn phase(admin: &AdminContext) -> &'static str {
    match admin.health.signal.phase() {
        ShutdownPhase::Serving if admin.health.startup.is_complete() => "serving",
        ShutdownPhase::Serving => "starting",
        ShutdownPhase::NotReady | ShutdownPhase::Draining | ShutdownPhase::Aborted => "draining",
    }
}

fn certificates(admin: &AdminContext) -> Value {
    let self_signed = admin.dashboard.has_generated_certificate;
    let certificates = admin
        .dashboard
        .certificates()
        .into_iter()
        .map(|(names, not_after)| json!({ "names": names, "not_after": not_after, "self_signed": self_signed }));
    certificates.collect()
}

fn store(admin: &AdminContext, config: &Config) -> Value {
    let (kind, place, note) = match &config.store.kind {
        StoreKind::Memory => ("memory", None, "Tokens are lost at a restart, and are not shared with other replicas."),
        StoreKind::File(path) => (
            "file",
            Some(path.display().to_string()),
            "Tokens survive a restart. Only one gateway at a time can use the file.",
        ),
        StoreKind::Redis(_) => (
            "redis",
            config
                .effective_options
                .iter()
                .find(|entry| entry.key == STORE.urls.key)
                .and_then(|entry| entry.value.clone()),
            "Tokens survive a restart, and are shared by all replicas.",
        ),
    };
    let verifier = config.effective_options.iter().find(|entry| entry.key == AUTH.verifier.key);
    json!({
        "kind": kind,
        "place": place,
        "note": note,
        "up": admin.metrics.store.up.get() == 1,
        "ttl": config.tokens.ttl.as_secs(),
        "verifier": verifier.and_then(|entry| entry.value.clone()),
    })
}

impl AttentionItem {
    fn bad(message: impl Into<String>, remedy: &str, section: Option<&'static str>) -> AttentionItem {
        AttentionItem { severity: "bad", message: message.into(), remedy: remedy.to_owned(), section }
    }

    fn warn(message: impl Into<String>, remedy: &str, section: Option<&'static str>) -> AttentionItem {
        AttentionItem { severity: "warn", message: message.into(), remedy: remedy.to_owned(), section }
    }

    fn to_json(&self) -> Value {
        json!({ "severity": self.severity, "what": self.message, "todo": self.remedy, "section": self.section })
    }
}

/// All problems, the worst first.
fn attention(admin: &AdminContext, config: &Config, history: &TrafficHistory) -> Vec<AttentionItem> {
    let mut items = Vec::new();
    if phase(admin) == "draining" {
        items.push(AttentionItem::warn(
            "The gateway is draining",
            "A shutdown was requested: the gateway accepts no new connections, and completes requests in flight for at most `drain.timeout`.",
            None,
        ));
    } else if let Err(reason) = admin.health.readiness() {
        items.push(AttentionItem::bad(format!("The gateway is not ready: {reason}"), "See its log for details.", None));
    }
    items.extend(admin.snapshot.get().upstreams.iter().filter_map(|backends| upstream_item(backends)));
    if admin.metrics.store.up.get() != 1 {
        items.push(AttentionItem::bad(
            "The token store is unavailable",
            "Tokens in this gateway's cache stay valid; requests with other tokens get 503 `token_store_unavailable`. Check the \
             store that `store.kind` selects.",
            Some("store"),
        ));
    }
    if history.has_high_failure_rate() {
        items.push(AttentionItem::bad(
            "More than 5 % of the requests of the last minute failed",
            "Failed requests have a status of 500 or above. The reasons under Rejections show whether the gateway or the backend failed.",
            Some("rejections"),
        ));
    }
    items.extend(certificate_items(admin));
    items.extend(file_items(admin));
    items.extend(reload_item(admin));
    if matches!(config.auth.verifier, VerifierOptions::SaltHolder) && config.salts.len() > 1 {
        items.push(AttentionItem::warn(
            "Several salts are active, and passwords are not verified",
            "A client with any of these salts can get a token for any user. End the rotation when `timbr-gateway salt status` \
             shows that the older salts are unused.",
            Some("configuration"),
        ));
    }
    items
}

fn upstream_item(backends: &Backends) -> Option<AttentionItem> {
    let status = backends.status();
    let of = match backends.name() {
        DEFAULT_UPSTREAM => String::new(),
        name => format!(" of the upstream {name}"),
    };
    let all = status.endpoints.len();
    let ejected = status.endpoints.iter().filter(|endpoint| endpoint.state != "usable").count();
    if !status.usable || (all > 0 && ejected == all) {
        return Some(AttentionItem::bad(
            match all {
                0 => format!("No endpoint{of} is known"),
                _ => format!("No endpoint{of} is usable: {ejected} of {all} are ejected"),
            },
            "Requests get 502 or 503. Check that the backend runs and listens on `upstream.url`; `timbr-gateway doctor` \
             checks the whole path.",
            Some("upstreams"),
        ));
    }
    (ejected > 0).then(|| {
        AttentionItem::warn(
            format!("{ejected} of {all} endpoints{of} are ejected"),
            "The other endpoints get their requests.",
            Some("upstreams"),
        )
    })
}

fn certificate_items(admin: &AdminContext) -> Vec<AttentionItem> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let left = |not_after: i64| not_after.saturating_sub(i64::try_from(now).unwrap_or(i64::MAX));
    let mut items = Vec::new();
    for (names, not_after) in admin.dashboard.certificates() {
        let remedy =
            "Clients reject an expired certificate. Replace its files; the new certificate is loaded within a second.";
        match left(not_after) {
            seconds if seconds < 0 => {
                items.push(AttentionItem::bad(
                    format!("The certificate for {names} has expired"),
                    remedy,
                    Some("certificates"),
                ));
            }
            seconds if seconds < EXPIRY_WARNING => {
                let days = seconds / (24 * 60 * 60);
                let message = format!("The certificate for {names} expires in {days} days");
                items.push(AttentionItem::warn(message, remedy, Some("certificates")));
            }
            _ => {}
        }
    }
    items
}

/// A reload that failed or needs a restart.
fn reload_item(admin: &AdminContext) -> Option<AttentionItem> {
    let section = Some("configuration");
    match admin.dashboard.last_reload.get()?.outcome {
        ReloadResult::Rejected(problems) => {
            let all: Vec<_> = problems.iter().map(ToString::to_string).collect();
            let remedy = format!("The previous configuration stays active. {}", all.join("; "));
            Some(AttentionItem::warn("The last reload of the configuration failed", &remedy, section))
        }
        ReloadResult::Applied { needs_restart } if !needs_restart.is_empty() => {
            let message = format!("A restart is needed for {}", needs_restart.join(", "));
            Some(AttentionItem::warn(message, "The other options are active.", section))
        }
        ReloadResult::Applied { .. } | ReloadResult::Unavailable(_) => None,
    }
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
