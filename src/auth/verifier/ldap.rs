//! Verifies passwords at an LDAP directory, by binding as the user's entry (RFC 4513). Knows only the `ldap.*` options.

use std::sync::Arc;

use aws_lc_rs::rand;
use ldap3::{
    Ldap, LdapConnAsync, LdapConnSettings, LdapError, Scope, SearchEntry, SearchResult, dn_escape, ldap_escape,
};
use rustls::ClientConfig;
use tokio::time::timeout;

use crate::auth::bearer::Credentials;
use crate::auth::verifier::{VerifiedLogin, VerifyError, unavailable};
use crate::config::ldap::{LdapLookup, LdapOptions, USER_PLACEHOLDER};
use crate::config::options::LDAP;
use crate::tls::{TlsError, trust_only_config};

/// An LDAP directory as verifier.
#[derive(Clone)]
pub struct LdapDirectory(Arc<LdapClient>);

struct LdapClient {
    options: LdapOptions,
    url: String,
    tls: Option<Arc<ClientConfig>>,
}

/// The server in log messages.
const SERVER: &str = "the LDAP directory";

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
        Ok(LdapDirectory(Arc::new(LdapClient { options: options.clone(), url, tls: tls.map(Arc::new) })))
    }

    /// Verifies the password by a bind as the user.
    pub async fn verify(&self, credentials: &Credentials) -> Result<VerifiedLogin, VerifyError> {
        // SECURITY: a bind with a name and an empty password succeeds as anonymous (RFC 4513 section 5.1.2).
        if credentials.password.expose().is_empty() {
            return Err(VerifyError::WrongCredentials);
        }
        match timeout(self.0.options.timeout, self.0.bind_as(credentials)).await {
            Ok(Ok(true)) => Ok(VerifiedLogin::default()),
            Ok(Ok(false)) => Err(VerifyError::WrongCredentials),
            Ok(Err(why)) => Err(unavailable(SERVER, why)),
            Err(_) => Err(unavailable(SERVER, "timed out")),
        }
    }
}

impl LdapClient {
    /// Returns whether a bind as the user succeeds. The error says why the password could not be verified.
    async fn bind_as(&self, credentials: &Credentials) -> Result<bool, String> {
        let user = credentials.user.as_str();
        let mut ldap = self.connect().await?;
        let (entry, is_known) = match &self.options.lookup {
            // SECURITY: the user name is escaped, so it is a value in the distinguished name and cannot add parts to
            // it.
            LdapLookup::Template(template) => (template.replace(USER_PLACEHOLDER, &dn_escape(user)), true),
            LdapLookup::Search { base, .. } => match self.search(&mut ldap, user).await? {
                Some(entry) => (entry, true),
                // SECURITY: an unknown user causes the same number of LDAP operations as a known one.
                None => (random_dn(base), false),
            },
        };
        let bound = ldap.simple_bind(&entry, credentials.password.expose()).await;
        let result = bound.map_err(|error| error_summary(&error))?;
        // Errors do not matter: dropping the handle closes the connection.
        let _ = ldap.unbind().await;
        match result.rc {
            0 => Ok(is_known),
            code if REJECTED_RESULT_CODES.contains(&code) => Ok(false),
            other => Err(format!("the bind as the user failed with result {other}")),
        }
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
        let LdapLookup::Search { bind, base, filter, attribute } = &self.options.lookup else {
            return Ok(None);
        };
        if let Some((dn, password)) = bind {
            let bound = ldap.simple_bind(dn, password.expose()).await.map_err(|error| error_summary(&error))?;
            if bound.rc != 0 {
                return Err(format!("ldap.bind_dn cannot bind: result {}", bound.rc));
            }
        }
        // SECURITY: escaped, so that the user name cannot change the filter.
        let filter = filter.replace(USER_PLACEHOLDER, &ldap_escape(user));
        let found = ldap.search(base, Scope::Subtree, &filter, [attribute.as_str()]).await;
        let found = found.and_then(SearchResult::success);
        let (entries, _) = found.map_err(|error| format!("the search failed: {}", error_summary(&error)))?;
        let entries: Vec<_> = entries.into_iter().filter(|entry| !entry.is_ref()).map(SearchEntry::construct).collect();
        match &entries[..] {
            [] => Ok(None),
            [entry] => {
                let values = entry.attrs.iter().filter(|(name, _)| name.eq_ignore_ascii_case(attribute));
                let is_exact = values.flat_map(|(_, values)| values).any(|value| value == user);
                Ok(Some(entry.dn.clone()).filter(|dn| is_exact && !dn.is_empty()))
            }
            _ => Err("more than one entry matches ldap.filter".to_owned()),
        }
    }
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
        LdapError::FilterParsing => "ldap.filter cannot be parsed".to_owned(),
        LdapError::DNSName { .. } => "the host name in ldap.url is not valid in a certificate".to_owned(),
        _ => "the connection failed".to_owned(),
    }
}
