//! The path of a request, on one page: read [`Gateway::handle`] and [`Gateway::forward`] from top to bottom.
//!
//! Each step requires what the step before has proven. Decisions are based on what the client sent; the request to the
//! backend is a new one, written from what the decisions were based on.

mod access_record;
mod authenticate;
mod authorize;
mod catch_panic;
pub mod context;
mod exchange;
pub mod forwarded;
mod get_token;
mod handshake;
mod head_limits;
pub mod header_policy;
mod impersonate;
pub mod recent_rejections;
pub mod rejection;
mod respond;
mod rewrite;
pub mod route;
pub mod screen;
mod send;

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use http::Method;
use http_body::Body;
use ipnet::IpNet;
use tracing::error;

use crate::admission::Admission;
use crate::auth::Auth;
use crate::config::{Config, Limits};
use crate::http::client_body::ClientBody;
use crate::http::headers::{Fields, Head};
use crate::observability::metrics;
use crate::observability::trace::Tracer;
use crate::upstream::{BodyBounds, Upstream};

use access_record::AccessRecord;
use authenticate::authenticate;
use authorize::authorize;
use catch_panic::{Panicked, contained};
use context::{Client, Context};
use exchange::Exchange;
use handshake::{directed_here, has_certificate};
use head_limits::check_head_limits;
use impersonate::impersonate;
use recent_rejections::Recorder;
use rejection::Rejection;
use respond::Answer;
use rewrite::Rewriter;
use route::{Route, Routes};
use screen::screen;

pub use respond::{ObservedBody, Reply};

/// The counters of each route.
struct Counted {
    no_route: Rc<metrics::Route>,
    get_token: Rc<metrics::Route>,
    /// By the number of the profile.
    profiles: Vec<Rc<metrics::Route>>,
}

/// Everything that a worker thread needs to handle requests.
pub struct Gateway {
    routes: Routes,
    counted: Counted,
    worker: metrics::Worker,
    tracer: Option<&'static Tracer>,
    auth: Arc<Auth>,
    rewriter: Rewriter,
    upstream: Upstream,
    limits: Limits,
    trusted_proxies: Vec<IpNet>,
    admission: Arc<Admission>,
    refusals: Recorder,
}

impl Gateway {
    /// For the calling thread. `upstream` and `refusals` belong to the thread, the rest is shared by all.
    pub fn new(
        config: &Config,
        auth: Arc<Auth>,
        upstream: Upstream,
        admission: Arc<Admission>,
        refusals: Recorder,
    ) -> Gateway {
        let credential = &config.upstream.credential;
        let bounds = BodyBounds { pause: config.timeouts.body, least_rate: config.limits.body_rate };
        let routes = Routes::new(config.routes.clone());
        let worker = admission.metrics().worker();
        Gateway {
            counted: Counted {
                no_route: worker.route(""),
                get_token: worker.route(get_token::ROUTE_NAME),
                profiles: routes.names().map(|name| worker.route(name)).collect(),
            },
            routes,
            worker,
            tracer: Tracer::installed(),
            auth,
            rewriter: Rewriter::new(credential, bounds),
            upstream,
            limits: config.limits,
            trusted_proxies: config.trusted_proxies.clone(),
            admission,
            refusals,
        }
    }

    /// Handles a request. There is always a response, and always a line in the access log.
    pub async fn handle(&self, client: Rc<Client>, head: Head, body: ClientBody) -> Reply {
        let record = self.begin_record(client, &head, &body);
        let permit = match self.admission.request() {
            Ok(permit) => permit,
            Err(full) => return self.reject_without_permit(&full.into(), record),
        };
        let mut exchange = Exchange::new(record, permit);
        let decided = contained(pin!(self.forward(head, body, &mut exchange))).await;
        let decided = decided.unwrap_or_else(|Panicked| {
            self.admission.metrics().panics.inc();
            error!(request_id = exchange.context().request_id(), "this request was ended by a panic");
            Err(Rejection::InternalError)
        });
        let response = match decided {
            Ok(response) => response,
            Err(rejection) => self.rejection_response(&rejection, &mut exchange.record),
        };
        response.into_reply(exchange.record, Some(exchange.permit))
    }

    /// Responds to bytes that could not be read as a request.
    pub fn refuse(&self, client: Rc<Client>, rejection: &Rejection) -> Reply {
        let unknown = Method::from_bytes(b"-").expect("a token");
        let context = Context::new(client, &Fields::new(), &[]);
        let record = AccessRecord::new(context, unknown, "", &self.counted.no_route, &self.worker);
        self.reject_without_permit(rejection, Box::new(record))
    }

    /// Decides about an admitted request, and forwards it.
    async fn forward(
        &self,
        head: Head,
        body: ClientBody,
        exchange: &mut Exchange,
    ) -> Result<Answer, Rejection> {
        check_head_limits(&self.limits, &head)?;
        let route = self.routes.find(&head)?;
        directed_here(exchange.peer(), &head.uri, &head.fields)?;
        let (profile, number) = match route {
            // Boxed, as it is rare, and every request would need as much memory.
            Route::GetToken => return Box::pin(self.get_token(&head, exchange)).await,
            Route::Profile(profile, number) => (profile, number),
        };
        has_certificate(exchange.peer(), profile)?;
        exchange.set_route(&self.counted.profiles[number]);
        let screened = screen(profile, head)?;
        let identity = authenticate(&self.auth, &self.upstream, &screened, exchange).await?;
        exchange.set_identity(&identity);
        exchange.permit.of(&identity.caller())?;
        let identity = impersonate(&self.auth, &self.rewriter, &screened, identity, exchange)?;
        authorize(&self.auth, &screened, &identity, exchange, self.admission.metrics())?;
        exchange.permit.wait_for_slot().await?;
        let request = self.rewriter.rewrite(screened, body, &identity, exchange.context());
        let response = Answer::from_upstream(self.send(request, &identity, exchange).await?);
        Ok(match self.rewriter.is_the_clients_own_session(&identity) {
            true => response,
            false => response.without_cookies(),
        })
    }

    fn begin_record(&self, client: Rc<Client>, head: &Head, body: &ClientBody) -> Box<AccessRecord> {
        let mut context = Context::new(client, &head.fields, &self.trusted_proxies);
        context.received = (!body.is_end_stream()).then(Rc::default);
        let trace = self.tracer.and_then(|tracer| context.trace(tracer));
        let (method, path) = (head.method.clone(), head.uri.path());
        let mut record = AccessRecord::new(context, method, path, &self.counted.no_route, &self.worker);
        record.timing.trace = trace;
        // Boxed, as it is passed on until the end of the response body.
        Box::new(record)
    }

    /// Responds to a request that has no permit.
    fn reject_without_permit(&self, rejection: &Rejection, mut record: Box<AccessRecord>) -> Reply {
        self.rejection_response(rejection, &mut record).into_reply(record, None)
    }

    fn rejection_response(&self, rejection: &Rejection, record: &mut AccessRecord) -> Answer {
        record.reason = rejection.reason();
        self.refusals.note(rejection, record);
        let (headers, body) = rejection.response(record.context.request_id_bytes());
        Answer::own(rejection.status(), headers, body)
    }

    /// The metrics of the gateway's thread.
    pub fn worker(&self) -> &metrics::Worker {
        &self.worker
    }

    /// Closes idle connections to the backend and frees memory. Called periodically on the gateway's thread.
    pub fn sweep(&self) {
        self.upstream.sweep();
    }
}
