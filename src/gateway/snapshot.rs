//! The configuration that is active, with the components built from it. It knows nothing about how it is built or
//! replaced.

use std::sync::Arc;

use crate::admission::Admission;
use crate::auth::Auth;
use crate::config::Config;
use crate::upstream::Backends;

/// A configuration with the components built from it, which all workers share. A reload replaces it as a whole.
pub struct Snapshot {
    /// The configuration.
    pub config: Arc<Config>,
    /// Verifies credentials, and holds the tokens.
    pub auth: Arc<Auth>,
    /// Limits on connections and requests.
    pub admission: Arc<Admission>,
    /// The backends of each upstream, as in `Config::all_upstreams`. They are the previous ones if their options have not
    /// changed, so that their connections are reused.
    pub upstreams: Arc<[Arc<Backends>]>,
}
