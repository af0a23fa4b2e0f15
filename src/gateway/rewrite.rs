//! From a screened request and a proven identity to what the backend sees.
//!
//! SECURITY: the only place that makes an [`UpstreamRequest`]. Its head is written anew: fields of the client that may
//! pass, then ours, so that nothing the client sent can stand in the place of what the gateway says.

use http::{HeaderValue, Method};

use crate::auth::{ClientCredential, Identity, basic_authorization};
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::config::CredentialMode;
use crate::gateway::context::RequestContext;
use crate::gateway::header_policy::{Disposition, disposition};
use crate::gateway::screen::{Screened, ScreenedParts};
use crate::http::client_body::ClientBody;
use crate::http::h1::request::write_request_start;
use crate::http::h1::response::{copy_header, write_header};
use crate::http::headers::{Header, HeaderName, Headers};
use crate::upstream::{BodyLimits, OutgoingMessage, OutgoingRequest, ReplayBuffer, RequestBody};

/// A request that may be sent: screened, authenticated and written anew.
pub struct UpstreamRequest {
    message: OutgoingMessage,
    /// Where in the head the credential begins, which ends it.
    credential_offset: usize,
    /// Whether a key stands there as a password.
    is_basic: bool,
}

impl OutgoingRequest for UpstreamRequest {
    fn into_message(self) -> OutgoingMessage {
        self.message
    }
}

impl UpstreamRequest {
    /// What it takes to send it again with another key. From here on, what goes by of its body is kept, if it is little.
    pub fn keep_for_resend(&mut self) -> ResendableRequest {
        let OutgoingMessage { method, head, host_offset: host, body } = &mut self.message;
        let head = head[..self.credential_offset].to_owned();
        ResendableRequest {
            method: method.clone(),
            head,
            host: *host,
            body: body.record_for_replay(),
            is_basic: self.is_basic,
        }
    }
}

/// A request that may have to be sent again, without its credential.
pub struct ResendableRequest {
    method: Method,
    head: Vec<u8>,
    host: usize,
    body: ReplayBuffer,
    is_basic: bool,
}

impl ResendableRequest {
    /// The same request with another key; `None` if its body has not been kept whole.
    pub fn with_key(self, key: &HeaderValue) -> Option<UpstreamRequest> {
        let ResendableRequest { method, mut head, host, body, is_basic } = self;
        let (credential, body) = (head.len(), body.replay()?);
        write_key(&mut head, key.as_bytes(), is_basic);
        Some(UpstreamRequest {
            message: OutgoingMessage { method, head, host_offset: host, body },
            credential_offset: credential,
            is_basic,
        })
    }
}

/// Room for a head and a small body, so that they need no more memory on their way. The allocator has pieces of this
/// size at hand.
const INITIAL_MESSAGE_CAPACITY: usize = 1000;

/// Knows what proves a caller to the backend.
pub struct Rewriter {
    mode: RewriteMode,
    body_bounds: BodyLimits,
}

enum RewriteMode {
    Forward,
    /// What each token stands for.
    PerUser,
    Impersonate {
        service_key: Secret,
    },
}

/// What the backend is shown as the caller's key.
enum UpstreamCredential<'a> {
    /// What the client sent.
    Clients,
    /// What `tokens.keys_file` says for the client's key, or what his token stands for.
    Replaced(&'a HeaderValue),
    /// The gateway's own, for this user.
    ServiceKey(&'a Secret, &'a UserName),
}

impl Rewriter {
    /// `body_bounds` are for clients' bodies.
    pub fn new(credential: &CredentialMode, body_bounds: BodyLimits) -> Rewriter {
        let mode = match credential {
            CredentialMode::Forward => RewriteMode::Forward,
            CredentialMode::Platform | CredentialMode::Delegate => RewriteMode::PerUser,
            // The configuration checked that a field can carry the key.
            CredentialMode::Impersonate { service_key } => {
                RewriteMode::Impersonate { service_key: service_key.clone() }
            }
        };
        Rewriter { mode, body_bounds }
    }

    /// Whether the backend sees a key that it knows by itself, as the client sent it, and can judge what it may.
    ///
    /// SECURITY: together with the operator's or the gateway's key, the client would borrow what that key may do. A token
    /// that the gateway made is no key of the backend's either: a backend that takes it does so on the gateway's word for
    /// one user, and has nothing by which to judge who else that user may be. Nor is a JWT, which names one user. Under
    /// `impersonate` the gateway alone says who the user is, for foreign keys too.
    pub fn is_backend_key_forwarded(&self, identity: &Identity) -> bool {
        matches!(self.mode, RewriteMode::Forward)
            && self.is_client_key_forwarded(identity)
            && !identity.is_gateway_token()
            && !identity.is_jwt()
    }

    /// Whether a session that the backend begins with this request is the client's: its own key, and nobody it acts as.
    pub fn is_client_session(&self, identity: &Identity) -> bool {
        self.is_client_key_forwarded(identity) && identity.impersonated_user().is_none()
    }

    /// Whether the backend sees the key that the client sent.
    fn is_client_key_forwarded(&self, identity: &Identity) -> bool {
        matches!(self.upstream_credential(identity), UpstreamCredential::Clients)
    }

    /// SECURITY: a foreign key is never exchanged for the service key: its user is not known here, and the service key
    /// would act for nobody. It goes upstream as it came.
    fn upstream_credential<'a>(&'a self, identity: &'a Identity) -> UpstreamCredential<'a> {
        match (identity.upstream_key(), &self.mode, identity.user()) {
            (Some(key), _, _) => UpstreamCredential::Replaced(key),
            (None, RewriteMode::Impersonate { service_key }, Some(user)) => {
                UpstreamCredential::ServiceKey(service_key, user)
            }
            (None, _, _) => UpstreamCredential::Clients,
        }
    }

    /// Writes the request for the backend.
    pub fn rewrite(
        &self,
        screened: Screened,
        body: ClientBody,
        identity: &Identity,
        context: &RequestContext,
    ) -> UpstreamRequest {
        let ScreenedParts {
            method,
            uri,
            fields,
            credential: presented,
            connection_options: nominated,
            max_body,
        } = screened.into_parts();
        let mut head = Vec::with_capacity(INITIAL_MESSAGE_CAPACITY);
        write_request_start(&mut head, &method, &uri);
        // The name of the backend that is chosen for it.
        write_header(&mut head, HeaderName::Host, b"");
        let backend = head.len();
        let passing = ForwardedHeaders {
            connection_options: &nominated,
            continues_trace: context.continues_trace,
            // SECURITY: a session's cookie says who somebody is, as a key does. One beside a key that is not the client's
            // would let it act in a session that this key, or another client, began.
            cookies: self.is_client_session(identity),
            // Where a rule allows it, the field is written anew.
            impersonation: identity.impersonated_user().is_none() && self.is_backend_key_forwarded(identity),
        };
        passing.write(&mut head, &fields);
        if let Some(user) = identity.user() {
            write_header(&mut head, HeaderName::XForwardedUser, user.as_str().as_bytes());
        }
        let hops = context.origin.forwarded_for.as_ref().unwrap_or(&context.peer.address_text);
        write_header(&mut head, HeaderName::XForwardedFor, hops.as_bytes());
        let proto = if context.origin.is_tls.unwrap_or(context.peer.is_tls) { "https" } else { "http" };
        write_header(&mut head, HeaderName::XForwardedProto, proto.as_bytes());
        // What the client called us.
        let host = uri.authority().map(|authority| authority.as_str().as_bytes());
        if let Some(host) = host.or_else(|| fields.get(HeaderName::Host)) {
            write_header(&mut head, HeaderName::XForwardedHost, host);
        }
        write_header(&mut head, HeaderName::XRequestId, context.request_id_bytes());
        write_header(&mut head, HeaderName::Traceparent, context.traceparent());
        if let Some(user) = self.impersonated_user(identity) {
            write_header(&mut head, HeaderName::XApiImpersonateUser, user.as_str().as_bytes());
        }
        let credential = head.len();
        self.write_credential(&mut head, &presented, identity);
        let body = RequestBody::streaming(body, max_body, self.body_bounds)
            .with_counter(context.received_bytes.clone());
        let is_basic = matches!(presented, ClientCredential::Basic(_));
        let message = OutgoingMessage { method, head, host_offset: backend, body };
        UpstreamRequest { message, credential_offset: credential, is_basic }
    }

    /// Whom the gateway says that the shown key acts as.
    fn impersonated_user<'a>(&'a self, identity: &'a Identity) -> Option<&'a UserName> {
        identity.impersonated_user().or_else(|| match self.upstream_credential(identity) {
            UpstreamCredential::ServiceKey(_, user) => Some(user),
            UpstreamCredential::Clients | UpstreamCredential::Replaced(_) => None,
        })
    }

    fn write_credential(&self, head: &mut Vec<u8>, presented: &ClientCredential, identity: &Identity) {
        let is_basic = matches!(presented, ClientCredential::Basic(_));
        match (self.upstream_credential(identity), presented) {
            (UpstreamCredential::Clients, ClientCredential::Key(key) | ClientCredential::Basic(key)) => {
                write_key(head, key.expose(), is_basic);
            }
            (UpstreamCredential::Clients, ClientCredential::Jwt(jwt)) => {
                write_header(head, HeaderName::XJwtToken, jwt.expose());
                if let Some(tenant) = jwt.tenant() {
                    write_header(head, HeaderName::XJwtTenantId, tenant.as_bytes());
                }
            }
            (UpstreamCredential::Replaced(key), _) => write_key(head, key.as_bytes(), is_basic),
            (UpstreamCredential::ServiceKey(key, _), _) => write_key(head, key.expose().as_bytes(), is_basic),
        }
    }
}

/// A key, in the form in which the route has it.
fn write_key(head: &mut Vec<u8>, key: &[u8], is_basic: bool) {
    match is_basic {
        false => write_header(head, HeaderName::XApiKey, key),
        true => write_header(head, HeaderName::Authorization, basic_authorization(key).as_bytes()),
    }
}

/// Which of the client's fields go on.
struct ForwardedHeaders<'a> {
    connection_options: &'a [http::HeaderName],
    continues_trace: bool,
    cookies: bool,
    impersonation: bool,
}

impl ForwardedHeaders<'_> {
    fn write(&self, head: &mut Vec<u8>, fields: &Headers) {
        let mut cookies_written = false;
        for field in fields.iter().filter(|field| self.is_forwarded(*field)) {
            if field.name != HeaderName::Cookie {
                copy_header(head, field);
            } else if !std::mem::replace(&mut cookies_written, true) {
                write_cookies(head, fields);
            }
        }
    }

    fn is_forwarded(&self, field: Header<'_>) -> bool {
        disposition(field.name, field.text()) == Disposition::Forward
            && match field.name {
                HeaderName::Cookie => self.cookies,
                HeaderName::XApiImpersonateUser => self.impersonation,
                HeaderName::Tracestate => self.continues_trace,
                _ => true,
            }
            && !self.connection_options.iter().any(|name| name.as_str().as_bytes() == field.text())
    }
}

/// HTTP/2 may split `cookie` into one field a pair; HTTP/1.1 servers expect one (RFC 9113 section 8.2.3).
fn write_cookies(head: &mut Vec<u8>, fields: &Headers) {
    let pairs: Vec<_> = fields.all(HeaderName::Cookie).collect();
    write_header(head, HeaderName::Cookie, &pairs.join(&b"; "[..]));
}
