//! What of OTLP 1.x is spoken here (opentelemetry/proto/trace/v1/trace.proto and what it names), and how a finished request
//! is said in it.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::observability::metrics::AuthOutcome;
use crate::observability::trace::{FinishedTrace, Interval as Between, SpanId};

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
    pub scope: Option<InstrumentationScope>,
    #[prost(message, repeated, tag = "2")]
    pub spans: Vec<OtlpSpan>,
}

#[derive(Clone, PartialEq, Message)]
pub struct InstrumentationScope {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub version: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct OtlpSpan {
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
    pub status: Option<SpanStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SpanStatus {
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
    #[prost(oneof = "AttributeValue", tags = "1, 3")]
    pub value: Option<AttributeValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum AttributeValue {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

const SPAN_KIND_INTERNAL: i32 = 1;
const SPAN_KIND_SERVER: i32 = 2;
const SPAN_KIND_CLIENT: i32 = 3;
const STATUS_CODE_ERROR: i32 = 2;

/// An attribute that is a text.
pub fn string_attribute(key: &str, value: impl Into<String>) -> KeyValue {
    let value = Some(AnyValue { value: Some(AttributeValue::Text(value.into())) });
    KeyValue { key: key.to_owned(), value }
}

fn int_attribute(key: &str, value: u64) -> KeyValue {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(AttributeValue::Number(value)) }) }
}

/// Makes spans of one request.
struct SpanBuilder<'a> {
    trace: &'a FinishedTrace,
    spans: Vec<OtlpSpan>,
}

/// The spans of a request, the request's own first.
pub fn spans(of: &FinishedTrace) -> Vec<OtlpSpan> {
    let mut maker = SpanBuilder { trace: of, spans: Vec::with_capacity(of.span_count()) };
    maker.add_request_span();
    if let Some(between) = of.handshake_interval {
        maker.add_child_span("tls handshake", SPAN_KIND_INTERNAL, random(), between, vec![], None);
    }
    for (step, outcome, between) in &of.phases {
        let attributes = vec![string_attribute("timbr.outcome", outcome.word())];
        let error = (*outcome != AuthOutcome::Ok).then(|| outcome.word());
        maker.add_child_span(step.word(), SPAN_KIND_INTERNAL, random(), *between, attributes, error);
    }
    if let Some(between) = of.upstream_interval {
        maker.add_upstream_span(between);
    }
    maker.spans
}

fn random() -> SpanId {
    fastrand::u64(1..).to_be_bytes()
}

impl SpanBuilder<'_> {
    fn add_request_span(&mut self) {
        let said = &self.trace.attributes;
        let mut attributes = vec![
            string_attribute("http.request.method", &said.method),
            string_attribute("url.path", &said.path),
            string_attribute("url.scheme", if said.is_tls { "https" } else { "http" }),
            int_attribute("http.response.status_code", said.status.into()),
            string_attribute("client.address", &said.client),
            string_attribute("network.protocol.version", said.protocol),
            int_attribute("http.request.body.size", said.received),
            int_attribute("http.response.body.size", said.sent),
            string_attribute("timbr.request_id", &said.request_id),
        ];
        let route = (!said.route.is_empty()).then(|| string_attribute("http.route", &said.route));
        let error = (!said.reason.is_empty()).then(|| string_attribute("error.type", said.reason));
        let user = said.user.as_ref().map(|user| string_attribute("enduser.id", user));
        let key = said.key.as_ref().map(|key| string_attribute("timbr.key.fingerprint", key));
        attributes.extend(route.into_iter().chain(error).chain(user).chain(key));
        let name = format!("{} {}", said.method, said.route);
        self.spans.push(OtlpSpan {
            parent_span_id: self.trace.parent_span_id.map(Vec::from).unwrap_or_default(),
            // A client's own mistake is no error of a server's span.
            status: (said.status >= 500).then_some(SpanStatus { code: STATUS_CODE_ERROR }),
            ..self.build_span(
                name.trim_end(),
                SPAN_KIND_SERVER,
                self.trace.span_id,
                self.trace.interval,
                attributes,
            )
        });
    }

    fn add_upstream_span(&mut self, between: Between) {
        let said = &self.trace.attributes;
        let mut attributes = vec![string_attribute("http.request.method", &said.method)];
        if let Some(server) = &said.backend {
            let (host, port) = server.rsplit_once(':').unwrap_or((server, ""));
            attributes.push(string_attribute("server.address", host));
            attributes.extend(port.parse().ok().map(|port: u64| int_attribute("server.port", port)));
        }
        let failed = said.reason.starts_with("upstream_").then_some(said.reason);
        if failed.is_none() {
            attributes.push(int_attribute("http.response.status_code", said.status.into()));
        }
        self.add_child_span(
            &said.method,
            SPAN_KIND_CLIENT,
            self.trace.upstream_span_id,
            between,
            attributes,
            failed,
        );
    }

    fn add_child_span(
        &mut self,
        name: &str,
        kind: i32,
        id: SpanId,
        between: Between,
        mut attributes: Vec<KeyValue>,
        error: Option<&str>,
    ) {
        attributes.extend(error.map(|error| string_attribute("error.type", error)));
        self.spans.push(OtlpSpan {
            parent_span_id: self.trace.span_id.to_vec(),
            status: error.map(|_| SpanStatus { code: STATUS_CODE_ERROR }),
            ..self.build_span(name, kind, id, between, attributes)
        });
    }

    fn build_span(
        &self,
        name: &str,
        kind: i32,
        id: SpanId,
        at: Between,
        attributes: Vec<KeyValue>,
    ) -> OtlpSpan {
        OtlpSpan {
            trace_id: self.trace.trace_id.to_vec(),
            span_id: id.to_vec(),
            parent_span_id: Vec::new(),
            name: name.to_owned(),
            kind,
            start_time_unix_nano: unix_nanos(at.start, self.trace.clocks),
            end_time_unix_nano: unix_nanos(at.end, self.trace.clocks),
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
