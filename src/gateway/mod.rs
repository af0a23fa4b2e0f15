//! The path of a request, on one page: read [`Gateway::handle`] and [`Gateway::forward`] from top to bottom.
//!
//! Each step takes what the step before it has proven. Decisions are taken on what the client sent; what goes
//! upstream is written anew from what was decided upon.

mod access_log;
mod authenticate;
mod contained;
pub mod context;
pub mod fields;
mod get_token;
pub mod rejection;
mod respond;
mod rewrite;
pub mod route;
pub mod screen;

use std::sync::Arc;

use http::request::Parts;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tracing::{error, warn};

use crate::auth::Auth;
use crate::config::Config;
use crate::upstream::{RequestBodyError, Upstream, UpstreamError};

use access_log::AccessLine;
use authenticate::authenticate;
use contained::{Panicked, contained};
use context::{Client, Context};
use get_token::get_token;
use rejection::Rejection;
use respond::Answer;
use rewrite::Rewriter;
use route::{Route, Routes};
use screen::screen;

pub use respond::{ObservedBody, RequestUnfinished};

/// Everything that a worker thread needs to answer requests.
pub struct Gateway {
    routes: Routes,
    auth: Arc<Auth>,
    rewriter: Rewriter,
    upstream: Upstream,
}

impl Gateway {
    /// For the calling thread; `upstream` is its own, `auth` is everybody's.
    pub fn new(config: &Config, auth: Arc<Auth>, upstream: Upstream) -> Gateway {
        let credential = &config.upstream.credential;
        Gateway {
            routes: Routes::new(config.routes.clone()),
            auth,
            rewriter: Rewriter::new(credential, upstream.authority(), config.timeouts.body),
            upstream,
        }
    }

    /// Answers a request, whatever becomes of it, and sees to its access line.
    pub async fn handle(&self, client: Client, request: Request<Incoming>) -> Response<ObservedBody> {
        let (head, body) = request.into_parts();
        let context = Context::new(client, &head.headers);
        let mut line = AccessLine::new(context, head.method.clone(), head.uri.path());
        let version = head.version;
        let mut body = Some(body);
        let decided = contained(self.forward(head, &mut body, &mut line)).await;
        let decided = decided.unwrap_or_else(|Panicked| {
            error!(request_id = line.context().request_id(), "this request was ended by a panic");
            Err(Rejection::Internal)
        });
        let mut answer = match decided {
            Ok(answer) => answer,
            Err(rejection) => {
                line.reason = rejection.reason();
                let (fields, text) = rejection.answer(line.context().request_id());
                Answer::own(rejection.status(), fields, text)
            }
        };
        answer.settle(body, version).await;
        answer.observed(line)
    }

    /// Decides, and forwards what may be forwarded. A body that is left in `body` was not read.
    async fn forward(
        &self,
        head: Parts,
        body: &mut Option<Incoming>,
        line: &mut AccessLine,
    ) -> Result<Answer, Rejection> {
        let profile = match self.routes.find(&head)? {
            Route::GetToken => return self.get_token(&head, line).await,
            Route::Profile(profile) => profile,
        };
        line.route.clone_from(&profile.name);
        let screened = screen(profile, head)?;
        let client = line.context().client.address;
        let identity = authenticate(&self.auth, &self.upstream, &self.rewriter, &screened, client).await?;
        line.user = identity.user().map(ToString::to_string);
        line.key = Some(identity.fingerprint());
        let body = body.take().expect("nothing before this step takes the body");
        let request = self.rewriter.rewrite(screened, body, &identity, line.context());
        let response = self.upstream.send(request).await.map_err(|error| rejection_of(&error, line))?;
        let answer = Answer::from_upstream(response);
        Ok(if self.rewriter.shows_the_clients_key(&identity) { answer } else { answer.without_cookies() })
    }

    async fn get_token(&self, head: &Parts, line: &mut AccessLine) -> Result<Answer, Rejection> {
        "get_token".clone_into(&mut line.route);
        let given = get_token(&self.auth, head, line.context().client.address).await?;
        line.user = Some(given.minted.user.to_string());
        line.key = Some(given.minted.fingerprint);
        Ok(Answer::own(StatusCode::OK, given.fields, given.body))
    }

    /// Gives back what is not used any more. Called now and then on the gateway's thread.
    pub fn sweep(&self) {
        self.upstream.sweep();
    }
}

/// What the client is told when the backend gave no answer; the log is told why.
fn rejection_of(error: &UpstreamError, line: &AccessLine) -> Rejection {
    let rejection = match error {
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
