//! The PROXY protocol, versions 1 and 2: the header in which a load balancer sends the address of its client.
//!
//! Source: <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::io;
use std::net::IpAddr;

use tokio::io::{AsyncRead, AsyncReadExt};

/// The first bytes of a version 2 header.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Maximum length of a version 1 line, including its line end.
const MAX_V1_LINE: usize = 107;

/// Length of the two addresses of a Unix socket in a version 2 header.
const UNIX_ADDRESSES: usize = 216;

/// Maximum length of the variable part of a version 2 header: two addresses, and extensions (TLVs).
const MAX_V2_PAYLOAD: u16 = 2048;

/// Reads the header, and no byte after it. `None`: the connection is the load balancer's own, such as a health check, or
/// its client has no IP address.
///
/// SECURITY: the caller must have checked that the peer is trusted. A header that cannot be parsed is an error that
/// closes the connection: a client behind the load balancer must not be treated as the load balancer.
pub async fn read_header(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    let mut start = [0; SIGNATURE.len()];
    stream.read_exact(&mut start).await?;
    if start == SIGNATURE {
        return read_v2(stream).await;
    }
    // The shortest valid line, `PROXY UNKNOWN`, is longer than the bytes read so far.
    let mut line = start.to_vec();
    if !line.starts_with(b"PROXY ") {
        return Err(invalid_header("the PROXY protocol header is missing"));
    }
    while !line.ends_with(b"\r\n") {
        if line.len() >= MAX_V1_LINE {
            return Err(invalid_header("the PROXY protocol line is too long"));
        }
        line.push(stream.read_u8().await?);
    }
    let line = std::str::from_utf8(&line[..line.len() - 2])
        .map_err(|_| invalid_header("the PROXY protocol line is not valid UTF-8"))?;
    parse_v1(line).ok_or_else(|| invalid_header("the PROXY protocol line is malformed"))
}

fn invalid_header(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443`.
fn parse_v1(line: &str) -> Option<Option<IpAddr>> {
    let mut words = line.split(' ');
    if words.next() != Some("PROXY") {
        return None;
    }
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(None);
    }
    let [source, destination, from, to] = [words.next()?, words.next()?, words.next()?, words.next()?];
    let source: IpAddr = source.parse().ok()?;
    let destination: IpAddr = destination.parse().ok()?;
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let same_family = match family {
        "TCP4" => source.is_ipv4() && destination.is_ipv4(),
        "TCP6" => source.is_ipv6() && destination.is_ipv6(),
        _ => false,
    };
    let is_valid = same_family && is_port(from) && is_port(to) && words.next().is_none();
    is_valid.then(|| Some(source.to_canonical()))
}

async fn read_v2(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    let (version_and_command, family, length) =
        (stream.read_u8().await?, stream.read_u8().await?, stream.read_u16().await?);
    if length > MAX_V2_PAYLOAD {
        return Err(invalid_header("the PROXY protocol header is too long"));
    }
    let mut rest = vec![0; usize::from(length)];
    stream.read_exact(&mut rest).await?;
    let source = match (version_and_command, family) {
        // LOCAL: the addresses have to be ignored. UNSPEC: the load balancer does not know the address, or the protocol
        // is not TCP.
        (0x20, _) | (0x21, 0x00) => return Ok(None),
        // A Unix socket of the load balancer's machine has no IP address.
        (0x21, 0x31) if rest.len() >= UNIX_ADDRESSES => return Ok(None),
        // PROXY, over IPv4 and IPv6, by TCP.
        (0x21, 0x11) if rest.len() >= 12 => rest.first_chunk::<4>().map(|source| IpAddr::from(*source)),
        (0x21, 0x21) if rest.len() >= 36 => rest.first_chunk::<16>().map(|source| IpAddr::from(*source)),
        (0x21, 0x11 | 0x21 | 0x31) => None,
        _ => return Err(invalid_header("the PROXY protocol header has an unknown version, command or address family")),
    };
    match source {
        Some(source) => Ok(Some(source.to_canonical())),
        None => Err(invalid_header("the PROXY protocol header has no addresses")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result, and the number of bytes that were not read.
    async fn header(bytes: &[u8]) -> (Result<Option<IpAddr>, io::ErrorKind>, usize) {
        let mut rest = bytes;
        let read = read_header(&mut rest).await.map_err(|error| error.kind());
        (read, rest.len())
    }

    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    #[tokio::test]
    async fn valid_headers_are_read_to_their_end() {
        let four = [192, 0, 2, 1, 192, 0, 2, 2, 0xdc, 4, 1, 0xbb];
        let six = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1], &[0; 16], &[0; 4]].concat();
        let mapped = [&[0; 10][..], &[0xff, 0xff, 192, 0, 2, 1], &[0; 20]].concat();
        for (bytes, expected) in [
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n".to_vec(), Some("192.0.2.1")),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 1 443\r\n".to_vec(), Some("2001:db8::1")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (binary(0x21, 0x11, &four), Some("192.0.2.1")),
            (binary(0x21, 0x11, &[&four[..], &[4, 0, 1, 9]].concat()), Some("192.0.2.1")),
            (binary(0x21, 0x21, &six), Some("2001:db8::1")),
            (binary(0x21, 0x21, &mapped), Some("192.0.2.1")),
            (binary(0x20, 0x00, &[]), None),
            (binary(0x20, 0x11, &four), None),
            (binary(0x21, 0x00, &[]), None),
            (binary(0x21, 0x31, &[b'/'; 216]), None),
            (binary(0x21, 0x31, &[b'/'; 240]), None),
        ] {
            let (read, unread) = header(&[&bytes[..], b"next"].concat()).await;
            let expected = expected.map(|text| text.parse::<IpAddr>().expect("an address"));
            assert_eq!((read, unread), (Ok(expected), 4), "{}", bytes.escape_ascii());
        }
    }

    #[tokio::test]
    async fn invalid_headers_are_rejected() {
        for bytes in [
            b"GET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 56324\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443 5\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 99999\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 443\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::2 56324 443\r\n".to_vec(),
            b"PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n".to_vec(),
            b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n".to_vec(),
            [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200], b"\r\n".to_vec()].concat(),
            binary(0x21, 0x11, &[0; 11]),
            binary(0x21, 0x21, &[0; 35]),
            binary(0x31, 0x11, &[0; 12]),
            binary(0x22, 0x11, &[0; 12]),
            binary(0x21, 0x12, &[0; 12]),
            binary(0x21, 0x31, &[0; 215]),
            binary(0x21, 0x32, &[0; 216]),
            binary(0x21, 0x11, &[0; 4000]),
        ] {
            let (read, _) = header(&bytes).await;
            assert_eq!(read, Err(io::ErrorKind::InvalidData), "{}", bytes.escape_ascii());
        }
        for cut in [0, 5, 20] {
            let (read, _) = header(&b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"[..cut]).await;
            assert_eq!(read, Err(io::ErrorKind::UnexpectedEof));
        }
    }
}
