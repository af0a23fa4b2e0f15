//! Requests that the gateway itself sends to other servers, such as identity providers and trace collectors. Requests
//! of clients do not pass through here.

pub mod http_client;
pub mod otlp;
pub mod syslog;
