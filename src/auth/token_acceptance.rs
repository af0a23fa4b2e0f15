//! Recognizes a backend that rejects the tokens which this gateway makes and forwards. It only logs.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use http::StatusCode;
use tracing::warn;

/// Rejections before the warning: a single one may have its reason in the request.
const ENOUGH: u32 = 3;

/// What the backend made of forwarded tokens so far.
#[derive(Debug, Default)]
pub struct TokenAcceptance {
    /// Never reset: a backend that has accepted one of them knows them.
    is_accepted: AtomicBool,
    rejections: AtomicU32,
}

impl TokenAcceptance {
    /// Records the status of the backend's response to a token of this gateway that was forwarded as it is.
    pub fn record(&self, status: StatusCode) {
        if self.is_accepted.load(Relaxed) {
            return;
        }
        if status.is_success() {
            self.is_accepted.store(true, Relaxed);
        } else if status == StatusCode::UNAUTHORIZED && self.rejections.fetch_add(1, Relaxed) == ENOUGH - 1 {
            warn!(
                "the backend rejects the tokens that this gateway makes (upstream.credential=forward). For an \
                 unmodified Timbr API service, set auth.verifier and upstream.credential to delegate; choose.md of the \
                 documentation compares the modes"
            );
        }
    }
}
