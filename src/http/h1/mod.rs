//! HTTP/1.1 as bytes (RFC 9112), strictly: what has more than one reading is refused.
//!
//! Pure functions and small machines over buffers; tasks, and what a socket is, are the business of those who use them.
//! Between two programs that read the same bytes differently lies request smuggling, so nothing here is lenient: one line end,
//! one length, one place where a message stops.

pub mod batch;
pub mod chunked;
pub mod head;
pub mod read_head;
pub mod request;
pub mod response;
