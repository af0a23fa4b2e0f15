//! Header names that the gateway knows, so that a name is compared once.

use crate::http::headers::HeaderNames;

macro_rules! names {
    ($($variant:ident $text:literal)*) => {
        /// A header name, compared case-insensitively.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[expect(missing_docs, reason = "each variant is named after its text")]
        pub enum HeaderName {
            $($variant,)*
            /// A name that is not in this list; its text is stored with the header.
            Other,
        }

        /// The texts in lower case, in the sequence of the variants.
        const TEXTS: [&str; KNOWN_COUNT] = [$($text,)*];

        /// Each name as it is written in a head: the end of the previous line, the name, and a colon.
        const LINE_PREFIXES: [&str; KNOWN_COUNT] = [$(concat!("\r\n", $text, ": "),)*];

        const ALL_NAMES: [HeaderName; KNOWN_COUNT] = [$(HeaderName::$variant,)*];

        static HEADER_NAMES: [http::HeaderName; KNOWN_COUNT] = [$(http::HeaderName::from_static($text),)*];

        /// The number of known names.
        const KNOWN_COUNT: usize = [$($text,)*].len();
    };
}

names! {
    Accept "accept"
    AcceptCharset "accept-charset"
    AcceptEncoding "accept-encoding"
    AcceptLanguage "accept-language"
    AcceptRanges "accept-ranges"
    AccessControlAllowOrigin "access-control-allow-origin"
    Age "age"
    Allow "allow"
    Authorization "authorization"
    CacheControl "cache-control"
    ClientCert "client-cert"
    ClientCertChain "client-cert-chain"
    Connection "connection"
    ContentDisposition "content-disposition"
    ContentEncoding "content-encoding"
    ContentLanguage "content-language"
    ContentLength "content-length"
    ContentLocation "content-location"
    ContentType "content-type"
    Cookie "cookie"
    Date "date"
    Etag "etag"
    Expect "expect"
    Expires "expires"
    Forwarded "forwarded"
    Host "host"
    Http2Settings "http2-settings"
    IfModifiedSince "if-modified-since"
    IfNoneMatch "if-none-match"
    KeepAlive "keep-alive"
    LastModified "last-modified"
    Location "location"
    McpSessionId "mcp-session-id"
    Nested "nested"
    Origin "origin"
    PathInfo "path-info"
    Pragma "pragma"
    ProxyAuthenticate "proxy-authenticate"
    ProxyAuthorization "proxy-authorization"
    ProxyConnection "proxy-connection"
    Range "range"
    Referer "referer"
    Refresh "refresh"
    RemoteAddr "remote-addr"
    RemoteUser "remote-user"
    ResultsLimit "results-limit"
    RetryAfter "retry-after"
    ScriptName "script-name"
    Server "server"
    SetCookie "set-cookie"
    StrictTransportSecurity "strict-transport-security"
    Te "te"
    Traceparent "traceparent"
    Tracestate "tracestate"
    Trailer "trailer"
    TransferEncoding "transfer-encoding"
    TrueClientIp "true-client-ip"
    Upgrade "upgrade"
    UserAgent "user-agent"
    Vary "vary"
    Via "via"
    WwwAuthenticate "www-authenticate"
    XApiImpersonateUser "x-api-impersonate-user"
    XApiKey "x-api-key"
    XAsync "x-async"
    XAuthenticatedUser "x-authenticated-user"
    XClientIp "x-client-ip"
    XContentTypeOptions "x-content-type-options"
    XForwardedFor "x-forwarded-for"
    XForwardedHost "x-forwarded-host"
    XForwardedProto "x-forwarded-proto"
    XForwardedUser "x-forwarded-user"
    XFrameOptions "x-frame-options"
    XHttpMethod "x-http-method"
    XHttpMethodOverride "x-http-method-override"
    XJwtClientId "x-jwt-client-id"
    XJwtIssuer "x-jwt-issuer"
    XJwtNonce "x-jwt-nonce"
    XJwtTenantId "x-jwt-tenant-id"
    XJwtToken "x-jwt-token"
    XMethodOverride "x-method-override"
    XOriginalUri "x-original-uri"
    XOriginalUrl "x-original-url"
    XRealIp "x-real-ip"
    XRemoteUser "x-remote-user"
    XRequestId "x-request-id"
    XRewriteUrl "x-rewrite-url"
    XScriptName "x-script-name"
}

/// The length of the longest name plus one.
const LENGTHS: usize = 32;

/// The texts padded with zeros, compared as a whole.
static PADDED: [[u8; LENGTHS]; KNOWN_COUNT] = padded();

const fn padded() -> [[u8; LENGTHS]; KNOWN_COUNT] {
    let mut padded = [[0; LENGTHS]; KNOWN_COUNT];
    let mut i = 0;
    while i < KNOWN_COUNT {
        let text = TEXTS[i].as_bytes();
        let mut at = 0;
        while at < text.len() {
            padded[i][at] = text[at];
            at += 1;
        }
        i += 1;
    }
    padded
}

/// Positions in [`BY_LENGTH`]: names of `n` bytes are from position `n` to before the next.
const STARTS: [u8; LENGTHS + 1] = sorted().0;
const BY_LENGTH: [HeaderName; KNOWN_COUNT] = sorted().1;

const fn sorted() -> ([u8; LENGTHS + 1], [HeaderName; KNOWN_COUNT]) {
    let (mut starts, mut names) = ([0; LENGTHS + 1], [HeaderName::Other; KNOWN_COUNT]);
    let (mut length, mut at) = (0, 0);
    while length < LENGTHS {
        starts[length] = at;
        let mut i = 0;
        while i < KNOWN_COUNT {
            if TEXTS[i].len() == length {
                names[at as usize] = ALL_NAMES[i];
                at += 1;
            }
            i += 1;
        }
        length += 1;
    }
    starts[LENGTHS] = at;
    assert!(at as usize == KNOWN_COUNT, "a name does not fit into `LENGTHS`");
    (starts, names)
}

/// See [`HeaderName::is_hop_by_hop`].
pub const HOP_BY_HOP: HeaderNames = HeaderNames::new(&[
    HeaderName::Connection,
    HeaderName::ProxyConnection,
    HeaderName::KeepAlive,
    HeaderName::Te,
    HeaderName::Trailer,
    HeaderName::TransferEncoding,
    HeaderName::Upgrade,
    HeaderName::ProxyAuthenticate,
]);

impl HeaderName {
    /// The name that these bytes spell, in any letter case.
    pub fn parse(bytes: &[u8]) -> HeaderName {
        let length = bytes.len();
        if length == 0 || length >= LENGTHS {
            return HeaderName::Other;
        }
        let (from, to) = (usize::from(STARTS[length]), usize::from(STARTS[length + 1]));
        // A padded copy is lowered and compared with few instructions.
        let mut small = [0; LENGTHS];
        small[..length].copy_from_slice(bytes);
        small.make_ascii_lowercase();
        let is_it = |name: &&HeaderName| PADDED[**name as usize] == small;
        BY_LENGTH[from..to].iter().find(is_it).copied().unwrap_or(HeaderName::Other)
    }

    /// The text in lower case; empty for [`HeaderName::Other`].
    pub fn as_str(self) -> &'static str {
        TEXTS.get(self as usize).copied().unwrap_or_default()
    }

    /// The end of the previous line, the name, and a colon; empty for [`HeaderName::Other`].
    pub fn line_prefix(self) -> &'static str {
        LINE_PREFIXES.get(self as usize).copied().unwrap_or_default()
    }

    /// The type of the `http` crate, for HTTP/2; `None` for [`HeaderName::Other`].
    pub fn to_http(self) -> Option<&'static http::HeaderName> {
        HEADER_NAMES.get(self as usize)
    }

    /// Whether the header concerns one connection only and is never forwarded (RFC 9110 section 7.6.1), in requests and
    /// in responses.
    pub fn is_hop_by_hop(self) -> bool {
        HOP_BY_HOP.contains(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_found_in_any_case() {
        for (name, text) in ALL_NAMES.into_iter().zip(TEXTS) {
            assert_eq!(HeaderName::parse(text.as_bytes()), name);
            assert_eq!(HeaderName::parse(text.to_uppercase().as_bytes()), name);
            assert_eq!((name.as_str(), name.line_prefix()), (text, &*format!("\r\n{text}: ")));
            assert_eq!(name.to_http().map(http::HeaderName::as_str), Some(text));
        }
    }

    #[test]
    fn similar_names_are_not_confused() {
        for text in ["", "x", "x-api-kez", "x_api_key", "x-api-key2", "hos\u{54}x", "connectio\u{4e}s"] {
            assert_eq!(HeaderName::parse(text.as_bytes()), HeaderName::Other, "{text}");
        }
        // A `-` and the control character that differs from it in the bit that makes letters lower case.
        assert_eq!(HeaderName::parse(b"x\x0dapi\x0dkey"), HeaderName::Other);
        assert_eq!((HeaderName::Other.as_str(), HeaderName::Other.line_prefix()), ("", ""));
        assert_eq!(HeaderName::parse(&[b'a'; 1000]), HeaderName::Other);
    }
}
