//! What the page shows, section by section, as JSON.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::admin::Admin;
use crate::admin::control::Reloaded;
use crate::admin::dashboard::LastReload;
use crate::admin::dashboard::event_stream::{Section, Sections};
use crate::admin::dashboard::history::History;
use crate::admin::rejections;
use crate::base::shutdown::Phase;
use crate::config::{Config, StoreKind, VerifierOptions};

/// Refusals that the page shows.
const RECENT: usize = 50;

/// From here on the end of a certificate is something to look after.
const SOON: i64 = 14 * 24 * 60 * 60;

/// Something that somebody should look after.
struct Point {
    severity: &'static str,
    what: String,
    todo: String,
    /// The section of the page that shows more.
    section: Option<&'static str>,
}

/// All sections, in the order in which a page needs them.
pub fn sections(admin: &Admin) -> Sections {
    let config = &admin.dashboard.config.now();
    let history = admin.dashboard.history.borrow();
    let recent: Vec<_> = admin.refusals.newest(RECENT, |_| true).iter().map(rejections::told).collect();
    let attention: Vec<_> = attention(admin, config, &history).iter().map(Point::told).collect();
    let section = |(name, value): (&'static str, Value)| Section { name, json: value.to_string().into() };
    [
        ("state", state(admin, config)),
        ("upstreams", json!(admin.backends.now().status())),
        ("traffic", history.told()),
        ("attention", attention.into()),
        ("refusals", recent.into()),
        ("certificates", certificates(admin)),
        ("store", store(admin, config)),
        ("configuration", json!({ "options": &config.entries[..] })),
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

fn state(admin: &Admin, config: &Config) -> Value {
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
        "reload": admin.dashboard.last_reload.now().as_ref().map(reload),
    })
}

fn reload(last: &LastReload) -> Value {
    let at = last.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    json!({ "at": at, "by": last.by, "taken": matches!(last.outcome, Reloaded::Taken { .. }) })
}

fn phase(admin: &Admin) -> &'static str {
    match admin.health.signal.phase() {
        Phase::Serving if admin.health.started.is_complete() => "serving",
        Phase::Serving => "starting",
        Phase::Leaving | Phase::Draining | Phase::Aborted => "draining",
    }
}

fn certificates(admin: &Admin) -> Value {
    let ends = admin.dashboard.certificates();
    let told = ends.into_iter().map(|(names, not_after)| {
        json!({ "names": names, "not_after": not_after, "self_signed": admin.dashboard.is_self_signed })
    });
    told.collect()
}

fn store(admin: &Admin, config: &Config) -> Value {
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
                .entries
                .iter()
                .find(|entry| entry.key == "store.urls")
                .and_then(|entry| entry.value.clone()),
            "Tokens outlive this process and are shared by all replicas.",
        ),
    };
    let verifier = config.entries.iter().find(|entry| entry.key == "auth.verifier");
    json!({
        "kind": kind,
        "place": place,
        "note": note,
        "up": admin.metrics.store.up.get() == 1,
        "ttl": config.tokens.ttl.as_secs(),
        "verifier": verifier.and_then(|entry| entry.value.clone()),
    })
}

impl Point {
    fn bad(what: impl Into<String>, todo: &str, section: Option<&'static str>) -> Point {
        Point { severity: "bad", what: what.into(), todo: todo.to_owned(), section }
    }

    fn warn(what: impl Into<String>, todo: &str, section: Option<&'static str>) -> Point {
        Point { severity: "warn", what: what.into(), todo: todo.to_owned(), section }
    }

    fn told(&self) -> Value {
        json!({ "severity": self.severity, "what": self.what, "todo": self.todo, "section": self.section })
    }
}

/// What is wrong, the worst first.
fn attention(admin: &Admin, config: &Config, history: &History) -> Vec<Point> {
    let mut points = Vec::new();
    if phase(admin) == "draining" {
        points.push(Point::warn(
            "The gateway is draining",
            "It was asked to end: it takes no new connections and finishes what is in flight, for `drain.timeout` at most.",
            None,
        ));
    } else if let Err(why) = admin.health.readiness() {
        points.push(Point::bad(format!("The gateway is not ready: {why}"), "Its log says more.", None));
    }
    points.extend(of_upstreams(admin));
    if admin.metrics.store.up.get() != 1 {
        points.push(Point::bad(
            "The token store does not answer",
            "Tokens that this gateway knows go on working; others are answered 503 `token_store_unavailable`. Look after \
             what `store.kind` names.",
            Some("store"),
        ));
    }
    if history.fails_often() {
        points.push(Point::bad(
            "Over 5 % of the requests of the last minute failed",
            "Failed means a status of 500 or above. The reasons under Refusals say whether the gateway or the backend said so.",
            Some("refusals"),
        ));
    }
    points.extend(of_certificates(admin));
    points.extend(of_files(admin));
    points.extend(of_reload(admin));
    if matches!(config.auth.verifier, VerifierOptions::SaltHolder) && config.salts.len() > 1 {
        points.push(Point::warn(
            "Several salts are in force, and passwords are not checked",
            "Each holder of any of them can get a token for any user. End the rotation when `timbr-gateway salt status` \
             shows that nobody uses the older ones.",
            Some("configuration"),
        ));
    }
    points
}

fn of_upstreams(admin: &Admin) -> Option<Point> {
    let status = admin.backends.now().status();
    let all = status.endpoints.len();
    let out = status.endpoints.iter().filter(|endpoint| endpoint.state != "usable").count();
    if !status.usable || (all > 0 && out == all) {
        return Some(Point::bad(
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
        Point::warn(
            format!("{out} of {all} backends are out of use"),
            "The others take their requests.",
            Some("upstreams"),
        )
    })
}

fn of_certificates(admin: &Admin) -> Vec<Point> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let left = |not_after: i64| not_after.saturating_sub(i64::try_from(now).unwrap_or(i64::MAX));
    let mut points = Vec::new();
    for (names, not_after) in admin.dashboard.certificates() {
        let todo = "Clients refuse it when its time is over. Put a new one into its files; it is taken within a second.";
        match left(not_after) {
            seconds if seconds < 0 => {
                points.push(Point::bad(
                    format!("The certificate for {names} has expired"),
                    todo,
                    Some("certificates"),
                ));
            }
            seconds if seconds < SOON => {
                let days = seconds / (24 * 60 * 60);
                let what = format!("The certificate for {names} expires in {days} days");
                points.push(Point::warn(what, todo, Some("certificates")));
            }
            _ => {}
        }
    }
    points
}

/// A configuration that is not in force as it stands in its sources.
fn of_reload(admin: &Admin) -> Option<Point> {
    let section = Some("configuration");
    match admin.dashboard.last_reload.now()?.outcome {
        Reloaded::Refused(problems) => {
            let all: Vec<_> = problems.iter().map(ToString::to_string).collect();
            let todo = format!("What was read before stays in force. {}", all.join("; "));
            Some(Point::warn("The configuration that was read last cannot be used", &todo, section))
        }
        Reloaded::Taken { needs_restart } if !needs_restart.is_empty() => {
            let what = format!("A restart is needed for {}", needs_restart.join(", "));
            Some(Point::warn(what, "The rest of what was read is in force.", section))
        }
        Reloaded::Taken { .. } | Reloaded::Impossible(_) => None,
    }
}

/// Files that were read again and cannot be used.
fn of_files(admin: &Admin) -> Vec<Point> {
    let metrics = &admin.metrics;
    [
        (metrics.certificates_unusable.get(), "Certificate files cannot be used", "certificates"),
        (metrics.users_unusable.get(), "The users file cannot be used", "configuration"),
        (metrics.issuers_unusable.get(), "The keys of a token issuer cannot be had", "configuration"),
    ]
    .into_iter()
    .filter(|(unusable, ..)| *unusable > 0)
    .map(|(_, what, section)| {
        Point::warn(what, "What was read before stays in use. The log says what is wrong.", Some(section))
    })
    .collect()
}
