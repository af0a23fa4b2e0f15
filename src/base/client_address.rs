//! Client addresses as text, and the address of clients that have none: those of a Unix socket.

use std::net::{IpAddr, Ipv6Addr};

/// The peers of a Unix socket. No connection over IP has this address (RFC 4291 section 2.5.2).
pub const UNIX_PEER: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// The same in logs, in `x-forwarded-for` and in `trusted_proxies`, as in nginx.
pub const UNIX_TEXT: &str = "unix:";

/// An address for logs and headers.
pub fn to_text(address: IpAddr) -> String {
    if address == UNIX_PEER { UNIX_TEXT.to_owned() } else { address.to_string() }
}
