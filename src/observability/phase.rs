//! The phases of a request: one list for the request path, metrics, traces, `explain` and the documents.
//! It only names them; what a phase does is in `gateway`, in the file of the same name where there is one.

use serde::Serialize;

/// Declares the phases. The comment of a phase is its summary in the documents, so it is one short line.
macro_rules! phases {
    ($($variant:ident = $name:literal: $summary:literal,)*) => {
        /// One phase of a request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
        pub enum Phase {
            $(
                #[doc = $summary]
                #[serde(rename = $name)]
                $variant,
            )*
        }

        impl Phase {
            /// The name in metrics labels, traces, JSON and documents. It never changes.
            pub fn as_str(self) -> &'static str {
                match self { $(Phase::$variant => $name,)* }
            }

            /// What the phase checks, as one line for the documents.
            pub fn summary(self) -> &'static str {
                match self { $(Phase::$variant => $summary,)* }
            }
        }
    };
}

phases! {
    Read = "read": "the head is complete and within the limits",
    Admission = "admission": "a permit under limits.requests",
    Route = "route": "the request line and Host select a route",
    Handshake = "handshake": "SNI and client certificate fit the route",
    GetToken = "get_token": "exchange a bearer for a token; the path ends here",
    Screen = "screen": "the header policy of the route",
    Authenticate = "authenticate": "the credential proves an identity",
    Share = "share": "a permit for the identity, a slot in the fair queue",
    Impersonate = "impersonate": "the identity may act as the named user",
    Authorize = "authorize": "a rule allows the request",
    Upstream = "upstream": "send the request, renew the user's key once",
    Unknown = "unknown": "an error in the gateway itself, in any phase",
}

impl Phase {
    /// The phases of a forwarded request, in order.
    pub const FORWARD_PATH: &'static [Phase] = &[
        Phase::Read,
        Phase::Admission,
        Phase::Route,
        Phase::Handshake,
        Phase::Screen,
        Phase::Authenticate,
        Phase::Share,
        Phase::Impersonate,
        Phase::Authorize,
        Phase::Upstream,
    ];

    /// The phases of a request for a token, which the gateway answers itself.
    pub const GET_TOKEN_PATH: &'static [Phase] =
        &[Phase::Read, Phase::Admission, Phase::Route, Phase::Handshake, Phase::GetToken];
}
