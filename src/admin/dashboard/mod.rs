//! The operators' page: one document, its style and its script, and the stream of events that keeps it up to date.
//!
//! ```text
//! GET /            the page; /dashboard too
//! GET /events      server-sent events, one for each section that changes; 204 while the gateway ends, 503 if too many listen
//! GET /overview    all sections as one JSON document
//! ```

mod event_stream;
mod history;
mod overview;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::{Either, Full};
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::admin::control::ReloadResult;
use crate::admin::{AdminBody, AdminContext};
use crate::base::current::Current;
use crate::base::shutdown::ShutdownPhase;
use crate::tls::ServerTls;

use event_stream::Sections;
use history::{SAMPLE_INTERVAL, TrafficCounts, TrafficHistory};

pub use event_stream::EventStream;

/// Pages that listen at once. Each holds a connection of the admin listener's, and probes need some too.
const MAX_EVENT_STREAMS: usize = 16;

/// How long a listener hears nothing at most.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);

/// SECURITY: nothing but what this gateway itself sends is loaded, run or shown, nobody frames the page, and its script
/// cannot make markup of text.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// What became of the last reading of the configuration.
#[derive(Clone, Debug)]
pub struct LastReload {
    /// When.
    pub at: SystemTime,
    /// Who asked, in words.
    pub by: &'static str,
    /// Whether it is in force.
    pub outcome: ReloadResult,
}

/// What the page is made of, besides what operators can ask for one by one.
pub struct Dashboard {
    started: SystemTime,
    last_reload: Current<Option<LastReload>>,
    tls: Option<ServerTls>,
    is_self_signed: bool,
    history: RefCell<TrafficHistory>,
    /// `None` once nothing is told any more.
    sections: RefCell<Option<watch::Sender<Sections>>>,
    event_stream_permits: Arc<Semaphore>,
}

impl Dashboard {
    /// Of a gateway that starts now. `is_self_signed`: with a certificate that it has made itself.
    pub fn new(
        last_reload: Current<Option<LastReload>>,
        tls: Option<ServerTls>,
        is_self_signed: bool,
    ) -> Dashboard {
        Dashboard {
            started: SystemTime::now(),
            last_reload,
            tls,
            is_self_signed,
            history: RefCell::new(TrafficHistory::new(TrafficCounts::default())),
            sections: RefCell::new(Some(watch::channel(Sections::default()).0)),
            event_stream_permits: Arc::new(Semaphore::new(MAX_EVENT_STREAMS)),
        }
    }

    /// The names of each certificate, and its last second.
    fn certificates(&self) -> Vec<(String, i64)> {
        self.tls.as_ref().map(|tls| tls.current().expiries()).unwrap_or_default()
    }
}

/// Notes what is counted, and tells pages what is new, every two seconds. With the drain the streams end: their listeners
/// are not to keep the process waiting.
pub async fn publish_updates(admin: Rc<AdminContext>) {
    let (mut leaving, mut draining) = (admin.health.signal.clone(), admin.health.signal.clone());
    let mut is_leaving = false;
    let mut ticks = interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    loop {
        tokio::select! {
            () = draining.wait_for(ShutdownPhase::Draining) => break,
            // Told at once: it may be over soon.
            () = leaving.wait_for(ShutdownPhase::NotReady), if !is_leaving => is_leaving = true,
            _ = ticks.tick() => {}
        }
        let lasted = last.elapsed();
        if lasted >= SAMPLE_INTERVAL / 2 {
            admin
                .dashboard
                .history
                .borrow_mut()
                .add(TrafficCounts::from_metrics(&admin.metrics.totals()), lasted);
            last = Instant::now();
        }
        publish(&admin);
    }
    publish(&admin);
    admin.dashboard.sections.take();
}

/// Tells what is new to those who listen; most of the time nobody does, and nothing is put together.
fn publish(admin: &AdminContext) {
    if let Some(sections) = &*admin.dashboard.sections.borrow()
        && sections.receiver_count() > 0
    {
        sections.send_replace(overview::sections(admin));
    }
}

/// The answer to a path of the page's; `None` if it is none of them. Who asks was looked at before.
pub fn respond(path: &str, admin: &AdminContext) -> Option<Response<AdminBody>> {
    let (media_type, text) = match path {
        "/" | "/dashboard" => ("text/html; charset=utf-8", include_str!("page.html")),
        "/dashboard.css" => ("text/css; charset=utf-8", include_str!("page.css")),
        "/dashboard.js" => (JAVASCRIPT, include_str!("page.js")),
        "/dashboard.svg" => ("image/svg+xml", include_str!("icon.svg")),
        "/overview" => {
            let document = overview::document(&overview::sections(admin));
            return Some(static_response("application/json", document.into()));
        }
        "/events" => return Some(open_event_stream(admin)),
        _ => return None,
    };
    Some(static_response(media_type, Bytes::from_static(text.as_bytes())))
}

/// Whether a path is one of the page's.
pub fn is_dashboard_path(path: &str) -> bool {
    matches!(
        path,
        "/" | "/dashboard" | "/dashboard.css" | "/dashboard.js" | "/dashboard.svg" | "/overview" | "/events"
    )
}

fn open_event_stream(admin: &AdminContext) -> Response<AdminBody> {
    let sections = admin.dashboard.sections.borrow();
    let Some(sections) = &*sections else {
        // A page that is told so does not ask again by itself.
        let mut response = static_response("text/plain", Bytes::new());
        *response.status_mut() = StatusCode::NO_CONTENT;
        return response;
    };
    let Ok(place) = Arc::clone(&admin.dashboard.event_stream_permits).try_acquire_owned() else {
        let mut response =
            static_response("text/plain", Bytes::from_static(b"too many pages listen; close one\n"));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        return response;
    };
    let receiver = sections.subscribe();
    sections.send_replace(overview::sections(admin));
    response_with_headers(
        "text/event-stream",
        Either::Right(EventStream::new(receiver, place, HEARTBEAT_INTERVAL)),
    )
}

fn static_response(media_type: &'static str, bytes: Bytes) -> Response<AdminBody> {
    response_with_headers(media_type, Either::Left(Full::new(bytes)))
}

fn response_with_headers(media_type: &'static str, body: AdminBody) -> Response<AdminBody> {
    let mut response = Response::new(body);
    let fields = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, media_type),
        // The script of another version of the gateway would not understand this one's events.
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        fields.insert(name, HeaderValue::from_static(value));
    }
    response
}
