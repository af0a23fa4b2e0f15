//! The path of a request, on one page: read [`Gateway::handle`] and [`Gateway::forward`] from top to bottom.
//!
//! Each phase requires what the phase before has proven. Decisions are based on what the client sent; the request to
//! the backend is a new one, written from what the decisions were based on.

mod access_record;
mod affinity;
mod authenticate;
mod authorize;
mod catch_panic;
mod challenge;
pub mod context;
mod cors;
mod exchange;
pub mod forwarded;
mod get_token;
mod handshake;
mod head_limits;
pub mod header_policy;
mod impersonate;
mod limit;
mod ontology;
mod padded_body;
mod query_record;
pub mod recent_rejections;
mod redirect;
pub mod rejection;
mod respond;
mod response_edits;
mod rewrite;
pub mod route;
pub mod screen;
mod send;
mod show_token;
pub mod snapshot;
mod stop;

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use http::Method;
use http_body::Body;
use ipnet::IpNet;
use tracing::error;

use crate::admission::{Admission, EndpointChooser};
use crate::auth::Auth;
use crate::config::{Config, LimitOptions, ProxyHeader, ShowTokenPolicy};
use crate::http::client_body::ClientBody;
use crate::http::headers::{Head, Headers};
use crate::observability::metrics;
use crate::observability::queries::QueryRecorder;
use crate::observability::trace::Tracer;
use crate::upstream::{BodyLimits, OutgoingRequest, UpstreamClient};

use access_record::AccessRecord;
use authenticate::authenticate;
use authorize::{authorize, authorize_statement};
use catch_panic::{Panicked, catch_panic};
use challenge::route_challenge;
use context::{Peer, RequestContext};
use cors::{CorsGrant, preflight_response};
use exchange::Exchange;
use forwarded::warn_about_unknown_proxy;
use handshake::{require_client_certificate, require_host_of_certificate};
use head_limits::check_head_limits;
use impersonate::impersonate;
use limit::{limit, limit_statement};
use query_record::{QueryObserver, until_cancelled};
use recent_rejections::RejectionRecorder;
use rejection::Rejection;
use respond::GatewayResponse;
use rewrite::Rewriter;
use route::{RouteMatch, RouteTable};
use screen::screen;
use show_token::ShowTokenCheck;
use stop::{QueuedOntology, reject_stopped, reject_stopped_statement};

pub use respond::{DownstreamResponse, ObservedBody};

/// The counters of each route.
struct RouteMetrics {
    no_route: Rc<metrics::RouteRecorder>,
    get_token: Rc<metrics::RouteRecorder>,
    /// By the number of the profile.
    profiles: Vec<Rc<metrics::RouteRecorder>>,
}

/// An upstream as the request path uses it.
struct GatewayUpstream {
    /// Its index in the configuration.
    index: usize,
    name: Arc<str>,
    client: UpstreamClient,
    /// For the limit of requests for each.
    endpoints: Arc<dyn EndpointChooser>,
    rewriter: Rewriter,
}

/// Everything that a worker thread needs to handle requests.
pub struct Gateway {
    routes: RouteTable,
    /// Whether MCP clients can log in with OAuth, through the route `mcp-oauth`.
    has_oauth: bool,
    route_metrics: RouteMetrics,
    worker: metrics::WorkerMetrics,
    tracer: Option<&'static Tracer>,
    auth: Arc<Auth>,
    /// By the index in the configuration; the first one also verifies keys.
    upstreams: Vec<GatewayUpstream>,
    limits: LimitOptions,
    show_token: ShowTokenPolicy,
    trusted_proxies: Vec<IpNet>,
    proxy_header: ProxyHeader,
    admission: Arc<Admission>,
    rejection_recorder: RejectionRecorder,
    /// `None`: the query journal is off.
    query_observer: Option<QueryObserver>,
}

impl Gateway {
    /// For the calling thread. `clients`, one for each upstream of the configuration, and the recorders belong to the
    /// thread, the rest is shared by all.
    pub fn new(
        config: &Config,
        auth: Arc<Auth>,
        clients: Vec<UpstreamClient>,
        admission: Arc<Admission>,
        rejection_recorder: RejectionRecorder,
        query_recorder: QueryRecorder,
    ) -> Gateway {
        let body_limits = BodyLimits { max_pause: config.timeouts.body, min_rate: config.limits.body_rate };
        let upstreams =
            config.all_upstreams().zip(clients).enumerate().map(|(index, (options, client))| GatewayUpstream {
                index,
                name: options.name.as_str().into(),
                endpoints: client.endpoints(),
                client,
                rewriter: Rewriter::new(options, config.dropped_headers.clone(), body_limits),
            });
        let routes = RouteTable::new(config.routes.clone());
        let worker = admission.metrics().worker();
        Gateway {
            route_metrics: RouteMetrics {
                no_route: worker.route(""),
                get_token: worker.route(get_token::ROUTE_NAME),
                profiles: routes.names().map(|name| worker.route(name)).collect(),
            },
            has_oauth: config.routes.iter().any(|route| route.name == "mcp-oauth"),
            routes,
            worker,
            tracer: Tracer::installed(),
            auth,
            upstreams: upstreams.collect(),
            limits: config.limits,
            show_token: config.show_token(),
            trusted_proxies: config.trusted_proxies.clone(),
            proxy_header: config.trusted_proxies_header,
            admission,
            rejection_recorder,
            query_observer: config.journal.map(|text| QueryObserver { recorder: query_recorder, text }),
        }
    }

    /// Handles a request. There is always a response, and always a line in the access log.
    pub async fn handle(&self, peer: Rc<Peer>, head: Head, body: ClientBody) -> DownstreamResponse {
        let record = self.begin_record(peer, &head, &body);
        let cors = self.routes.cors_grant(&head);
        let permit = match self.admission.admit_request() {
            Ok(permit) => permit,
            Err(exceeded) => return self.reject_without_permit(&exceeded.into(), record, cors),
        };
        let mut exchange = Exchange::new(record, permit, cors);
        let cancellation = self.query_observer.as_ref().map(|_| Arc::default());
        exchange.cancellation.clone_from(&cancellation);
        let decision =
            until_cancelled(pin!(catch_panic(pin!(self.forward(head, body, &mut exchange)))), cancellation.as_deref())
                .await;
        let decision = match decision {
            Ok(Ok(decision)) => decision,
            Ok(Err(Panicked)) => {
                self.admission.metrics().panics.inc();
                error!(request_id = exchange.context().request_id(), "panic while handling a request");
                Err(Rejection::InternalError)
            }
            Err(why) => Err(Rejection::QueryCancelled(why)),
        };
        let Exchange { mut record, permit, cors, challenge, .. } = exchange;
        // SECURITY: the permit of a rejected request is released before the response. Otherwise clients without any
        // credential could hold all permits, by not reading their responses.
        let (mut response, permit) = match decision {
            Ok(response) => (response, permit),
            Err(rejection) => (self.rejection_response(&rejection, &mut record), None),
        };
        if let Some(challenge) = challenge {
            response.add_challenge(&challenge);
        }
        if let Some(grant) = cors {
            response.grant(&grant);
        }
        response.into_downstream(record, permit)
    }

    /// Responds to bytes that could not be read as a request.
    pub fn reject(&self, peer: Rc<Peer>, rejection: &Rejection) -> DownstreamResponse {
        let unknown = Method::from_bytes(b"-").expect("a token");
        let context = RequestContext::new(peer, &Headers::new(), &[], self.proxy_header);
        let record = AccessRecord::new(context, unknown, "", &self.route_metrics.no_route, &self.worker);
        self.reject_without_permit(rejection, record, None)
    }

    /// Decides about an admitted request, and forwards it.
    async fn forward(
        &self,
        head: Head,
        body: ClientBody,
        exchange: &mut Exchange,
    ) -> Result<GatewayResponse, Rejection> {
        check_head_limits(&self.limits, &head)?;
        let route = self.routes.find(&head)?;
        require_host_of_certificate(exchange.peer(), &head)?;
        let (profile, number) = match route {
            // Boxed, as it is rare, and every request would need as much memory.
            RouteMatch::GetToken => return Box::pin(self.get_token(&head, exchange)).await,
            RouteMatch::Profile(profile, number) => (profile, number),
            RouteMatch::Preflight(profile, number) => {
                exchange.set_route(&self.route_metrics.profiles[number]);
                return Ok(preflight_response(profile, exchange.cors.as_ref()));
            }
        };
        exchange.challenge = route_challenge(profile, self.has_oauth, &head, exchange.context());
        require_client_certificate(exchange.peer(), profile)?;
        exchange.set_route(&self.route_metrics.profiles[number]);
        let screened = screen(profile, head, !body.is_end_stream())?;
        let upstream = &self.upstreams[profile.upstream];
        // Keys are verified by the default upstream, whatever the upstream of the route.
        let identity = authenticate(&self.auth, &self.upstreams[0].client, &screened, exchange).await?;
        if let (Some(observer), Some(cancellation)) = (&self.query_observer, exchange.cancellation.take()) {
            exchange.record.query = observer.begin(&screened, identity.user(), &upstream.name, cancellation);
        }
        exchange.permit().count_for(&identity.caller_key(), screened.kind(profile))?;
        let identity = impersonate(&self.auth, &upstream.rewriter, &screened, identity, exchange)?;
        let stop_check = reject_stopped(&self.auth, &screened, &identity, exchange)?;
        let metrics = self.admission.metrics();
        let statement_check = authorize(&self.auth, &screened, &identity, exchange, metrics)?;
        let limit_check = limit(&screened, &identity, exchange)?;
        let queued = exchange.permit().needs_slot(profile.upstream).then(|| QueuedOntology::new(&screened));
        if profile.has_event_streams && *screened.method() == Method::GET {
            let acts_as = exchange.record.acts_as.as_deref();
            exchange.record.held_access = Some(Box::new(self.auth.hold_access(&identity, acts_as)));
        }
        let show_token = ShowTokenCheck::for_request(self.show_token, &screened, !body.is_end_stream(), &identity);
        let mut request = upstream.rewriter.rewrite(screened, profile, body, &identity, exchange);
        // Before the slot: a client that does not send its body must not occupy one.
        request.buffer_body(profile.buffer.unwrap_or(self.limits.buffer)).await?;
        let checked = stop_check
            .or(statement_check.as_ref().map(|check| check.source))
            .or(limit_check.as_ref().map(|check| check.source));
        if let Some(source) = checked.or(exchange.record.query.as_ref().map(|query| query.source)) {
            let body = request.whole_body();
            let statement = source.read(body.as_deref());
            exchange.begin_query(&statement);
            if stop_check.is_some() {
                reject_stopped_statement(&self.auth, &statement)?;
            }
            if let Some(check) = statement_check {
                authorize_statement(&self.auth, &check, &statement, &identity, exchange, metrics)?;
            }
            if let Some(check) = limit_check {
                limit_statement(&check, &statement, &identity, exchange)?;
            }
        }
        if let Some(check) = show_token
            && let Some(response) = Box::pin(self.show_token(check, request.whole_body(), &identity, exchange)).await?
        {
            return Ok(response);
        }
        let affinity = request.options().affinity;
        let has_waited = exchange.permit().wait_for_slot(profile.upstream, &upstream.endpoints, affinity).await?;
        if let (true, Some(ontology)) = (has_waited, queued) {
            ontology.reject_stopped(&self.auth, &identity, exchange, request.whole_body().as_deref())?;
        }
        if let Some(query) = &mut exchange.record.query {
            query.leave_queue();
        }
        self.send(upstream, request, &identity, exchange).await
    }

    fn begin_record(&self, peer: Rc<Peer>, head: &Head, body: &ClientBody) -> Box<AccessRecord> {
        if self.trusted_proxies.is_empty() {
            warn_about_unknown_proxy(&peer, &head.headers);
        }
        let mut context = RequestContext::new(peer, &head.headers, &self.trusted_proxies, self.proxy_header);
        context.received_bytes = (!body.is_end_stream()).then(Rc::default);
        let trace = self.tracer.and_then(|tracer| context.start_trace(tracer));
        let (method, path) = (head.method.clone(), head.uri.path());
        let mut record = AccessRecord::new(context, method, path, &self.route_metrics.no_route, &self.worker);
        record.timing.trace = trace;
        record
    }

    /// Responds to a request that was not admitted, or to bytes that are not a request.
    fn reject_without_permit(
        &self,
        rejection: &Rejection,
        mut record: Box<AccessRecord>,
        cors: Option<CorsGrant>,
    ) -> DownstreamResponse {
        let mut response = self.rejection_response(rejection, &mut record);
        if let Some(grant) = cors {
            response.grant(&grant);
        }
        response.into_downstream(record, None)
    }

    fn rejection_response(&self, rejection: &Rejection, record: &mut AccessRecord) -> GatewayResponse {
        record.reason = rejection.reason();
        self.rejection_recorder.record(rejection, record);
        let (headers, body) = rejection.response(record.context.request_id_bytes(), record.context.error_format);
        GatewayResponse::local(rejection.status(), headers, body)
    }

    /// The metrics of the gateway's thread.
    pub fn worker_metrics(&self) -> &metrics::WorkerMetrics {
        &self.worker
    }

    /// Closes connections to the backend that have been idle for too long. Called periodically on the gateway's thread.
    pub fn sweep_pools(&self) {
        self.upstreams.iter().for_each(|upstream| upstream.client.close_expired());
    }
}
