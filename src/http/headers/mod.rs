//! The fields of a head: one piece of memory with all their bytes, and a list of where they stand.
//!
//! A map would have to be built and asked for each request, with hashes and memory for each entry; a head has few fields,
//! and what the gateway asks of them is mostly their name, which is looked up once ([`HeaderName`]).

mod name;

use std::fmt;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Uri};

pub use name::HeaderName;

/// Fields in their order. Names are in lower case; what was let in is valid for HTTP/1 and HTTP/2.
#[derive(Clone, Default)]
pub struct Headers {
    bytes: Vec<u8>,
    entries: Vec<HeaderEntry>,
}

/// What the head of a request says.
#[derive(Debug)]
pub struct Head {
    /// How it asks,
    pub method: Method,
    /// for what,
    pub uri: Uri,
    /// and all else.
    pub headers: Headers,
}

impl From<Parts> for Head {
    fn from(parts: Parts) -> Head {
        Head { method: parts.method, uri: parts.uri, headers: Headers::from(&parts.headers) }
    }
}

/// Where a field stands in the bytes.
#[derive(Clone, Copy)]
struct HeaderEntry {
    name: HeaderName,
    /// Of the name; for [`HeaderName::Other`] only.
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
        let fits = "heads are far smaller than 4 GiB";
        ByteRange { start: u32::try_from(start).expect(fits), length: u32::try_from(length).expect(fits) }
    }

    /// Where `part`, a part of `whole`, stands in it.
    fn locate(whole: &[u8], part: &[u8]) -> ByteRange {
        let start = part.as_ptr() as usize - whole.as_ptr() as usize;
        debug_assert!(start + part.len() <= whole.len(), "it is a part");
        ByteRange::new(start, part.len())
    }
}

/// One field.
#[derive(Clone, Copy)]
pub struct Header<'a> {
    /// What it is called, if that is known by heart.
    pub name: HeaderName,
    /// What it is called, if it is not; else empty.
    other: &'a [u8],
    /// What it says. As HTTP/1 has it: no control characters but tabs.
    pub value: &'a [u8],
}

impl<'a> Header<'a> {
    /// What it is called, in lower case: a token, so ASCII.
    pub fn text(&self) -> &'a [u8] {
        match self.name {
            HeaderName::Other => self.other,
            known => known.as_str().as_bytes(),
        }
    }
}

/// Where the fields stand in a head that is being read. Made into [`Headers`] with the head's own memory.
pub struct ParsedHeaders(Vec<HeaderEntry>);

impl ParsedHeaders {
    /// Notes the fields that the parser found in `head`. It lets in nothing but tokens as names, and as values nothing
    /// with control characters but tabs.
    pub fn new(head: &[u8], parsed: &[httparse::Header<'_>]) -> ParsedHeaders {
        let entry = |field: &httparse::Header<'_>| {
            let name = HeaderName::parse(field.name.as_bytes());
            let text = match name {
                HeaderName::Other => ByteRange::locate(head, field.name.as_bytes()),
                _ => ByteRange::default(),
            };
            // An empty value stands nowhere.
            let value = match field.value {
                [] => ByteRange::default(),
                value => ByteRange::locate(head, value),
            };
            HeaderEntry { name, text, value }
        };
        // Room for some more, so that adding one moves nothing.
        let mut entries = Vec::with_capacity(parsed.len() + 2);
        entries.extend(parsed.iter().map(entry));
        ParsedHeaders(entries)
    }

    /// Takes over the head.
    pub fn into_headers(self, mut head: Vec<u8>) -> Headers {
        for entry in self.0.iter().filter(|entry| entry.name == HeaderName::Other) {
            head[entry.text.start as usize..][..entry.text.length as usize].make_ascii_lowercase();
        }
        Headers { bytes: head, entries: self.0 }
    }
}

impl Headers {
    /// None yet.
    pub fn new() -> Headers {
        Headers::default()
    }

    /// None yet, with room for so many and for so many bytes of names and values.
    pub fn with_capacity(fields: usize, bytes: usize) -> Headers {
        Headers { bytes: Vec::with_capacity(bytes), entries: Vec::with_capacity(fields) }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Header<'_>> + '_ {
        self.entries.iter().map(|entry| self.header(entry))
    }

    fn header(&self, entry: &HeaderEntry) -> Header<'_> {
        Header {
            name: entry.name,
            other: entry.text.slice(&self.bytes),
            value: entry.value.slice(&self.bytes),
        }
    }

    /// The values of all fields that are called so.
    pub fn all(&self, name: HeaderName) -> impl Iterator<Item = &[u8]> + '_ {
        self.entries
            .iter()
            .filter(move |entry| entry.name == name)
            .map(|entry| entry.value.slice(&self.bytes))
    }

    /// The value of the first field that is called so.
    pub fn get(&self, name: HeaderName) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// The value of the only field that is called so; `None` if there are others.
    pub fn single(&self, name: HeaderName) -> Option<&[u8]> {
        let mut values = self.all(name);
        let value = values.next()?;
        values.next().is_none().then_some(value)
    }

    /// Whether a field is called so.
    pub fn contains(&self, name: HeaderName) -> bool {
        self.get(name).is_some()
    }

    /// Adds a field behind the others. The value is ours, or was let in before.
    pub fn push(&mut self, name: HeaderName, value: &[u8]) {
        debug_assert!(name != HeaderName::Other && is_value(value));
        let value = self.append_bytes(value);
        self.entries.push(HeaderEntry { name, text: ByteRange::default(), value });
    }

    /// Adds one by the text of its name, which is in lower case; both were let in before.
    fn push_text(&mut self, text: &str, value: &[u8]) {
        let name = HeaderName::parse(text.as_bytes());
        let text =
            if name == HeaderName::Other { self.append_bytes(text.as_bytes()) } else { ByteRange::default() };
        let value = self.append_bytes(value);
        self.entries.push(HeaderEntry { name, text, value });
    }

    fn append_bytes(&mut self, bytes: &[u8]) -> ByteRange {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        ByteRange::new(start, bytes.len())
    }

    /// Removes all that are called so.
    pub fn remove(&mut self, name: HeaderName) {
        self.entries.retain(|entry| entry.name != name);
    }

    /// Removes what is not to stay.
    pub fn retain(&mut self, mut stays: impl FnMut(Header<'_>) -> bool) {
        let mut entries = std::mem::take(&mut self.entries);
        entries.retain(|entry| stays(self.header(entry)));
        self.entries = entries;
    }

    /// For HTTP/2. Values share the memory that these fields had.
    pub fn into_map(self) -> HeaderMap {
        let bytes = Bytes::from(self.bytes);
        let mut map = HeaderMap::with_capacity(self.entries.len());
        for entry in self.entries {
            let name = match entry.name.to_http() {
                Some(name) => name.clone(),
                None => {
                    http::HeaderName::from_bytes(entry.text.slice(&bytes)).expect("only tokens were let in")
                }
            };
            let from = entry.value.start as usize;
            let value = bytes.slice(from..from + entry.value.length as usize);
            let mut value = HeaderValue::from_maybe_shared(value).expect("only values were let in");
            // Never the same twice: it would drive from the table of HPACK what does come again.
            value.set_sensitive(entry.name == HeaderName::XRequestId);
            map.append(name, value);
        }
        map
    }
}

impl From<&HeaderMap> for Headers {
    fn from(map: &HeaderMap) -> Headers {
        let bytes = map.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let mut fields = Headers::with_capacity(map.len(), bytes);
        for (name, value) in map {
            fields.push_text(name.as_str(), value.as_bytes());
        }
        fields
    }
}

/// SECURITY: names only; values hold keys, and what users ask for.
impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|field| String::from_utf8_lossy(field.text()))).finish()
    }
}

/// RFC 9110 section 5.5.
fn is_value(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&'static str, &'static str)]) -> Headers {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(http::HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        Headers::from(&map)
    }

    #[test]
    fn headers_are_found_by_name() {
        let fields = of(&[("host", "h"), ("x-custom", "1"), ("cookie", "a"), ("cookie", "b")]);
        assert_eq!((fields.len(), fields.get(HeaderName::Host)), (4, Some(&b"h"[..])));
        assert_eq!(
            (fields.single(HeaderName::Cookie), fields.get(HeaderName::Cookie)),
            (None, Some(&b"a"[..]))
        );
        assert_eq!(fields.all(HeaderName::Cookie).collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(
            (fields.get(HeaderName::Other), fields.contains(HeaderName::XApiKey)),
            (Some(&b"1"[..]), false)
        );
    }

    #[test]
    fn headers_can_be_added_and_removed() {
        let mut fields = of(&[("host", "h"), ("x-custom", "1"), ("cookie", "a"), ("cookie", "b")]);
        fields.remove(HeaderName::Cookie);
        fields.push(HeaderName::Date, b"today");
        fields.retain(|field| field.text() != b"x-custom");
        let left: Vec<_> = fields.iter().map(|field| (field.text(), field.value)).collect();
        assert_eq!(left, [(&b"host"[..], &b"h"[..]), (b"date", b"today")]);
    }

    #[test]
    fn conversion_to_a_map_and_back_is_lossless() {
        let pairs = [("host", "h"), ("x-custom", "1"), ("cookie", "a"), ("cookie", "b"), ("empty", "")];
        let map = of(&pairs).into_map();
        assert_eq!(map.len(), 5);
        for (name, value) in pairs {
            assert!(map.get_all(name).iter().any(|found| found == value), "{name}");
        }
    }

    #[test]
    fn a_parsed_head_keeps_its_memory() {
        let head = b"GET / HTTP/1.1\r\nHost: h\r\nX-Own: \r\nContent-TYPE:  a b \r\n\r\n".to_vec();
        let mut headers = [httparse::EMPTY_HEADER; 8];
        let mut request = httparse::Request::new(&mut headers);
        assert!(request.parse(&head).is_ok_and(|status| status.is_complete()));
        let parsed = ParsedHeaders::new(&head, request.headers);
        let fields = parsed.into_headers(head);
        let all: Vec<_> = fields.iter().map(|field| (field.text(), field.value)).collect();
        assert_eq!(all, [(&b"host"[..], &b"h"[..]), (b"x-own", b""), (b"content-type", b"a b")]);
        assert_eq!(format!("{fields:?}"), r#"["host", "x-own", "content-type"]"#);
    }

    /// What the parser lets in is what the `http` crate does, which stands between here and HTTP/2.
    #[test]
    fn the_parser_is_as_strict_as_a_map() {
        for byte in 0..=u8::MAX {
            let parses = |head: &[u8]| {
                let mut headers = [httparse::EMPTY_HEADER; 2];
                let parsed = httparse::Request::new(&mut headers).parse(head);
                parsed.is_ok_and(|status| status.is_complete())
            };
            let head = |name: &[u8], value: &[u8]| {
                [b"GET / HTTP/1.1\r\nh", name, b"x: v", value, b"v\r\n\r\n"].concat()
            };
            if byte != b':' && byte != b'\r' && byte != b'\n' {
                let is_name = http::HeaderName::from_bytes(&[b'h', byte, b'x']).is_ok();
                assert_eq!(parses(&head(&[byte], b"")), is_name, "{byte:#x} in a name");
            }
            if byte != b'\r' && byte != b'\n' {
                let let_in = parses(&head(b"", &[byte]));
                assert_eq!(
                    let_in,
                    HeaderValue::from_bytes(&[b'v', byte, b'v']).is_ok(),
                    "{byte:#x} in a value"
                );
                assert_eq!(let_in, is_value(&[byte]), "{byte:#x}");
            }
        }
    }
}
