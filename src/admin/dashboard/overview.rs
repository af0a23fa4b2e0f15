//! The contents of the dashboard, section by section, as JSON. It only reads what the rest of the process publishes,
//! and changes nothing.

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::admin::AdminContext;
use crate::admin::control::ReloadResult;
use crate::admin::dashboard::LastReload;
use crate::admin::dashboard::attention::{AttentionItem, attention};
use crate::admin::dashboard::event_stream::{Section, Sections};
use crate::admin::rejections;
use crate::base::clock;
use crate::base::shutdown_phase::ShutdownPhase;
use crate::config::options::{AUTH, STORE};
use crate::config::{Config, StoreKind};
use crate::upstream::UpstreamStatus;

/// Maximum number of rejections on the page.
const MAX_RECENT_REJECTIONS: usize = 50;

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
    let upstreams = UpstreamStatus::of_all(&snapshot.upstreams);
    let section = |(name, value): (&'static str, Value)| Section { name, json: value.to_string().into() };
    [
        ("state", state(admin, config)),
        ("upstreams", json!(upstreams)),
        ("traffic", history.to_json()),
        ("attention", attention.into()),
        ("top", admin.dashboard.top.borrow().to_json()),
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
        "usable": admin.snapshot.get().upstreams.iter().all(|backends| has_usable_endpoint(&backends.status())),
        "started": clock::since_epoch(admin.dashboard.started).as_secs(),
        "now": clock::since_epoch(SystemTime::now()).as_secs(),
        "workers": config.workers,
        "in_flight": admin.metrics.requests_in_flight.get(),
        "connections": admin.metrics.connections.get(),
        "reload": admin.dashboard.last_reload.get().as_ref().map(reload),
    })
}

/// Whether one endpoint is neither ejected nor unhealthy. Requests are sent to the others all the same, but often fail.
pub fn has_usable_endpoint(status: &UpstreamStatus) -> bool {
    status.usable && status.endpoints.iter().any(|endpoint| endpoint.state == "usable")
}

fn reload(last: &LastReload) -> Value {
    let at = clock::since_epoch(last.at).as_secs();
    json!({ "at": at, "by": last.by, "taken": matches!(last.outcome, ReloadResult::Applied { .. }) })
}

pub fn phase(admin: &AdminContext) -> &'static str {
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
        .map(|one| json!({ "names": one.names, "not_after": one.not_after, "self_signed": self_signed }));
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
