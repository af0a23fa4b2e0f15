//! The phases of a request: one list for the request path, metrics, traces, `explain` and the documents.
//! It only names them; what a phase does is in `gateway`, in the file of the same name where there is one.

use serde::Serialize;

/// Declares the phases, each with its name and a short summary for the documents.
macro_rules! phases {
    ($($variant:ident = $name:literal: $summary:literal,)*) => {
        /// One phase of a request, or a part of one that is measured.
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

            /// A summary of what the phase checks, for the documents.
            pub fn summary(self) -> &'static str {
                match self { $(Phase::$variant => $summary,)* }
            }
        }
    };
}

phases! {
    // Parts of `get_token` and `authenticate`, numbered as in `MEASURED`.
    Bearer = "bearer": "decrypt a bearer",
    Verifier = "verifier": "check a password at the verifier",
    Store = "store": "read or write a token in the store",
    ForeignCheck = "foreign_check": "check a foreign key at the backend",
    Jwt = "jwt": "check the signature and claims of a JWT",
    // The request path.
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
    /// The phases whose duration metrics and traces have. They are numbered from 0, so a `Phase` is an index of this
    /// list.
    pub const MEASURED: [Phase; 5] = [Phase::Bearer, Phase::Verifier, Phase::Store, Phase::ForeignCheck, Phase::Jwt];

    /// The phases of a forwarded request, first to last.
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

    /// The phases of a request for a token, to which the gateway responds itself.
    pub const GET_TOKEN_PATH: &'static [Phase] =
        &[Phase::Read, Phase::Admission, Phase::Route, Phase::Handshake, Phase::GetToken];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_phases_are_numbered_from_zero() {
        for (index, phase) in Phase::MEASURED.into_iter().enumerate() {
            assert_eq!(phase as usize, index);
        }
    }
}
