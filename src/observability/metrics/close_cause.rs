//! Why the gateway closed a client connection or did not accept it, as a label value.

use crate::base::label_values::label_values;

label_values! {
    /// Each cause is one value of the label `cause`.
    CloseCause {
        /// `limits.connections` was reached.
        ConnectionsLimit = "connections_limit",
        /// It was idle, and `limits.connections` was reached.
        MadeRoom = "made_room",
        /// `limits.connections_per_address` was reached.
        AddressLimit = "address_limit",
        /// `limits.memory` was exceeded.
        MemoryLimit = "memory_limit",
        /// `limits.requests_per_connection` was reached.
        RequestsLimit = "requests_limit",
        /// `timeouts.connection_age` has passed.
        MaxAge = "age",
        /// The TLS handshake failed.
        HandshakeFailed = "handshake_failed",
        /// `timeouts.handshake` has passed.
        HandshakeTimeout = "handshake_timeout",
        /// `timeouts.header` has passed.
        HeaderTimeout = "header_timeout",
        /// `timeouts.idle` has passed.
        IdleTimeout = "idle_timeout",
        /// `timeouts.write` has passed.
        WriteTimeout = "write_timeout",
        /// `limits.control_frames` was exceeded.
        ControlFrames = "control_frames",
        /// `limits.resets` or a similar limit against HTTP/2 abuse was exceeded.
        Resets = "resets",
    }
}
