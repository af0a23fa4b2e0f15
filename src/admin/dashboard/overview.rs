//! What the page shows, section by section, as JSON.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::admin::AdminContext;
use crate::admin::control::ReloadResult;
use crate::admin::dashboard::LastReload;
use crate::admin::dashboard::event_stream::{Section, Sections};
use crate::admin::dashboard::history::TrafficHistory;
use crate::admin::rejections;
use crate::base::shutdown::ShutdownPhase;
use crate::config::options::{AUTH, STORE};
use crate::config::{Config, StoreKind, VerifierOptions};

/// Refusals that the page shows.
const MAX_RECENT_REJECTIONS: usize = 50;

/// From here on the end of a certificate is something to look after.
const EXPIRY_WARNING: i64 = 14 * 24 * 60 * 60;

/// Something that somebody should look after.
struct AttentionItem {
    severity: &'static str,
    message: String,
    remedy: String,
    /// The section of the page that shows more.
    section: Option<&'static str>,
}

/// All sections, in the order in which a page needs them.
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
        ("upstreams", json!(admin.snapshot.get().backends.status())),
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

/// All sections as one document.
pub fn document(sections: &[Section]) -> String {
    let members: Vec<_> =
        sections.iter().map(|section| format!("{:?}:{}", section.name, section.json)).collect();
    format!("{{{}}}\n", members.join(","))
}

fn state(admin: &AdminContext, config: &Config) -> Value {
    let verdict = admin.health.readiness();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "phase": phase(admin),
        "ready": verdict.is_ok(),
        "why": verdict.err(),
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
    let ends = admin.dashboard.certificates();
    let told = ends.into_iter().map(|(names, not_after)| {
        json!({ "names": names, "not_after": not_after, "self_signed": admin.dashboard.is_self_signed })
    });
    told.collect()
}

fn store(admin: &AdminContext, config: &Config) -> Value {
    let (kind, place, note) = match &config.store.kind {
        StoreKind::Memory => {
            ("memory", None, "Tokens end with this process, and no other replica knows them.")
        }
        StoreKind::File(path) => (
            "file",
            Some(path.display().to_string()),
            "Tokens outlive this process. One gateway at a time may use the file.",
        ),
        StoreKind::Redis(_) => (
            "redis",
            config
                .effective_options
                .iter()
                .find(|entry| entry.key == STORE.urls.key)
                .and_then(|entry| entry.value.clone()),
            "Tokens outlive this process and are shared by all replicas.",
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
    fn bad(what: impl Into<String>, todo: &str, section: Option<&'static str>) -> AttentionItem {
        AttentionItem { severity: "bad", message: what.into(), remedy: todo.to_owned(), section }
    }

    fn warn(what: impl Into<String>, todo: &str, section: Option<&'static str>) -> AttentionItem {
        AttentionItem { severity: "warn", message: what.into(), remedy: todo.to_owned(), section }
    }

    fn to_json(&self) -> Value {
        json!({ "severity": self.severity, "what": self.message, "todo": self.remedy, "section": self.section })
    }
}

/// What is wrong, the worst first.
fn attention(admin: &AdminContext, config: &Config, history: &TrafficHistory) -> Vec<AttentionItem> {
    let mut points = Vec::new();
    if phase(admin) == "draining" {
        points.push(AttentionItem::warn(
            "The gateway is draining",
            "It was asked to end: it takes no new connections and finishes what is in flight, for `drain.timeout` at most.",
            None,
        ));
    } else if let Err(why) = admin.health.readiness() {
        points.push(AttentionItem::bad(
            format!("The gateway is not ready: {why}"),
            "Its log says more.",
            None,
        ));
    }
    points.extend(upstream_items(admin));
    if admin.metrics.store.up.get() != 1 {
        points.push(AttentionItem::bad(
            "The token store does not answer",
            "Tokens that this gateway knows go on working; others are answered 503 `token_store_unavailable`. Look after \
             what `store.kind` names.",
            Some("store"),
        ));
    }
    if history.has_high_failure_rate() {
        points.push(AttentionItem::bad(
            "Over 5 % of the requests of the last minute failed",
            "Failed means a status of 500 or above. The reasons under Refusals say whether the gateway or the backend said so.",
            Some("refusals"),
        ));
    }
    points.extend(certificate_items(admin));
    points.extend(file_items(admin));
    points.extend(reload_item(admin));
    if matches!(config.auth.verifier, VerifierOptions::SaltHolder) && config.salts.len() > 1 {
        points.push(AttentionItem::warn(
            "Several salts are in force, and passwords are not checked",
            "Each holder of any of them can get a token for any user. End the rotation when `timbr-gateway salt status` \
             shows that nobody uses the older ones.",
            Some("configuration"),
        ));
    }
    points
}

fn upstream_items(admin: &AdminContext) -> Option<AttentionItem> {
    let status = admin.snapshot.get().backends.status();
    let all = status.endpoints.len();
    let out = status.endpoints.iter().filter(|endpoint| endpoint.state != "usable").count();
    if !status.usable || (all > 0 && out == all) {
        return Some(AttentionItem::bad(
            match all {
                0 => "No address of the backend is known".to_owned(),
                _ => format!("No backend is usable: {out} of {all} are out of use"),
            },
            "Requests are answered 502 or 503 until one is. Look whether the backend runs and listens on `upstream.url`; \
             `timbr-gateway doctor` tries the whole chain.",
            Some("upstreams"),
        ));
    }
    (out > 0).then(|| {
        AttentionItem::warn(
            format!("{out} of {all} backends are out of use"),
            "The others take their requests.",
            Some("upstreams"),
        )
    })
}

fn certificate_items(admin: &AdminContext) -> Vec<AttentionItem> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let left = |not_after: i64| not_after.saturating_sub(i64::try_from(now).unwrap_or(i64::MAX));
    let mut points = Vec::new();
    for (names, not_after) in admin.dashboard.certificates() {
        let todo = "Clients refuse it when its time is over. Put a new one into its files; it is taken within a second.";
        match left(not_after) {
            seconds if seconds < 0 => {
                points.push(AttentionItem::bad(
                    format!("The certificate for {names} has expired"),
                    todo,
                    Some("certificates"),
                ));
            }
            seconds if seconds < EXPIRY_WARNING => {
                let days = seconds / (24 * 60 * 60);
                let what = format!("The certificate for {names} expires in {days} days");
                points.push(AttentionItem::warn(what, todo, Some("certificates")));
            }
            _ => {}
        }
    }
    points
}

/// A configuration that is not in force as it stands in its sources.
fn reload_item(admin: &AdminContext) -> Option<AttentionItem> {
    let section = Some("configuration");
    match admin.dashboard.last_reload.get()?.outcome {
        ReloadResult::Rejected(problems) => {
            let all: Vec<_> = problems.iter().map(ToString::to_string).collect();
            let todo = format!("What was read before stays in force. {}", all.join("; "));
            Some(AttentionItem::warn("The configuration that was read last cannot be used", &todo, section))
        }
        ReloadResult::Applied { needs_restart } if !needs_restart.is_empty() => {
            let what = format!("A restart is needed for {}", needs_restart.join(", "));
            Some(AttentionItem::warn(what, "The rest of what was read is in force.", section))
        }
        ReloadResult::Applied { .. } | ReloadResult::Unavailable(_) => None,
    }
}

/// Files that were read again and cannot be used.
fn file_items(admin: &AdminContext) -> Vec<AttentionItem> {
    let metrics = &admin.metrics;
    [
        (metrics.certificates_unusable.get(), "Certificate files cannot be used", "certificates"),
        (metrics.users_unusable.get(), "The users file cannot be used", "configuration"),
        (metrics.issuers_unusable.get(), "The keys of a token issuer cannot be had", "configuration"),
    ]
    .into_iter()
    .filter(|(unusable, ..)| *unusable > 0)
    .map(|(_, what, section)| {
        AttentionItem::warn(
            what,
            "What was read before stays in use. The log says what is wrong.",
            Some(section),
        )
    })
    .collect()
}
