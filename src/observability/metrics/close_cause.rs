//! Why the gateway closed a client connection or did not accept it, as a label value.

/// Each cause is one value of the label `cause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCause {
    /// `limits.connections` was reached.
    ConnectionsLimit,
    /// It was idle, and `limits.connections` was reached.
    MadeRoom,
    /// `limits.connections_per_address` was reached.
    AddressLimit,
    /// `limits.memory` was exceeded.
    MemoryLimit,
    /// `limits.requests_per_connection` was reached.
    RequestsLimit,
    /// `timeouts.connection_age` has passed.
    MaxAge,
    /// The TLS handshake failed.
    HandshakeFailed,
    /// `timeouts.handshake` has passed.
    HandshakeTimeout,
    /// `timeouts.header` has passed.
    HeaderTimeout,
    /// `timeouts.idle` has passed.
    IdleTimeout,
    /// `timeouts.write` has passed.
    WriteTimeout,
    /// `limits.control_frames` was exceeded.
    ControlFrames,
    /// `limits.resets` or a similar limit against HTTP/2 abuse was exceeded.
    Resets,
}

impl CloseCause {
    /// All causes.
    pub const ALL: [CloseCause; 13] = [
        CloseCause::ConnectionsLimit,
        CloseCause::MadeRoom,
        CloseCause::AddressLimit,
        CloseCause::MemoryLimit,
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

    /// Label value.
    pub fn as_str(self) -> &'static str {
        match self {
            CloseCause::ConnectionsLimit => "connections_limit",
            CloseCause::MadeRoom => "made_room",
            CloseCause::AddressLimit => "address_limit",
            CloseCause::MemoryLimit => "memory_limit",
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
