//! A proven caller. Only `auth` makes one.

use http::HeaderValue;

use crate::base::user_name::UserName;
use crate::store::{Fingerprint, TokenId};

/// What proved a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IdentitySource {
    /// A token that the gateway made.
    Token(TokenId),
    /// A key that the operator or the backend has made known.
    Key,
    /// A token that an identity provider made.
    Jwt,
}

/// A caller whose key was proven, and what follows from it.
#[derive(Debug)]
pub struct Identity {
    user: Option<UserName>,
    upstream_key: Option<HeaderValue>,
    source: IdentitySource,
    impersonated_user: Option<UserName>,
    fingerprint: Fingerprint,
}

impl Identity {
    /// Of a key that the operator or the backend has made known.
    pub(super) fn from_key(
        user: Option<UserName>,
        upstream_key: Option<HeaderValue>,
        fingerprint: Fingerprint,
    ) -> Identity {
        Identity { user, upstream_key, source: IdentitySource::Key, impersonated_user: None, fingerprint }
    }

    /// Of a token that the gateway made, and what it stands for.
    pub(super) fn from_token(id: TokenId, user: UserName, upstream_key: Option<HeaderValue>) -> Identity {
        Identity {
            source: IdentitySource::Token(id),
            ..Identity::from_key(Some(user), upstream_key, id.fingerprint())
        }
    }

    /// Of a token that an identity provider made.
    pub(super) fn from_jwt(user: UserName, fingerprint: Fingerprint) -> Identity {
        Identity { source: IdentitySource::Jwt, ..Identity::from_key(Some(user), None, fingerprint) }
    }

    /// The same caller, who may act as another user.
    pub(super) fn impersonating(self, user: UserName) -> Identity {
        Identity { impersonated_user: Some(user), ..self }
    }

    /// Whose the key is; unknown of foreign keys.
    pub fn user(&self) -> Option<&UserName> {
        self.user.as_ref()
    }

    /// What the backend is shown instead of the key: what `tokens.keys_file` says, or what a token stands for.
    pub fn upstream_key(&self) -> Option<&HeaderValue> {
        self.upstream_key.as_ref()
    }

    /// Whether the key is a token that the gateway made. To the backend such a token says nothing by itself.
    pub fn is_gateway_token(&self) -> bool {
        self.token_id().is_some()
    }

    fn token_id(&self) -> Option<TokenId> {
        match self.source {
            IdentitySource::Token(id) => Some(id),
            IdentitySource::Key | IdentitySource::Jwt => None,
        }
    }

    /// Whether the caller showed a token of an identity provider.
    pub fn is_jwt(&self) -> bool {
        self.source == IdentitySource::Jwt
    }

    /// Whom the caller acts as, where a rule allows it to.
    pub fn impersonated_user(&self) -> Option<&UserName> {
        self.impersonated_user.as_ref()
    }

    /// Who is behind the key, to count by: the user, or whoever holds a foreign key.
    pub fn caller_key(&self) -> impl std::hash::Hash + use<'_> {
        let name = self.user().map(UserName::as_str);
        (name, name.is_none().then_some(self.fingerprint))
    }

    /// What logs call the key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The token and the key that it stands for, if that is one that can be had anew or makes the token end.
    pub fn renewable_key(&self) -> Option<(TokenId, &HeaderValue)> {
        Some((self.token_id()?, self.upstream_key()?))
    }
}
