//! The body of a client's request over HTTP/1 or HTTP/2. It applies no limits and knows nothing about backends.

use std::cell::Cell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// The body did not arrive completely.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct IncompleteBody(pub String);

/// The source of an HTTP/1 body: the connection itself, which is read on demand.
pub trait Http1Body {
    /// The next bytes of the body; `None` at its end.
    fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, IncompleteBody>>>;
    /// Whether the whole body was read.
    fn is_end_stream(&self) -> bool;
    /// The number of bytes left, if the client announced the length.
    fn remaining(&self) -> Option<u64>;
}

/// A body over HTTP/2. An unread remainder is returned to the connection instead of being dropped.
pub struct Http2Body {
    /// `None` after the end.
    incoming: Option<Incoming>,
    unread: Rc<Cell<Option<Incoming>>>,
}

impl Drop for Http2Body {
    fn drop(&mut self) {
        self.unread.set(self.incoming.take().filter(|incoming| !incoming.is_end_stream()));
    }
}

/// The body of a client's request.
pub enum ClientBody {
    /// No body.
    Empty,
    /// Read from an HTTP/1 connection.
    Http1(Rc<dyn Http1Body>),
    /// Read from a stream of an HTTP/2 connection.
    Http2(Http2Body),
    /// Bytes that were received before, sent again.
    Buffered(Bytes),
}

impl ClientBody {
    /// The body of an HTTP/2 stream, and the cell in which its unread remainder is left when it is dropped.
    pub fn http2(incoming: Incoming) -> (ClientBody, Rc<Cell<Option<Incoming>>>) {
        let unread = Rc::default();
        if incoming.is_end_stream() {
            return (ClientBody::Empty, unread);
        }
        let body = Http2Body { incoming: Some(incoming), unread: Rc::clone(&unread) };
        (ClientBody::Http2(body), unread)
    }
}

impl fmt::Debug for ClientBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClientBody::Empty => "ClientBody::Empty",
            ClientBody::Http1(_) => "ClientBody::Http1",
            ClientBody::Http2(_) => "ClientBody::Http2",
            ClientBody::Buffered(_) => "ClientBody::Buffered",
        })
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = IncompleteBody;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, IncompleteBody>>> {
        match &mut *self {
            ClientBody::Empty => Poll::Ready(None),
            ClientBody::Http1(body) => body.poll_data(cx).map_ok(Frame::data),
            ClientBody::Buffered(rest) => {
                let rest = std::mem::take(rest);
                Poll::Ready((!rest.is_empty()).then(|| Ok(Frame::data(rest))))
            }
            ClientBody::Http2(body) => {
                let Some(incoming) = &mut body.incoming else { return Poll::Ready(None) };
                match Pin::new(&mut *incoming).poll_frame(cx) {
                    // SECURITY: a stream that was reset with NO_ERROR looks complete, but is not.
                    Poll::Ready(None) if !incoming.is_end_stream() => {
                        Poll::Ready(Some(Err(IncompleteBody("the stream was reset".to_owned()))))
                    }
                    polled => polled.map_err(|error| IncompleteBody(error.to_string())),
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ClientBody::Empty => true,
            ClientBody::Http1(body) => body.is_end_stream(),
            ClientBody::Http2(body) => body.incoming.as_ref().is_none_or(Incoming::is_end_stream),
            ClientBody::Buffered(rest) => rest.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ClientBody::Empty => SizeHint::with_exact(0),
            ClientBody::Http1(body) => body.remaining().map_or_else(SizeHint::new, SizeHint::with_exact),
            ClientBody::Http2(body) => body.incoming.as_ref().map(Incoming::size_hint).unwrap_or_default(),
            ClientBody::Buffered(rest) => SizeHint::with_exact(rest.len() as u64),
        }
    }
}
