//! Facts about a request that are known before any decision: its connection, its client, its id and its trace. Nothing
//! is rejected here.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use ipnet::IpNet;

use crate::base::client_address;
use crate::base::clock;
use crate::base::hex;
use crate::config::ProxyHeader;
use crate::gateway::forwarded::{ClientOrigin, resolve_client};
use crate::gateway::rejection::ErrorFormat;
use crate::http::headers::{HeaderName, Headers};
use crate::observability::metrics::Protocol;
use crate::observability::trace::{Interval, Trace, Tracer};
use crate::tls::SniMatch;

/// The peer of a client connection.
#[derive(Debug)]
pub struct Peer {
    /// Its address, or the one that the PROXY protocol names; never an IPv4-mapped IPv6 address. `UNIX_PEER` for a Unix
    /// socket.
    pub address: IpAddr,
    /// The address as text, which each request needs.
    pub address_text: Box<str>,
    /// True if the connection uses TLS.
    pub is_tls: bool,
    /// The HTTP version.
    pub protocol: Protocol,
    /// The time of the TLS handshake, until the trace of a request takes it. `None` without traces.
    pub tls_handshake: RefCell<Option<Box<Interval>>>,
    /// The server name of the TLS handshake, and the names of the certificate. `None` if the client sent no name.
    pub sni: Option<SniMatch>,
    /// The identity in the verified client certificate.
    pub certificate_subject: Option<Box<str>>,
    /// Why the gateway has aborted the connection, for the log; `None` unless it has.
    pub abort_reason: Cell<Option<&'static str>>,
}

impl Peer {
    /// A peer of which only the address is known.
    pub fn new(address: IpAddr, is_tls: bool) -> Peer {
        Peer {
            address,
            address_text: client_address::to_text(address).into(),
            is_tls,
            protocol: Protocol::Http1,
            tls_handshake: RefCell::default(),
            sni: None,
            certificate_subject: None,
            abort_reason: Cell::new(None),
        }
    }
}

/// The client, id, trace and start of a request.
#[derive(Debug)]
pub struct RequestContext {
    /// The peer of the connection.
    pub peer: Rc<Peer>,
    /// The client, which may be behind trusted proxies.
    pub origin: ClientOrigin,
    request_id: RequestId,
    /// The client's `traceparent` if it is valid, else a new one.
    traceparent: [u8; TRACEPARENT_LENGTH],
    /// True if the client's trace continues, so that its `tracestate` is forwarded.
    pub continues_trace: bool,
    /// How the client reads a rejection.
    pub error_format: ErrorFormat,
    /// When the head had been read.
    pub started_at: Instant,
    /// Bytes of the request body that have arrived; `None` without a body.
    pub received_bytes: Option<Rc<Cell<u64>>>,
}

#[derive(Debug)]
enum RequestId {
    FromClient(Box<str>),
    Generated([u8; 32]),
}

/// W3C Trace Context level 1, section 3.2.
const TRACEPARENT_LENGTH: usize = 55;

impl RequestContext {
    /// Uses the client's `x-request-id` and `traceparent` if they are valid, else new ones.
    pub fn new(
        peer: Rc<Peer>,
        headers: &Headers,
        trusted_proxies: &[IpNet],
        proxy_header: ProxyHeader,
    ) -> RequestContext {
        let from_client = headers.single(HeaderName::Traceparent).and_then(parse_traceparent);
        RequestContext {
            origin: resolve_client(peer.address, headers, trusted_proxies, proxy_header),
            peer,
            request_id: match headers.single(HeaderName::XRequestId).and_then(parse_request_id) {
                Some(id) => RequestId::FromClient(id.into()),
                None => RequestId::Generated(random_hex()),
            },
            continues_trace: from_client.is_some(),
            traceparent: from_client.unwrap_or_else(new_traceparent),
            error_format: ErrorFormat::for_request(headers),
            started_at: clock::now(),
            received_bytes: None,
        }
    }

    /// The request id, 1 to 128 printable characters that need no escapes in JSON.
    pub fn request_id(&self) -> &str {
        match &self.request_id {
            RequestId::FromClient(id) => id,
            RequestId::Generated(digits) => std::str::from_utf8(digits).expect("hex digits"),
        }
    }

    /// The request id as bytes, without a check for UTF-8.
    pub fn request_id_bytes(&self) -> &[u8] {
        match &self.request_id {
            RequestId::FromClient(id) => id.as_bytes(),
            RequestId::Generated(digits) => digits,
        }
    }

    /// The `traceparent` for the backend (W3C Trace Context).
    pub fn traceparent(&self) -> &[u8] {
        &self.traceparent
    }

    /// Starts a trace if the request is sampled. From then on the `traceparent` for the backend names the gateway's
    /// span.
    pub fn start_trace(&mut self, tracer: &'static Tracer) -> Option<Box<Trace>> {
        let trace_id = hex::decode(&self.traceparent[3..35]).expect("its digits were checked");
        let client = hex::decode(&self.traceparent[36..52]).expect("its digits were checked");
        // The last bit of the flags says whether the client samples it.
        let sampled = b"13579bdf".contains(&self.traceparent[54]);
        let mut trace = tracer.start(trace_id, self.continues_trace.then_some((client, sampled)))?;
        for (pair, byte) in self.traceparent[36..52].chunks_exact_mut(2).zip(trace.upstream_span_id) {
            pair.copy_from_slice(&hex::BYTES[usize::from(byte)]);
        }
        self.traceparent[53..].copy_from_slice(b"01");
        trace.handshake_interval = self.peer.tls_handshake.take().map(|interval| *interval);
        Some(trace)
    }

    /// The scheme that the client used: that of the connection, or what a trusted proxy says.
    pub fn scheme(&self) -> &'static str {
        if self.origin.is_tls.unwrap_or(self.peer.is_tls) { "https" } else { "http" }
    }

    /// The trace id as hex digits.
    pub fn trace_id(&self) -> &[u8; 32] {
        self.traceparent[3..].first_chunk().expect("it is longer")
    }

    /// The address of the client as text.
    pub fn client_address(&self) -> Cow<'_, str> {
        if self.origin.address == self.peer.address {
            return (*self.peer.address_text).into();
        }
        client_address::to_text(self.origin.address).into()
    }
}

/// Request ids appear in logs and responses, so they are short and plain: 1 to 128 letters, digits and `-_.:/+=@`.
fn parse_request_id(value: &[u8]) -> Option<&str> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte);
    let is_valid = (1..=128).contains(&value.len()) && value.iter().all(is_plain);
    std::str::from_utf8(value).ok().filter(|_| is_valid)
}

/// W3C Trace Context level 1, section 3.2: version, trace id, parent id, flags; the ids must not be all zeros.
fn parse_traceparent(value: &[u8]) -> Option<[u8; TRACEPARENT_LENGTH]> {
    let is_lower_hex = |part: &[u8]| part.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    let is_not_zero = |part: &[u8]| part.iter().any(|b| *b != b'0');
    let value: [u8; TRACEPARENT_LENGTH] = value.try_into().ok()?;
    let has_dashes = value[2] == b'-' && value[35] == b'-' && value[52] == b'-';
    let is_valid = has_dashes
        && &value[..2] == b"00"
        && is_lower_hex(&value[3..35])
        && is_not_zero(&value[3..35])
        && is_lower_hex(&value[36..52])
        && is_not_zero(&value[36..52])
        && is_lower_hex(&value[53..]);
    is_valid.then_some(value)
}

fn new_traceparent() -> [u8; TRACEPARENT_LENGTH] {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    text[3..35].copy_from_slice(&random_hex::<32>());
    text[36..52].copy_from_slice(&random_hex::<16>());
    text
}

/// Random hex digits; `DIGITS` is a multiple of 16. Ids must be unique, not secret.
fn random_hex<const DIGITS: usize>() -> [u8; DIGITS] {
    let mut text = [0; DIGITS];
    for digits in text.as_chunks_mut::<16>().0 {
        let bits = fastrand::u64(1..);
        let halves = digits.as_chunks_mut::<8>().0.iter_mut();
        for (half, value) in halves.zip([(bits >> 32) as u32, bits as u32]) {
            *half = hex::digits(value);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn context(headers: &[(&str, &str)]) -> RequestContext {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(http::HeaderName::from_bytes(name.as_bytes()).expect("a name"), value.parse().expect("a value"));
        }
        let peer = Peer::new(IpAddr::from([127, 0, 0, 1]), true);
        RequestContext::new(Rc::new(peer), &Headers::from(&map), &[], ProxyHeader::XForwardedFor)
    }

    #[test]
    fn valid_ids_of_the_client_are_kept() {
        let context = context(&[("x-request-id", "abc-1.2"), ("traceparent", TRACE)]);
        assert_eq!(context.request_id(), "abc-1.2");
        assert_eq!(context.traceparent(), TRACE.as_bytes());
        assert!(context.continues_trace);
    }

    #[test]
    fn invalid_ids_are_replaced() {
        let long = "x".repeat(129);
        for id in ["", "a b", "a\"b", "<script>", &long] {
            let context = context(&[("x-request-id", id)]);
            assert_eq!(context.request_id().len(), 32, "{id}");
        }
        assert_eq!(context(&[("x-request-id", "a"), ("x-request-id", "b")]).request_id().len(), 32);
        for trace in [
            "",
            &TRACE.to_uppercase(),
            &TRACE.replace("4bf9", "4bfg"),
            &TRACE[1..],
            &TRACE.replacen("00", "ff", 1),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        ] {
            let context = context(&[("traceparent", trace)]);
            assert_ne!(context.traceparent(), trace.as_bytes());
            assert!(parse_traceparent(context.traceparent()).is_some() && !context.continues_trace);
        }
        assert_ne!(context(&[]).request_id(), context(&[]).request_id());
    }
}
