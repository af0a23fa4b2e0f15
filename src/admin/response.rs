//! The responses of the admin listener, which all have the headers that its page needs. It knows nothing about routes.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::{Either, Full};
use serde_json::Value;

use crate::admin::dashboard::EventStream;

/// The body of a response of the admin listener.
pub type AdminBody = Either<Full<Bytes>, EventStream>;

/// SECURITY: the page can load only what this gateway serves, cannot be framed, and its script cannot create markup
/// from text.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                           base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                           require-trusted-types-for 'script'; trusted-types 'none'";

/// One line of text.
pub fn text_response(status: StatusCode, line: &str) -> Response<AdminBody> {
    response(status, "text/plain; charset=utf-8", format!("{line}\n"))
}

/// A JSON document.
pub fn json_response(status: StatusCode, document: &Value) -> Response<AdminBody> {
    response(status, "application/json", format!("{document}\n"))
}

/// A file of the page.
pub fn static_response(media_type: &'static str, text: &'static str) -> Response<AdminBody> {
    response(StatusCode::OK, media_type, text)
}

/// A response that is complete.
pub fn response(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Response<AdminBody> {
    response_with_body(status, media_type, Either::Left(Full::new(body.into())))
}

/// A response with any body.
pub fn response_with_body(status: StatusCode, media_type: &'static str, body: AdminBody) -> Response<AdminBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in [
        (CONTENT_TYPE, media_type),
        // The script of a different version would not understand the events of this version.
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
