//! HTTP/1.1 messages (RFC 9112), parsed strictly: ambiguous messages are rejected. It knows nothing about sockets and
//! tasks.
//!
//! Two programs that parse the same bytes differently make request smuggling possible. So nothing here is lenient: one
//! line end, one length, one place where a message ends.

pub mod batch;
pub mod chunked;
pub mod head;
pub mod read_head;
pub mod request;
pub mod response;
