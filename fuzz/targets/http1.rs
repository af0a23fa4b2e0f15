//! HTTP/1.1 parsing: request heads, response heads and chunked bodies. An accepted message has exactly one
//! interpretation, independent of how its bytes are split, and keeps it when it is serialized and parsed again.

#![no_main]

use bytes::BytesMut;
use http::{Method, Uri, Version};
use libfuzzer_sys::fuzz_target;
use timbr_gateway::http::h1::chunked::{ChunkedDecoder, Decoded};
use timbr_gateway::http::h1::head::{Framing, HeadLimits, HeadScanner};
use timbr_gateway::http::h1::request::{parse_request, write_request_end, write_request_start};
use timbr_gateway::http::h1::response::{copy_header, parse_response, write_header};
use timbr_gateway::http::headers::{HeaderName, Headers};

const LIMITS: HeadLimits = HeadLimits { max_headers: 100, max_bytes: 64 * 1024 };

/// The end of the head, from bytes that arrive in two parts.
fn head_end(data: &[u8], first: usize) -> Result<Option<usize>, ()> {
    let mut scanner = HeadScanner::default();
    match scanner.find_end(&data[..first], &LIMITS) {
        Ok(None) => scanner.find_end(data, &LIMITS).map_err(drop),
        found => found.map_err(drop),
    }
}

fn request(data: &[u8], first: usize) {
    let end = head_end(data, data.len());
    assert_eq!(head_end(data, first), end);
    let Ok(Some(end)) = end else { return };
    let head = &data[..end];
    let Ok(read) = parse_request(head.to_vec(), &LIMITS) else { return };

    // Checks of a strict parser, on the raw bytes.
    let text = head.strip_suffix(b"\r\n\r\n").expect("a head ends with an empty line");
    // One empty line may precede the request line (RFC 9112 section 2.2).
    let text = text.strip_prefix(b"\r\n").unwrap_or(text);
    let lines: Vec<_> =
        text.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect();
    assert!(lines.iter().all(|line| !line.contains(&b'\r') && !line.contains(&0)));
    assert_eq!(lines[0].split(|byte| *byte == b' ').count(), 3);
    let named = |name: &str| {
        let parted =
            lines[1..].iter().filter_map(|line| line.iter().position(|byte| *byte == b':').map(|at| line.split_at(at)));
        let matching = parted.filter(|(other, _)| other.eq_ignore_ascii_case(name.as_bytes()));
        matching.map(|(_, value)| value[1..].trim_ascii()).collect::<Vec<_>>()
    };
    for line in &lines[1..] {
        assert!(!line.starts_with(b" ") && !line.starts_with(b"\t"), "folded");
        let colon = line.iter().position(|byte| *byte == b':').expect("a header");
        assert!(colon > 0 && !line[colon - 1].is_ascii_whitespace());
    }
    let (lengths, codings) = (named("content-length"), named("transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1);
    assert!(named("host").len() <= 1);
    match read.framing {
        Framing::None => {
            assert!(codings.is_empty() && lengths.iter().all(|length| length.iter().all(|digit| *digit == b'0')))
        }
        Framing::Length(length) => assert!(
            length > 0
                && lengths[0].iter().all(u8::is_ascii_digit)
                && std::str::from_utf8(lengths[0]).expect("digits").parse() == Ok(length)
        ),
        Framing::Chunked => {
            assert!(codings[0].eq_ignore_ascii_case(b"chunked") && read.version == Version::HTTP_11)
        }
    }

    // The `http` crate, which HTTP/2 uses, must accept the same names and values.
    assert_eq!(read.head.headers.clone().into_map().len(), read.head.headers.len());
    let (mut written, read_head) = (Vec::new(), &read.head);
    write_request_start(&mut written, &read_head.method, &read_head.uri);
    if !read_head.headers.contains(HeaderName::Host) {
        write_header(&mut written, HeaderName::Host, b"h");
    }
    let frames =
        |name| matches!(name, HeaderName::Connection | HeaderName::TransferEncoding | HeaderName::ContentLength);
    for header in read_head.headers.iter().filter(|header| !frames(header.name)) {
        copy_header(&mut written, header);
    }
    write_request_end(&mut written, &read_head.method, read.framing);
    let limits = HeadLimits { max_bytes: written.len() + 1, max_headers: 200, ..LIMITS };
    let reparsed = parse_request(written, &limits).expect("the gateway's own serialization is valid");
    assert_eq!((&reparsed.head.method, reparsed.framing), (&read_head.method, read.framing));
    let target = |uri: &Uri| {
        let path = Some(uri.path()).filter(|path| !path.is_empty());
        format!("{}?{}", path.unwrap_or("/"), uri.query().unwrap_or_default())
    };
    assert_eq!(target(&reparsed.head.uri), target(&read_head.uri));
    let forwarded = |headers: &Headers| {
        let forwarded = headers.iter().filter(|header| !frames(header.name) && header.name != HeaderName::Host);
        forwarded.map(|header| (header.text().to_vec(), header.value.to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(forwarded(&reparsed.head.headers), forwarded(&read_head.headers));
}

/// The body and the bytes after it, from bytes that arrive in parts; `None` for an error or an incomplete body.
fn body<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Option<(Vec<u8>, Vec<u8>)> {
    let (mut decoder, mut buffer, mut body) = (ChunkedDecoder::default(), BytesMut::new(), Vec::new());
    for part in parts {
        buffer.extend_from_slice(part);
        loop {
            match decoder.decode(&mut buffer).ok()? {
                Decoded::Data(data) => {
                    assert!(!data.is_empty());
                    body.extend_from_slice(&data);
                }
                Decoded::NeedsMore => break,
                Decoded::End => {
                    assert!(decoder.is_done());
                    break;
                }
            }
        }
    }
    decoder.is_done().then(|| (body, buffer.to_vec()))
}

fuzz_target!(|data: &[u8]| {
    let Some((how, data)) = data.split_first() else { return };
    let first = usize::from(how >> 2).min(data.len());
    match how % 3 {
        0 => request(data, first),
        1 => {
            let whole = body([data].into_iter());
            assert_eq!(body([&data[..first], &data[first..]].into_iter()), whole);
            assert_eq!(body(data.chunks(1)), whole);
        }
        _ => {
            for method in [Method::GET, Method::HEAD] {
                let _ = parse_response(data.to_vec(), &method);
            }
        }
    }
});
