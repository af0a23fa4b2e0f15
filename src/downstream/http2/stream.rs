//! One HTTP/2 stream: passes its request to the gateway and sends the response as the client makes room for it. A
//! client that does not read a response loses that stream only.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{self, HeaderMap};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body;
use tokio::time::timeout;

use crate::downstream::head_block::HeadFault;
use crate::downstream::http2::delivery::{Delivery, SentData};
use crate::downstream::http2::request_body::Http2RequestBody;
use crate::gateway::context::Peer;
use crate::gateway::rejection::Rejection;
use crate::gateway::{DownstreamResponse, Gateway, ObservedBody};
use crate::http::client_body::ClientBody;
use crate::http::h1::request::INVALID_TARGET;
use crate::http::h1::response::{ResponseFraming, with_http_date};
use crate::http::headers::{Head, HeaderName, Headers};

/// Maximum time for reading and discarding the rest of a request's body after the response.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum time for which a rejection waits for a short body that is on its way.
const SHORT_BODY_DELAY: Duration = Duration::from_millis(100);

/// Time between the end of a response and the reset of a stream whose request is too large to be discarded.
const RESET_DELAY: Duration = Duration::from_millis(500);

/// The end of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResponseEnd {
    /// Every byte has left.
    Delivered,
    /// The client did not read it in time.
    TimedOut,
    /// The backend's body is incomplete.
    Broken,
    /// The client reset the stream, or the connection ended.
    Cancelled,
}

/// Serves a stream until it ends. `head_fault`: its head was changed, as something in it is not allowed.
pub async fn serve(
    gateway: Rc<Gateway>,
    peer: Rc<Peer>,
    request: Request<RecvStream>,
    head_fault: Option<HeadFault>,
    mut respond: SendResponse<SentData>,
    delivery: Rc<Delivery>,
) {
    let (parts, receive) = request.into_parts();
    let method = parts.method.clone();
    let body = (!receive.is_end_stream()).then(|| Rc::new(request_body(&parts.headers, receive)));
    let rejection = match head_fault {
        Some(HeadFault::Malformed) => {
            let rejection = Rejection::RequestMalformed("a name or a value has a byte that is not allowed");
            drop(gateway.reject(peer, &rejection));
            // RFC 9113 section 8.1.1: a stream error. A 400 would end the stream, which then cannot be reset any more.
            return respond.send_reset(Reason::PROTOCOL_ERROR);
        }
        Some(HeadFault::Unreadable) => {
            drop(gateway.reject(peer, &Rejection::StreamRefused));
            return respond.send_reset(Reason::REFUSED_STREAM);
        }
        Some(HeadFault::TooLarge) => Some(Rejection::RequestHeadTooLarge),
        Some(HeadFault::Target) => Some(Rejection::RequestMalformed(INVALID_TARGET)),
        // SECURITY: whether blanks belong to a value depends on who reads it (RFC 9113 section 8.2.1).
        None => has_padded_value(&parts.headers)
            .then_some(Rejection::RequestMalformed("a header value starts or ends with a blank")),
    };
    let response = match rejection {
        Some(rejection) => Some(gateway.reject(peer, &rejection)),
        None => {
            let client_body = body.clone().map_or(ClientBody::Empty, |body| ClientBody::Streaming(body));
            let mut handling = pin!(gateway.handle(Rc::clone(&peer), Head::from(parts), client_body));
            poll_fn(|cx| {
                // The gateway has aborted the connection, so the client is not to blame for an incomplete body.
                if peer.abort_reason.get().is_some() {
                    return Poll::Ready(None);
                }
                if let Poll::Ready(response) = handling.as_mut().poll(cx) {
                    return Poll::Ready(Some(response));
                }
                if let Some(body) = &body {
                    if body.take_continue_request() {
                        // Fails only for a stream that is closed.
                        let _ = respond.send_informational(continue_response());
                    }
                    body.receive(cx);
                }
                respond.poll_reset(cx).map(|_| None)
            })
            .await
        }
    };
    let Some(response) = response else { return };
    if let Some(body) = body.as_ref().filter(|body| Rc::strong_count(body) == 1 && body.is_short()) {
        // Curl before version 8 ends its stream early when the rejection arrives first. The library counts that as an
        // error of the client, and ends the connection after `limits.resets` of them.
        let _ = timeout(SHORT_BODY_DELAY, poll_fn(|cx| body.poll_discard(cx))).await;
    }
    let was_delivered = send_response(&method, response, &mut respond, delivery, body.as_ref()).await;
    if let Some(body) = body
        && was_delivered
    {
        discard(&body).await;
    }
}

fn request_body(headers: &HeaderMap, receive: RecvStream) -> Http2RequestBody {
    let expects_continue =
        headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    // The library has compared the first one with what it reads; the gateway rejects several.
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    Http2RequestBody::new(receive, length, expects_continue)
}

fn has_padded_value(headers: &HeaderMap) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    headers.values().map(header::HeaderValue::as_bytes).any(|value| is_blank(value.first()) || is_blank(value.last()))
}

fn continue_response() -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::CONTINUE;
    response
}

/// Sends a response. Returns whether the client received all of it.
async fn send_response(
    method: &Method,
    response: DownstreamResponse,
    respond: &mut SendResponse<SentData>,
    delivery: Rc<Delivery>,
    request_body: Option<&Rc<Http2RequestBody>>,
) -> bool {
    let DownstreamResponse { status, headers, mut body } = response;
    if *method == Method::HEAD {
        body.discard();
    }
    let framing = ResponseFraming::choose(method, Version::HTTP_2, status, body.size_hint().exact());
    let is_ended = framing == ResponseFraming::None || body.is_end_stream();
    let mut head = Response::new(());
    *head.status_mut() = status;
    *head.headers_mut() = response_headers(status, headers, framing);
    let Ok(stream) = respond.send_response(head, is_ended) else { return false };
    if is_ended {
        delivery.end();
    }
    let mut sender = ResponseSender { stream, body, delivery, held: Bytes::new(), is_ended };
    let end = poll_fn(|cx| {
        // A client that sends all of its request before it reads must be able to do so.
        if let Some(request_body) = request_body.filter(|body| Rc::strong_count(body) == 1) {
            let _ = request_body.poll_discard(cx);
        }
        let polled = sender.poll(cx);
        if polled.is_pending() && sender.body.poll_upload(cx) {
            sender.delivery.in_flight().record_upload_progress();
        }
        polled
    })
    .await;
    sender.finish(end);
    end == ResponseEnd::Delivered
}

/// The headers as HTTP/2 has them: the framing is that of the frames, and the length is stated as over HTTP/1.
fn response_headers(status: StatusCode, mut headers: Headers, framing: ResponseFraming) -> HeaderMap {
    let is_length_of_other_body = framing != ResponseFraming::None || status == StatusCode::NO_CONTENT;
    headers.retain(|header| match header.name {
        HeaderName::Connection | HeaderName::TransferEncoding => false,
        HeaderName::ContentLength => !is_length_of_other_body,
        _ => true,
    });
    if let ResponseFraming::Length(length) = framing {
        headers.push(HeaderName::ContentLength, itoa::Buffer::new().format(length).as_bytes());
    }
    if !headers.contains(HeaderName::Date) {
        with_http_date(|date| headers.push(HeaderName::Date, date));
    }
    headers.into_map()
}

/// Reads and discards the rest of a request's body, and resets the stream when this returns. A reset that follows the
/// response immediately would make clients that are still sending lose the response (curl before version 8).
async fn discard(body: &Http2RequestBody) {
    let discarding = poll_fn(|cx| body.poll_discard(cx));
    if let Ok(false) = timeout(DISCARD_TIMEOUT, discarding).await {
        let until_end = poll_fn(|cx| match body.poll_discard(cx) {
            Poll::Ready(true) => Poll::Ready(()),
            _ => Poll::Pending,
        });
        let _ = timeout(RESET_DELAY, until_end).await;
    }
}

/// A response that is being sent.
struct ResponseSender {
    stream: SendStream<SentData>,
    body: ObservedBody,
    delivery: Rc<Delivery>,
    /// Data that waits for the client's window.
    held: Bytes,
    /// The last frame was passed to the library.
    is_ended: bool,
}

impl ResponseSender {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ResponseEnd> {
        if self.delivery.in_flight().poll_timed_out(cx).is_ready() {
            return Poll::Ready(ResponseEnd::TimedOut);
        }
        if let Poll::Ready(was_delivered) = self.delivery.poll_delivered(cx) {
            return Poll::Ready(if was_delivered { ResponseEnd::Delivered } else { ResponseEnd::Cancelled });
        }
        if self.stream.poll_reset(cx).is_ready() {
            return Poll::Ready(ResponseEnd::Cancelled);
        }
        while !self.is_ended {
            let step = if self.held.is_empty() { self.poll_body(cx) } else { self.poll_send(cx) };
            if let Err(end) = ready!(step) {
                return Poll::Ready(end);
            }
        }
        Poll::Pending
    }

    /// Passes held data to the library, as far as the client's window allows: it is in memory anyway, and what the
    /// library holds can be sent.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ResponseEnd>> {
        let room = ready!(self.poll_capacity(cx, self.held.len()))?;
        let part = self.held.split_to(room.min(self.held.len()));
        self.is_ended = self.held.is_empty() && self.body.is_end_stream();
        self.queue(part)
    }

    fn queue(&mut self, part: Bytes) -> Poll<Result<(), ResponseEnd>> {
        let data = self.delivery.queue_data(part, !self.held.is_empty());
        if self.stream.send_data(data, self.is_ended).is_err() {
            return Poll::Ready(Err(ResponseEnd::Cancelled));
        }
        if self.is_ended {
            self.delivery.end();
        }
        Poll::Ready(Ok(()))
    }

    /// Waits until the client's windows have room for a part of `wanted` bytes.
    fn poll_capacity(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, ResponseEnd>> {
        self.stream.reserve_capacity(wanted);
        let mut room = self.stream.capacity();
        if room == 0 {
            self.delivery.in_flight().record_waiting_for_client();
            room = match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(room)) => room,
                _ => return Poll::Ready(Err(ResponseEnd::Cancelled)),
            };
        }
        Poll::Ready(Ok(room))
    }

    /// Reads the next data from the backend.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ResponseEnd>> {
        // A stream that can send nothing need not hold data. The end of a body of unknown length needs no window.
        if self.body.size_hint().exact().is_some_and(|left| left > 0) {
            ready!(self.poll_capacity(cx, 1))?;
        }
        if self.delivery.poll_room(cx).is_pending() {
            self.delivery.in_flight().record_waiting_for_client();
            return Poll::Pending;
        }
        self.delivery.in_flight().record_waiting_for_backend();
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => self.held = frame.into_data().unwrap_or_default(),
            Some(Err(_)) => return Poll::Ready(Err(ResponseEnd::Broken)),
            None => {
                self.is_ended = true;
                return self.queue(Bytes::new());
            }
        }
        self.delivery.in_flight().record_waiting_for_client();
        Poll::Ready(Ok(()))
    }

    fn finish(mut self, end: ResponseEnd) {
        self.body.record_sent(self.delivery.sent());
        match end {
            ResponseEnd::Delivered => self.body.record_complete(),
            ResponseEnd::Cancelled => {}
            ResponseEnd::TimedOut => {
                self.body.record_reason("write_timeout");
                self.stream.send_reset(Reason::CANCEL);
            }
            ResponseEnd::Broken => self.stream.send_reset(Reason::INTERNAL_ERROR),
        }
    }
}
