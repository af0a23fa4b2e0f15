//! Why the gateway ended a client's connection, or did not take it.

/// The closed set of causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// `limits.connections`.
    Connections,
    /// `limits.connections_per_address`.
    Address,
    /// `limits.requests_per_connection`.
    Requests,
    /// `timeouts.connection_age`.
    Age,
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

impl Cause {
    /// All of them.
    pub const ALL: [Cause; 11] = [
        Cause::Connections,
        Cause::Address,
        Cause::Requests,
        Cause::Age,
        Cause::HandshakeFailed,
        Cause::HandshakeTimeout,
        Cause::HeaderTimeout,
        Cause::IdleTimeout,
        Cause::WriteTimeout,
        Cause::ControlFrames,
        Cause::Resets,
    ];

    /// The label's value.
    pub fn word(self) -> &'static str {
        match self {
            Cause::Connections => "connections_limit",
            Cause::Address => "address_limit",
            Cause::Requests => "requests_limit",
            Cause::Age => "age",
            Cause::HandshakeFailed => "handshake_failed",
            Cause::HandshakeTimeout => "handshake_timeout",
            Cause::HeaderTimeout => "header_timeout",
            Cause::IdleTimeout => "idle_timeout",
            Cause::WriteTimeout => "write_timeout",
            Cause::ControlFrames => "control_frames",
            Cause::Resets => "resets",
        }
    }
}
