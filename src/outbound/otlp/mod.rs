//! Exports traces by OTLP over HTTP from a dedicated thread. It knows finished traces only: if the collector does not
//! respond, spans are dropped, and no request is delayed.

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
use crate::outbound::http_client::HttpClient;
use crate::tls::TlsError;

use wire::{ExportTraceServiceRequest, InstrumentationScope, Resource, ResourceSpans, ScopeSpans, string_attribute};

/// Maximum number of attempts of an export.
const MAX_ATTEMPTS: u32 = 3;

/// Delay before the second attempt; doubled for each further attempt.
const INITIAL_BACKOFF: Duration = Duration::from_millis(500);

/// How long the end of the process waits for the last export.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the exporter cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// An environment variable is invalid; the message names it.
    #[error("{0}")]
    Variable(String),
    /// The CA certificates cannot be used.
    #[error("OTEL_EXPORTER_OTLP_CERTIFICATE cannot be used: {0}")]
    Tls(#[from] TlsError),
    /// The thread or its runtime cannot be started.
    #[error("cannot start the thread that exports traces")]
    Thread(#[from] io::Error),
}

/// Stops the exporter when dropped, after a last export of the queued spans.
#[must_use = "without it the last spans are lost"]
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

/// Validates the standard environment variables as [`start`] does. `get` reads a variable.
pub fn check(get: impl Fn(&str) -> Option<String>) -> Result<(), OtlpError> {
    options::from_variables(get).map_err(OtlpError::Variable)?.as_ref().map(collector_client).transpose()?;
    Ok(())
}

fn collector_client(options: &options::OtlpOptions) -> Result<HttpClient, TlsError> {
    let ca_file = options.ca_file.as_deref();
    HttpClient::new(&options.endpoint.origin, ca_file, "OTEL_EXPORTER_OTLP_CERTIFICATE", options.timeout)
}

/// Starts to export the traces of this process; `None` if the environment variables do not enable it.
pub fn start(get: impl Fn(&str) -> Option<String>) -> Result<Option<ExporterHandle>, OtlpError> {
    let Some(options) = options::from_variables(get).map_err(OtlpError::Variable)? else { return Ok(None) };
    let client = collector_client(&options)?;
    info!(to = client.authority(), "exporting traces");
    let (tracer, finished) = Tracer::new(options.sampler, options.max_queued_requests);
    let attributes = options.resource.iter().map(|(key, value)| string_attribute(key, value)).collect();
    let exporter = OtlpExporter {
        client,
        target: options.endpoint.target,
        headers: options.headers,
        resource: Resource { attributes },
        max_batch_spans: options.max_batch_spans,
        batch_delay: options.batch_delay,
        is_failing: false,
    };
    let (stop, stop_requested) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("traces".to_owned());
    let thread = thread.spawn(move || {
        runtime.block_on(exporter.run(finished, stop_requested));
        // Does not wait for a DNS lookup that hangs.
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
            let deadline = Instant::now() + self.batch_delay;
            while spans.len() < self.max_batch_spans {
                let next = tokio::select! {
                    biased;
                    _ = &mut stop => {
                        is_stopped = true;
                        break;
                    }
                    next = timeout_at(deadline, finished.recv()) => next,
                };
                match next {
                    Ok(Some(next)) => spans.extend(wire::spans(&next)),
                    Ok(None) | Err(_) => break,
                }
            }
            self.export(spans).await;
        }
        // Export the remaining queue in one batch.
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
        let mut backoff = INITIAL_BACKOFF;
        for attempt in 1..=MAX_ATTEMPTS {
            match self.client.send(self.build_request(body.clone())).await {
                Ok(response) if response.status().is_success() => {
                    trace::add_exported(count);
                    if std::mem::take(&mut self.is_failing) {
                        info!(to = self.client.authority(), "trace export recovered");
                    }
                    return;
                }
                Ok(response) if attempt == MAX_ATTEMPTS || !is_retryable(response.status()) => {
                    return self.drop_spans(count, &format!("the collector returned {}", response.status()));
                }
                Err(error) if attempt == MAX_ATTEMPTS => return self.drop_spans(count, &error.to_string()),
                Ok(_) | Err(_) => {}
            }
            sleep(backoff).await;
            backoff *= 2;
        }
    }

    /// Counts the spans as dropped, and logs the first failure after a success.
    fn drop_spans(&mut self, count: usize, why: &str) {
        trace::add_dropped(count);
        if !std::mem::replace(&mut self.is_failing, true) {
            warn!(to = self.client.authority(), why, "trace export failed; spans are dropped");
        }
    }

    fn build_message(&self, spans: Vec<wire::OtlpSpan>) -> ExportTraceServiceRequest {
        let scope =
            InstrumentationScope { name: env!("CARGO_PKG_NAME").into(), version: env!("CARGO_PKG_VERSION").into() };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
        let resource = Some(self.resource.clone());
        ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { resource, scope_spans }] }
    }

    fn build_request(&self, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.target.parse().expect("the options were parsed as a URL");
        request.headers_mut().clone_from(&self.headers);
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        request
    }
}

/// OTLP specification, "OTLP/HTTP Response", "Failures".
fn is_retryable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}
