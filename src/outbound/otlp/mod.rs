//! Sends traces to a receiver by OTLP over HTTP, in a thread of its own. A receiver that does not answer costs spans, never
//! a request.

mod options;
mod wire;

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Full;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

use crate::base::join_within::join_within;
use crate::observability::trace::{self, FinishedTrace, Tracer};
use crate::outbound::http_client::{FetchError, HttpClient};
use crate::tls::TlsError;

use wire::{
    ExportTraceServiceRequest, InstrumentationScope, Resource, ResourceSpans, ScopeSpans, string_attribute,
};

/// How often an export is tried that did not come through.
const MAX_ATTEMPTS: u32 = 3;

/// How long after the first time; twice that after the second.
const INITIAL_BACKOFF: Duration = Duration::from_millis(500);

/// How long the end of the process waits for the last spans to go out.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// A variable.
    #[error("{0}")]
    Variable(String),
    /// The authorities to trust.
    #[error("OTEL_EXPORTER_OTLP_CERTIFICATE cannot be used: {0}")]
    Tls(#[from] TlsError),
    /// The thread.
    #[error("the thread of traces cannot be started")]
    Thread(#[from] io::Error),
}

/// The thread; dropped, it sends what waits, and ends.
#[must_use = "the last spans are lost without it"]
pub struct ExporterHandle {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for ExporterHandle {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().map(|thread| join_within(thread, SHUTDOWN_TIMEOUT));
    }
}

/// Whether `start` would take what the standard variables hold.
pub fn check(get: impl Fn(&str) -> Option<String>) -> Result<(), OtlpError> {
    options::from_variables(get).map_err(OtlpError::Variable)?.as_ref().map(collector_client).transpose()?;
    Ok(())
}

fn collector_client(options: &options::OtlpOptions) -> Result<HttpClient, TlsError> {
    let ca_file = options.ca_file.as_deref();
    HttpClient::new(&options.endpoint.origin, ca_file, "OTEL_EXPORTER_OTLP_CERTIFICATE", options.timeout)
}

/// Begins to send the traces of this process, if the standard variables want it.
pub fn start(get: impl Fn(&str) -> Option<String>) -> Result<Option<ExporterHandle>, OtlpError> {
    let Some(options) = options::from_variables(get).map_err(OtlpError::Variable)? else { return Ok(None) };
    let origin = collector_client(&options)?;
    info!(to = origin.authority(), "traces are sent");
    let (tracer, finished) = Tracer::new(options.sampler, options.max_queued_requests);
    let attributes = options.resource.iter().map(|(key, value)| string_attribute(key, value)).collect();
    let exporter = OtlpExporter {
        client: origin,
        target: options.endpoint.target,
        headers: options.headers,
        resource: Resource { attributes },
        max_batch_spans: options.max_batch_spans,
        batch_delay: options.batch_delay,
        is_failing: false,
    };
    let (stop, asked) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("traces".to_owned());
    let thread = thread.spawn(move || {
        runtime.block_on(exporter.run(finished, asked));
        // A name lookup that hangs is not waited for.
        runtime.shutdown_background();
    })?;
    tracer.install();
    Ok(Some(ExporterHandle { stop: Some(stop), thread: Some(thread) }))
}

struct OtlpExporter {
    client: HttpClient,
    target: String,
    headers: http::HeaderMap,
    resource: Resource,
    max_batch_spans: usize,
    batch_delay: Duration,
    is_failing: bool,
}

impl OtlpExporter {
    async fn run(mut self, mut finished: mpsc::Receiver<FinishedTrace>, mut stop: oneshot::Receiver<()>) {
        let mut is_stopped = false;
        while !is_stopped {
            let first = tokio::select! {
                biased;
                _ = &mut stop => break,
                first = finished.recv() => first,
            };
            let Some(first) = first else { return };
            let mut spans = wire::spans(&first);
            let until = Instant::now() + self.batch_delay;
            while spans.len() < self.max_batch_spans {
                let next = tokio::select! {
                    biased;
                    _ = &mut stop => {
                        is_stopped = true;
                        break;
                    }
                    next = timeout_at(until, finished.recv()) => next,
                };
                match next {
                    Ok(Some(next)) => spans.extend(wire::spans(&next)),
                    Ok(None) | Err(_) => break,
                }
            }
            self.export(spans).await;
        }
        // What waits still goes out, once and together.
        let mut spans = Vec::new();
        while let Ok(next) = finished.try_recv() {
            spans.extend(wire::spans(&next));
        }
        if !spans.is_empty() {
            self.export(spans).await;
        }
    }

    async fn export(&mut self, spans: Vec<wire::OtlpSpan>) {
        let count = spans.len();
        let body = Bytes::from(self.build_message(spans).encode_to_vec());
        let mut pause = INITIAL_BACKOFF;
        for attempt in 1..=MAX_ATTEMPTS {
            match self.client.send(self.build_request(body.clone())).await {
                Ok(answer) if answer.status().is_success() => {
                    trace::add_exported(count);
                    if std::mem::take(&mut self.is_failing) {
                        info!(to = self.client.authority(), "traces are taken again");
                    }
                    return;
                }
                Ok(answer) if !is_retryable(answer.status()) => {
                    return self.drop_spans(count, &format!("it answered {}", answer.status()));
                }
                Ok(answer) if attempt == MAX_ATTEMPTS => {
                    return self.drop_spans(count, &format!("it answered {}", answer.status()));
                }
                Err(error) if attempt == MAX_ATTEMPTS => return self.drop_spans(count, &told(&error)),
                Ok(_) | Err(_) => {}
            }
            sleep(pause).await;
            pause *= 2;
        }
    }

    /// Tells it once, until it comes through again.
    fn drop_spans(&mut self, count: usize, why: &str) {
        trace::add_dropped(count);
        if !std::mem::replace(&mut self.is_failing, true) {
            warn!(
                to = self.client.authority(),
                why, "traces are not taken; their spans are dropped and counted"
            );
        }
    }

    fn build_message(&self, spans: Vec<wire::OtlpSpan>) -> ExportTraceServiceRequest {
        let scope = InstrumentationScope {
            name: env!("CARGO_PKG_NAME").into(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
        let resource = Some(self.resource.clone());
        ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { resource, scope_spans }] }
    }

    fn build_request(&self, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.target.parse().expect("the options were read as a URL");
        request.headers_mut().clone_from(&self.headers);
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        request
    }
}

/// OTLP/HTTP, "Failures".
fn is_retryable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

fn told(error: &FetchError) -> String {
    error.to_string()
}
