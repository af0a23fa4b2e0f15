//! From a screened request and a proven identity to the request that the backend receives.
//!
//! SECURITY: the only place that makes an [`UpstreamRequest`]. Its head is a new one: the headers of the client that
//! may be forwarded, then the gateway's, so that no header of the client can replace one of the gateway.

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderValue, Uri};

use crate::auth::{ClientCredential, Identity, basic_authorization};
use crate::base::glob::Glob;
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::config::{AffinityKey, CredentialMode, HostHeader, RouteProfile, UpstreamOptions};
use crate::gateway::affinity::{request_affinity, split_tag};
use crate::gateway::exchange::Exchange;
use crate::gateway::header_policy::{Disposition, disposition};
use crate::gateway::padded_body::can_be_padded;
use crate::gateway::rejection::Rejection;
use crate::gateway::response_edits::ResponseEdits;
use crate::gateway::screen::Screened;
use crate::http::client_body::ClientBody;
use crate::http::h1::request::write_request_start;
use crate::http::h1::response::{copy_header, write_header};
use crate::http::headers::{Head, Header, HeaderName, Headers};
use crate::upstream::{BodyLimits, OutgoingMessage, OutgoingRequest, RequestBody, SendOptions};

/// A request that may be sent: screened, authenticated and rewritten.
pub struct UpstreamRequest {
    /// Boxed, as it is passed on many times.
    message: Box<OutgoingMessage>,
    /// Where the credential begins in the head. It is the last header.
    credential_offset: usize,
    key_header: KeyHeader,
    options: SendOptions,
}

impl OutgoingRequest for UpstreamRequest {
    fn options(&self) -> SendOptions {
        self.options
    }

    fn into_message(self) -> Box<OutgoingMessage> {
        self.message
    }
}

impl UpstreamRequest {
    /// Receives the body, or at least `limit` bytes of it.
    pub async fn buffer_body(&mut self, limit: u64) -> Result<(), Rejection> {
        self.message.body.buffer(limit).await.map_err(|error| Rejection::from(&error))
    }

    /// The body, if it was received completely.
    pub fn whole_body(&self) -> Option<Bytes> {
        self.message.body.whole()
    }

    /// A copy for a retry with a different key; `None` if its body was too large to be buffered.
    pub fn copy_for_resend(&self) -> Option<ResendableRequest> {
        let OutgoingMessage { method, head, host_offset, body } = &*self.message;
        let head = head[..self.credential_offset].to_owned();
        let body = RequestBody::received(body.whole()?);
        let message = Box::new(OutgoingMessage { method: method.clone(), head, host_offset: *host_offset, body });
        Some(ResendableRequest(UpstreamRequest { message, key_header: self.key_header.clone(), ..*self }))
    }
}

/// A request that may have to be sent again, without its credential.
pub struct ResendableRequest(UpstreamRequest);

impl ResendableRequest {
    /// The same request with a different key.
    pub fn with_key(self, key: &HeaderValue) -> UpstreamRequest {
        let ResendableRequest(mut request) = self;
        write_key(&mut request.message.head, key.as_bytes(), &request.key_header);
        request
    }
}

/// The header that carries the key, to the gateway and to the backend.
#[derive(Clone)]
enum KeyHeader {
    XApiKey,
    /// `Authorization: Basic` with this user name, and the key as the password.
    BasicAuthorization(Box<str>),
}

impl KeyHeader {
    fn of_credential(credential: &ClientCredential) -> KeyHeader {
        match credential {
            ClientCredential::Basic(basic) => KeyHeader::BasicAuthorization(basic.user().into()),
            ClientCredential::Password(basic) => KeyHeader::BasicAuthorization(basic.key_user()),
            ClientCredential::Key(_)
            | ClientCredential::Jwt(_)
            | ClientCredential::BearerJwt(_)
            | ClientCredential::Unchecked(_) => KeyHeader::XApiKey,
        }
    }
}

/// Fits a head and a small body, so that the buffer does not have to grow. jemalloc serves this size from its caches.
const INITIAL_MESSAGE_CAPACITY: usize = 1000;

/// Writes requests with the credential that the configuration chooses.
pub struct Rewriter {
    mode: CredentialMode,
    host_header: HostHeader,
    /// `headers.drop`
    dropped_headers: Vec<Glob>,
    body_limits: BodyLimits,
}

/// The key that the backend receives.
enum UpstreamCredential<'a> {
    /// The client's own.
    AsSent,
    /// From `tokens.keys_file`, or the upstream key of the client's token.
    Replaced(&'a HeaderValue),
    /// The gateway's, for this user.
    ServiceKey(&'a Secret, &'a UserName),
}

impl Rewriter {
    /// `dropped_headers` are in lower case; `body_limits` apply to the bodies of clients.
    pub fn new(upstream: &UpstreamOptions, dropped_headers: Vec<Glob>, body_limits: BodyLimits) -> Rewriter {
        let UpstreamOptions { credential, host_header, .. } = upstream;
        Rewriter { mode: credential.clone(), host_header: *host_header, dropped_headers, body_limits }
    }

    /// True if the backend receives the client's own key and knows it, so that it can decide what the key may do.
    ///
    /// SECURITY: with the operator's or the gateway's key, the client would borrow the rights of that key. A token of
    /// the gateway does not count as a key of the backend either: a backend that accepts it trusts the gateway for one
    /// user, and cannot know who else that user may act as. Nor does a JWT, which names one user. With `impersonate`
    /// only the gateway names the user, for foreign keys too.
    pub fn is_backend_key_forwarded(&self, identity: &Identity) -> bool {
        matches!(self.mode, CredentialMode::Forward)
            && self.is_client_key_forwarded(identity)
            && !identity.is_gateway_token()
            && !identity.is_jwt()
            && !identity.is_unauthenticated()
    }

    /// True if a session that the backend begins for this request belongs to the client: its own key, without
    /// impersonation. Never with `Authorization: Basic`, for which HiveServer2 sets a cookie: Hive's JDBC driver would
    /// send the cookie in place of the credential.
    fn is_client_session(&self, credential: &ClientCredential, identity: &Identity) -> bool {
        self.is_client_key_forwarded(identity)
            && identity.impersonated_user().is_none()
            && !matches!(credential, ClientCredential::Basic(_) | ClientCredential::Password(_))
    }

    /// True if the backend receives a token of this gateway.
    pub fn is_gateway_token_forwarded(&self, identity: &Identity) -> bool {
        identity.is_gateway_token() && self.is_client_key_forwarded(identity)
    }

    fn is_client_key_forwarded(&self, identity: &Identity) -> bool {
        matches!(self.upstream_credential(identity), UpstreamCredential::AsSent)
    }

    /// SECURITY: a foreign key is never replaced by the service key. Its user is not known here, or only by a statement
    /// of the operator, so the service key would act for no user or for a wrong one. It is forwarded unchanged.
    fn upstream_credential<'a>(&'a self, identity: &'a Identity) -> UpstreamCredential<'a> {
        match (identity.upstream_key(), &self.mode, identity.user()) {
            (Some(key), _, _) => UpstreamCredential::Replaced(key),
            (None, CredentialMode::Impersonate { service_key }, Some(user)) if !identity.is_foreign_key() => {
                UpstreamCredential::ServiceKey(service_key, user)
            }
            (None, _, _) => UpstreamCredential::AsSent,
        }
    }

    /// Writes the request for the backend, and decides what is changed in the response.
    pub fn rewrite(
        &self,
        screened: Screened,
        profile: &RouteProfile,
        body: ClientBody,
        identity: &Identity,
        exchange: &mut Exchange,
    ) -> UpstreamRequest {
        let (Head { method, uri, headers, .. }, credential, connection_options) = screened.into_parts();
        let forwards_host = profile.host_header.unwrap_or(self.host_header) != HostHeader::Backend;
        let is_client_session = self.is_client_session(&credential, identity);
        let affinity = profile.affinity.as_ref().and_then(|key| request_affinity(key, &headers, identity));
        let has_tagged_session = profile.affinity == Some(AffinityKey::McpSession);
        let host = client_host(&uri, &headers);
        exchange.padding = profile.response_keepalive.filter(|_| can_be_padded(&method, &headers));
        exchange.edits = ResponseEdits {
            removes_cookies: !is_client_session,
            session_tag: affinity.filter(|_| has_tagged_session),
            forwarded_host: host.filter(|_| forwards_host).and_then(|host| Authority::try_from(host).ok()),
        };
        let context = exchange.context();
        let mut head = Vec::with_capacity(INITIAL_MESSAGE_CAPACITY);
        write_request_start(&mut head, &method, &uri);
        // By default, `upstream` inserts the name of the chosen backend.
        write_header(&mut head, HeaderName::Host, b"");
        let host_offset = (!forwards_host).then_some(head.len());
        if forwards_host {
            head.extend_from_slice(host.unwrap_or_default());
        }
        let forwarded = ForwardedHeaders {
            connection_options: &connection_options,
            dropped_headers: &self.dropped_headers,
            continues_trace: context.continues_trace,
            encodings: profile.response_keepalive.is_none(),
            // SECURITY: the cookie of a session is a credential. Beside a key that is not the client's own, it would
            // let the client act in a session that this key, or a different client, began.
            cookies: is_client_session,
            has_tagged_session,
            // If a rule of the gateway allows impersonation, the gateway writes the header itself.
            impersonation: identity.impersonated_user().is_none() && self.is_backend_key_forwarded(identity),
        };
        forwarded.write(&mut head, &headers);
        if let Some(user) = identity.user() {
            write_header(&mut head, HeaderName::XForwardedUser, user.as_str().as_bytes());
        }
        let forwarded_for = context.origin.forwarded_for.as_deref().unwrap_or(&context.peer.address_text);
        write_header(&mut head, HeaderName::XForwardedFor, forwarded_for.as_bytes());
        write_header(&mut head, HeaderName::XForwardedProto, context.scheme().as_bytes());
        if let Some(host) = host {
            write_header(&mut head, HeaderName::XForwardedHost, host);
        }
        write_header(&mut head, HeaderName::XRequestId, context.request_id_bytes());
        write_header(&mut head, HeaderName::Traceparent, context.traceparent());
        if let Some(user) = self.impersonated_user(identity) {
            write_header(&mut head, HeaderName::XApiImpersonateUser, user.as_str().as_bytes());
        }
        let credential_offset = head.len();
        let key_header = KeyHeader::of_credential(&credential);
        self.write_credential(&mut head, &credential, &key_header, identity);
        let body = RequestBody::streaming(body, profile.max_body, self.body_limits)
            .with_counter(context.received_bytes.clone());
        let message = Box::new(OutgoingMessage { method, head, host_offset, body });
        let options =
            SendOptions { response_timeout: profile.response_timeout, body_timeout: profile.body_timeout, affinity };
        UpstreamRequest { message, credential_offset, key_header, options }
    }

    /// The user whom the key acts as, according to the gateway.
    fn impersonated_user<'a>(&'a self, identity: &'a Identity) -> Option<&'a UserName> {
        identity.impersonated_user().or_else(|| match self.upstream_credential(identity) {
            UpstreamCredential::ServiceKey(_, user) => Some(user),
            UpstreamCredential::AsSent | UpstreamCredential::Replaced(_) => None,
        })
    }

    fn write_credential(
        &self,
        head: &mut Vec<u8>,
        credential: &ClientCredential,
        key_header: &KeyHeader,
        identity: &Identity,
    ) {
        match (self.upstream_credential(identity), credential) {
            (UpstreamCredential::AsSent, ClientCredential::Key(key)) => write_key(head, key.expose(), key_header),
            (UpstreamCredential::AsSent, ClientCredential::Basic(basic)) => {
                write_key(head, basic.key().expose(), key_header);
            }
            // SECURITY: the token of the login, never the password.
            (UpstreamCredential::AsSent, ClientCredential::Password(_)) => {
                let token = identity.login_token().map(HeaderValue::as_bytes).unwrap_or_default();
                write_key(head, token, key_header);
            }
            // SECURITY: nothing of the gateway's is added to a request that it has not authenticated.
            (UpstreamCredential::AsSent, ClientCredential::Unchecked(authorization)) => {
                if let Some(value) = authorization {
                    write_header(head, HeaderName::Authorization, value);
                }
            }
            (UpstreamCredential::AsSent, ClientCredential::Jwt(jwt) | ClientCredential::BearerJwt(jwt)) => {
                if matches!(credential, ClientCredential::BearerJwt(_)) {
                    write_header(head, HeaderName::Authorization, b"Bearer ");
                    head.extend_from_slice(jwt.expose());
                } else {
                    write_header(head, HeaderName::XJwtToken, jwt.expose());
                }
                jwt.headers().for_each(|(name, value)| write_header(head, name, value.as_bytes()));
            }
            (UpstreamCredential::Replaced(key), _) => write_key(head, key.as_bytes(), key_header),
            (UpstreamCredential::ServiceKey(key, _), _) => {
                write_key(head, key.expose().as_bytes(), key_header);
            }
        }
    }
}

/// The host that the client requested.
fn client_host<'a>(uri: &'a Uri, headers: &'a Headers) -> Option<&'a [u8]> {
    let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
    authority.or_else(|| headers.get(HeaderName::Host))
}

fn write_key(head: &mut Vec<u8>, key: &[u8], key_header: &KeyHeader) {
    match key_header {
        KeyHeader::XApiKey => write_header(head, HeaderName::XApiKey, key),
        KeyHeader::BasicAuthorization(user) => {
            write_header(head, HeaderName::Authorization, basic_authorization(user, key).as_bytes());
        }
    }
}

/// Which of the client's headers are forwarded.
struct ForwardedHeaders<'a> {
    connection_options: &'a [http::HeaderName],
    dropped_headers: &'a [Glob],
    continues_trace: bool,
    encodings: bool,
    /// Whether the gateway has appended something to the session ID of MCP.
    has_tagged_session: bool,
    cookies: bool,
    impersonation: bool,
}

impl ForwardedHeaders<'_> {
    fn write(&self, head: &mut Vec<u8>, headers: &Headers) {
        let mut cookies_written = false;
        for header in headers.iter().filter(|header| self.is_forwarded(*header)) {
            if self.has_tagged_session && header.name == HeaderName::McpSessionId {
                write_header(head, header.name, split_tag(header.value).0);
            } else if header.name != HeaderName::Cookie {
                copy_header(head, header);
            } else if !std::mem::replace(&mut cookies_written, true) {
                write_cookies(head, headers);
            }
        }
    }

    fn is_forwarded(&self, header: Header<'_>) -> bool {
        disposition(header.name, header.text()) == Disposition::Forward
            && match header.name {
                HeaderName::Cookie => self.cookies,
                HeaderName::XApiImpersonateUser => self.impersonation,
                HeaderName::AcceptEncoding => self.encodings,
                HeaderName::Tracestate => self.continues_trace,
                _ => true,
            }
            && !self.connection_options.iter().any(|name| name.as_str().as_bytes() == header.text())
            && !self.dropped_headers.iter().any(|pattern| pattern.matches_bytes(header.text()))
    }
}

/// HTTP/2 may split `cookie` into one header for each pair; HTTP/1.1 servers expect one (RFC 9113 section 8.2.3).
fn write_cookies(head: &mut Vec<u8>, headers: &Headers) {
    let pairs: Vec<_> = headers.all(HeaderName::Cookie).collect();
    write_header(head, HeaderName::Cookie, &pairs.join(&b"; "[..]));
}
