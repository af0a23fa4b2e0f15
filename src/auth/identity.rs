//! The proven identity of a caller. Only `auth` makes one.

use std::net::IpAddr;

use http::HeaderValue;

use crate::admission::network;
use crate::auth::jwt::JwtCaller;
use crate::base::glob::Glob;
use crate::base::groups::Groups;
use crate::base::user_name::UserName;
use crate::store::{Fingerprint, TokenId, TokenRecord};

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
    /// A JWT that was exchanged for the user's key.
    ExchangedJwt(TokenId),
    /// Nothing, on a route without credentials.
    Unauthenticated,
}

/// A caller whose credential was verified.
#[derive(Clone, Debug)]
pub struct Identity {
    user: Option<UserName>,
    groups: Option<Groups>,
    upstream_key: Option<HeaderValue>,
    source: IdentitySource,
    impersonated_user: Option<UserName>,
    /// Of the credential, or of the network of a caller without one.
    id: TokenId,
    jwt_issuer: Option<usize>,
    jwt_expires_at: Option<u64>,
    /// Boxed, as few identities have one.
    login_token: Option<Box<(HeaderValue, LoginAge)>>,
}

/// Whether a password was verified for this request or before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginAge {
    /// For this request.
    New,
    /// A short while ago.
    Known,
}

impl Identity {
    /// The identity of a key. `user` is `None` if only the backend knows it.
    pub(super) fn from_key(user: Option<UserName>, upstream_key: Option<HeaderValue>, id: TokenId) -> Identity {
        let source = IdentitySource::Key;
        Identity {
            user,
            groups: None,
            upstream_key,
            source,
            impersonated_user: None,
            id,
            jwt_issuer: None,
            jwt_expires_at: None,
            login_token: None,
        }
    }

    /// The identity of a foreign key. `user` is who the backend says it belongs to.
    pub(super) fn from_foreign_key(user: Option<UserName>, id: TokenId) -> Identity {
        Identity { source: IdentitySource::ForeignKey, ..Identity::from_key(user, None, id) }
    }

    /// The identity of a token of this gateway. `upstream_key` is sent to the backend in its place.
    pub(super) fn from_token(id: TokenId, record: &TokenRecord, upstream_key: Option<HeaderValue>) -> Identity {
        let (source, groups) = (IdentitySource::Token(id), record.groups().cloned());
        Identity { source, groups, ..Identity::from_key(Some(record.user.clone()), upstream_key, id) }
    }

    /// The identity of a JWT, and the user's key that it was exchanged for.
    pub(super) fn from_jwt(caller: JwtCaller, id: TokenId, exchanged: Option<(TokenId, HeaderValue)>) -> Identity {
        let JwtCaller { user, groups, expires_at, issuer } = caller;
        let (source, upstream_key) = match exchanged {
            Some((jwt_id, key)) => (IdentitySource::ExchangedJwt(jwt_id), Some(key)),
            None => (IdentitySource::Jwt, None),
        };
        let (jwt_issuer, jwt_expires_at) = (Some(issuer), Some(expires_at));
        Identity { source, groups, jwt_issuer, jwt_expires_at, ..Identity::from_key(Some(user), upstream_key, id) }
    }

    /// The identity of a JWT whose issuer only the backend knows.
    pub(super) fn from_foreign_jwt(id: TokenId) -> Identity {
        Identity { source: IdentitySource::Jwt, ..Identity::from_key(None, None, id) }
    }

    /// The sender of a request on a route without credentials: the client's network, for limits.
    pub(super) fn unauthenticated(client: IpAddr) -> Identity {
        let (version, network) = network(client);
        let id = TokenId::from_token(&[&[version], &network.to_be_bytes()[..]].concat());
        Identity { source: IdentitySource::Unauthenticated, ..Identity::from_key(None, None, id) }
    }

    /// The same caller, with permission to impersonate `user`.
    pub(super) fn impersonating(self, user: UserName) -> Identity {
        Identity { impersonated_user: Some(user), ..self }
    }

    /// The same token, as the one of a login with a password.
    pub(super) fn with_login_token(self, token: HeaderValue, age: LoginAge) -> Identity {
        Identity { login_token: Some(Box::new((token, age))), ..self }
    }

    /// The token of a login with a password, which the client has not sent.
    pub fn login_token(&self) -> Option<&HeaderValue> {
        self.login_token.as_ref().map(|login| &login.0)
    }

    /// Whether the password of the request was verified just now.
    pub fn is_new_login(&self) -> bool {
        self.login_token.as_ref().is_some_and(|login| login.1 == LoginAge::New)
    }

    /// The index of the issuer of a verified JWT.
    pub(super) fn jwt_issuer(&self) -> Option<usize> {
        self.jwt_issuer
    }

    /// When a verified JWT expires, in seconds of Unix time, leeway included.
    pub(super) fn jwt_expires_at(&self) -> Option<u64> {
        self.jwt_expires_at
    }

    /// The user; `None` for a foreign key, whose user only the backend knows.
    pub fn user(&self) -> Option<&UserName> {
        self.user.as_ref()
    }

    /// The groups of the caller, as far as a JWT or the verifier of its login named them.
    pub fn groups(&self) -> Option<&Groups> {
        self.groups.as_ref()
    }

    /// Whether the caller is one of these users or in one of these groups.
    pub fn is_one_of(&self, users: &[Glob], groups: &[Glob]) -> bool {
        self.user.as_ref().is_some_and(|user| Glob::any(users, user.as_str()))
            || self.groups.iter().flat_map(Groups::iter).any(|group| Glob::any(groups, group))
    }

    /// The key to send to the backend instead of the client's: from `tokens.keys_file`, or stored with the token.
    pub fn upstream_key(&self) -> Option<&HeaderValue> {
        self.upstream_key.as_ref()
    }

    /// The token of this gateway that is the credential.
    pub(super) fn token(&self) -> Option<&TokenId> {
        if let IdentitySource::Token(id) = &self.source { Some(id) } else { None }
    }

    /// Returns whether the credential is a token of this gateway. The backend does not know such tokens.
    pub fn is_gateway_token(&self) -> bool {
        self.token().is_some()
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
        matches!(self.source, IdentitySource::Jwt | IdentitySource::ExchangedJwt(_))
    }

    /// The impersonated user, if an impersonation rule allows it.
    pub fn impersonated_user(&self) -> Option<&UserName> {
        self.impersonated_user.as_ref()
    }

    /// The caller as a key for limits: the user, or the credential or network.
    ///
    /// SECURITY: not its fingerprint, of which an attacker could find a second network or credential. The case of a name
    /// does not matter: where logins ignore it, each spelling would be a caller of its own.
    pub fn caller_key(&self) -> impl std::hash::Hash + use<> {
        let id = self.user.is_none().then_some(self.id);
        (self.user.as_ref().map(UserName::to_lower_case), id)
    }

    /// The credential's identifier in logs.
    pub fn fingerprint(&self) -> Fingerprint {
        self.id.fingerprint()
    }

    /// The token or the exchanged JWT, and its upstream key: a key that can be renewed.
    pub fn renewable_key(&self) -> Option<(TokenId, &HeaderValue)> {
        let (IdentitySource::Token(id) | IdentitySource::ExchangedJwt(id)) = self.source else { return None };
        Some((id, self.upstream_key()?))
    }
}

#[cfg(test)]
impl Identity {
    /// The identity of a key of this user, for the tests of rules.
    pub fn of_user(user: Option<&str>) -> Identity {
        let user = user.map(|user| UserName::parse(user.as_bytes()).expect("valid"));
        Identity::from_key(user, None, TokenId::from_token(b"key"))
    }
}
