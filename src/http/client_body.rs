//! The body of a client's request over HTTP/1 or HTTP/2. It applies no limits and knows nothing about backends.

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// The body did not arrive completely.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct IncompleteBody(pub String);

/// The source of a body: an HTTP/1 connection or an HTTP/2 stream, which is read on demand.
pub trait ClientBodySource {
    /// The next bytes of the body; `None` at its end.
    fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, IncompleteBody>>>;
    /// Whether the whole body was read.
    fn is_end_stream(&self) -> bool;
    /// The number of bytes left, if the client announced the length.
    fn remaining(&self) -> Option<u64>;
}

/// The body of a client's request.
pub enum ClientBody {
    /// No body.
    Empty,
    /// Read from a client's connection, which keeps what the consumer leaves unread.
    Streaming(Rc<dyn ClientBodySource>),
}

impl fmt::Debug for ClientBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClientBody::Empty => "ClientBody::Empty",
            ClientBody::Streaming(_) => "ClientBody::Streaming",
        })
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = IncompleteBody;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, IncompleteBody>>> {
        match &*self {
            ClientBody::Empty => Poll::Ready(None),
            ClientBody::Streaming(body) => body.poll_data(cx).map_ok(Frame::data),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ClientBody::Empty => true,
            ClientBody::Streaming(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ClientBody::Empty => SizeHint::with_exact(0),
            ClientBody::Streaming(body) => body.remaining().map_or_else(SizeHint::new, SizeHint::with_exact),
        }
    }
}
