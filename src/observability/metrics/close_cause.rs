//! Why the gateway ended a client's connection, or did not take it.

/// The closed set of causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCause {
    /// `limits.connections`.
    ConnectionsLimit,
    /// `limits.connections_per_address`.
    AddressLimit,
    /// `limits.requests_per_connection`.
    RequestsLimit,
    /// `timeouts.connection_age`.
    MaxAge,
    /// The TLS handshake failed.
    HandshakeFailed,
    /// `timeouts.handshake`.
    HandshakeTimeout,
    /// `timeouts.header`.
    HeaderTimeout,
    /// `timeouts.idle`.
    IdleTimeout,
    /// `timeouts.write`.
    WriteTimeout,
    /// `limits.control_frames`.
    ControlFrames,
    /// `limits.resets`, or another count by which HTTP/2 tells abuse.
    Resets,
}

impl CloseCause {
    /// All of them.
    pub const ALL: [CloseCause; 11] = [
        CloseCause::ConnectionsLimit,
        CloseCause::AddressLimit,
        CloseCause::RequestsLimit,
        CloseCause::MaxAge,
        CloseCause::HandshakeFailed,
        CloseCause::HandshakeTimeout,
        CloseCause::HeaderTimeout,
        CloseCause::IdleTimeout,
        CloseCause::WriteTimeout,
        CloseCause::ControlFrames,
        CloseCause::Resets,
    ];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            CloseCause::ConnectionsLimit => "connections_limit",
            CloseCause::AddressLimit => "address_limit",
            CloseCause::RequestsLimit => "requests_limit",
            CloseCause::MaxAge => "age",
            CloseCause::HandshakeFailed => "handshake_failed",
            CloseCause::HandshakeTimeout => "handshake_timeout",
            CloseCause::HeaderTimeout => "header_timeout",
            CloseCause::IdleTimeout => "idle_timeout",
            CloseCause::WriteTimeout => "write_timeout",
            CloseCause::ControlFrames => "control_frames",
            CloseCause::Resets => "resets",
        }
    }
}
