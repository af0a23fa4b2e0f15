//! Verifies passwords at an LDAP directory, by binding as the user's entry (RFC 4513). Knows only the `ldap.*` options.

use std::sync::Arc;

use aws_lc_rs::rand;
use ldap3::exop::WhoAmI;
use ldap3::{
    Ldap, LdapConnAsync, LdapConnSettings, LdapError, ResultEntry, Scope, SearchEntry, SearchResult, dn_escape,
    ldap_escape,
};
use rustls::ClientConfig;
use tokio::time::timeout;

use crate::auth::bearer::Credentials;
use crate::auth::verifier::{VerifiedLogin, VerifyError, unavailable};
use crate::base::groups::Groups;
use crate::base::user_name::UserName;
use crate::config::ldap::{DN_PLACEHOLDER, LdapGroups, LdapLookup, LdapOptions, USER_PLACEHOLDER};
use crate::config::options::LDAP;
use crate::tls::{TlsError, trust_only_config};

/// An LDAP directory as verifier.
pub struct LdapDirectory {
    options: LdapOptions,
    url: String,
    tls: Option<Arc<ClientConfig>>,
}

/// The server in log messages.
const SERVER: &str = "the LDAP directory";

/// A search that requests this returns no attributes (RFC 4511 section 4.5.1.8).
const NO_ATTRIBUTES: &str = "1.1";

/// Bind results (RFC 4511 section 4.1.9) that mean wrong credentials: 19: too many attempts; 32: unknown entry; 48: no
/// password is set; 49: wrong password; 50, 53: not allowed to bind.
const REJECTED_RESULT_CODES: [u32; 6] = [19, 32, 48, 49, 50, 53];

impl LdapDirectory {
    /// Validates the TLS options. Connects only when verifying.
    pub fn new(options: &LdapOptions) -> Result<LdapDirectory, TlsError> {
        let uses_tls = options.url.tls || options.start_tls;
        let tls = uses_tls.then(|| trust_only_config(options.ca_file.as_deref(), LDAP.ca_file.key)).transpose()?;
        let host = &options.url.host;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let url = format!("ldap{}://{host}:{}", if options.url.tls { "s" } else { "" }, options.url.port);
        Ok(LdapDirectory { options: options.clone(), url, tls: tls.map(Arc::new) })
    }

    /// Verifies the password by a bind as the user.
    pub async fn verify(&self, credentials: &Credentials) -> Result<VerifiedLogin, VerifyError> {
        // SECURITY: a bind with a name and an empty password succeeds as anonymous (RFC 4513 section 5.1.2).
        if credentials.password.expose().is_empty() {
            return Err(VerifyError::WrongCredentials);
        }
        match timeout(self.options.timeout, self.bind_as(credentials)).await {
            Ok(Ok(Some(login))) => Ok(login),
            Ok(Ok(None)) => Err(VerifyError::WrongCredentials),
            Ok(Err(why)) => Err(unavailable(SERVER, why)),
            Err(_) => Err(unavailable(SERVER, "timed out")),
        }
    }

    /// Connects, and binds as `ldap.bind_dn` if it is set.
    pub async fn check(&self) -> Result<(), String> {
        let check = async { self.bind_as_gateway(&mut self.connect().await?).await };
        timeout(self.options.timeout, check).await.unwrap_or_else(|_| Err("timed out".to_owned()))
    }

    /// Binds as the user; `None` if the directory rejects that. The error says why the password could not be verified.
    async fn bind_as(&self, credentials: &Credentials) -> Result<Option<VerifiedLogin>, String> {
        let user = credentials.user.as_str();
        let mut ldap = self.connect().await?;
        let (entry, is_known) = match &self.options.lookup {
            // SECURITY: the user name is escaped, so it is a value in the distinguished name and cannot add parts to
            // it.
            LdapLookup::Template { dn, .. } => (dn.replace(USER_PLACEHOLDER, &dn_escape(user)), true),
            LdapLookup::Search { base, .. } => match self.search(&mut ldap, user).await? {
                Some(entry) => (entry, true),
                // SECURITY: an unknown user causes the same number of LDAP operations as a known one.
                None => (random_dn(base), false),
            },
        };
        let bound = ldap.simple_bind(&entry, credentials.password.expose()).await;
        let result = bound.map_err(|error| error_summary(&error))?;
        let login = match result.rc {
            0 if is_known => self.verified_login(&mut ldap, &entry, user).await?,
            0 => None,
            code if REJECTED_RESULT_CODES.contains(&code) => None,
            other => return Err(format!("the bind as the user failed with result {other}")),
        };
        // Errors do not matter: dropping the handle closes the connection.
        let _ = ldap.unbind().await;
        Ok(login)
    }

    /// What the directory knows of the user, whose bind it has accepted. `None` if it names a different user.
    async fn verified_login(&self, ldap: &mut Ldap, entry: &str, user: &str) -> Result<Option<VerifiedLogin>, String> {
        let Some(login) = self.name_in_entry(ldap, entry, user).await? else { return Ok(None) };
        let name = login.user.as_ref().map_or(user, UserName::as_str);
        let groups = match &self.options.groups {
            Some(options) => Some(self.groups(ldap, options, entry, name).await?),
            None => None,
        };
        Ok(Some(VerifiedLogin { groups, ..login }))
    }

    /// The user's groups, read as `ldap.bind_dn` or, without it, as the user.
    ///
    /// SECURITY: a login whose groups cannot be read completely fails. With the groups missing, the user would pass the
    /// limits of a group.
    async fn groups(&self, ldap: &mut Ldap, options: &LdapGroups, dn: &str, user: &str) -> Result<Groups, String> {
        self.bind_as_gateway(ldap).await?;
        let found = match options {
            LdapGroups::Attribute(name) => ldap.search(dn, Scope::Base, "(objectClass=*)", [name.as_str()]).await,
            LdapGroups::Search { base, filter } => {
                let filter = groups_filter(filter, dn, user);
                ldap.search(base, Scope::Subtree, &filter, [NO_ATTRIBUTES]).await
            }
        };
        let found = found.and_then(SearchResult::success);
        let (entries, _) = found.map_err(|error| format!("cannot read the groups: {}", error_summary(&error)))?;
        let entries = entries.into_iter().filter(|entry| !entry.is_ref()).map(SearchEntry::construct);
        let names = match options {
            LdapGroups::Search { .. } => entries.map(|entry| entry.dn).collect::<Vec<_>>(),
            LdapGroups::Attribute(attribute) => {
                let mut entries = entries;
                let entry = entries.next().ok_or("cannot read the groups: the user's entry is not returned")?;
                group_values(entry, attribute)?
            }
        };
        group_names(&names)
            .ok_or_else(|| "the user has too many groups; select some with ldap.groups_filter".to_owned())
    }

    /// Binds as `ldap.bind_dn`, if it is set.
    async fn bind_as_gateway(&self, ldap: &mut Ldap) -> Result<(), String> {
        let LdapLookup::Search { bind: Some((dn, password)), .. } = &self.options.lookup else { return Ok(()) };
        let bound = ldap.simple_bind(dn, password.expose()).await.map_err(|error| error_summary(&error))?;
        if bound.rc == 0 { Ok(()) } else { Err(format!("ldap.bind_dn cannot bind: result {}", bound.rc)) }
    }

    /// The login with the name as the entry spells it, if it is the client's in a different case.
    ///
    /// SECURITY: with a template, the directory compares names, and it ignores case and spaces.
    async fn name_in_entry(&self, ldap: &mut Ldap, entry: &str, user: &str) -> Result<Option<VerifiedLogin>, String> {
        let LdapLookup::Template { attribute, .. } = &self.options.lookup else {
            // `search` has compared it exactly.
            return Ok(Some(VerifiedLogin::default()));
        };
        let found = ldap.search(entry, Scope::Base, "(objectClass=*)", [attribute]).await;
        let entries = found.and_then(SearchResult::success).map(|(entries, _)| entries).unwrap_or_default();
        let mut names: Vec<_> = entries.into_iter().flat_map(|entry| attribute_values(entry, attribute)).collect();
        if names.is_empty() {
            // Users may not be allowed to read their own entry.
            names.extend(bound_dn(ldap).await.and_then(|dn| first_value_of_dn(&dn, attribute)));
        }
        if names.is_empty() {
            let message = "the directory does not return the user's name: allow users to read their own entry, or use \
                           ldap.base_dn";
            return Err(message.to_owned());
        }
        let name = names.into_iter().find(|name| name.eq_ignore_ascii_case(user));
        let name = name.and_then(|name| UserName::parse(name.as_bytes()).ok());
        Ok(name.map(|name| VerifiedLogin { user: Some(name), ..VerifiedLogin::default() }))
    }

    async fn connect(&self) -> Result<Ldap, String> {
        let mut settings = LdapConnSettings::new().set_starttls(self.options.start_tls);
        if let Some(tls) = &self.tls {
            settings = settings.set_config(Arc::clone(tls));
        }
        let connected = LdapConnAsync::with_settings(settings, &self.url).await;
        let (connection, ldap) = connected.map_err(|error| format!("cannot connect: {}", error_summary(&error)))?;
        // The task ends when the last handle is dropped.
        tokio::spawn(async move { drop(connection.drive().await) });
        Ok(ldap)
    }

    /// Returns the distinguished name of the user's entry, if there is exactly one.
    ///
    /// SECURITY: the user name must equal the attribute exactly. Directories ignore case and spaces, and the backend
    /// receives the name as the client wrote it.
    async fn search(&self, ldap: &mut Ldap, user: &str) -> Result<Option<String>, String> {
        let LdapLookup::Search { base, filter, attribute, .. } = &self.options.lookup else {
            return Ok(None);
        };
        self.bind_as_gateway(ldap).await?;
        // SECURITY: escaped, so that the user name cannot change the filter.
        let filter = filter.replace(USER_PLACEHOLDER, &ldap_escape(user));
        let found = ldap.search(base, Scope::Subtree, &filter, [attribute.as_str()]).await;
        let found = found.and_then(SearchResult::success);
        let (entries, _) = found.map_err(|error| format!("the search failed: {}", error_summary(&error)))?;
        let mut entries = entries.into_iter().filter(|entry| !entry.is_ref());
        match (entries.next(), entries.next()) {
            (None, _) => Ok(None),
            (Some(entry), None) => {
                let dn = SearchEntry::construct(entry.clone()).dn;
                let is_exact = attribute_values(entry, attribute).any(|value| value == user);
                Ok(Some(dn).filter(|dn| is_exact && !dn.is_empty()))
            }
            _ => Err("more than one entry matches ldap.filter".to_owned()),
        }
    }
}

/// The values of an attribute in an entry that a search found.
fn attribute_values(entry: ResultEntry, attribute: &str) -> impl Iterator<Item = String> {
    let attributes = SearchEntry::construct(entry).attrs.into_iter();
    attributes.filter(move |(name, _)| name.eq_ignore_ascii_case(attribute)).flat_map(|(_, values)| values)
}

/// The filter for the groups of a user. SECURITY: both values are escaped, and neither is searched for placeholders.
fn groups_filter(filter: &str, dn: &str, user: &str) -> String {
    let (dn, user) = (ldap_escape(dn), ldap_escape(user));
    let parts: Vec<_> = filter.split(DN_PLACEHOLDER).map(|part| part.replace(USER_PLACEHOLDER, &user)).collect();
    parts.join(&dn)
}

/// The values of the attribute with the groups.
///
/// SECURITY: Active Directory returns the first of many values under a different name, `memberOf;range=0-1499`. Under
/// another name (the attribute's own for an alias, or of a subtype), it is unknown whether these are all groups, or
/// groups at all.
fn group_values(entry: SearchEntry, attribute: &str) -> Result<Vec<String>, String> {
    let is_partial = |name: &String| name.to_ascii_lowercase().contains(";range=");
    let names = || entry.attrs.keys().chain(entry.bin_attrs.keys());
    if names().any(is_partial) {
        return Err("the user has more groups than the directory returns at once: use ldap.groups_base_dn".to_owned());
    }
    if let Some(name) = names().find(|name| !name.eq_ignore_ascii_case(attribute)) {
        return Err(format!("the directory returns groups as {name:?}: set ldap.groups_attribute to the name it uses"));
    }
    if !entry.bin_attrs.is_empty() {
        return Err("the directory returns a group whose name is not UTF-8".to_owned());
    }
    Ok(entry.attrs.into_values().flatten().collect())
}

/// Each group by its distinguished name and by its `cn`, if it begins with one. `None` if there are too many.
///
/// SECURITY: a `cn` that could be taken for the distinguished name of a different group is none of its names.
fn group_names(groups: &[String]) -> Option<Groups> {
    let common_name = |dn: &String| first_value_of_dn(dn, "cn").filter(|name| !name.contains(['=', ',']));
    let names = groups.iter().filter_map(common_name).chain(groups.iter().cloned());
    Groups::new(names.map(String::into_boxed_str).collect())
}

/// The distinguished name of the entry that the connection is bound as (RFC 4532).
async fn bound_dn(ldap: &mut Ldap) -> Option<String> {
    let (response, _) = ldap.extended(WhoAmI).await.ok()?.success().ok()?;
    let identity = String::from_utf8(response.val?).ok()?;
    identity.strip_prefix("dn:").map(str::to_owned)
}

/// The value of `attribute`, if a distinguished name begins with it (RFC 4514 section 3). `None` if it has bytes that
/// are not ASCII.
fn first_value_of_dn(dn: &str, attribute: &str) -> Option<String> {
    let (name, rest) = dn.split_once('=')?;
    let (mut value, mut rest) = (String::new(), rest.chars());
    loop {
        match rest.next() {
            None | Some(',') => break,
            Some('\\') => match (rest.next()?, rest.clone().next()) {
                (high, Some(low)) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                    rest.next();
                    let byte = u8::from_str_radix(&format!("{high}{low}"), 16).ok()?;
                    value.push(char::from(byte).is_ascii().then_some(char::from(byte))?);
                }
                (escaped, _) => value.push(escaped),
            },
            // The name has more than one attribute.
            Some('+') => return None,
            Some(other) => value.push(other),
        }
    }
    name.trim().eq_ignore_ascii_case(attribute).then_some(value)
}

/// A random distinguished name below the base, which no entry has.
fn random_dn(base: &str) -> String {
    let mut random = [0; 8];
    rand::fill(&mut random).expect("the system's random source works");
    format!("cn=unknown-{:016x},{base}", u64::from_be_bytes(random))
}

/// SECURITY: the library's error may contain data that was sent, so only the kind of the error is logged.
fn error_summary(error: &LdapError) -> String {
    match error {
        LdapError::Io { source } => source.to_string(),
        LdapError::LdapResult { result } => format!("result {}", result.rc),
        LdapError::Timeout { .. } => "timed out".to_owned(),
        LdapError::FilterParsing => "ldap.filter or ldap.groups_filter cannot be parsed".to_owned(),
        LdapError::DNSName { .. } => "the host name in ldap.url is not valid in a certificate".to_owned(),
        _ => "the connection failed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_their_common_name_and_their_distinguished_name() {
        let names =
            |groups: &[&str]| group_names(&groups.iter().map(ToString::to_string).collect::<Vec<_>>()).expect("few");
        assert_eq!(names(&["cn=bi,dc=x", "CN=Ärzte,dc=x"]).to_string(), "CN=Ärzte,dc=x; bi; cn=bi,dc=x; Ärzte");
        assert_eq!(names(&["uid=bi,dc=x", "plain"]).to_string(), "plain; uid=bi,dc=x");
        let imitation = r"cn=cn\=admins\,dc\=x,ou=guests,dc=x";
        assert_eq!(names(&[imitation]).to_string(), imitation);
        assert_eq!(group_names(&["cn=x".to_owned() + &"y".repeat(40_000)]), None);
    }

    #[test]
    fn values_in_the_filter_for_groups_are_escaped_once() {
        let filter = |filter| groups_filter(filter, "uid=a*(b),dc={user}", "{dn})(cn=*");
        assert_eq!(filter("(member={dn})"), r"(member=uid=a\2a\28b\29,dc={user})");
        assert_eq!(
            filter("(|(memberUid={user})(m={dn}))"),
            r"(|(memberUid={dn}\29\28cn=\2a)(m=uid=a\2a\28b\29,dc={user}))"
        );
    }

    #[test]
    fn an_incomplete_list_of_groups_is_an_error() {
        let groups = || vec!["cn=bi".to_owned()];
        let read = |attribute: &str, texts: &[&str], bytes: &[&str]| {
            let attrs = texts.iter().map(|name| (name.to_string(), groups())).collect();
            let bin_attrs = bytes.iter().map(|name| (name.to_string(), vec![vec![0xff]])).collect();
            group_values(SearchEntry { dn: String::new(), attrs, bin_attrs }, attribute)
        };
        assert_eq!(read("memberOf", &["MEMBEROF"], &[]), Ok(groups()));
        assert_eq!(read("memberOf;x-de", &["memberof;X-DE"], &[]), Ok(groups()));
        assert_eq!(read("memberOf", &[], &[]), Ok(vec![]));
        for (attribute, texts, bytes, message) in [
            ("memberOf", &["other"][..], &[][..], "\"other\""),
            ("memberOf", &["memberOf", "memberOf;x-de"], &[], "\"memberOf;x-de\""),
            ("memberOf;x-de", &["memberOf"], &[], "\"memberOf\""),
            ("1.2.840.113556.1.2.102", &["memberOf"], &[], "\"memberOf\""),
            ("memberOf", &[], &["other"], "\"other\""),
            ("memberOf", &["memberOf;range=0-1499"], &[], "more groups"),
            ("memberOf", &["memberOf"], &["memberOf;Range=0-1499"], "more groups"),
            ("memberOf", &[], &["memberOf"], "UTF-8"),
        ] {
            let error = read(attribute, texts, bytes).expect_err("incomplete");
            assert!(error.contains(message), "{attribute} {texts:?} {bytes:?}: {error}");
        }
    }

    #[test]
    fn a_distinguished_name_begins_with_the_name_of_the_user() {
        for (dn, expected) in [
            ("uid=alice,ou=people,dc=x", Some("alice")),
            ("UID=Alice", Some("Alice")),
            (r"uid=bob\, the \(builder\)\2a,dc=x", Some("bob, the (builder)*")),
            (r"uid=a\+b,dc=x", Some("a+b")),
            ("uid=alice+cn=x,dc=x", None),
            (r"uid=jos\c3\a9,dc=x", None),
            ("cn=alice,dc=x", None),
            ("", None),
        ] {
            assert_eq!(first_value_of_dn(dn, "uid").as_deref(), expected, "{dn}");
        }
    }
}
