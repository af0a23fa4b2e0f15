//! What keeps requests of a route on one endpoint. `upstream` chooses the endpoint for a hash; this finds the hash.
//!
//! A session ID of MCP is known only to the endpoint that issued it. The request that begins a session gets a random
//! hash, which the gateway appends to the session ID in the response and removes from it in later requests. So every
//! worker and every replica finds the endpoint, without a memory of sessions.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::auth::Identity;
use crate::config::AffinityKey;
use crate::http::headers::{HeaderName, Headers};

/// Hex digits of a hash.
const TAG_LENGTH: usize = 16;

/// The affinity of a request: requests with the same hash go to the same endpoint while it is healthy. `None` if the
/// request does not name what it belongs to.
pub fn request_affinity(key: &AffinityKey, headers: &Headers, identity: &Identity) -> Option<u64> {
    match key {
        AffinityKey::McpSession => match headers.single(HeaderName::McpSessionId) {
            Some(id) => Some(split_tag(id).1.unwrap_or_else(|| hash_of(&id))),
            None => Some(fastrand::u64(..)),
        },
        AffinityKey::User => Some(hash_of(&identity.caller_key())),
        AffinityKey::Header(name) => {
            let header = headers.iter().find(|header| header.text() == name.as_str().as_bytes())?;
            (!header.value.is_empty()).then(|| hash_of(&header.value))
        }
        AffinityKey::Cookie(name) => {
            let pairs = headers.all(HeaderName::Cookie).flat_map(|value| value.split(|byte| *byte == b';'));
            let value = pairs.map(<[u8]>::trim_ascii).find_map(|pair| {
                let (found, value) = pair.split_at_checked(name.len())?;
                value.strip_prefix(b"=").filter(|_| found == name.as_bytes())
            });
            value.filter(|value| !value.is_empty()).map(|value| hash_of(&value))
        }
    }
}

/// The same in every process: the default keys of the hasher are constant.
fn hash_of(key: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// The session ID of the backend, and the hash that the gateway has appended.
pub fn split_tag(id: &[u8]) -> (&[u8], Option<u64>) {
    let Some((start, tag)) = id.split_at_checked(id.len().saturating_sub(TAG_LENGTH)) else { return (id, None) };
    let digits = std::str::from_utf8(tag).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let hash = digits.filter(|text| text.len() == TAG_LENGTH).and_then(|text| u64::from_str_radix(text, 16).ok());
    match (start.strip_suffix(b"."), hash) {
        (Some(own), Some(hash)) => (own, Some(hash)),
        _ => (id, None),
    }
}

/// Appends the hash to the session ID of a response.
pub fn tag_session(headers: &mut Headers, hash: u64) {
    let Some(id) = headers.single(HeaderName::McpSessionId) else { return };
    let mut tagged = id.to_vec();
    tagged.extend_from_slice(format!(".{hash:016x}").as_bytes());
    headers.remove(HeaderName::McpSessionId);
    headers.push(HeaderName::McpSessionId, &tagged);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_again_and_nothing_else_is_taken_for_one() {
        let mut headers = Headers::new();
        headers.push(HeaderName::McpSessionId, b"a.b-1");
        tag_session(&mut headers, 0x0123_4567_89ab_cdef);
        let tagged = headers.get(HeaderName::McpSessionId).expect("it is there");
        assert_eq!(split_tag(tagged), (&b"a.b-1"[..], Some(0x0123_4567_89ab_cdef)));
        for other in [&b""[..], b"0123456789abcdef", b"a.0123456789abcdeg", b"a.+123456789abcdef", b"a.0123", b"a\xff"]
        {
            assert_eq!(split_tag(other), (other, None), "{other:?}");
        }
    }
}
