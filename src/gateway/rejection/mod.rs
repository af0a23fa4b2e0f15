//! Every reason for which the gateway rejects a request: `table` has one entry per reason, with all that is known of
//! it. A rejection does not know the request; [`AccessRecord`](crate::gateway::access_record) does.
//!
//! A variant does not compile until its entry is complete. Reasons are an interface: scripts and alerts match them, so
//! they never change.

mod response;

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::admission::{LimitExceeded, QueueError, RuleExceeded};
use crate::base::label_values::label_values;
use crate::gateway::get_token;
use crate::observability::phase::Phase;
use crate::store::{ActiveStop, StopKind, StopNote, StopTarget, Timestamp};

/// Generates [`Rejection`] from its table: the enum, [`Rejection::entry`] for what is constant, and one method for each
/// column that may depend on the data of the variant. A column that an entry omits is `None` or empty.
macro_rules! rejections {
    ($(
        $(#[$doc:meta])+
        $variant:ident $(($data:ident: $type:ty))? {
            status: $status:ident,
            reason: $reason:literal,
            phases: [$($phase:ident),+],
            fault: $fault:ident,
            $(response_header: $response_header:expr,)?
            $(header: $header:expr,)?
            $(rules: [$($rule:literal),+],)?
            $(detail: $detail:expr,)?
            message: $message:expr,
            remedy: $remedy:literal,
        }
    )+) => {
        /// Why the gateway did not forward a request or its response.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Rejection {
            $($(#[$doc])+ $variant $(($type))?,)+
        }

        impl Rejection {
            /// One rejection of each kind, with `…` as its data, for the documents and tests.
            pub fn examples() -> Vec<Rejection> {
                vec![$(Rejection::$variant $((<$type as ExampleData>::example()))?,)+]
            }

            /// The columns that are the same for every rejection of this kind.
            pub fn entry(&self) -> &'static RejectionEntry {
                match self {
                    $(Rejection::$variant { .. } => {
                        static ENTRY: RejectionEntry = RejectionEntry {
                            status: StatusCode::$status,
                            reason: $reason,
                            phases: &[$(Phase::$phase),+],
                            fault: Fault::$fault,
                            rules: &[$($($rule),+)?],
                            remedy: $remedy,
                        };
                        &ENTRY
                    })+
                }
            }

            /// The message to the client: what is wrong, and what to send instead.
            pub fn message(&self) -> Cow<'static, str> {
                match self { $(Rejection::$variant $(($data))? => { $(let _ = $data;)? Cow::from($message) })+ }
            }

            /// The request header that is at fault.
            ///
            /// SECURITY: a name from this source, never the text of a client, which may be anything, even a key.
            pub fn header(&self) -> Option<&'static str> {
                match self {
                    $(Rejection::$variant $(($data))? => { $(let _ = $data;)? None$(.or(Some($header)))? })+
                }
            }

            /// Details where one reason has several causes: text from this source or from the configuration, or names
            /// of groups from a JWT or a directory, which readers escape. Never other text of the client.
            pub fn detail(&self) -> Option<Cow<'static, str>> {
                match self {
                    $(Rejection::$variant $(($data))? => {
                        $(let _ = $data;)? None$(.or(Some(Cow::from($detail))))?
                    })+
                }
            }

            /// The header of the response that belongs to this rejection, besides those that all have.
            pub(super) fn response_header(&self) -> Option<ResponseHeader<'_>> {
                match self {
                    $(Rejection::$variant $(($data))? => {
                        $(let _ = $data;)? None$(.or($response_header.into()))?
                    })+
                }
            }
        }
    };
}

mod table;

pub use response::ErrorFormat;
pub use table::{BASIC_CHALLENGE, Rejection};

/// The constant columns of the table.
#[derive(Debug)]
pub struct RejectionEntry {
    /// The HTTP status of the response.
    pub status: StatusCode,
    /// The stable word for scripts, logs and metrics, such as `api_key_missing`.
    pub reason: &'static str,
    /// The phases that can reject for this reason. The first one is reported for forwarded requests.
    pub phases: &'static [Phase],
    /// Where the cause lies.
    pub fault: Fault,
    /// The options that decide, the most important one first. A key of an entry of `routes` is written `routes.…`.
    pub rules: &'static [&'static str],
    /// What happened and what to do, for operators: in `explain`, on the dashboard and in `docs/errors.md`.
    pub remedy: &'static str,
}

label_values! {
    /// The cause of a rejection: which side has to change something.
    Fault {
        /// In the client's request, or in what lies between the client and the gateway.
        Request = "the request",
        /// In the client's credentials.
        Credentials = "the credentials",
        /// In rules and limits of the operator, or in clients that exceed them.
        Rules = "rules and limits",
        /// In a dependency: backend, store, verifier or issuer.
        Dependency = "a dependency",
        /// In the gateway itself.
        Gateway = "the gateway",
    }
}

/// The response header that a rejection needs.
enum ResponseHeader<'a> {
    /// `WWW-Authenticate`, which a 401 must have (RFC 9110 section 15.5.2; RFC 6750 section 3 for bearers).
    Challenge(&'static str),
    /// Seconds until a retry may succeed.
    RetryAfter(u64),
    /// The methods of the path.
    Allow(&'a str),
}

impl ResponseHeader<'_> {
    fn retry_after(wait: Duration) -> Self {
        ResponseHeader::RetryAfter(seconds_until_retry(wait))
    }
}

/// Rounded up: a client that retries earlier is rejected again.
fn seconds_until_retry(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// Data of the examples in the documents.
trait ExampleData {
    fn example() -> Self;
}

macro_rules! examples {
    ($($type:ty => $value:expr;)*) => {
        $(impl ExampleData for $type {
            fn example() -> $type {
                $value
            }
        })*
    };
}

examples! {
    &'static str => "…";
    String => "…".to_owned();
    Arc<str> => "…".into();
    Duration => Duration::ZERO;
    RuleExceeded => RuleExceeded { rule: "…".into(), retry_after: Duration::from_secs(1) };
}

/// A request that an operator has stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoppedRequest {
    /// What is stopped, and why.
    pub stop: ActiveStop,
    /// When a retry may succeed, if the operator named an end.
    pub retry_after: Option<Duration>,
}

impl StoppedRequest {
    fn response_header(&self) -> Option<ResponseHeader<'_>> {
        self.retry_after.map(ResponseHeader::retry_after)
    }
}

impl ExampleData for Box<StoppedRequest> {
    fn example() -> Box<StoppedRequest> {
        let target = StopTarget::new(StopKind::Ontology, "…").expect("a valid name");
        let note = StopNote { why: "…".into(), since: Timestamp(0), has_end: false };
        let stop = ActiveStop { target, note, until: Timestamp(0) };
        Box::new(StoppedRequest { stop, retry_after: None })
    }
}

impl Rejection {
    /// The HTTP status of the response.
    pub fn status(&self) -> StatusCode {
        self.entry().status
    }

    /// The stable word for scripts, logs and metrics.
    pub fn reason(&self) -> &'static str {
        self.entry().reason
    }

    /// The phase that rejected a request of this route.
    pub fn phase(&self, route: &str) -> Phase {
        let phases = self.entry().phases;
        // A repeated `Host` is detected by `route`; every other repeated header by `screen`.
        if *self == Rejection::HeaderRepeated("host") {
            return Phase::Route;
        }
        if route == get_token::ROUTE_NAME && phases.contains(&Phase::GetToken) {
            return Phase::GetToken;
        }
        phases[0]
    }
}

impl From<LimitExceeded> for Rejection {
    fn from(exceeded: LimitExceeded) -> Rejection {
        match exceeded {
            LimitExceeded::Memory => Rejection::MemoryExhausted,
            LimitExceeded::Total | LimitExceeded::Unauthenticated => Rejection::Overloaded,
            LimitExceeded::Caller => Rejection::TooManyRequests,
            LimitExceeded::CallerStreams => Rejection::TooManyStreams,
        }
    }
}

impl From<QueueError> for Rejection {
    fn from(error: QueueError) -> Rejection {
        match error {
            QueueError::Full => Rejection::QueueFull,
            QueueError::Timeout => Rejection::QueueTimeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options;

    #[test]
    fn reasons_are_unique_and_remedies_are_sentences() {
        let entries: Vec<_> = Rejection::examples().iter().map(Rejection::entry).collect();
        for (at, entry) in entries.iter().enumerate() {
            let (reason, remedy) = (entry.reason, entry.remedy);
            assert_eq!(entries.iter().position(|other| other.reason == reason), Some(at), "{reason}");
            assert!(remedy.ends_with(['.', ')']) && !remedy.contains("  "), "{reason}: {remedy}");
        }
    }

    #[test]
    fn rules_are_names_of_options() {
        for rejection in Rejection::examples() {
            for key in rejection.entry().rules {
                let is_known = key.starts_with("routes.") || options::find(key).is_some();
                assert!(is_known, "{key} of {rejection:?}");
            }
        }
    }

    #[test]
    fn the_phase_depends_on_the_route() {
        let missing = Rejection::ContentTypeMissing("application/json".to_owned());
        assert_eq!((missing.phase("api"), missing.phase(get_token::ROUTE_NAME)), (Phase::Screen, Phase::GetToken));
        assert_eq!(Rejection::HeaderRepeated("host").phase(""), Phase::Route);
        assert_eq!(Rejection::HeaderRepeated("x-api-key").phase("api"), Phase::Screen);
        assert_eq!(Rejection::NotFound.phase(get_token::ROUTE_NAME), Phase::Route);
    }

    #[test]
    fn text_of_a_client_is_not_repeated_to_operators() {
        let rejection = Rejection::ConnectionNamesPolicyHeader("tk_secret".to_owned());
        let shown = format!("{:?}{:?}{:?}", rejection.header(), rejection.entry(), rejection.detail());
        assert!(!shown.contains("tk_secret"), "{shown}");
    }

    #[test]
    fn a_retry_is_never_too_early() {
        for (nanos, seconds) in [(1, 1), (1_000_000_000, 1), (1_000_000_001, 2)] {
            let header = ResponseHeader::retry_after(Duration::from_nanos(nanos));
            assert!(matches!(header, ResponseHeader::RetryAfter(rounded) if rounded == seconds), "{nanos}");
        }
    }

    #[test]
    fn every_401_has_a_challenge() {
        for rejection in Rejection::examples() {
            let is_challenge = matches!(rejection.response_header(), Some(ResponseHeader::Challenge(_)));
            assert_eq!(is_challenge, rejection.status() == StatusCode::UNAUTHORIZED, "{rejection:?}");
        }
    }
}
