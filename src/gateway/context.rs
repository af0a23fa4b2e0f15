//! What is known of a request before anything is judged: who connected, and how logs call the request.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::gateway::forwarded::{Origin, origin};
use crate::tls::Served;

/// The field with a request's id, accepted from clients and given to the backend and back.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// W3C trace context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// W3C trace context, the part that vendors add.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The peer of a connection.
#[derive(Debug)]
pub struct Client {
    /// Its address, or the one that a load balancer gave for it; never an IPv4 one in IPv6's clothes.
    pub address: IpAddr,
    /// Whether it speaks TLS.
    pub secure: bool,
    /// Whom it asked for by name in the TLS handshake.
    pub served: Option<Served>,
    /// Whom its verified certificate says that it is.
    pub certificate: Option<String>,
}

/// A request's id, trace and beginning.
#[derive(Debug)]
pub struct Context {
    /// The peer.
    pub client: Rc<Client>,
    /// Who the client is, which may stand behind proxies.
    pub origin: Origin,
    /// The client's `x-request-id` if it is usable, else one of ours.
    pub request_id: HeaderValue,
    /// The client's `traceparent` if it is valid, else one of ours.
    pub traceparent: HeaderValue,
    /// Whether the client's trace goes on, and its `tracestate` with it.
    pub continues_trace: bool,
    /// When the head had been read.
    pub begun: Instant,
}

impl Context {
    /// Takes over what the client's fields say, where that is well formed.
    pub fn new(client: Rc<Client>, fields: &HeaderMap, trusted_proxies: &[IpNet]) -> Context {
        let given = single(fields, &TRACEPARENT).filter(|value| is_traceparent(value.as_bytes()));
        Context {
            origin: origin(client.address, fields, trusted_proxies),
            client,
            request_id: single(fields, &REQUEST_ID)
                .filter(|value| is_request_id(value.as_bytes()))
                .cloned()
                .unwrap_or_else(|| HeaderValue::from_str(&hex(16)).expect("hex digits")),
            continues_trace: given.is_some(),
            traceparent: given.cloned().unwrap_or_else(|| {
                HeaderValue::from_str(&format!("00-{}-{}-00", hex(16), hex(8))).expect("hex digits")
            }),
            begun: Instant::now(),
        }
    }

    /// The request's id as text.
    pub fn request_id(&self) -> &str {
        self.request_id.to_str().expect("only ids of visible characters are taken or made")
    }
}

fn single<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = fields.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

/// Ids stand in logs and answers, so they are short words: 1 to 128 of letters, digits and `-_.:/+=@`.
fn is_request_id(value: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte);
    (1..=128).contains(&value.len()) && value.iter().all(plain)
}

/// W3C Trace Context level 1, section 3.2: version, trace id, parent id, flags; ids are not all zeros.
fn is_traceparent(value: &[u8]) -> bool {
    let lower_hex = |part: &[u8]| part.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    let not_zero = |part: &[u8]| part.iter().any(|b| *b != b'0');
    let dashes = value.len() == 55 && value[2] == b'-' && value[35] == b'-' && value[52] == b'-';
    dashes
        && &value[..2] == b"00"
        && lower_hex(&value[3..35])
        && not_zero(&value[3..35])
        && lower_hex(&value[36..52])
        && not_zero(&value[36..52])
        && lower_hex(&value[53..])
}

/// So many random bytes in hex. Ids must differ, not be secret.
fn hex(bytes: usize) -> String {
    let mut text = String::with_capacity(2 * bytes);
    for _ in 0..bytes / 8 {
        let _ = write!(text, "{:016x}", fastrand::u64(1..));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn context(fields: &[(&str, &str)]) -> Context {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).expect("a name"),
                value.parse().expect("a value"),
            );
        }
        let address = IpAddr::from([127, 0, 0, 1]);
        Context::new(Rc::new(Client { address, secure: true, served: None, certificate: None }), &map, &[])
    }

    #[test]
    fn usable_ids_are_taken_over() {
        let context = context(&[("x-request-id", "abc-1.2"), ("traceparent", TRACE)]);
        assert_eq!(context.request_id(), "abc-1.2");
        assert_eq!(context.traceparent, TRACE);
        assert!(context.continues_trace);
    }

    #[test]
    fn others_are_made() {
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
            assert_ne!(context.traceparent, trace);
            assert!(is_traceparent(context.traceparent.as_bytes()) && !context.continues_trace);
        }
        assert_ne!(context(&[]).request_id(), context(&[]).request_id());
    }
}
