//! What the client gets: the backend's answer without what concerned that connection only, or one of our own.

use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};

use crate::admission::RequestPermit;
use crate::gateway::access_record::AccessRecord;
use crate::http::headers::{HeaderName, Headers};
use crate::os::splice::SplicePipe;
use crate::upstream;

/// An answer that stands, before the access line is tied to its body.
pub struct GatewayResponse {
    status: StatusCode,
    fields: Headers,
    source: BodySource,
}

/// What the client gets.
pub struct DownstreamResponse {
    /// Its status.
    pub status: StatusCode,
    /// Its fields; none concerns a hop but perhaps `connection`, and how the body is framed is not said.
    pub fields: Headers,
    /// Its body.
    pub body: ObservedBody,
}

enum BodySource {
    Local(Option<Bytes>),
    Upstream(upstream::ResponseBody),
}

impl GatewayResponse {
    /// The backend's.
    pub fn from_upstream(response: upstream::UpstreamResponse) -> GatewayResponse {
        let upstream::UpstreamResponse { status, headers: mut fields, body } = response;
        remove_hop_by_hop(&mut fields);
        GatewayResponse { status, fields, source: BodySource::Upstream(body) }
    }

    /// Without the cookies that the backend sets.
    ///
    /// SECURITY: for answers to a key that is not the client's: a session that the backend began for that key would
    /// outlive the gateway's judgement in the client's hands.
    pub fn without_cookies(mut self) -> GatewayResponse {
        self.fields.remove(HeaderName::SetCookie);
        self
    }

    /// One of our own.
    pub fn local(status: StatusCode, fields: Headers, body: Bytes) -> GatewayResponse {
        GatewayResponse { status, fields, source: BodySource::Local(Some(body)) }
    }

    /// Ends the exchange with the body: the record is written, and then the permit released, when the body is dropped.
    /// There is no permit for a request that was not admitted.
    pub fn into_reply(
        mut self,
        mut record: Box<AccessRecord>,
        permit: Option<RequestPermit>,
    ) -> DownstreamResponse {
        record.head_is_ready(self.status);
        self.fields.remove(HeaderName::XRequestId);
        self.fields.push(HeaderName::XRequestId, record.context.request_id_bytes());
        let body = ObservedBody { source: self.source, record, _permit: permit };
        DownstreamResponse { status: self.status, fields: self.fields, body }
    }
}

/// RFC 9110 section 7.6.1, in an answer.
fn remove_hop_by_hop(fields: &mut Headers) {
    let mut named = Vec::new();
    for option in fields.all(HeaderName::Connection).flat_map(|value| value.split(|byte| *byte == b',')) {
        // A backend cannot take the length or the type from its answer by naming them.
        let stays = [HeaderName::ContentLength, HeaderName::ContentType, HeaderName::CacheControl];
        match http::HeaderName::from_bytes(option.trim_ascii()) {
            Ok(name) if !stays.contains(&HeaderName::parse(name.as_str().as_bytes())) => named.push(name),
            _ => {}
        }
    }
    fields.retain(|field| {
        let is_of_the_hop = matches!(
            field.name,
            HeaderName::Connection
                | HeaderName::ProxyConnection
                | HeaderName::KeepAlive
                | HeaderName::Te
                | HeaderName::Trailer
                | HeaderName::TransferEncoding
                | HeaderName::Upgrade
                | HeaderName::ProxyAuthenticate
        );
        !is_of_the_hop && !named.iter().any(|name| name.as_str().as_bytes() == field.text())
    });
}

/// The body of every response. When it is dropped, whether it was read to its end or not, the record is written.
pub struct ObservedBody {
    source: BodySource,
    // Dropped in this order.
    record: Box<AccessRecord>,
    _permit: Option<RequestPermit>,
}

impl ObservedBody {
    /// Nothing of an answer of our own is sent, as HEAD has it (RFC 9110 section 9.3.2). The backend sees to that itself.
    pub fn discard(&mut self) {
        if let BodySource::Local(bytes) = &mut self.source {
            *bytes = None;
            self.record.complete = true;
        }
    }

    /// Moves what has come from the backend into an empty pipe: so many bytes. 0 where it has to be read instead.
    pub fn splice_into(&mut self, pipe: &mut SplicePipe) -> usize {
        let BodySource::Upstream(body) = &mut self.source else { return 0 };
        let moved = body.splice_into(pipe);
        self.record.sent += moved as u64;
        if self.is_end_stream() {
            self.record.complete = true;
        }
        moved
    }
}

impl Body for ObservedBody {
    type Data = Bytes;
    type Error = upstream::ResponseBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = match &mut self.source {
            BodySource::Local(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            BodySource::Upstream(body) => Pin::new(body).poll_frame(cx),
        };
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                self.record.sent += bytes as u64;
            }
            Poll::Ready(Some(Err(_))) => self.record.reason = "upstream_body_broken",
            Poll::Ready(None) => self.record.complete = true,
            Poll::Pending => {}
        }
        if self.is_end_stream() {
            self.record.complete = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            BodySource::Local(bytes) => bytes.is_none(),
            BodySource::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            BodySource::Local(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            BodySource::Upstream(body) => body.size_hint(),
        }
    }
}
