//! The path of a request, on one page: read [`Gateway::handle`] and [`Gateway::forward`] from top to bottom.
//!
//! Each step takes what the step before it has proven. Decisions are taken on what the client sent; what goes
//! upstream is written anew from what was decided upon.

mod access_log;
pub mod advice;
mod authenticate;
mod authorize;
mod catch_panic;
pub mod context;
pub mod explanation;
pub mod faults;
pub mod field_policy;
pub mod forwarded;
mod get_token;
mod handshake;
mod impersonate;
pub mod recent_rejections;
pub mod rejection;
mod renewal;
mod respond;
mod rewrite;
pub mod route;
pub mod screen;
mod sentences;

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use http::{Method, StatusCode};
use http_body::Body;
use ipnet::IpNet;
use tracing::{error, warn};

use crate::admission::{Admission, RequestPlace};
use crate::auth::Auth;
use crate::base::byte_class::Octets;
use crate::base::clock;
use crate::config::{Config, Limits};
use crate::http::client_body::ClientBody;
use crate::http::headers::{Fields, Head};
use crate::observability::log;
use crate::observability::metrics;
use crate::observability::trace::Tracer;
use crate::upstream::{BodyBounds, RequestBodyError, Upstream, UpstreamError};

use access_log::AccessLine;
use authenticate::authenticate;
use authorize::authorize;
use catch_panic::{Panicked, contained};
use context::{Client, Context};
use explanation::GET_TOKEN;
use get_token::get_token;
use handshake::{directed_here, has_certificate};
use impersonate::impersonate;
use recent_rejections::Recorder;
use rejection::Rejection;
use respond::Answer;
use rewrite::Rewriter;
use route::{Route, Routes};
use screen::screen;

pub use respond::{ObservedBody, Reply};

/// Where requests are counted.
struct Counted {
    no_route: Rc<metrics::Route>,
    get_token: Rc<metrics::Route>,
    /// By the profiles' numbers.
    profiles: Vec<Rc<metrics::Route>>,
}

/// Everything that a worker thread needs to answer requests.
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
    /// For the calling thread; `upstream` is its own, the rest is everybody's.
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
                get_token: worker.route(GET_TOKEN),
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

    /// Answers a request, whatever becomes of it, and sees to its access line.
    pub async fn handle(&self, client: Rc<Client>, head: Head, body: ClientBody) -> Reply {
        let mut context = Context::new(client, &head.fields, &self.trusted_proxies);
        context.received = (!body.is_end_stream()).then(Rc::default);
        let trace = self.tracer.and_then(|tracer| context.trace(tracer));
        // In the heap, as it is handed on from here to the end of the answer's body.
        let counted = (&self.counted.no_route, &self.worker);
        let mut line = Box::new(AccessLine::new(context, head.method.clone(), head.uri.path(), counted));
        line.steps.trace = trace;
        let decided = contained(pin!(self.forward(head, body, &mut line))).await;
        let decided = decided.unwrap_or_else(|Panicked| {
            self.admission.metrics().panics.inc();
            error!(request_id = line.context().request_id(), "this request was ended by a panic");
            Err(Rejection::Internal)
        });
        let answer = match decided {
            Ok(answer) => answer,
            Err(rejection) => self.refusal(&rejection, &mut line),
        };
        answer.observed(line)
    }

    /// Answers what could not be read as a request.
    pub fn refuse(&self, client: Rc<Client>, rejection: &Rejection) -> Reply {
        let unknown = Method::from_bytes(b"-").expect("a token");
        let context = Context::new(client, &Fields::new(), &[]);
        let mut line =
            Box::new(AccessLine::new(context, unknown, "", (&self.counted.no_route, &self.worker)));
        self.refusal(rejection, &mut line).observed(line)
    }

    /// Decides, and forwards what may be forwarded.
    async fn forward(
        &self,
        head: Head,
        body: ClientBody,
        line: &mut AccessLine,
    ) -> Result<Answer, Rejection> {
        line.place = Some(self.admission.request()?);
        self.within_limits(&head)?;
        let route = self.routes.find(&head)?;
        directed_here(&line.context().client, &head.uri, &head.fields)?;
        let (profile, number) = match route {
            // In the heap, as few requests come here and all would have to be as large.
            Route::GetToken => return Box::pin(self.get_token(&head, line)).await,
            Route::Profile(profile, number) => (profile, number),
        };
        has_certificate(&line.context().client, profile)?;
        line.route = Rc::clone(&self.counted.profiles[number]);
        let screened = screen(profile, head)?;
        let client = line.context().origin.address;
        let identity = authenticate(&self.auth, &self.upstream, &screened, client, &line.steps).await?;
        line.user = identity.user().cloned();
        line.key = Some(identity.fingerprint());
        line.place.as_mut().map_or(Ok(()), |place| place.of(&identity.caller()))?;
        let identity = impersonate(&self.auth, &self.rewriter, &screened, identity, line)?;
        authorize(&self.auth, &screened, &identity, line, self.admission.metrics())?;
        if !line.place.as_mut().is_none_or(RequestPlace::turn_at_once) {
            // In the heap, as it is seldom so.
            Box::pin(turn(line)).await?;
        }
        let request = self.rewriter.rewrite(screened, body, &identity, line.context());
        let asked = clock::now();
        let response = match identity.stands_for() {
            None => self.upstream.send(request, asked).await.map_err(|error| rejection_of(&error, line)),
            // In the heap, as it is seldom so and long.
            Some(_) => Box::pin(self.send_renewing(request, asked, &identity, line)).await,
        };
        line.upstream_ended(asked, response.is_ok());
        let response = response?;
        let answer = Answer::from_upstream(response);
        Ok(if self.rewriter.is_the_clients_own_session(&identity) {
            answer
        } else {
            answer.without_cookies()
        })
    }

    fn refusal(&self, rejection: &Rejection, line: &mut AccessLine) -> Answer {
        line.reason = rejection.reason();
        self.refusals.note(rejection, line);
        let (fields, text) = rejection.answer(line.context().request_id_bytes());
        Answer::own(rejection.status(), fields, text)
    }

    /// SECURITY: the same for all protocols, of which each counts in its own way while it reads.
    fn within_limits(&self, head: &Head) -> Result<(), Rejection> {
        if head.fields.len() > self.limits.headers {
            return Err(Rejection::RequestHeadTooLarge);
        }
        if head.uri.path_and_query().is_some_and(|target| target.as_str().len() > self.limits.uri) {
            return Err(Rejection::TargetTooLong);
        }
        // What HTTP/1 refuses while it reads; a query may come otherwise over HTTP/2.
        let target = head.uri.path_and_query().map_or("", |target| target.as_str());
        if !Octets::VISIBLE.are_all(target.as_bytes()) {
            return Err(Rejection::RequestLine("it has characters that none may have"));
        }
        Ok(())
    }

    async fn get_token(&self, head: &Head, line: &mut AccessLine) -> Result<Answer, Rejection> {
        line.route = Rc::clone(&self.counted.get_token);
        let minted = get_token(&self.auth, head, line.context().origin.address, &line.steps).await;
        let given = match minted {
            Ok(given) => given,
            Err(rejection) => {
                log::audit(|record| line.tell_who(record, "mint", rejection.reason()));
                return Err(rejection);
            }
        };
        line.user = Some(given.minted.user);
        line.key = Some(given.minted.fingerprint);
        log::audit(|record| line.tell_who(record, "mint", "granted"));
        Ok(Answer::own(StatusCode::OK, given.fields, given.body))
    }

    /// Where this gateway's thread counts.
    pub fn worker(&self) -> &metrics::Worker {
        &self.worker
    }

    /// Gives back what is not used any more. Called now and then on the gateway's thread.
    pub fn sweep(&self) {
        self.upstream.sweep();
    }
}

/// Waits until the backend takes another request.
async fn turn(line: &mut AccessLine) -> Result<(), Rejection> {
    match &mut line.place {
        Some(place) => Ok(place.turn().await?),
        None => Ok(()),
    }
}

/// What the client is told when the backend gave no answer; the log is told why.
fn rejection_of(error: &UpstreamError, line: &AccessLine) -> Rejection {
    let rejection = match error {
        // That was told when the last address went out of use; it need not be with each request.
        UpstreamError::Unavailable => return Rejection::UpstreamUnavailable,
        UpstreamError::Connect(_) => Rejection::UpstreamUnreachable,
        UpstreamError::ConnectTimeout => Rejection::UpstreamConnectTimeout,
        UpstreamError::Closed(_) => Rejection::UpstreamClosed,
        UpstreamError::Invalid(_) | UpstreamError::UnaskedUpgrade => Rejection::UpstreamInvalid,
        UpstreamError::ResponseTimeout => Rejection::UpstreamTimeout,
        UpstreamError::RequestBody(RequestBodyError::Stalled) => return Rejection::RequestBodyStalled,
        UpstreamError::RequestBody(RequestBodyError::TooLarge) => return Rejection::RequestBodyTooLarge,
        UpstreamError::RequestBody(RequestBodyError::Broken(_)) => return Rejection::RequestBodyBroken,
    };
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    warn!(request_id = line.context().request_id(), cause, "{error}");
    rejection
}
