//! Who the caller is, and what follows from that.

use crate::config::options::{Opt, Shape, opt};

pub const IDENTITY: &[Opt] = &[
    opt(
        "auth.verifier",
        Shape::Choice(&["salt-holder", "users-file", "platform", "delegate", "ldap"]),
        Some("salt-holder"),
        "Who says that a password is right. salt-holder: whoever holds the salt may name any user. \
         users-file: a file of password hashes. platform: the platform's login form. delegate: the backend's own \
         get_token. ldap: a directory.",
    ),
    opt(
        "auth.users_file",
        Shape::Path,
        None,
        "Users and password hashes (bcrypt, Argon2id), as `htpasswd -B` and `timbr-gateway users add` write them, for \
         auth.verifier=users-file. Read again when it changes.",
    ),
    opt(
        "auth.trust_salt_holder",
        Shape::Bool,
        Some("false"),
        "Accept that every holder of the salt can act as every user at the backend: what salt-holder and \
         impersonate amount to when used together.",
    ),
    opt(
        "auth.bearer_max_age",
        Shape::OptionalDuration,
        Some("off"),
        "Refuse bearers that were made longer ago.",
    ),
    opt(
        "auth.jwt_issuers",
        Shape::List,
        None,
        "Identity providers whose JSON Web Tokens are taken in x-jwt-token: a list of {issuer, jwks_url or jwks_file or \
         secret_file, audiences, …}. See below.",
    ),
    opt("auth.jwt_leeway", Shape::Duration, Some("30s"), "How far an identity provider's clock may differ."),
    opt("auth.jwt_refresh", Shape::Duration, Some("10m"), "How often the keys of jwks_url are fetched."),
    opt(
        "auth.jwt_refetch",
        Shape::Duration,
        Some("10s"),
        "How soon again they may be fetched because a token names a key that is not among them.",
    ),
    opt(
        "platform.url",
        Shape::Url,
        None,
        "The platform, for auth.verifier=platform: http://host:port or https://host[:port]. Default: upstream.url.",
    ),
    opt(
        "platform.ca_file",
        Shape::Path,
        None,
        "Certificate authorities (PEM) to trust for an https platform.url, instead of the system's.",
    ),
    opt("platform.login_path", Shape::Text, Some("/login/"), "The platform's login form."),
    opt(
        "platform.token_path",
        Shape::Text,
        Some("/timbr/get_timbr_user_token/"),
        "The platform's page with the user's token.",
    ),
    opt("platform.timeout", Shape::Duration, Some("10s"), "For each of the platform's answers."),
    opt(
        "ldap.url",
        Shape::Text,
        None,
        "The directory, for auth.verifier=ldap: ldap://host[:port] or ldaps://host[:port].",
    ),
    opt(
        "ldap.start_tls",
        Shape::Bool,
        Some("true"),
        "Ask for TLS within an ldap:// connection. false is taken for a directory on this machine only.",
    ),
    opt(
        "ldap.ca_file",
        Shape::Path,
        None,
        "Certificate authorities (PEM) to trust for the directory, instead of the system's.",
    ),
    opt(
        "ldap.user_dn",
        Shape::Text,
        None,
        "The distinguished name of a user's entry, such as uid={user},ou=people,dc=example,dc=com.",
    ),
    opt("ldap.base_dn", Shape::Text, None, "Or where to search for it."),
    opt(
        "ldap.filter",
        Shape::Text,
        Some("(uid={user})"),
        "What to search for. The attribute before ={user} must be the user's name to the letter.",
    ),
    opt("ldap.bind_dn", Shape::Text, None, "Who searches. Unless given, the search is anonymous."),
    opt("ldap.bind_password", Shape::Secret, None, "The password of ldap.bind_dn."),
    opt("ldap.timeout", Shape::Duration, Some("5s"), "For a whole login."),
    opt(
        "impersonation.rules",
        Shape::List,
        None,
        "Who may act as whom with x-api-impersonate-user: a list of {users, act_as}, names or patterns with * and ?. \
         What no rule allows is refused.",
    ),
    opt(
        "impersonation.own_keys",
        Shape::Choice(&["backend", "deny"]),
        Some("backend"),
        "Who decides where no rule fits and the backend is shown a key of its own as the client sent it \
         (upstream.credential=forward). backend: it does. deny: it is refused.",
    ),
    opt(
        "authorization.mode",
        Shape::Choice(&["off", "shadow", "enforce"]),
        Some("off"),
        "Whether authorization.rules say who may ask for what. shadow: what no rule allows is told in the log and counted, \
         and passes. enforce: it is refused.",
    ),
    opt(
        "authorization.rules",
        Shape::List,
        None,
        "What is allowed: a list of {users, unknown_users, routes, methods, ontologies}. See below.",
    ),
    opt("tokens.ttl", Shape::Duration, Some("24h"), "How long a minted token lives."),
    opt(
        "tokens.idle_ttl",
        Shape::OptionalDuration,
        Some("off"),
        "End a minted token that was not used for so long.",
    ),
    opt("tokens.max", Shape::Count, Some("1000000"), "The most tokens kept; beyond it the oldest one ends."),
    opt(
        "tokens.keys_file",
        Shape::Path,
        None,
        "Keys known in advance, one a line: user:sha256-of-the-key[:upstream key].",
    ),
    opt(
        "tokens.foreign",
        Shape::Choice(&["verify", "forward", "reject"]),
        Some("verify"),
        "What becomes of a key that the gateway does not know. verify: ask the backend once, and remember. \
         forward: leave it to the backend. reject: refuse it.",
    ),
    opt(
        "tokens.foreign_accept_ttl",
        Shape::Duration,
        Some("5m"),
        "How long the backend's yes to a foreign key is remembered.",
    ),
    opt(
        "tokens.foreign_reject_ttl",
        Shape::Duration,
        Some("10s"),
        "How long the backend's no to a foreign key is remembered.",
    ),
];
