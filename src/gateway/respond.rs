//! The response to the client: the backend's without its hop-by-hop headers, or the gateway's own. It does not know the
//! protocol of the connection.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};

use crate::admission::RequestPermit;
use crate::gateway::access_record::{AccessRecord, UpstreamEnd};
use crate::gateway::cors::CorsGrant;
use crate::gateway::padded_body::{self, PaddedBody, PaddedFrame};
use crate::gateway::query_record::CANCELLED_REASON;
use crate::gateway::response_edits::ResponseEdits;
use crate::http::headers::{HOP_BY_HOP, HeaderName, Headers};
use crate::os::splice::SplicePipe;
use crate::upstream::{ResponseBody, ResponseBodyError, UpstreamClient, UpstreamResponse};

/// The reason in logs and metrics if the access of the caller ends during an event stream.
const ACCESS_ENDED_REASON: &str = "access_ended";

/// A response before its record and permit move into its body.
pub struct GatewayResponse {
    status: StatusCode,
    headers: Headers,
    source: BodySource,
}

/// The response as the connection sends it.
pub struct DownstreamResponse {
    /// The status code.
    pub status: StatusCode,
    /// The headers, without hop-by-hop ones except perhaps `connection`, and without the framing of the body.
    pub headers: Headers,
    /// The body. The exchange ends when it is dropped.
    pub body: ObservedBody,
}

enum BodySource {
    /// Of the gateway; `None` once it was read.
    Local(Option<Bytes>),
    Upstream(Box<ResponseBody>),
    /// Begins before the backend's response. Boxed, as it is rare.
    Padded(Box<PaddedBody>),
    /// An operator has cancelled the query, or the access of the caller has ended, after the head was sent.
    Cancelled,
}

impl GatewayResponse {
    /// The backend's response, as `client` has received it, without the headers that concern its connection only.
    pub fn from_upstream(response: UpstreamResponse, edits: &ResponseEdits, client: &UpstreamClient) -> Self {
        let UpstreamResponse { status, mut headers, body } = response;
        remove_hop_by_hop(&mut headers);
        edits.apply(&mut headers, client);
        GatewayResponse { status, headers, source: BodySource::Upstream(body) }
    }

    /// Adds a way to authenticate to a 401 of the gateway.
    pub fn add_challenge(&mut self, challenge: &str) {
        let is_present = |value: &[u8]| value == challenge.as_bytes();
        if self.status == StatusCode::UNAUTHORIZED
            && matches!(self.source, BodySource::Local(_))
            && !self.headers.all(HeaderName::WwwAuthenticate).any(is_present)
        {
            self.headers.push(HeaderName::WwwAuthenticate, challenge.as_bytes());
        }
    }

    /// Adds what pages of other origins may do with the response.
    pub fn grant(&mut self, grant: &CorsGrant) {
        // Browsers reject a response with two headers of the same name.
        if matches!(self.source, BodySource::Upstream(_)) {
            self.headers.retain(|header| !header.text().starts_with(b"access-control-"));
        }
        grant.write(&mut self.headers);
    }

    /// A response of the gateway itself.
    pub fn local(status: StatusCode, headers: Headers, body: Bytes) -> GatewayResponse {
        GatewayResponse { status, headers, source: BodySource::Local(Some(body)) }
    }

    /// A JSON document of the gateway itself.
    pub fn json(document: String) -> GatewayResponse {
        GatewayResponse::local(StatusCode::OK, json_headers(), document.into())
    }

    /// A response that begins before the backend's.
    pub fn padded(body: PaddedBody) -> GatewayResponse {
        GatewayResponse { status: StatusCode::OK, headers: json_headers(), source: BodySource::Padded(Box::new(body)) }
    }

    /// Moves the record and the permit into the body: when it is dropped, the record is written, and then the permit
    /// released. A request that was not admitted has no permit, and the permit of a request that was sent is in the
    /// backend's response.
    pub fn into_downstream(
        mut self,
        mut record: Box<AccessRecord>,
        permit: Option<Box<RequestPermit>>,
    ) -> DownstreamResponse {
        record.record_head(self.status);
        self.headers.remove(HeaderName::XRequestId);
        self.headers.push(HeaderName::XRequestId, record.context.request_id_bytes());
        let body = ObservedBody { source: self.source, record, _permit: permit };
        DownstreamResponse { status: self.status, headers: self.headers, body }
    }
}

fn json_headers() -> Headers {
    let mut headers = Headers::new();
    headers.push(HeaderName::ContentType, padded_body::MEDIA_TYPE);
    headers.push(HeaderName::CacheControl, b"no-store");
    headers
}

/// Removes the hop-by-hop headers of a response (RFC 9110 section 7.6.1).
fn remove_hop_by_hop(headers: &mut Headers) {
    if !headers.contains_any(HOP_BY_HOP) {
        return;
    }
    let mut named = Vec::new();
    for option in headers.all(HeaderName::Connection).flat_map(|value| value.split(|byte| *byte == b',')) {
        // A backend cannot remove the length or the type of its response by naming them.
        let kept = [HeaderName::ContentLength, HeaderName::ContentType, HeaderName::CacheControl];
        match http::HeaderName::from_bytes(option.trim_ascii()) {
            Ok(name) if !kept.contains(&HeaderName::parse(name.as_str().as_bytes())) => named.push(name),
            _ => {}
        }
    }
    headers.retain(|header| {
        !header.name.is_hop_by_hop() && !named.iter().any(|name| name.as_str().as_bytes() == header.text())
    });
}

/// The body of every response. When it is dropped, whether it was read to its end or not, the record is written.
pub struct ObservedBody {
    // Fields are dropped from top to bottom: the record is written before the permit is released, which the source may
    // have.
    record: Box<AccessRecord>,
    source: BodySource,
    _permit: Option<Box<RequestPermit>>,
}

impl ObservedBody {
    /// Discards the body of the gateway's own response to HEAD (RFC 9110 section 9.3.2). The backend omits its own.
    pub fn discard(&mut self) {
        if let BodySource::Local(bytes) = &mut self.source {
            *bytes = None;
        }
    }

    /// Records how many bytes have left, if not all that were read.
    pub fn record_sent(&mut self, bytes: u64) {
        self.record.sent = bytes;
    }

    /// Records that the last byte of the response has left.
    pub fn record_complete(&mut self) {
        self.record.complete = true;
    }

    /// Records why the response is incomplete.
    pub fn record_reason(&mut self, reason: &'static str) {
        self.record.reason = reason;
    }

    /// Sends more of the request to the backend, while the client does not read the response. Returns whether there was
    /// progress.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) -> bool {
        self.cancel_if_requested(cx);
        match &mut self.source {
            BodySource::Local(_) | BodySource::Cancelled => false,
            BodySource::Upstream(body) => body.poll_upload(cx),
            BodySource::Padded(body) => body.poll_upload(cx),
        }
    }

    /// Drops the backend's response if an operator has cancelled the query, which abandons it.
    fn cancel_if_requested(&mut self, cx: &mut Context<'_>) {
        if let Some(query) = &mut self.record.query
            && !matches!(self.source, BodySource::Local(_) | BodySource::Cancelled)
            && query.poll_cancelled(cx)
        {
            self.source = BodySource::Cancelled;
            self.record.reason = CANCELLED_REASON;
            // The caller may have read the body before.
            cx.waker().wake_by_ref();
        }
    }

    /// Moves bytes that have arrived from the backend into an empty pipe, and returns their number. With 0, the body
    /// has to be read instead.
    pub fn splice_into(&mut self, pipe: &mut SplicePipe) -> usize {
        let BodySource::Upstream(body) = &mut self.source else { return 0 };
        if self.record.held_access.is_some() {
            return 0;
        }
        let moved = body.splice_into(pipe);
        self.record.sent += moved as u64;
        moved
    }
}

impl Body for ObservedBody {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        this.cancel_if_requested(cx);
        let polled = match &mut this.source {
            BodySource::Local(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            BodySource::Upstream(body) => Pin::new(body).poll_frame(cx),
            BodySource::Padded(body) => poll_padded(body, &mut this.record, cx),
            BodySource::Cancelled => Poll::Ready(Some(Err(ResponseBodyError::Broken(this.record.reason.to_owned())))),
        };
        match &polled {
            // SECURITY: a stream lasts for hours, and would otherwise survive a revocation.
            Poll::Ready(Some(Ok(_))) if this.record.held_access.as_mut().is_some_and(|access| !access.recheck()) => {
                this.source = BodySource::Cancelled;
                this.record.reason = ACCESS_ENDED_REASON;
                return Poll::Ready(Some(Err(ResponseBodyError::Broken(ACCESS_ENDED_REASON.to_owned()))));
            }
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                self.record.sent += bytes as u64;
            }
            Poll::Ready(Some(Err(_))) if self.record.reason.is_empty() => self.record.reason = "upstream_body_broken",
            Poll::Ready(Some(Err(_)) | None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            BodySource::Local(bytes) => bytes.is_none(),
            BodySource::Upstream(body) => body.is_end_stream(),
            BodySource::Padded(body) => body.is_end_stream(),
            BodySource::Cancelled => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            BodySource::Local(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            BodySource::Upstream(body) => body.size_hint(),
            BodySource::Padded(_) | BodySource::Cancelled => SizeHint::new(),
        }
    }
}

/// The next frame of a padded body. Records what the client cannot learn any more: how the backend responded.
fn poll_padded(
    body: &mut PaddedBody,
    record: &mut AccessRecord,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
    loop {
        let failure = match ready!(body.poll_next(cx)) {
            PaddedFrame::Blank(blank) => return Poll::Ready(Some(Ok(Frame::data(blank)))),
            PaddedFrame::Frame(frame) => return Poll::Ready(frame),
            PaddedFrame::Begun => {
                record.record_upstream_end(body.sent_at, UpstreamEnd::Response);
                continue;
            }
            PaddedFrame::Unsuitable(status) => {
                record.record_upstream_end(body.sent_at, UpstreamEnd::Response);
                record.status = status;
                record.reason = "padded_response_failed";
                "it is not the JSON that was announced"
            }
            PaddedFrame::Rejected(rejection) => {
                record.record_upstream_end(body.sent_at, UpstreamEnd::Failure);
                record.status = rejection.status();
                record.reason = rejection.reason();
                body.recorder.record(&rejection, record);
                "there is none"
            }
        };
        return Poll::Ready(Some(Err(ResponseBodyError::Broken(failure.to_owned()))));
    }
}
