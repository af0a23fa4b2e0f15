//! The dashboard: a page with its style and script, the JSON documents that it reads, and the stream of events that
//! keeps it up to date.
//!
//! The page reads only this JSON and the JSON of the other admin routes. Access control is the admin listener's task.
//!
//! ```text
//! GET /            the page; also /dashboard
//! GET /events      server-sent events, one for each section that changes; 204 while the gateway shuts down, 503 if too many
//!                  streams are open
//! GET /overview    all sections as one JSON document
//! ```

mod attention;
mod backend_attention;
mod event_stream;
mod history;
mod overview;
mod top;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{Response, StatusCode};
use http_body_util::Either;
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::admin::AdminContext;
use crate::admin::control::ReloadResult;
use crate::admin::response::{AdminBody, response, response_with_body, text_response};
use crate::base::current::Current;
use crate::base::shutdown_phase::ShutdownPhase;
use crate::observability::metrics::{Metrics, MetricsTotals};
use crate::tls::{CertificateStatus, ServerTls};

use attention::RecentEvents;
use event_stream::Sections;
use history::{SAMPLE_INTERVAL, TrafficCounts, TrafficHistory};
use top::TopCallers;

pub use event_stream::EventStream;

/// Maximum number of concurrent event streams. Each one occupies a connection of the admin listener, and probes need
/// some too.
const MAX_EVENT_STREAMS: usize = 16;

/// Maximum time without an event.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);

/// The result of the last reload of the configuration.
#[derive(Clone, Debug)]
pub struct LastReload {
    /// When the reload was completed.
    pub at: SystemTime,
    /// The source of the request, for example `"file change"` or `"SIGHUP"`.
    pub by: &'static str,
    /// The result: applied, rejected or unavailable.
    pub outcome: ReloadResult,
}

/// The state of the dashboard that no other part of the admin listener has.
pub struct Dashboard {
    started: SystemTime,
    last_reload: Current<Option<LastReload>>,
    tls: Option<ServerTls>,
    has_generated_certificate: bool,
    /// The counters at the last sample.
    last_totals: RefCell<MetricsTotals>,
    history: RefCell<TrafficHistory>,
    top: RefCell<TopCallers>,
    recent_events: RefCell<RecentEvents>,
    /// `None` once the drain has started.
    sections: RefCell<Option<watch::Sender<Sections>>>,
    event_stream_permits: Arc<Semaphore>,
}

impl Dashboard {
    /// The dashboard of a gateway that starts now. `has_generated_certificate`: the certificate was generated at start.
    pub fn new(
        last_reload: Current<Option<LastReload>>,
        tls: Option<ServerTls>,
        has_generated_certificate: bool,
    ) -> Dashboard {
        Dashboard {
            started: SystemTime::now(),
            last_reload,
            tls,
            has_generated_certificate,
            last_totals: RefCell::default(),
            history: RefCell::new(TrafficHistory::new()),
            top: RefCell::default(),
            recent_events: RefCell::default(),
            sections: RefCell::new(Some(watch::channel(Sections::default()).0)),
            event_stream_permits: Arc::new(Semaphore::new(MAX_EVENT_STREAMS)),
        }
    }

    /// Adds what has happened since the last sample, `elapsed` ago.
    fn add_sample(&self, metrics: &Metrics, elapsed: Duration) {
        let totals = metrics.totals();
        let routes = totals.routes_since(&self.last_totals.replace(totals.clone()));
        self.history.borrow_mut().add(TrafficCounts::from_routes(&routes), elapsed);
        self.top.borrow_mut().add(metrics.take_callers(), &routes, elapsed);
        self.recent_events.borrow_mut().add(metrics);
    }

    /// The names and faults of each certificate.
    fn certificates(&self) -> Vec<CertificateStatus> {
        self.tls.as_ref().map(|tls| tls.current().statuses(SystemTime::now())).unwrap_or_default()
    }
}

/// Adds a sample to the history and publishes changed sections, every two seconds. Ends the event streams when the
/// drain starts, so that they do not delay the exit of the process.
pub async fn publish_updates(admin: Rc<AdminContext>) {
    let (mut not_ready, mut draining) = (admin.health.signal.clone(), admin.health.signal.clone());
    let mut is_not_ready = false;
    let mut ticks = interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    loop {
        tokio::select! {
            () = draining.wait_for(ShutdownPhase::Draining) => break,
            // Published without delay: the drain may start soon.
            () = not_ready.wait_for(ShutdownPhase::NotReady), if !is_not_ready => is_not_ready = true,
            _ = ticks.tick() => {}
        }
        let elapsed = last.elapsed();
        if elapsed >= SAMPLE_INTERVAL / 2 {
            admin.dashboard.add_sample(&admin.metrics, elapsed);
            last = Instant::now();
        }
        publish(&admin);
    }
    publish(&admin);
    admin.dashboard.sections.take();
}

/// Publishes all sections, if a page is open.
fn publish(admin: &AdminContext) {
    if let Some(sections) = &*admin.dashboard.sections.borrow()
        && sections.receiver_count() > 0
    {
        sections.send_replace(overview::sections(admin));
    }
}

/// All sections as one JSON document.
pub fn overview(admin: &AdminContext) -> Response<AdminBody> {
    let document = overview::document(&overview::sections(admin));
    response(StatusCode::OK, "application/json", document)
}

/// Who and what has the most requests of the last minutes.
pub fn top(admin: &AdminContext) -> serde_json::Value {
    admin.dashboard.top.borrow().to_json()
}

/// A stream of the sections that change, or an error if too many are open or the drain has started.
pub fn open_event_stream(admin: &AdminContext) -> Response<AdminBody> {
    let sections = admin.dashboard.sections.borrow();
    let Some(sections) = &*sections else {
        // With 204 the browser does not reconnect.
        return response(StatusCode::NO_CONTENT, "text/plain", "");
    };
    let Ok(permit) = Arc::clone(&admin.dashboard.event_stream_permits).try_acquire_owned() else {
        return text_response(StatusCode::SERVICE_UNAVAILABLE, "too many open event streams; close a dashboard");
    };
    let receiver = sections.subscribe();
    sections.send_replace(overview::sections(admin));
    let events = EventStream::new(receiver, permit, HEARTBEAT_INTERVAL);
    response_with_body(StatusCode::OK, "text/event-stream", Either::Right(events))
}
