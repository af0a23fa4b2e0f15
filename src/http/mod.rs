//! HTTP messages as functions over buffers. Nothing here owns a socket.

pub mod client_body;
pub mod h1;
pub mod headers;
pub mod media_type;
pub mod statement;
