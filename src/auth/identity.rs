//! The proven identity of a caller. Only `auth` makes one.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderValue;

use crate::admission::network;
use crate::auth::jwt::JwtCaller;
use crate::base::glob::Glob;
use crate::base::user_name::UserName;
use crate::store::{Fingerprint, TokenId};

/// The kind of credential that proved the identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IdentitySource {
    /// A token that this gateway, or a replica, made.
    Token(TokenId),
    /// A key of the keys file.
    Key,
    /// A key that the backend accepts.
    ForeignKey,
    /// A JWT of an identity provider.
    Jwt,
    /// Nothing, on a route without credentials.
    Unauthenticated,
}

/// A caller whose credential was verified.
#[derive(Clone, Debug)]
pub struct Identity {
    user: Option<UserName>,
    groups: Option<Arc<[Box<str>]>>,
    upstream_key: Option<HeaderValue>,
    source: IdentitySource,
    impersonated_user: Option<UserName>,
    fingerprint: Fingerprint,
}

impl Identity {
    /// The identity of a key. `user` is `None` if only the backend knows it.
    pub(super) fn from_key(
        user: Option<UserName>,
        upstream_key: Option<HeaderValue>,
        fingerprint: Fingerprint,
    ) -> Identity {
        let source = IdentitySource::Key;
        Identity { user, groups: None, upstream_key, source, impersonated_user: None, fingerprint }
    }

    /// The identity of a foreign key. `user` is who the backend says it belongs to.
    pub(super) fn from_foreign_key(user: Option<UserName>, fingerprint: Fingerprint) -> Identity {
        Identity { source: IdentitySource::ForeignKey, ..Identity::from_key(user, None, fingerprint) }
    }

    /// The identity of a token of this gateway. `upstream_key` is sent to the backend in its place.
    pub(super) fn from_token(id: TokenId, user: UserName, upstream_key: Option<HeaderValue>) -> Identity {
        Identity { source: IdentitySource::Token(id), ..Identity::from_key(Some(user), upstream_key, id.fingerprint()) }
    }

    /// The identity of a JWT.
    pub(super) fn from_jwt(caller: JwtCaller, fingerprint: Fingerprint) -> Identity {
        let JwtCaller { user, groups } = caller;
        Identity { source: IdentitySource::Jwt, groups, ..Identity::from_key(Some(user), None, fingerprint) }
    }

    /// The identity of a JWT whose issuer only the backend knows.
    pub(super) fn from_foreign_jwt(fingerprint: Fingerprint) -> Identity {
        Identity { source: IdentitySource::Jwt, ..Identity::from_key(None, None, fingerprint) }
    }

    /// The sender of a request on a route without credentials: the client's network, for limits.
    pub(super) fn unauthenticated(client: IpAddr) -> Identity {
        let (version, network) = network(client);
        let id = TokenId::from_token(&[&[version], &network.to_be_bytes()[..]].concat());
        Identity { source: IdentitySource::Unauthenticated, ..Identity::from_key(None, None, id.fingerprint()) }
    }

    /// The same caller, with permission to impersonate `user`.
    pub(super) fn impersonating(self, user: UserName) -> Identity {
        Identity { impersonated_user: Some(user), ..self }
    }

    /// The user; `None` for a foreign key, whose user only the backend knows.
    pub fn user(&self) -> Option<&UserName> {
        self.user.as_ref()
    }

    /// Whether one of the patterns matches a group of the caller. Only JWTs have groups.
    pub fn is_in_group(&self, patterns: &[Glob]) -> bool {
        self.groups.iter().flat_map(|groups| groups.iter()).any(|group| patterns.iter().any(|glob| glob.matches(group)))
    }

    /// The key to send to the backend instead of the client's: from `tokens.keys_file`, or stored with the token.
    pub fn upstream_key(&self) -> Option<&HeaderValue> {
        self.upstream_key.as_ref()
    }

    /// Returns whether the credential is a token of this gateway. The backend does not know such tokens.
    pub fn is_gateway_token(&self) -> bool {
        self.token_id().is_some()
    }

    fn token_id(&self) -> Option<TokenId> {
        match self.source {
            IdentitySource::Token(id) => Some(id),
            IdentitySource::Key | IdentitySource::ForeignKey | IdentitySource::Jwt => None,
            IdentitySource::Unauthenticated => None,
        }
    }

    /// Returns whether the route requires no credential: the caller has proven nothing.
    pub fn is_unauthenticated(&self) -> bool {
        self.source == IdentitySource::Unauthenticated
    }

    /// Returns whether the credential is a key of the backend.
    pub fn is_foreign_key(&self) -> bool {
        self.source == IdentitySource::ForeignKey
    }

    /// Returns whether the credential is a JWT.
    pub fn is_jwt(&self) -> bool {
        self.source == IdentitySource::Jwt
    }

    /// The impersonated user, if an impersonation rule allows it.
    pub fn impersonated_user(&self) -> Option<&UserName> {
        self.impersonated_user.as_ref()
    }

    /// The caller as a key for limits: the user, or the fingerprint of a foreign key.
    pub fn caller_key(&self) -> impl std::hash::Hash + use<'_> {
        let name = self.user().map(UserName::as_str);
        (name, name.is_none().then_some(self.fingerprint))
    }

    /// The credential's identifier in logs.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The token and its upstream key, if the identity has one: a key that can be renewed.
    pub fn renewable_key(&self) -> Option<(TokenId, &HeaderValue)> {
        Some((self.token_id()?, self.upstream_key()?))
    }
}
