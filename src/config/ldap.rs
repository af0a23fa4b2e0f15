//! Reads the options of the LDAP directory and of the lookup of a user. Connects to no server.

use std::path::PathBuf;
use std::time::Duration;

use crate::base::secret::Secret;
use crate::config::options::LDAP;
use crate::config::reader::Reader;
use crate::config::{ServerUrl, url};

/// The placeholder of the user name in `ldap.user_dn`, `ldap.filter` and `ldap.groups_filter`.
pub const USER_PLACEHOLDER: &str = "{user}";

/// The placeholder of the distinguished name of the user's entry in `ldap.groups_filter`.
pub const DN_PLACEHOLDER: &str = "{dn}";

/// The LDAP directory and how a user is found in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LdapOptions {
    /// Host and port; `tls` for `ldaps://`.
    pub url: ServerUrl,
    /// Whether a plain connection is upgraded to TLS.
    pub start_tls: bool,
    /// Certificate authorities; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// How the entry of a user is found.
    pub lookup: LdapLookup,
    /// How the groups of a user are found; `None`: they are not needed.
    pub groups: Option<LdapGroups>,
    /// Limit for a whole login.
    pub timeout: Duration,
}

/// How the entry of a user is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LdapLookup {
    /// By its distinguished name.
    Template {
        /// Distinguished name that begins with `attribute` and the placeholder.
        dn: String,
        /// Attribute that has the user's name.
        attribute: String,
    },
    /// By a search.
    Search {
        /// Distinguished name and password of the search; `None`: an anonymous search.
        bind: Option<(String, Secret)>,
        /// Distinguished name of the base.
        base: String,
        /// Filter that contains the placeholder.
        filter: String,
        /// Attribute that the filter compares with the user name.
        attribute: String,
    },
}

/// How the groups of a user are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LdapGroups {
    /// An attribute of the user's entry has their names.
    Attribute(String),
    /// They are the entries that a search finds.
    Search {
        /// Distinguished name of the base.
        base: String,
        /// Filter with a placeholder.
        filter: String,
    },
}

impl Reader<'_> {
    pub(super) fn ldap(&mut self) -> Option<LdapOptions> {
        let url = self.ldap_url();
        let start_tls = self.get(&LDAP.start_tls);
        let lookup = self.lookup();
        let groups = self.ldap_groups();
        let timeout = self.get(&LDAP.timeout);
        let ca_file = self.get(&LDAP.ca_file);
        let (url, start_tls) = (url?, start_tls?);
        // SECURITY: a password that is sent in plain text can be read on the network.
        if !url.tls && !start_tls && !url::is_loopback(&url.host) {
            self.problem(
                LDAP.start_tls.key,
                "must be true unless the directory is on this machine, or ldap.url is ldaps://",
            );
        }
        if ca_file.is_some() && !url.tls && !start_tls {
            self.problem(LDAP.ca_file.key, "has no effect without TLS");
        }
        let start_tls = start_tls && !url.tls;
        Some(LdapOptions { url, start_tls, ca_file, lookup: lookup?, groups, timeout: timeout? })
    }

    fn ldap_url(&mut self) -> Option<ServerUrl> {
        const FORM: &str = "must be ldap://host[:port] or ldaps://host[:port]";
        let Some(text) = self.get(&LDAP.url) else {
            return self.missing(
                LDAP.url.key,
                "is required with auth.verifier=ldap: ldap://host[:port] or ldaps://host[:port]",
            );
        };
        match url::parse(&text, FORM, [("ldap", 389), ("ldaps", 636)]) {
            Ok(url) if url.target == "/" => Some(url.origin),
            _ => self.missing(LDAP.url.key, FORM),
        }
    }

    fn lookup(&mut self) -> Option<LdapLookup> {
        match (self.get(&LDAP.user_dn), self.get(&LDAP.base_dn)) {
            (Some(dn), None) => {
                let keys = [LDAP.bind_dn.key, LDAP.bind_password.key];
                self.reject_set(&keys, "has no effect with ldap.user_dn, which finds users without a search");
                let Some(attribute) = first_attribute(&dn).map(str::to_owned) else {
                    let message = "must begin with the attribute that has the user's name and contain {user} once, such \
                                   as uid={user},ou=people,dc=example,dc=com";
                    return self.missing(LDAP.user_dn.key, message);
                };
                Some(LdapLookup::Template { dn, attribute })
            }
            (None, Some(base)) => self.search(base),
            _ => self.missing(LDAP.user_dn.key, "set either ldap.user_dn, or ldap.base_dn for a search"),
        }
    }

    fn ldap_groups(&mut self) -> Option<LdapGroups> {
        let (attribute, base) = (self.get(&LDAP.groups_attribute), self.get(&LDAP.groups_base_dn));
        match (attribute, base) {
            (None, None) => None,
            (Some(attribute), None) if is_attribute_name(&attribute) => Some(LdapGroups::Attribute(attribute)),
            (Some(_), None) => self.missing(LDAP.groups_attribute.key, "must be the name of an attribute"),
            (None, Some(base)) => {
                let filter = self.get(&LDAP.groups_filter)?;
                let is_whole = filter.starts_with('(') && filter.ends_with(')');
                // SECURITY: without a placeholder it would find the same groups for every user.
                if !is_whole || ![DN_PLACEHOLDER, USER_PLACEHOLDER].iter().any(|name| filter.contains(name)) {
                    let message = "must be a filter in parentheses that contains {dn} or {user}, such as (member={dn})";
                    return self.missing(LDAP.groups_filter.key, message);
                }
                Some(LdapGroups::Search { base, filter })
            }
            (Some(_), Some(_)) => {
                self.missing(LDAP.groups_attribute.key, "set it, or ldap.groups_base_dn for a search, not both")
            }
        }
    }

    fn search(&mut self, base: String) -> Option<LdapLookup> {
        let filter = self.get(&LDAP.filter)?;
        let Some(attribute) = attribute(&filter) else {
            let message = "must be a filter in parentheses that contains one comparison such as uid={user}";
            return self.missing(LDAP.filter.key, message);
        };
        let bind = match (self.get(&LDAP.bind_dn), self.get(&LDAP.bind_password)) {
            (None, None) => None,
            // SECURITY: a bind with a name and no password succeeds as an anonymous bind (RFC 4513 section 5.1.2).
            (Some(dn), Some(password)) if !password.expose().is_empty() => Some((dn, password)),
            (Some(_), _) => {
                return self.missing(LDAP.bind_password.key, "is required together with ldap.bind_dn");
            }
            (None, Some(_)) => {
                return self.missing(LDAP.bind_dn.key, "is required together with ldap.bind_password");
            }
        };
        let attribute = attribute.to_owned();
        Some(LdapLookup::Search { bind, base, filter, attribute })
    }
}

/// The attribute that a filter compares with the user name, if there is exactly one.
fn attribute(filter: &str) -> Option<&str> {
    let whole = filter.starts_with('(') && filter.ends_with(')');
    let (before, after) = filter.split_once(&format!("={USER_PLACEHOLDER}"))?;
    let name = before.rsplit('(').next()?;
    (whole
        && is_attribute_name(name)
        && after.starts_with(')')
        && !after.contains(USER_PLACEHOLDER)
        && !before.contains(USER_PLACEHOLDER))
    .then_some(name)
}

/// The attribute of a template `attribute={user},…`.
fn first_attribute(template: &str) -> Option<&str> {
    let (name, rest) = template.split_once('=')?;
    let after = rest.strip_prefix(USER_PLACEHOLDER)?;
    let is_whole = after.is_empty() || after.starts_with(',');
    (is_attribute_name(name) && is_whole && !after.contains(USER_PLACEHOLDER)).then_some(name)
}

fn is_attribute_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-;.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VerifierOptions;
    use crate::config::testing::load;

    const LDAP: (&str, &str) = ("AUTH_VERIFIER", "ldap");
    const HERE: (&str, &str) = ("LDAP_URL", "ldaps://directory.example.com");
    const TEMPLATE: (&str, &str) = ("LDAP_USER_DN", "uid={user},dc=x");
    const BASE: (&str, &str) = ("LDAP_BASE_DN", "dc=x");
    const GROUPS: (&str, &str) = ("LDAP_GROUPS_BASE_DN", "dc=x");

    #[test]
    fn directories_have_a_url_and_a_lookup() {
        for (url, tls, port, start_tls) in [
            ("ldaps://directory.example.com", true, 636, false),
            ("ldaps://directory.example.com:1636/", true, 1636, false),
            ("ldap://directory.example.com", false, 389, true),
            ("ldap://[::1]:3389", false, 3389, true),
        ] {
            let config = load("", &[LDAP, ("LDAP_URL", url), TEMPLATE]).expect(url);
            let VerifierOptions::Ldap(ldap) = config.auth.verifier else { panic!("{url}") };
            assert_eq!((ldap.url.tls, ldap.url.port, ldap.start_tls), (tls, port, start_tls), "{url}");
        }
        let config = load("", &[LDAP, HERE, BASE]).expect("valid");
        let VerifierOptions::Ldap(ldap) = config.auth.verifier else { panic!("ldap") };
        let LdapLookup::Search { bind: None, attribute, .. } = ldap.lookup else { panic!("a search") };
        assert_eq!(attribute, "uid");
    }

    #[test]
    fn a_template_begins_with_the_attribute_of_the_name() {
        for (template, expected) in [
            ("uid={user},dc=x", Some("uid")),
            ("cn={user}", Some("cn")),
            ("{user}@corp.example", None),
            ("uid={user}+cn=x,dc=x", None),
            ("uid=x{user},dc=x", None),
            ("cn=x,uid={user}", None),
            ("ou={user},uid={user}", None),
        ] {
            assert_eq!(first_attribute(template), expected, "{template}");
        }
    }

    #[test]
    fn unsafe_and_ineffective_options_are_rejected() {
        for (options, expected) in [
            (&[LDAP, TEMPLATE][..], "ldap.url: is required"),
            (&[LDAP, HERE], "set either ldap.user_dn, or ldap.base_dn"),
            (&[LDAP, HERE, TEMPLATE, BASE], "set either"),
            (&[LDAP, ("LDAP_URL", "https://x"), TEMPLATE], "must be ldap://"),
            (&[LDAP, ("LDAP_URL", "ldap://x"), ("LDAP_START_TLS", "false"), TEMPLATE], "must be true unless"),
            (&[LDAP, HERE, ("LDAP_USER_DN", "uid=alice,dc=x")], "must begin with the attribute"),
            (&[LDAP, HERE, BASE, ("LDAP_FILTER", "uid={user}")], "must be a filter"),
            (&[LDAP, HERE, BASE, ("LDAP_FILTER", "(|(uid={user})(mail={user}))")], "must be a filter"),
            (&[LDAP, HERE, BASE, ("LDAP_FILTER", "(uid={user}*)")], "must be a filter"),
            (&[LDAP, HERE, BASE, ("LDAP_BIND_DN", "cn=x")], "ldap.bind_password: is required"),
            (&[LDAP, HERE, TEMPLATE, ("LDAP_BIND_DN", "cn=x"), ("LDAP_BIND_PASSWORD", "y")], "has no effect with"),
            (&[HERE], "has no effect without auth.verifier=ldap"),
            (&[("LDAP_GROUPS_ATTRIBUTE", "memberOf")], "has no effect without auth.verifier=ldap"),
            (&[LDAP, HERE, TEMPLATE, ("LDAP_GROUPS_ATTRIBUTE", "(x=y)")], "must be the name of an attribute"),
            (&[LDAP, HERE, TEMPLATE, GROUPS, ("LDAP_GROUPS_FILTER", "(cn=all)")], "that contains {dn} or {user}"),
            (&[LDAP, HERE, TEMPLATE, GROUPS, ("LDAP_GROUPS_FILTER", "member={dn}")], "must be a filter"),
            (&[LDAP, HERE, TEMPLATE, GROUPS, ("LDAP_GROUPS_ATTRIBUTE", "memberOf")], "not both"),
        ] {
            let error = load("", options).expect_err(expected);
            assert!(error.contains(expected), "{options:?}: {error}");
        }
        assert!(load("", &[LDAP, ("LDAP_URL", "ldap://127.0.0.1"), ("LDAP_START_TLS", "false"), TEMPLATE]).is_ok());
    }
}
