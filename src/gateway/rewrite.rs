//! From a screened request and a proven identity to what the backend sees.
//!
//! SECURITY: the only place that makes an [`UpstreamRequest`]. Its head is written anew: fields of the client that may
//! pass, then ours, so that nothing the client sent can stand in the place of what the gateway says.

use http::{HeaderValue, Method};

use crate::auth::{Identity, Presented, basic};
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::config::Credential;
use crate::gateway::context::Context;
use crate::gateway::header_policy::{Fate, fate};
use crate::gateway::screen::{Screened, ScreenedParts};
use crate::http::client_body::ClientBody;
use crate::http::h1::request::begin_request;
use crate::http::h1::response::{pass_on, write_field};
use crate::http::headers::{Field, Fields, HeaderName};
use crate::upstream::{BodyBounds, Kept, Message, Outgoing, RequestBody};

/// A request that may be sent: screened, authenticated and written anew.
pub struct UpstreamRequest {
    message: Message,
    /// Where in the head the credential begins, which ends it.
    credential: usize,
    /// Whether a key stands there as a password.
    is_basic: bool,
}

impl Outgoing for UpstreamRequest {
    fn into_message(self) -> Message {
        self.message
    }
}

impl UpstreamRequest {
    /// What it takes to send it again with another key. From here on, what goes by of its body is kept, if it is little.
    pub fn spare(&mut self) -> Spare {
        let Message { method, head, host, body } = &mut self.message;
        let head = head[..self.credential].to_owned();
        Spare { method: method.clone(), head, host: *host, body: body.keep(), is_basic: self.is_basic }
    }
}

/// A request that may have to be sent again, without its credential.
pub struct Spare {
    method: Method,
    head: Vec<u8>,
    host: usize,
    body: Kept,
    is_basic: bool,
}

impl Spare {
    /// The same request with another key; `None` if its body has not been kept whole.
    pub fn with_key(self, key: &HeaderValue) -> Option<UpstreamRequest> {
        let Spare { method, mut head, host, body, is_basic } = self;
        let (credential, body) = (head.len(), body.again()?);
        write_key(&mut head, key.as_bytes(), is_basic);
        Some(UpstreamRequest { message: Message { method, head, host, body }, credential, is_basic })
    }
}

/// Room for a head and a small body, so that they need no more memory on their way. The allocator has pieces of this
/// size at hand.
const USUAL_MESSAGE: usize = 1000;

/// Knows what proves a caller to the backend.
pub struct Rewriter {
    mode: Mode,
    body_bounds: BodyBounds,
}

enum Mode {
    Forward,
    /// What each token stands for.
    OfEachUser,
    Impersonate {
        service_key: Secret,
    },
}

/// What the backend is shown as the caller's key.
enum Shown<'a> {
    /// What the client sent.
    Clients,
    /// What `tokens.keys_file` says for the client's key, or what his token stands for.
    Other(&'a HeaderValue),
    /// The gateway's own, for this user.
    Service(&'a Secret, &'a UserName),
}

impl Rewriter {
    /// `body_bounds` are for clients' bodies.
    pub fn new(credential: &Credential, body_bounds: BodyBounds) -> Rewriter {
        let mode = match credential {
            Credential::Forward => Mode::Forward,
            Credential::Platform | Credential::Delegate => Mode::OfEachUser,
            // The configuration checked that a field can carry the key.
            Credential::Impersonate { service_key } => Mode::Impersonate { service_key: service_key.clone() },
        };
        Rewriter { mode, body_bounds }
    }

    /// Whether the backend sees a key that it knows by itself, as the client sent it, and can judge what it may.
    ///
    /// SECURITY: together with the operator's or the gateway's key, the client would borrow what that key may do. A token
    /// that the gateway made is no key of the backend's either: a backend that takes it does so on the gateway's word for
    /// one user, and has nothing by which to judge who else that user may be. Nor is a JWT, which names one user. Under
    /// `impersonate` the gateway alone says who the user is, for foreign keys too.
    pub fn shows_a_key_of_the_backends(&self, identity: &Identity) -> bool {
        matches!(self.mode, Mode::Forward)
            && self.shows_the_clients_key(identity)
            && !identity.is_minted()
            && !identity.is_of_jwt()
    }

    /// Whether a session that the backend begins with this request is the client's: its own key, and nobody it acts as.
    pub fn is_the_clients_own_session(&self, identity: &Identity) -> bool {
        self.shows_the_clients_key(identity) && identity.acts_as().is_none()
    }

    /// Whether the backend sees the key that the client sent.
    fn shows_the_clients_key(&self, identity: &Identity) -> bool {
        matches!(self.shown(identity), Shown::Clients)
    }

    /// SECURITY: a foreign key is never exchanged for the service key: its user is not known here, and the service key
    /// would act for nobody. It goes upstream as it came.
    fn shown<'a>(&'a self, identity: &'a Identity) -> Shown<'a> {
        match (identity.upstream_key(), &self.mode, identity.user()) {
            (Some(key), _, _) => Shown::Other(key),
            (None, Mode::Impersonate { service_key }, Some(user)) => Shown::Service(service_key, user),
            (None, _, _) => Shown::Clients,
        }
    }

    /// Writes the request for the backend.
    pub fn rewrite(
        &self,
        screened: Screened,
        body: ClientBody,
        identity: &Identity,
        context: &Context,
    ) -> UpstreamRequest {
        let ScreenedParts { method, uri, fields, presented, nominated, max_body } = screened.into_parts();
        let mut head = Vec::with_capacity(USUAL_MESSAGE);
        begin_request(&mut head, &method, &uri);
        // The name of the backend that is chosen for it.
        write_field(&mut head, HeaderName::Host, b"");
        let backend = head.len();
        let passing = Passing {
            nominated: &nominated,
            continues_trace: context.continues_trace,
            // SECURITY: a session's cookie says who somebody is, as a key does. One beside a key that is not the client's
            // would let it act in a session that this key, or another client, began.
            cookies: self.is_the_clients_own_session(identity),
            // Where a rule allows it, the field is written anew.
            impersonation: identity.acts_as().is_none() && self.shows_a_key_of_the_backends(identity),
        };
        passing.write(&mut head, &fields);
        if let Some(user) = identity.user() {
            write_field(&mut head, HeaderName::XForwardedUser, user.as_str().as_bytes());
        }
        let hops = context.origin.hops.as_ref().unwrap_or(&context.client.address_text);
        write_field(&mut head, HeaderName::XForwardedFor, hops.as_bytes());
        let proto = if context.origin.secure.unwrap_or(context.client.secure) { "https" } else { "http" };
        write_field(&mut head, HeaderName::XForwardedProto, proto.as_bytes());
        // What the client called us.
        let host = uri.authority().map(|authority| authority.as_str().as_bytes());
        if let Some(host) = host.or_else(|| fields.get(HeaderName::Host)) {
            write_field(&mut head, HeaderName::XForwardedHost, host);
        }
        write_field(&mut head, HeaderName::XRequestId, context.request_id_bytes());
        write_field(&mut head, HeaderName::Traceparent, context.traceparent());
        if let Some(user) = self.impersonated(identity) {
            write_field(&mut head, HeaderName::XApiImpersonateUser, user.as_str().as_bytes());
        }
        let credential = head.len();
        self.write_credential(&mut head, &presented, identity);
        let body = RequestBody::streaming(body, max_body, self.body_bounds).counted(context.received.clone());
        let is_basic = matches!(presented, Presented::Basic(_));
        let message = Message { method, head, host: backend, body };
        UpstreamRequest { message, credential, is_basic }
    }

    /// Whom the gateway says that the shown key acts as.
    fn impersonated<'a>(&'a self, identity: &'a Identity) -> Option<&'a UserName> {
        identity.acts_as().or_else(|| match self.shown(identity) {
            Shown::Service(_, user) => Some(user),
            Shown::Clients | Shown::Other(_) => None,
        })
    }

    fn write_credential(&self, head: &mut Vec<u8>, presented: &Presented, identity: &Identity) {
        let is_basic = matches!(presented, Presented::Basic(_));
        match (self.shown(identity), presented) {
            (Shown::Clients, Presented::Key(key) | Presented::Basic(key)) => {
                write_key(head, key.expose(), is_basic);
            }
            (Shown::Clients, Presented::Jwt(jwt)) => {
                write_field(head, HeaderName::XJwtToken, jwt.expose());
                if let Some(tenant) = jwt.tenant() {
                    write_field(head, HeaderName::XJwtTenantId, tenant.as_bytes());
                }
            }
            (Shown::Other(key), _) => write_key(head, key.as_bytes(), is_basic),
            (Shown::Service(key, _), _) => write_key(head, key.expose().as_bytes(), is_basic),
        }
    }
}

/// A key, in the form in which the route has it.
fn write_key(head: &mut Vec<u8>, key: &[u8], is_basic: bool) {
    match is_basic {
        false => write_field(head, HeaderName::XApiKey, key),
        true => write_field(head, HeaderName::Authorization, basic(key).as_bytes()),
    }
}

/// Which of the client's fields go on.
struct Passing<'a> {
    nominated: &'a [http::HeaderName],
    continues_trace: bool,
    cookies: bool,
    impersonation: bool,
}

impl Passing<'_> {
    fn write(&self, head: &mut Vec<u8>, fields: &Fields) {
        let mut cookies_written = false;
        for field in fields.iter().filter(|field| self.passes(*field)) {
            if field.name != HeaderName::Cookie {
                pass_on(head, field);
            } else if !std::mem::replace(&mut cookies_written, true) {
                write_cookies(head, fields);
            }
        }
    }

    fn passes(&self, field: Field<'_>) -> bool {
        fate(field.name, field.text()) == Fate::Forward
            && match field.name {
                HeaderName::Cookie => self.cookies,
                HeaderName::XApiImpersonateUser => self.impersonation,
                HeaderName::Tracestate => self.continues_trace,
                _ => true,
            }
            && !self.nominated.iter().any(|name| name.as_str().as_bytes() == field.text())
    }
}

/// HTTP/2 may split `cookie` into one field a pair; HTTP/1.1 servers expect one (RFC 9113 section 8.2.3).
fn write_cookies(head: &mut Vec<u8>, fields: &Fields) {
    let pairs: Vec<_> = fields.all(HeaderName::Cookie).collect();
    write_field(head, HeaderName::Cookie, &pairs.join(&b"; "[..]));
}
