//! The body of a client's request, whichever protocol it comes over.

use std::cell::Cell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// Why a body did not arrive whole.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct IncompleteBody(pub String);

/// Where the bytes of an HTTP/1 body come from: the connection itself, read when somebody asks for them.
pub trait Http1Body {
    /// The next bytes; `None` at the end.
    fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, IncompleteBody>>>;
    /// Whether all was read.
    fn is_end_stream(&self) -> bool;
    /// How many bytes are left, where the client said so.
    fn remaining(&self) -> Option<u64>;
}

/// A body over HTTP/2. What nobody has read to its end is left to whoever took the request in, instead of being dropped.
pub struct Http2Body {
    /// Until the end.
    incoming: Option<Incoming>,
    unread: Rc<Cell<Option<Incoming>>>,
}

impl Drop for Http2Body {
    fn drop(&mut self) {
        self.unread.set(self.incoming.take().filter(|incoming| !incoming.is_end_stream()));
    }
}

/// A client's body.
pub enum ClientBody {
    /// None.
    Empty,
    /// Read off an HTTP/1 connection.
    Http1(Rc<dyn Http1Body>),
    /// A stream of an HTTP/2 connection.
    Http2(Http2Body),
    /// What has come before, once more.
    Buffered(Bytes),
}

impl ClientBody {
    /// A stream's, and where what is not read of it will be found.
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
            ClientBody::Buffered(_) => "ClientBody::Kept",
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
                    // SECURITY: a stream that was reset "without error" looks ended, and is not whole.
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
