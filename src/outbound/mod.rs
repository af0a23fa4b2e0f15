//! The gateway's own requests to other servers, apart from the path of a client's request.

pub mod http_client;
pub mod otlp;
