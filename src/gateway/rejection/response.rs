//! The response to a rejected request, in the envelope of the API. It allocates as little as possible, as floods
//! consist of rejections.
//!
//! Python's Thrift client (PyHive, pytimbr-sqla) ignores the status and parses every body as Thrift. It would report the
//! envelope as `Length exceeded max allowed`, so it receives the envelope as the message of a Thrift exception. The MCP
//! SDK for Python shows the body of an error only if it is an error of JSON-RPC, so for MCP the envelope is one, too.

use bytes::Bytes;

use crate::base::byte_class::is_quotable;
use crate::gateway::rejection::{Rejection, ResponseHeader};
use crate::http::headers::{HeaderName, Headers};

/// Room for the headers of a response, with the request id that is added later.
const HEADERS_CAPACITY: (usize, usize) = (6, 256);

/// The form of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorFormat {
    /// The envelope of the API.
    Json,
    /// The envelope, which is also an error of JSON-RPC 2.0.
    JsonRpc,
    /// A Thrift exception with the envelope as its message.
    Thrift,
}

impl ErrorFormat {
    /// The form that the client shows to its user. Other clients of Thrift examine the status, and send `Accept`. Those
    /// of MCP accept an event stream.
    pub fn for_request(headers: &Headers) -> ErrorFormat {
        let Some(accept) = headers.get(HeaderName::Accept) else {
            let media_type = headers.get(HeaderName::ContentType).unwrap_or_default();
            let is_thrift = media_type.eq_ignore_ascii_case(THRIFT.as_bytes());
            return if is_thrift { ErrorFormat::Thrift } else { ErrorFormat::Json };
        };
        let accepts_events = accept.windows(EVENTS.len()).any(|part| part.eq_ignore_ascii_case(EVENTS));
        if accepts_events { ErrorFormat::JsonRpc } else { ErrorFormat::Json }
    }

    fn media_type(self) -> &'static str {
        match self {
            ErrorFormat::Json | ErrorFormat::JsonRpc => "application/json",
            ErrorFormat::Thrift => THRIFT,
        }
    }
}

const THRIFT: &str = "application/x-thrift";
const EVENTS: &[u8] = b"text/event-stream";

impl Rejection {
    /// The headers and the body of the response.
    pub fn response(&self, request_id: &[u8], format: ErrorFormat) -> (Headers, Bytes) {
        let mut headers = Headers::with_capacity(HEADERS_CAPACITY.0, HEADERS_CAPACITY.1);
        headers.push(HeaderName::ContentType, format.media_type().as_bytes());
        headers.push(HeaderName::CacheControl, b"no-store");
        match self.response_header() {
            None => {}
            Some(ResponseHeader::Challenge(challenge)) => {
                headers.push(HeaderName::WwwAuthenticate, challenge.as_bytes());
            }
            Some(ResponseHeader::RetryAfter(seconds)) => {
                headers.push(HeaderName::RetryAfter, itoa::Buffer::new().format(seconds).as_bytes());
            }
            Some(ResponseHeader::Allow(methods)) => headers.push(HeaderName::Allow, methods.as_bytes()),
        }
        let envelope = envelope(&self.message(), self.reason(), request_id);
        let body = match format {
            ErrorFormat::Json => envelope,
            ErrorFormat::JsonRpc => with_json_rpc_error(envelope, &self.message()),
            ErrorFormat::Thrift => thrift_exception(&envelope),
        };
        (headers, Bytes::from(body))
    }
}

/// Adds the members of an error of JSON-RPC. Its `id` is not known, as the body of the request was not read.
fn with_json_rpc_error(mut envelope: Vec<u8>, message: &str) -> Vec<u8> {
    envelope.pop();
    envelope.extend_from_slice(br#","jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"#);
    append_quoted(&mut envelope, message);
    envelope.extend_from_slice(b"}}");
    envelope
}

/// `TApplicationException` in the binary protocol. The name and the sequence number of the call are not known, as its body
/// was not read; Python does not compare them.
fn thrift_exception(message: &[u8]) -> Vec<u8> {
    // Version 1 of the protocol, message type EXCEPTION, no name, sequence number 0; field 1, a string.
    const START: &[u8] = b"\x80\x01\x00\x03\0\0\0\0\0\0\0\0\x0b\0\x01";
    // Field 2, the number of INTERNAL_ERROR; the end of the fields.
    const END: &[u8] = b"\x08\0\x02\0\0\0\x06\0";
    let length = u32::try_from(message.len()).expect("an envelope is short");
    [START, &length.to_be_bytes(), message, END].concat()
}

/// Writes `{"status":"error","data":…,"reason":…,"request_id":…}`. Request ids and reasons need no escapes in JSON, and
/// most messages do not either.
fn envelope(data: &str, reason: &str, request_id: &[u8]) -> Vec<u8> {
    const PARTS: [&str; 4] = [r#"{"status":"error","data":"#, r#","reason":""#, r#"","request_id":""#, r#""}"#];
    debug_assert!([reason.as_bytes(), request_id].into_iter().all(is_quotable));
    let fixed: usize = PARTS.iter().map(|part| part.len()).sum();
    let mut body = Vec::with_capacity(fixed + data.len() + 2 + reason.len() + request_id.len());
    body.extend_from_slice(PARTS[0].as_bytes());
    append_quoted(&mut body, data);
    body.extend_from_slice(PARTS[1].as_bytes());
    body.extend_from_slice(reason.as_bytes());
    body.extend_from_slice(PARTS[2].as_bytes());
    body.extend_from_slice(request_id);
    body.extend_from_slice(PARTS[3].as_bytes());
    body
}

/// Appends a text as a JSON string.
fn append_quoted(body: &mut Vec<u8>, text: &str) {
    if is_quotable(text.as_bytes()) {
        body.push(b'"');
        body.extend_from_slice(text.as_bytes());
        body.push(b'"');
    } else {
        serde_json::to_writer(body, text).expect("a text can always be written into memory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_equals_what_serde_writes() {
        #[derive(serde::Serialize)]
        struct SerdeEnvelope<'a> {
            status: &'static str,
            data: &'a str,
            reason: &'static str,
            request_id: &'a str,
        }
        let odd = (0..=0xff_u8).map(|byte| format!("a{}b", char::from(byte)));
        let longer =
            ["", "plain, with `quotes`", "\"\\/\u{7f}\u{2028}\u{2029}", "… – é 漢 \u{1f980}"].map(str::to_owned);
        let odd = odd.chain(longer).map(|data| (data, "api_key_missing"));
        let examples = Rejection::examples();
        let messages = examples.iter().map(|rejection| (rejection.message().into_owned(), rejection.reason()));
        // This message contains text of the client.
        let quoting = Rejection::ConnectionNamesPolicyHeader("x\"\\\n\u{1b}-api-key".to_owned());
        let quoting = (quoting.message().into_owned(), quoting.reason());
        for (data, reason) in odd.chain(messages).chain([quoting]) {
            for request_id in ["req-1.:/+=@_", "0123456789abcdef0123456789abcdef"] {
                let expected = SerdeEnvelope { status: "error", data: &data, reason, request_id };
                let written = envelope(&data, reason, request_id.as_bytes());
                assert_eq!(written, serde_json::to_vec(&expected).expect("strings serialise"), "{data:?}");
            }
        }
    }

    #[test]
    fn the_challenge_names_the_scheme_of_the_credential() {
        let challenge = |rejection: Rejection| {
            let headers = rejection.response(b"", ErrorFormat::Json).0;
            headers.get(HeaderName::WwwAuthenticate).map(|value| String::from_utf8_lossy(value).into_owned())
        };
        assert_eq!(challenge(Rejection::BearerMissing).as_deref(), Some("Bearer realm=\"timbr\""));
        assert!(challenge(Rejection::CredentialsWrong).is_some_and(|value| value.starts_with("Bearer ")));
        assert_eq!(challenge(Rejection::TokenExpired).as_deref(), Some("ApiKey realm=\"timbr\""));
        assert_eq!(challenge(Rejection::NotFound), None);
    }
}
