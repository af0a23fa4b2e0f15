//! Compares two loaded configurations and decides which changes need a restart. Applies none.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{self, Digest, SHA256, digest};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::base::input_file;
use crate::config::file;
use crate::config::options::{self, AUDIT, AUTH, GLOBAL, LISTEN, LOG, Shape};
use crate::config::{Config, ListenOptions, Settings, StoreKeyOptions};

/// Bytes of a file that are read at a time.
const HASH_BUFFER_SIZE: usize = 64 * 1024;

/// The settings of a load, with hashes of the files that they name.
#[derive(Clone, Debug)]
pub struct LoadedSettings {
    settings: Settings,
    contents: FileHashes,
}

/// SHA-256 of the files that an option names, by key.
pub type FileHashes = BTreeMap<&'static str, [u8; 32]>;

/// Keys of the options that differ between two loads.
#[derive(Debug, Default)]
pub struct Changes(BTreeSet<&'static str>);

impl LoadedSettings {
    /// Takes the settings that [`crate::config::load`] returned.
    pub fn new(mut settings: Settings) -> LoadedSettings {
        let contents = std::mem::take(&mut settings.file_hashes);
        LoadedSettings { settings, contents }
    }

    /// The files that cause a reload when they change: the configuration file, files with secrets, and files that
    /// options name. Files that other modules watch are not included: certificates, users, the file of the store, the
    /// admin socket and the audit log.
    pub fn files(&self) -> Vec<PathBuf> {
        let named = named_files(&self.settings).map(|(_, path)| path);
        self.settings.files.iter().cloned().chain(named).collect()
    }

    /// The changes compared with an earlier load.
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

    /// The value of an option and the hash of its file.
    fn value_and_hash(&self, key: &str) -> (Option<&str>, Option<&[u8; 32]>) {
        let setting = self.settings.values.get(key);
        (setting.map(|setting| setting.text.expose()), self.contents.get(key))
    }

    /// The same with the earlier values of the options in `deferred`, so that they still count as changed at the next
    /// load.
    pub fn retain_previous(mut self, deferred: &[&'static str], before: &LoadedSettings) -> LoadedSettings {
        for key in deferred {
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
    /// Whether no option has changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an option has changed whose key begins with one of these prefixes.
    pub fn has_any_of(&self, beginnings: &[&str]) -> bool {
        self.0.iter().any(|key| beginnings.iter().any(|beginning| key.starts_with(beginning)))
    }

    /// Keys of the changed options.
    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().copied()
    }

    /// Resets the options that need a restart to their current values. Returns the keys of those that had changed.
    pub fn defer_fixed_options(&self, config: &mut Config, current: &Config) -> Vec<&'static str> {
        let ListenOptions { proxy_protocol, .. } = config.listen;
        config.listen = ListenOptions { proxy_protocol, ..current.listen.clone() };
        config.admin.socket.clone_from(&current.admin.socket);
        config.workers = current.workers;
        config.store = current.store.clone();
        config.core_dumps = current.core_dumps;
        config.audit.clone_from(&current.audit);
        config.log.format = current.log.format;
        config.log.access = current.log.access;
        let holds_salts = matches!(current.store.keys, StoreKeyOptions::OfSalts(_));
        if holds_salts {
            config.salts.clone_from(&current.salts);
        }
        let fixed = [
            LISTEN.https.key,
            LISTEN.http.key,
            LISTEN.http_socket.key,
            LISTEN.http_socket_mode.key,
            LISTEN.admin.key,
            LISTEN.admin_socket.key,
            LISTEN.admin_socket_mode.key,
            GLOBAL.workers.key,
            GLOBAL.core_dumps.key,
            LOG.format.key,
            LOG.access.key,
        ];
        let is_fixed = |key: &&str| {
            fixed.contains(key)
                || key.starts_with("audit.")
                || key.starts_with("store.")
                || (holds_salts && *key == GLOBAL.api_auth_salt.key)
        };
        self.keys().filter(is_fixed).collect()
    }
}

/// Hashes the files that are loaded together with the configuration. Blocks on the file system.
///
/// SECURITY: must be called before the files are loaded. A change in between then causes a further reload;
/// otherwise a revoked secret could stay active.
pub(super) fn hash_files(settings: &Settings) -> FileHashes {
    let mut contents = FileHashes::new();
    for (key, path) in named_files(settings) {
        // The reader of the option reports a file that cannot be read.
        let Ok(hash) = hash_of_file(&path) else { continue };
        // An option can name several files.
        let all = [contents.get(key).map_or(&[][..], |other| &other[..]), hash.as_ref()].concat();
        contents.insert(key, digest(&SHA256, &all).as_ref().try_into().expect("SHA-256 has 32 bytes"));
    }
    contents
}

/// Reads in pieces, because a file of keys can be large.
fn hash_of_file(path: &Path) -> io::Result<Digest> {
    let mut file = input_file::open_regular(path)?;
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

/// Keys of options with each file that they name.
fn named_files(settings: &Settings) -> impl Iterator<Item = (&'static str, PathBuf)> {
    let is_watched_elsewhere = |key: &str| {
        [AUTH.users_file.key, LISTEN.admin_socket.key, AUDIT.file.key].contains(&key)
            || key.starts_with("tls.")
            || key.starts_with("store.")
    };
    let text = |key: &str| settings.values.get(key).map(|setting| setting.text.expose());
    let options = options::all().filter(move |option| option.shape == Shape::Path && !is_watched_elsewhere(option.key));
    let files = options.filter_map(move |option| Some((option.key, PathBuf::from(text(option.key)?))));
    let of_entries = [AUTH.jwt_issuers.key, GLOBAL.upstreams.key].into_iter().flat_map(move |key| {
        let paths = text(key).map(entry_files).unwrap_or_default();
        paths.into_iter().map(move |path| (key, path))
    });
    files.chain(of_entries)
}

/// The files that the entries of a list name. Key sets are watched separately. The reader of the option reports
/// problems.
fn entry_files(text: &str) -> Vec<PathBuf> {
    let Ok(Value::Array(entries)) = file::parse(text) else { return Vec::new() };
    let keys = entries.iter().filter_map(Value::as_object).flatten();
    let files = keys.filter(|(key, _)| key.ends_with("_file") && *key != "jwks_file");
    files.filter_map(|(_, path)| path.as_str().map(PathBuf::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::load_with_settings;

    fn read(variables: &[(&str, &str)]) -> (Config, LoadedSettings) {
        let (config, mut settings) = load_with_settings("", variables).expect("valid");
        settings.files.clear();
        (config, LoadedSettings::new(settings))
    }

    #[test]
    fn fixed_options_keep_their_values_and_are_reported_by_each_load() {
        let (current, before) = read(&[("UPSTREAM_URL", "http://one")]);
        let (mut config, after) = read(&[
            ("UPSTREAM_URL", "http://two"),
            ("WORKERS", "7"),
            ("LISTEN_HTTP", "127.0.0.1:1"),
            ("LISTEN_PROXY_PROTOCOL", "required"),
            ("TRUSTED_PROXIES", "10.0.0.0/8"),
        ]);
        let changes = after.changes(&before);
        let deferred = changes.defer_fixed_options(&mut config, &current);
        assert_eq!(deferred, ["listen.http", "workers"]);
        assert_eq!((config.workers, config.listen.http), (current.workers, None));
        assert!(config.listen.proxy_protocol && config.upstream.url().host == "two");
        assert!(changes.has_any_of(&["upstream."]) && !changes.has_any_of(&["auth.", "timeouts."]));
        let (_, again) = read(&[("UPSTREAM_URL", "http://two"), ("WORKERS", "7")]);
        let again = again.changes(&after.retain_previous(&deferred, &before));
        assert_eq!(
            again.keys().collect::<Vec<_>>(),
            ["listen.proxy_protocol", "trusted_proxies", "workers"],
            "the deferred change is still pending"
        );
    }

    #[test]
    fn changed_file_contents_are_changes() {
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
    fn changed_secrets_of_issuers_are_changes() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for (name, text) in [("one", "1"), ("two", "2"), ("ca", "3"), ("keys", "4")] {
            std::fs::write(at(name), text.repeat(40)).expect("written");
        }
        let of = |issuer: &str, keys: &str| format!("{{issuer: {issuer}, audiences: a, users: '*', {keys}}}");
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
        assert_eq!(before.files(), ["one", "two", "ca"].map(at), "key sets are watched separately");
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
