//! What of OTLP 1.x is spoken here (opentelemetry/proto/trace/v1/trace.proto and what it names), and how a finished request
//! is said in it.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::observability::metrics::Outcome;
use crate::observability::trace::{Finished, Span as Between, SpanId};

#[derive(Clone, PartialEq, Message)]
pub struct ExportTraceServiceRequest {
    #[prost(message, repeated, tag = "1")]
    pub resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    pub scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    pub spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Scope {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub version: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub name: String,
    #[prost(int32, tag = "6")]
    pub kind: i32,
    #[prost(fixed64, tag = "7")]
    pub start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    pub end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    pub attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    pub status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Status {
    #[prost(int32, tag = "3")]
    pub code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(message, optional, tag = "2")]
    pub value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 3")]
    pub value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

const INTERNAL: i32 = 1;
const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const ERROR: i32 = 2;

/// An attribute that is a text.
pub fn text(key: &str, value: impl Into<String>) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::Text(value.into())) });
    KeyValue { key: key.to_owned(), value }
}

fn number(key: &str, value: u64) -> KeyValue {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(Value::Number(value)) }) }
}

/// Makes spans of one request.
struct Maker<'a> {
    of: &'a Finished,
    spans: Vec<Span>,
}

/// The spans of a request, the request's own first.
pub fn spans(of: &Finished) -> Vec<Span> {
    let mut maker = Maker { of, spans: Vec::with_capacity(of.spans()) };
    maker.request();
    if let Some(between) = of.handshake {
        maker.child("tls handshake", INTERNAL, random(), between, vec![], None);
    }
    for (step, outcome, between) in &of.steps {
        let attributes = vec![text("timbr.outcome", outcome.word())];
        let error = (*outcome != Outcome::Ok).then(|| outcome.word());
        maker.child(step.word(), INTERNAL, random(), *between, attributes, error);
    }
    if let Some(between) = of.asked {
        maker.upstream(between);
    }
    maker.spans
}

fn random() -> SpanId {
    fastrand::u64(1..).to_be_bytes()
}

impl Maker<'_> {
    fn request(&mut self) {
        let said = &self.of.said;
        let mut attributes = vec![
            text("http.request.method", &said.method),
            text("url.path", &said.path),
            text("url.scheme", if said.secure { "https" } else { "http" }),
            number("http.response.status_code", said.status.into()),
            text("client.address", &said.client),
            text("network.protocol.version", said.protocol),
            number("http.request.body.size", said.received),
            number("http.response.body.size", said.sent),
            text("timbr.request_id", &said.request_id),
        ];
        let route = (!said.route.is_empty()).then(|| text("http.route", &said.route));
        let error = (!said.reason.is_empty()).then(|| text("error.type", said.reason));
        let user = said.user.as_ref().map(|user| text("enduser.id", user));
        let key = said.key.as_ref().map(|key| text("timbr.key.fingerprint", key));
        attributes.extend(route.into_iter().chain(error).chain(user).chain(key));
        let name = format!("{} {}", said.method, said.route);
        self.spans.push(Span {
            parent_span_id: self.of.parent.map(Vec::from).unwrap_or_default(),
            // A client's own mistake is no error of a server's span.
            status: (said.status >= 500).then_some(Status { code: ERROR }),
            ..self.span(name.trim_end(), SERVER, self.of.id, self.of.span, attributes)
        });
    }

    fn upstream(&mut self, between: Between) {
        let said = &self.of.said;
        let mut attributes = vec![text("http.request.method", &said.method)];
        if let Some(server) = &said.server {
            let (host, port) = server.rsplit_once(':').unwrap_or((server, ""));
            attributes.push(text("server.address", host));
            attributes.extend(port.parse().ok().map(|port: u64| number("server.port", port)));
        }
        let failed = said.reason.starts_with("upstream_").then_some(said.reason);
        if failed.is_none() {
            attributes.push(number("http.response.status_code", said.status.into()));
        }
        self.child(&said.method, CLIENT, self.of.upstream, between, attributes, failed);
    }

    fn child(
        &mut self,
        name: &str,
        kind: i32,
        id: SpanId,
        between: Between,
        mut attributes: Vec<KeyValue>,
        error: Option<&str>,
    ) {
        attributes.extend(error.map(|error| text("error.type", error)));
        self.spans.push(Span {
            parent_span_id: self.of.id.to_vec(),
            status: error.map(|_| Status { code: ERROR }),
            ..self.span(name, kind, id, between, attributes)
        });
    }

    fn span(&self, name: &str, kind: i32, id: SpanId, at: Between, attributes: Vec<KeyValue>) -> Span {
        Span {
            trace_id: self.of.trace_id.to_vec(),
            span_id: id.to_vec(),
            parent_span_id: Vec::new(),
            name: name.to_owned(),
            kind,
            start_time_unix_nano: unix_nanos(at.begun, self.of.now),
            end_time_unix_nano: unix_nanos(at.ended, self.of.now),
            attributes,
            status: None,
        }
    }
}

/// A moment that the monotonic clock told, on the wall clock.
fn unix_nanos(at: Instant, (instant, wall): (Instant, SystemTime)) -> u64 {
    let wall = wall - instant.saturating_duration_since(at);
    u64::try_from(wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}
