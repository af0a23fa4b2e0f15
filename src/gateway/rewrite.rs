//! From a screened request and a proven identity to what the backend sees.
//!
//! SECURITY: the only place that makes an [`UpstreamRequest`]. Its head is written anew: fields of the client that may
//! pass, then ours, so that nothing the client sent can stand in the place of what the gateway says.

use http::header::{COOKIE, HOST};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};

use crate::auth::jwt::{JWT_TENANT, JWT_TOKEN};
use crate::auth::{API_KEY, Identity, Presented};
use crate::client_body::ClientBody;
use crate::config::Credential;
use crate::gateway::context::{Context, REQUEST_ID, TRACEPARENT, TRACESTATE};
use crate::gateway::fields::{Fate, fate};
use crate::gateway::screen::{Screened, ScreenedParts};
use crate::upstream::{BodyBounds, Kept, Outgoing, RequestBody};
use crate::user_name::UserName;

/// The field with the user whom the owner of a key acts as.
pub const IMPERSONATE_USER: HeaderName = HeaderName::from_static("x-api-impersonate-user");

const FORWARDED_USER: HeaderName = HeaderName::from_static("x-forwarded-user");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// A request that may be sent: screened, authenticated and written anew.
pub struct UpstreamRequest(Request<RequestBody>);

impl Outgoing for UpstreamRequest {
    fn into_request(self) -> Request<RequestBody> {
        self.0
    }
}

impl UpstreamRequest {
    /// What it takes to send it again with another key. From here on, what goes by of its body is kept, if it is little.
    pub fn spare(&mut self) -> Spare {
        let (method, uri) = (self.0.method().clone(), self.0.uri().clone());
        Spare { method, uri, head: self.0.headers().clone(), body: self.0.body_mut().keep() }
    }
}

/// A request that may have to be sent again.
pub struct Spare {
    method: Method,
    uri: Uri,
    head: HeaderMap,
    body: Kept,
}

impl Spare {
    /// The same request with another key; `None` if its body has not been kept whole.
    pub fn with_key(self, key: HeaderValue) -> Option<UpstreamRequest> {
        let mut request = Request::new(self.body.again()?);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.head;
        request.headers_mut().insert(API_KEY, key);
        Some(UpstreamRequest(request))
    }
}

/// Knows what proves a caller to the backend.
pub struct Rewriter {
    mode: Mode,
    authority: HeaderValue,
    body_bounds: BodyBounds,
}

enum Mode {
    Forward,
    /// What each token stands for.
    OfEachUser,
    Impersonate {
        service_key: HeaderValue,
    },
}

/// What the backend is shown as the caller's key.
enum Shown<'a> {
    /// What the client sent.
    Clients,
    /// What `tokens.keys_file` says for the client's key, or what his token stands for.
    Other(&'a HeaderValue),
    /// The gateway's own, for this user.
    Service(&'a HeaderValue, &'a UserName),
}

impl Rewriter {
    /// `authority` goes into `host`; `body_bounds` are for clients' bodies.
    pub fn new(credential: &Credential, authority: HeaderValue, body_bounds: BodyBounds) -> Rewriter {
        let mode = match credential {
            Credential::Forward => Mode::Forward,
            Credential::Platform | Credential::Delegate => Mode::OfEachUser,
            Credential::Impersonate { service_key } => {
                let key = HeaderValue::from_str(service_key.expose());
                let mut key = key.expect("the configuration checked that a field can carry the key");
                key.set_sensitive(true);
                Mode::Impersonate { service_key: key }
            }
        };
        Rewriter { mode, authority, body_bounds }
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

    /// Whether the backend sees the key that the client sent.
    pub fn shows_the_clients_key(&self, identity: &Identity) -> bool {
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
        let host = host(&uri, &fields);
        let mut head = passed_on(fields, &nominated, context.continues_trace);
        if !self.shows_the_clients_key(identity) {
            // SECURITY: a session's cookie says who somebody is, as a key does. One beside a key that is not the client's
            // would let it act in a session that this key, or another client, began.
            head.remove(COOKIE);
        }
        head.insert(HOST, self.authority.clone());
        match self.shown(identity) {
            Shown::Clients => insert(&mut head, presented),
            Shown::Other(key) => drop(head.insert(API_KEY, key.clone())),
            Shown::Service(key, user) => {
                head.insert(API_KEY, key.clone());
                head.insert(IMPERSONATE_USER, user.field_value());
            }
        }
        if let Some(user) = identity.acts_as() {
            head.insert(IMPERSONATE_USER, user.field_value());
        }
        if let Some(user) = identity.user() {
            head.insert(FORWARDED_USER, user.field_value());
        }
        head.insert(FORWARDED_FOR, context.origin.hops.clone());
        let proto = if context.origin.secure.unwrap_or(context.client.secure) { "https" } else { "http" };
        head.insert(FORWARDED_PROTO, HeaderValue::from_static(proto));
        if let Some(host) = host {
            head.insert(FORWARDED_HOST, host);
        }
        head.insert(REQUEST_ID, context.request_id.clone());
        head.insert(TRACEPARENT, context.traceparent.clone());

        let mut request = Request::new(RequestBody::streaming(body, max_body, self.body_bounds));
        *request.method_mut() = method;
        *request.uri_mut() = origin_form(&uri);
        *request.headers_mut() = head;
        UpstreamRequest(request)
    }
}

/// What the client has shown, once more.
fn insert(head: &mut HeaderMap, presented: Presented) {
    match presented {
        Presented::Key(key) => drop(head.insert(API_KEY, key.into_field_value())),
        Presented::Jwt(jwt) => {
            let (token, tenant) = jwt.into_field_values();
            head.insert(JWT_TOKEN, token);
            if let Some(tenant) = tenant {
                head.insert(JWT_TENANT, tenant);
            }
        }
    }
}

/// The client's fields that go on.
fn passed_on(fields: HeaderMap, nominated: &[HeaderName], continues_trace: bool) -> HeaderMap {
    // Room for ours too, so that the map never grows.
    let mut head = HeaderMap::with_capacity(fields.keys_len() + 10);
    let mut current: Option<HeaderName> = None;
    let mut keep = false;
    for (name, value) in fields {
        // A repeated field's name comes with its first value only.
        if let Some(name) = name {
            keep = fate(name.as_str()) == Fate::Forward
                && !nominated.contains(&name)
                && (continues_trace || name != TRACESTATE);
            current = Some(name);
        }
        if let (true, Some(name)) = (keep, &current) {
            append(&mut head, name, value);
        }
    }
    head
}

/// HTTP/2 may split `cookie` into one field a pair; HTTP/1.1 servers expect one (RFC 9113 section 8.2.3).
fn append(head: &mut HeaderMap, name: &HeaderName, value: HeaderValue) {
    if *name == COOKIE
        && let Some(first) = head.get_mut(name)
    {
        let joined = [first.as_bytes(), b"; ", value.as_bytes()].concat();
        *first = HeaderValue::from_bytes(&joined).expect("two values with `; ` between them are a value");
        return;
    }
    head.append(name.clone(), value);
}

/// What the client called us.
fn host(uri: &Uri, fields: &HeaderMap) -> Option<HeaderValue> {
    match uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => fields.get(HOST).cloned(),
    }
}

/// Path and query alone.
fn origin_form(uri: &Uri) -> Uri {
    let target = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    Uri::from(target)
}
