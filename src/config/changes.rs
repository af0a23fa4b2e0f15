//! What a new reading of the configuration changes, and what of it has to wait for a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{self, Digest, SHA256, digest};
use zeroize::Zeroizing;

use crate::config::jwt;
use crate::config::options::{self, AUTH, GLOBAL, LISTEN, LOG, Shape};
use crate::config::{Config, ListenOptions, Settings, StoreKind};

/// Bytes of a file that are read at once to be hashed.
const HASH_BUFFER_SIZE: usize = 64 * 1024;

/// A configuration as it was read: what was typed, and what the files that it names held then.
#[derive(Clone, Debug)]
pub struct LoadedSettings {
    settings: Settings,
    contents: FileHashes,
}

/// Hashes of what stood in the files that options name.
pub type FileHashes = BTreeMap<&'static str, [u8; 32]>;

/// The options that differ between two readings.
#[derive(Debug, Default)]
pub struct Changes(BTreeSet<&'static str>);

impl LoadedSettings {
    /// What [`crate::config::load`] gave.
    pub fn new(mut settings: Settings) -> LoadedSettings {
        let contents = std::mem::take(&mut settings.file_hashes);
        LoadedSettings { settings, contents }
    }

    /// The files that make another reading necessary when they change: the configuration's own, those with secrets, and
    /// those that options name. What is looked after elsewhere while the gateway runs (certificates, users, the file of
    /// the store) is not among them.
    pub fn files(&self) -> Vec<PathBuf> {
        let named = named_files(&self.settings).map(|(_, path)| path);
        self.settings.files.iter().cloned().chain(named).collect()
    }

    /// What `self` changes, compared with what was read before.
    pub fn changes(&self, before: &LoadedSettings) -> Changes {
        let mut changed: BTreeSet<_> = options::all()
            .map(|option| option.key)
            .filter(|key| self.value_and_hash(key) != before.value_and_hash(key))
            .collect();
        if self.settings.routes != before.settings.routes {
            changed.insert("routes");
        }
        Changes(changed)
    }

    /// The value of an option, and what its file held.
    fn value_and_hash(&self, key: &str) -> (Option<&str>, Option<&[u8; 32]>) {
        let setting = self.settings.values.get(key);
        (setting.map(|setting| setting.text.expose()), self.contents.get(key))
    }

    /// What counts as read from now on where `held` stays as it was before.
    pub fn retain_previous(mut self, held: &[&'static str], before: &LoadedSettings) -> LoadedSettings {
        for key in held {
            match before.settings.values.get(key) {
                Some(setting) => drop(self.settings.values.insert(key, setting.clone())),
                None => drop(self.settings.values.remove(key)),
            }
            match before.contents.get(key) {
                Some(content) => drop(self.contents.insert(key, *content)),
                None => drop(self.contents.remove(key)),
            }
        }
        self
    }
}

impl Changes {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an option changes whose key begins with one of these.
    pub fn has_any_of(&self, beginnings: &[&str]) -> bool {
        self.0.iter().any(|key| beginnings.iter().any(|beginning| key.starts_with(beginning)))
    }

    /// The options that changed.
    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().copied()
    }

    /// Gives `config` the values of the one in force for what needs a restart; the keys of what would change.
    pub fn defer_fixed_options(&self, config: &mut Config, in_force: &Config) -> Vec<&'static str> {
        let ListenOptions { proxy_protocol, .. } = config.listen;
        config.listen = ListenOptions { proxy_protocol, ..in_force.listen };
        config.workers = in_force.workers;
        config.store = in_force.store.clone();
        config.core_dumps = in_force.core_dumps;
        config.log.format = in_force.log.format;
        config.log.access = in_force.log.access;
        let holds_salts = !matches!(in_force.store.kind, StoreKind::Memory);
        if holds_salts {
            config.salts.clone_from(&in_force.salts);
        }
        let fixed = [
            LISTEN.https.key,
            LISTEN.http.key,
            LISTEN.admin.key,
            GLOBAL.workers.key,
            GLOBAL.core_dumps.key,
            LOG.format.key,
            LOG.access.key,
        ];
        let is_fixed = |key: &&str| {
            fixed.contains(key)
                || key.starts_with("store.")
                || (holds_salts && *key == GLOBAL.api_auth_salt.key)
        };
        self.keys().filter(is_fixed).collect()
    }
}

/// Looks into the files that are read together with the configuration. Blocks on the file system.
///
/// SECURITY: to be called before any of them is read for use: what changes in between then counts as not read yet, and is
/// read once more. The other way round, a secret that was taken back could stay in force.
pub(super) fn hash_files(settings: &Settings) -> FileHashes {
    let mut contents = FileHashes::new();
    for (key, path) in named_files(settings) {
        // One that cannot be read is told where it is used.
        let Ok(hash) = hash_of_file(&path) else { continue };
        // An option may name several.
        let all = [contents.get(key).map_or(&[][..], |other| &other[..]), hash.as_ref()].concat();
        contents.insert(key, digest(&SHA256, &all).as_ref().try_into().expect("SHA-256 has 32 bytes"));
    }
    contents
}

/// Reads piece by piece, as a file of keys may be large.
fn hash_of_file(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hash = digest::Context::new(&SHA256);
    let mut piece = Zeroizing::new(vec![0; HASH_BUFFER_SIZE]);
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(hash.finish()),
            Ok(length) => hash.update(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Options that name files, each with one of them.
fn named_files(settings: &Settings) -> impl Iterator<Item = (&'static str, PathBuf)> {
    let elsewhere =
        |key: &str| key == AUTH.users_file.key || key.starts_with("tls.") || key.starts_with("store.");
    let text = |key: &str| settings.values.get(key).map(|setting| setting.text.expose());
    let options = options::all().filter(move |option| option.shape == Shape::Path && !elsewhere(option.key));
    let files = options.filter_map(move |option| Some((option.key, PathBuf::from(text(option.key)?))));
    let of_issuers = text(AUTH.jwt_issuers.key).map(jwt::secret_files).unwrap_or_default();
    files.chain(of_issuers.into_iter().map(|path| (AUTH.jwt_issuers.key, path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    const SALT: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";

    fn read(env: &[(&str, &str)]) -> (Config, LoadedSettings) {
        let mut environment = vec![("API_AUTH_SALT".into(), SALT.into())];
        environment.extend(
            env.iter().map(|(name, value)| (format!("TIMBR_GATEWAY_{name}").into(), (*value).into())),
        );
        let (config, settings) = load(&Sources { environment, ..Sources::default() }).expect("valid");
        (config, LoadedSettings::new(settings))
    }

    #[test]
    fn what_needs_a_restart_stays_as_it_is_and_is_named_each_time() {
        let (in_force, before) = read(&[("UPSTREAM_URL", "http://one")]);
        let (mut config, after) = read(&[
            ("UPSTREAM_URL", "http://two"),
            ("WORKERS", "7"),
            ("LISTEN_HTTP", "127.0.0.1:1"),
            ("LISTEN_PROXY_PROTOCOL", "required"),
            ("TRUSTED_PROXIES", "10.0.0.0/8"),
        ]);
        let changes = after.changes(&before);
        let held = changes.defer_fixed_options(&mut config, &in_force);
        assert_eq!(held, ["listen.http", "workers"]);
        assert_eq!((config.workers, config.listen.http), (in_force.workers, None));
        assert!(config.listen.proxy_protocol && config.upstream.url().host == "two");
        assert!(changes.has_any_of(&["upstream."]) && !changes.has_any_of(&["auth.", "timeouts."]));
        let (_, again) = read(&[("UPSTREAM_URL", "http://two"), ("WORKERS", "7")]);
        let again = again.changes(&after.retain_previous(&held, &before));
        assert_eq!(
            again.keys().collect::<Vec<_>>(),
            ["listen.proxy_protocol", "trusted_proxies", "workers"],
            "what was held is still to come"
        );
    }

    #[test]
    fn a_file_with_another_content_is_a_change() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("keys");
        std::fs::write(&file, "").expect("written");
        let path = file.to_str().expect("text");
        let read = || read(&[("UPSTREAM_URL", "http://one"), ("TOKENS_KEYS_FILE", path)]).1;
        let before = read();
        assert!(read().changes(&before).is_empty());
        assert_eq!(before.files(), std::slice::from_ref(&file));
        std::fs::write(&file, "# other\n").expect("written");
        assert_eq!(read().changes(&before).keys().collect::<Vec<_>>(), ["tokens.keys_file"]);
    }

    #[test]
    fn so_is_another_secret_of_a_token_issuer() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for (name, text) in [("one", "1"), ("two", "2"), ("ca", "3"), ("keys", "4")] {
            std::fs::write(at(name), text.repeat(40)).expect("written");
        }
        let of = |issuer: &str, keys: &str| format!("{{issuer: {issuer}, audiences: a, {keys}}}");
        let hmac = |name: &str| format!("secret_file: '{}', algorithms: HS256", at(name).display());
        let issuers = [
            of("i", &hmac("one")),
            of("j", &hmac("two")),
            of("k", &format!("jwks_url: 'https://idp/k', ca_file: '{}'", at("ca").display())),
            of("l", &format!("jwks_file: '{}'", at("keys").display())),
        ];
        let issuers = format!("[{}]", issuers.join(", "));
        let read = || read(&[("UPSTREAM_URL", "http://one"), ("AUTH_JWT_ISSUERS", &issuers)]).1;
        let mut before = read();
        assert_eq!(before.files(), ["one", "two", "ca"].map(at), "the key set is looked after by itself");
        for name in ["one", "two", "ca"] {
            std::fs::write(at(name), "another".repeat(10)).expect("written");
            let now = read();
            let changes: Vec<_> = now.changes(&before).keys().collect();
            assert_eq!(changes, ["auth.jwt_issuers"], "{name}");
            before = now;
        }
        std::fs::write(at("keys"), "another").expect("written");
        assert!(read().changes(&before).is_empty());
        assert!(!format!("{before:?}").contains("another"));
    }
}
