//! The headers of a message: one buffer with all their bytes, and a list of positions in it. It knows nothing about
//! what a header means.
//!
//! A map would need hashing and an allocation per entry for every request. A message has few headers, and the gateway
//! mostly needs their name, which is looked up once ([`HeaderName`]).

mod name;
mod names;

use std::fmt;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Uri};

pub use name::{HOP_BY_HOP, HeaderName};
pub use names::HeaderNames;

/// Headers in the sequence in which they were received or added. Names are in lower case; names and values are valid
/// for HTTP/1 and HTTP/2.
#[derive(Clone, Default)]
pub struct Headers {
    bytes: Vec<u8>,
    entries: Vec<HeaderEntry>,
    /// Of all entries. Most lookups are for names that a message does not have.
    names: HeaderNames,
}

/// The method, target and headers of a request.
#[derive(Debug)]
pub struct Head {
    /// The method, such as `GET`.
    pub method: Method,
    /// The target: a path with a query, or a URL.
    pub uri: Uri,
    /// The headers.
    pub headers: Headers,
    /// Number of bytes of the head as HTTP/1.1 has it, with line ends.
    pub size: usize,
}

impl From<Parts> for Head {
    fn from(parts: Parts) -> Head {
        let authority = parts.uri.authority().map_or(0, |authority| "host: \r\n".len() + authority.as_str().len());
        let target = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
        let lines = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
        let size = parts.method.as_str().len() + target + "  HTTP/1.1\r\n\r\n".len() + authority + lines.sum::<usize>();
        Head { method: parts.method, uri: parts.uri, headers: Headers::from(&parts.headers), size }
    }
}

/// The position of a header in the buffer.
#[derive(Clone, Copy)]
struct HeaderEntry {
    name: HeaderName,
    /// The name; used for [`HeaderName::Other`] only.
    text: ByteRange,
    value: ByteRange,
}

#[derive(Clone, Copy, Default)]
struct ByteRange {
    start: u32,
    length: u32,
}

impl ByteRange {
    fn slice(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..][..self.length as usize]
    }

    fn new(start: usize, length: usize) -> ByteRange {
        let fits = "a head is far smaller than 4 GiB";
        ByteRange { start: u32::try_from(start).expect(fits), length: u32::try_from(length).expect(fits) }
    }

    /// The position of `part`, a subslice of `whole`.
    fn locate(whole: &[u8], part: &[u8]) -> ByteRange {
        let start = part.as_ptr() as usize - whole.as_ptr() as usize;
        debug_assert!(start + part.len() <= whole.len(), "it is a subslice");
        ByteRange::new(start, part.len())
    }
}

/// A header of a message.
#[derive(Clone, Copy)]
pub struct Header<'a> {
    /// The name, if it is a known one.
    pub name: HeaderName,
    /// The text of a name that is not known; otherwise empty.
    other: &'a [u8],
    /// The value: no control characters except tabs.
    pub value: &'a [u8],
}

impl<'a> Header<'a> {
    /// The text of the name, in lower case: a token, so ASCII.
    pub fn text(&self) -> &'a [u8] {
        match self.name {
            HeaderName::Other => self.other,
            known => known.as_str().as_bytes(),
        }
    }
}

/// The positions of the headers in a head that is being parsed. Turned into [`Headers`] with the memory of the head.
pub struct ParsedHeaders(Vec<HeaderEntry>);

impl ParsedHeaders {
    /// Records the headers that the parser found in `head`. The parser accepts only tokens as names, and values without
    /// control characters except tabs.
    pub fn new(head: &[u8], parsed: &[httparse::Header<'_>]) -> ParsedHeaders {
        let entry = |header: &httparse::Header<'_>| {
            let name = HeaderName::parse(header.name.as_bytes());
            let text = match name {
                HeaderName::Other => ByteRange::locate(head, header.name.as_bytes()),
                _ => ByteRange::default(),
            };
            // An empty value may point outside of `head`.
            let value = match header.value {
                [] => ByteRange::default(),
                value => ByteRange::locate(head, value),
            };
            HeaderEntry { name, text, value }
        };
        // Capacity for two more, so that adding one does not reallocate.
        let mut entries = Vec::with_capacity(parsed.len() + 2);
        entries.extend(parsed.iter().map(entry));
        ParsedHeaders(entries)
    }

    /// Takes ownership of the head.
    pub fn into_headers(self, mut head: Vec<u8>) -> Headers {
        for entry in self.0.iter().filter(|entry| entry.name == HeaderName::Other) {
            head[entry.text.start as usize..][..entry.text.length as usize].make_ascii_lowercase();
        }
        let names = names_of(&self.0);
        Headers { bytes: head, entries: self.0, names }
    }
}

impl Headers {
    /// Creates an empty list.
    pub fn new() -> Headers {
        Headers::default()
    }

    /// Creates an empty list with capacity for this number of headers, and for this number of bytes of names and
    /// values.
    pub fn with_capacity(headers: usize, bytes: usize) -> Headers {
        let (bytes, entries) = (Vec::with_capacity(bytes), Vec::with_capacity(headers));
        Headers { bytes, entries, names: HeaderNames::default() }
    }

    /// The number of headers.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no headers.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All headers, in the sequence in which they were received or added.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Header<'_>> + '_ {
        self.entries.iter().map(|entry| self.header(entry))
    }

    fn header(&self, entry: &HeaderEntry) -> Header<'_> {
        Header { name: entry.name, other: entry.text.slice(&self.bytes), value: entry.value.slice(&self.bytes) }
    }

    /// The values of all headers with this name.
    pub fn all(&self, name: HeaderName) -> impl Iterator<Item = &[u8]> + '_ {
        let entries = if self.names.contains(name) { &self.entries[..] } else { &[] };
        entries.iter().filter(move |entry| entry.name == name).map(|entry| entry.value.slice(&self.bytes))
    }

    /// The value of the first header with this name.
    pub fn get(&self, name: HeaderName) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// The value of the only header with this name; `None` if there are several, or none.
    pub fn single(&self, name: HeaderName) -> Option<&[u8]> {
        let mut values = self.all(name);
        let value = values.next()?;
        values.next().is_none().then_some(value)
    }

    /// Whether a header has one of these names.
    pub fn contains_any(&self, names: HeaderNames) -> bool {
        self.names.intersects(names)
    }

    /// Whether a header has this name.
    pub fn contains(&self, name: HeaderName) -> bool {
        self.names.contains(name)
    }

    /// Appends a header. The value must be valid: written by the gateway, or parsed before.
    pub fn push(&mut self, name: HeaderName, value: &[u8]) {
        debug_assert!(name != HeaderName::Other && value.iter().copied().all(is_value_byte));
        let value = self.append_bytes(value);
        self.push_entry(HeaderEntry { name, text: ByteRange::default(), value });
    }

    /// Appends a header by the text of its name, in lower case. Both must be valid.
    pub fn push_text(&mut self, text: &str, value: &[u8]) {
        let name = HeaderName::parse(text.as_bytes());
        let text = if name == HeaderName::Other { self.append_bytes(text.as_bytes()) } else { ByteRange::default() };
        let value = self.append_bytes(value);
        self.push_entry(HeaderEntry { name, text, value });
    }

    fn push_entry(&mut self, entry: HeaderEntry) {
        self.names.insert(entry.name);
        self.entries.push(entry);
    }

    fn append_bytes(&mut self, bytes: &[u8]) -> ByteRange {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        ByteRange::new(start, bytes.len())
    }

    /// Removes all headers with this name.
    pub fn remove(&mut self, name: HeaderName) {
        if self.contains(name) {
            self.entries.retain(|entry| entry.name != name);
            self.names.remove(name);
        }
    }

    /// Removes the headers for which `keep` returns false.
    pub fn retain(&mut self, mut keep: impl FnMut(Header<'_>) -> bool) {
        let mut entries = std::mem::take(&mut self.entries);
        entries.retain(|entry| keep(self.header(entry)));
        self.names = names_of(&entries);
        self.entries = entries;
    }

    /// Converts to the map that HTTP/2 needs. The values share the memory of this buffer.
    pub fn into_map(self) -> HeaderMap {
        let bytes = Bytes::from(self.bytes);
        let mut map = HeaderMap::with_capacity(self.entries.len());
        for entry in self.entries {
            let name = match entry.name.to_http() {
                Some(name) => name.clone(),
                None => http::HeaderName::from_bytes(entry.text.slice(&bytes)).expect("names were validated"),
            };
            let from = entry.value.start as usize;
            let value = bytes.slice(from..from + entry.value.length as usize);
            let mut value = HeaderValue::from_maybe_shared(value).expect("values were validated");
            // It differs for every request: it would evict reusable entries from the HPACK table.
            value.set_sensitive(entry.name == HeaderName::XRequestId);
            map.append(name, value);
        }
        map
    }
}

fn names_of(entries: &[HeaderEntry]) -> HeaderNames {
    let mut names = HeaderNames::default();
    for entry in entries {
        names.insert(entry.name);
    }
    names
}

impl From<&HeaderMap> for Headers {
    fn from(map: &HeaderMap) -> Headers {
        let bytes = map.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let mut headers = Headers::with_capacity(map.len(), bytes);
        for (name, value) in map {
            headers.push_text(name.as_str(), value.as_bytes());
        }
        headers
    }
}

/// SECURITY: names only; values contain credentials and user data.
impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|header| String::from_utf8_lossy(header.text()))).finish()
    }
}

/// Whether a byte is valid in a header value (RFC 9110 section 5.5).
pub fn is_value_byte(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers_from(pairs: &[(&'static str, &'static str)]) -> Headers {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(http::HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        Headers::from(&map)
    }

    #[test]
    fn the_size_of_a_head_is_that_of_http_1() {
        let text = "GET /a?b=c HTTP/1.1\r\nhost: h\r\nx-note: 1\r\nempty: \r\n\r\n";
        let request = http::Request::get("https://h/a?b=c").header("x-note", "1").header("empty", "");
        let parts = request.body(()).expect("a request").into_parts().0;
        assert_eq!(Head::from(parts).size, text.len());
    }

    #[test]
    fn headers_are_found_by_name() {
        let headers = headers_from(&[("host", "h"), ("x-custom", "1"), ("cookie", "a"), ("cookie", "b")]);
        assert_eq!((headers.len(), headers.get(HeaderName::Host)), (4, Some(&b"h"[..])));
        assert_eq!((headers.single(HeaderName::Cookie), headers.get(HeaderName::Cookie)), (None, Some(&b"a"[..])));
        assert_eq!(headers.all(HeaderName::Cookie).collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!((headers.get(HeaderName::Other), headers.contains(HeaderName::XApiKey)), (Some(&b"1"[..]), false));
    }

    #[test]
    fn headers_can_be_added_and_removed() {
        let mut headers = headers_from(&[("host", "h"), ("x-custom", "1"), ("cookie", "a"), ("cookie", "b")]);
        headers.remove(HeaderName::Cookie);
        headers.push(HeaderName::Date, b"today");
        headers.retain(|header| header.text() != b"x-custom");
        let names = [HeaderName::Host, HeaderName::Date, HeaderName::Cookie, HeaderName::Other, HeaderName::Accept];
        assert_eq!(names.map(|name| headers.contains(name)), [true, true, false, false, false]);
        assert_eq!(names.map(|name| headers.get(name).is_some()), [true, true, false, false, false]);
        assert!(headers.contains_any(HeaderNames::new(&[HeaderName::Accept, HeaderName::Date])));
        assert!(!headers.contains_any(HeaderNames::new(&[HeaderName::Accept, HeaderName::Cookie])));
        let left: Vec<_> = headers.iter().map(|header| (header.text(), header.value)).collect();
        assert_eq!(left, [(&b"host"[..], &b"h"[..]), (b"date", b"today")]);
    }

    #[test]
    fn conversion_to_a_map_and_back_is_lossless() {
        let pairs = [("host", "h"), ("x-custom", "1"), ("cookie", "a"), ("cookie", "b"), ("empty", "")];
        let map = headers_from(&pairs).into_map();
        assert_eq!(map.len(), 5);
        for (name, value) in pairs {
            assert!(map.get_all(name).iter().any(|other| other == value), "{name}");
        }
    }

    #[test]
    fn a_parsed_head_keeps_its_memory() {
        let head = b"GET / HTTP/1.1\r\nHost: h\r\nX-Own: \r\nContent-TYPE:  a b \r\n\r\n".to_vec();
        let mut headers = [httparse::EMPTY_HEADER; 8];
        let mut request = httparse::Request::new(&mut headers);
        assert!(request.parse(&head).is_ok_and(|status| status.is_complete()));
        let parsed = ParsedHeaders::new(&head, request.headers);
        let headers = parsed.into_headers(head);
        let all: Vec<_> = headers.iter().map(|header| (header.text(), header.value)).collect();
        assert_eq!(all, [(&b"host"[..], &b"h"[..]), (b"x-own", b""), (b"content-type", b"a b")]);
        assert_eq!(format!("{headers:?}"), r#"["host", "x-own", "content-type"]"#);
    }

    /// The parser must accept what the `http` crate accepts, because headers are converted to its types for HTTP/2.
    #[test]
    fn the_parser_is_as_strict_as_a_map() {
        for byte in 0..=u8::MAX {
            let parses = |head: &[u8]| {
                let mut headers = [httparse::EMPTY_HEADER; 2];
                let parsed = httparse::Request::new(&mut headers).parse(head);
                parsed.is_ok_and(|status| status.is_complete())
            };
            let head =
                |name: &[u8], value: &[u8]| [b"GET / HTTP/1.1\r\nh", name, b"x: v", value, b"v\r\n\r\n"].concat();
            if byte != b':' && byte != b'\r' && byte != b'\n' {
                let is_name = http::HeaderName::from_bytes(&[b'h', byte, b'x']).is_ok();
                assert_eq!(parses(&head(&[byte], b"")), is_name, "{byte:#x} in a name");
            }
            if byte != b'\r' && byte != b'\n' {
                let is_accepted = parses(&head(b"", &[byte]));
                assert_eq!(is_accepted, HeaderValue::from_bytes(&[b'v', byte, b'v']).is_ok(), "{byte:#x} in a value");
                assert_eq!(is_accepted, is_value_byte(byte), "{byte:#x}");
            }
        }
    }
}
