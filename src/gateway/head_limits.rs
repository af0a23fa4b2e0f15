//! The limits on a request head that hold for every protocol.

use crate::base::byte_class::ByteClass;
use crate::config::LimitOptions;
use crate::gateway::rejection::Rejection;
use crate::http::headers::Head;

/// SECURITY: the same for all protocols. Each protocol also has limits while it reads, which count differently.
pub fn check_head_limits(limits: &LimitOptions, head: &Head) -> Result<(), Rejection> {
    if head.headers.len() > limits.headers || head.size > limits.header_size {
        return Err(Rejection::RequestHeadTooLarge);
    }
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    let host_length = head.uri.authority().map_or(0, |authority| authority.as_str().len());
    if target.len().max(host_length) > limits.uri {
        return Err(Rejection::TargetTooLong);
    }
    // HTTP/1 rejects these while it reads; over HTTP/2 they can occur in a query.
    if !ByteClass::VISIBLE.contains_all(target.as_bytes()) {
        return Err(Rejection::RequestLineAmbiguous("it has characters that must be percent-encoded"));
    }
    Ok(())
}
