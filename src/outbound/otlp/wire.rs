//! The messages of OTLP 1.x that the exporter needs (opentelemetry/proto/trace/v1/trace.proto and its imports), and the
//! conversion of a finished trace into them. It sends nothing.

use std::time::{Instant, SystemTime};

use prost::Message;

use crate::base::clock;
use crate::observability::metrics::AuthOutcome;
use crate::observability::trace::{FinishedTrace, Interval, SpanId, random_span_id};

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

/// An attribute with a string value.
pub fn string_attribute(key: &str, value: impl Into<String>) -> KeyValue {
    let value = Some(AnyValue { value: Some(AttributeValue::Text(value.into())) });
    KeyValue { key: key.to_owned(), value }
}

fn int_attribute(key: &str, value: u64) -> KeyValue {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(AttributeValue::Number(value)) }) }
}

/// Builds the spans of one trace.
struct SpanBuilder<'a> {
    finished: &'a FinishedTrace,
    spans: Vec<OtlpSpan>,
}

/// Converts a trace into spans; the first is the server span of the request.
pub fn spans(finished: &FinishedTrace) -> Vec<OtlpSpan> {
    let trace = &finished.trace;
    let mut builder = SpanBuilder { finished, spans: Vec::with_capacity(finished.span_count()) };
    builder.add_request_span();
    if let Some(interval) = trace.handshake_interval {
        builder.add_internal_span("tls handshake", interval, vec![], None);
    }
    for (phase, outcome, interval) in trace.phases.borrow().iter() {
        let attributes = vec![string_attribute("timbr.outcome", outcome.as_str())];
        let error = (*outcome != AuthOutcome::Ok).then(|| outcome.as_str());
        builder.add_internal_span(phase.as_str(), *interval, attributes, error);
    }
    if let Some(interval) = trace.upstream_interval {
        builder.add_upstream_span(interval);
    }
    builder.spans
}

impl SpanBuilder<'_> {
    fn add_request_span(&mut self) {
        let request = &self.finished.attributes;
        let mut attributes = vec![
            string_attribute("http.request.method", &request.method),
            string_attribute("url.path", &request.path),
            string_attribute("url.scheme", if request.is_tls { "https" } else { "http" }),
            int_attribute("http.response.status_code", request.status.into()),
            string_attribute("client.address", &request.client),
            string_attribute("network.protocol.version", request.protocol),
            int_attribute("http.request.body.size", request.received),
            int_attribute("http.response.body.size", request.sent),
            string_attribute("timbr.request_id", &request.request_id),
        ];
        let route = (!request.route.is_empty()).then(|| string_attribute("http.route", &request.route));
        let error = (!request.reason.is_empty()).then(|| string_attribute("error.type", request.reason));
        let user = request.user.as_ref().map(|user| string_attribute("enduser.id", user));
        let key = request.key.as_ref().map(|key| string_attribute("timbr.key.fingerprint", key));
        attributes.extend(route.into_iter().chain(error).chain(user).chain(key));
        let name = format!("{} {}", request.method, request.route);
        self.spans.push(OtlpSpan {
            parent_span_id: self.finished.trace.parent_span_id.map(Vec::from).unwrap_or_default(),
            // A client error is not an error of a server span (semantic conventions for HTTP spans).
            status: (request.status >= 500).then_some(SpanStatus { code: STATUS_CODE_ERROR }),
            ..self.build_span(
                name.trim_end(),
                SPAN_KIND_SERVER,
                self.finished.trace.span_id,
                self.finished.interval,
                attributes,
            )
        });
    }

    fn add_internal_span(&mut self, name: &str, interval: Interval, attributes: Vec<KeyValue>, error: Option<&str>) {
        self.add_child_span(name, SPAN_KIND_INTERNAL, random_span_id(), interval, attributes, error);
    }

    fn add_upstream_span(&mut self, interval: Interval) {
        let request = &self.finished.attributes;
        let mut attributes = vec![string_attribute("http.request.method", &request.method)];
        let error = request.reason.starts_with("upstream_").then_some(request.reason);
        if error.is_none() {
            attributes.push(int_attribute("http.response.status_code", request.status.into()));
        }
        self.add_child_span(
            &request.method,
            SPAN_KIND_CLIENT,
            self.finished.trace.upstream_span_id,
            interval,
            attributes,
            error,
        );
    }

    fn add_child_span(
        &mut self,
        name: &str,
        kind: i32,
        id: SpanId,
        interval: Interval,
        mut attributes: Vec<KeyValue>,
        error: Option<&str>,
    ) {
        attributes.extend(error.map(|error| string_attribute("error.type", error)));
        self.spans.push(OtlpSpan {
            parent_span_id: self.finished.trace.span_id.to_vec(),
            status: error.map(|_| SpanStatus { code: STATUS_CODE_ERROR }),
            ..self.build_span(name, kind, id, interval, attributes)
        });
    }

    fn build_span(&self, name: &str, kind: i32, id: SpanId, interval: Interval, attributes: Vec<KeyValue>) -> OtlpSpan {
        OtlpSpan {
            trace_id: self.finished.trace.trace_id.to_vec(),
            span_id: id.to_vec(),
            parent_span_id: Vec::new(),
            name: name.to_owned(),
            kind,
            start_time_unix_nano: unix_nanos(interval.start, self.finished.clocks),
            end_time_unix_nano: unix_nanos(interval.end, self.finished.clocks),
            attributes,
            status: None,
        }
    }
}

/// Converts an instant of the monotonic clock into Unix time in nanoseconds, using both clocks at one moment.
fn unix_nanos(at: Instant, (instant, wall): (Instant, SystemTime)) -> u64 {
    let wall = wall - instant.saturating_duration_since(at);
    u64::try_from(clock::since_epoch(wall).as_nanos()).unwrap_or(u64::MAX)
}
