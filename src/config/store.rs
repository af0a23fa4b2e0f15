//! Reads the options of the token store. Connects to no server.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use aws_lc_rs::rand;
use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, PAD};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::base::secret::Secret;
use crate::config::choices::{StoreMode, StoreType, VerifierKind};
use crate::config::options::{AUTH, Key, STORE};
use crate::config::reader::Reader;
use crate::config::transport::CertificateFiles;
use crate::config::{ServerUrl, url};

/// The longest time that a request waits for the store, even if `store.timeout` is longer.
const MAX_TIMEOUT: Duration = Duration::from_secs(10);

const INDIFFERENT_PADDING: GeneralPurposeConfig = PAD.with_decode_padding_mode(DecodePaddingMode::Indifferent);

/// A token that no key made costs one attempt for each.
const MAX_KEYS: usize = 8;

/// A key of the token store: 32 random bytes.
#[derive(Clone)]
pub struct StoreKey(Zeroizing<[u8; 32]>);

impl StoreKey {
    /// A new random key.
    pub fn random() -> StoreKey {
        let mut bytes = Zeroizing::new([0; 32]);
        rand::fill(&mut *bytes).expect("the system's random source works");
        StoreKey(bytes)
    }

    /// Accepts both alphabets of base64, with or without padding; `None` for anything but 32 bytes.
    pub fn parse(text: &str) -> Option<StoreKey> {
        let decode = |alphabet| GeneralPurpose::new(alphabet, INDIFFERENT_PADDING).decode(text).map(Zeroizing::new);
        let bytes = decode(&STANDARD).or_else(|_| decode(&URL_SAFE)).ok()?;
        bytes.as_slice().try_into().ok().map(Zeroizing::new).map(StoreKey)
    }

    /// The key that a salt stands for where its holder is trusted.
    fn from_salt(salt: &Secret) -> Option<StoreKey> {
        let salt = StoreKey::parse(salt.expose())?;
        let tag = hmac::sign(&hmac::Key::new(HMAC_SHA256, salt.bytes()), b"timbr-gateway store key 1");
        tag.as_ref().try_into().ok().map(Zeroizing::new).map(StoreKey)
    }

    /// The bytes. Use keys that are derived from them, not these.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The text that [`StoreKey::parse`] reads.
    pub fn to_text(&self) -> Secret {
        Secret::new(GeneralPurpose::new(&STANDARD, PAD).encode(self.0.as_slice()))
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreKey(…)")
    }
}

// SECURITY: in constant time.
impl PartialEq for StoreKey {
    fn eq(&self, other: &StoreKey) -> bool {
        self.0.as_slice().ct_eq(other.0.as_slice()).into()
    }
}

/// The token store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Where tokens are stored.
    pub kind: StoreKind,
    /// The keys that protect it.
    pub keys: StoreKeyOptions,
    /// Limit for a store operation during a request.
    pub timeout: Duration,
    /// How long cached tokens are accepted while the store is down.
    pub max_stale: Duration,
}

/// The keys of the store, the primary one first.
#[derive(Clone, Debug)]
pub enum StoreKeyOptions {
    /// `store.key`.
    Configured(Vec<StoreKey>),
    /// Derived from the salts, so that stored data depends on them.
    OfSalts(Vec<StoreKey>),
    /// A random key that is made at start. Only the checksums of tokens have keys that are derived from the salts.
    Random {
        /// These keys.
        checksum_keys: Vec<StoreKey>,
    },
}

/// Where tokens are stored.
#[derive(Clone, Debug)]
pub enum StoreKind {
    /// In the memory of the process.
    Memory,
    /// In the memory of the process and in a file.
    File(PathBuf),
    /// In a Redis or Valkey server that replicas share.
    Redis(Box<RedisOptions>),
}

/// How to connect to Redis or Valkey.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// What `nodes` are.
    pub topology: RedisTopology,
    /// Servers, Sentinels or some nodes of the cluster; at least one. `tls` for `rediss://`.
    pub nodes: Vec<ServerUrl>,
    /// Number of the database.
    pub database: u32,
    /// ACL user.
    pub username: Option<String>,
    /// Password of the ACL user, or of the default user.
    pub password: Option<Secret>,
    /// ACL user of the Sentinels.
    pub sentinel_username: Option<String>,
    /// Password of the Sentinels.
    pub sentinel_password: Option<Secret>,
    /// Certificate authorities; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// The client certificate of the gateway.
    pub client_certificate: Option<CertificateFiles>,
    /// Prefix of all keys.
    pub prefix: String,
}

/// Topology of the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisTopology {
    /// One server, or one address that leads to the current primary server.
    Standalone,
    /// The Sentinels know the primary server.
    Sentinel {
        /// Name of the primary server at the Sentinels.
        master: String,
    },
    /// Keys are distributed over several primary servers.
    Cluster,
}

impl Reader<'_> {
    /// `salts` have been checked, unless a problem was reported.
    pub(super) fn store(&mut self, salts: &[Secret]) -> Option<StoreOptions> {
        let timeout = self.get(&STORE.timeout);
        let max_stale = self.get(&STORE.max_stale);
        let kind = self.get(&STORE.kind)?;
        let kind = match (kind, self.get(&STORE.path)) {
            (StoreType::Memory, _) => Some(StoreKind::Memory),
            (StoreType::Redis, _) => self.redis().map(Box::new).map(StoreKind::Redis),
            (StoreType::File, Some(path)) => Some(StoreKind::File(path)),
            (StoreType::File, None) => {
                self.missing(STORE.path.key, "is required with store.kind=file: the file for the tokens")
            }
        };
        let kind = kind?;
        let keys = self.store_keys(&kind, salts)?;
        let timeout = timeout?.min(MAX_TIMEOUT);
        Some(StoreOptions { kind, keys, timeout, max_stale: max_stale? })
    }

    /// The keys of the store.
    ///
    /// SECURITY: every client holds the salt, so a store protected by it would be open to them. Only where the salt
    /// lets its holder act as every user anyway, its keys may be derived from it.
    fn store_keys(&mut self, kind: &StoreKind, salts: &[Secret]) -> Option<StoreKeyOptions> {
        let Some(text) = self.get(&STORE.key) else {
            let is_salt_holder = self.get(&AUTH.verifier)? == VerifierKind::SaltHolder;
            let keys_of_salts = salts.iter().filter_map(StoreKey::from_salt).collect();
            return match kind {
                StoreKind::Memory => Some(StoreKeyOptions::Random { checksum_keys: keys_of_salts }),
                _ if is_salt_holder => Some(StoreKeyOptions::OfSalts(keys_of_salts)),
                _ => self.missing(
                    STORE.key.key,
                    "is required with store.kind=file and redis: a secret of the gateways, which clients do not have. \
                     Create one with `timbr-gateway store key`, and set store.key_file or TIMBR_GATEWAY_STORE_KEY to the \
                     same one at all replicas",
                ),
            };
        };
        let mut keys = Vec::new();
        for (index, part) in text.expose().split(',').map(str::trim).enumerate() {
            let place = format!("value {}", index + 1);
            match StoreKey::parse(part) {
                None => self.problem(
                    STORE.key.key,
                    format!("{place} is not 32 bytes in base64. Create one with `timbr-gateway store key`"),
                ),
                Some(key) if keys.contains(&key) => self.problem(STORE.key.key, format!("{place} is a duplicate")),
                Some(key) if salts.iter().any(|salt| StoreKey::parse(salt.expose()).as_ref() == Some(&key)) => {
                    self.problem(STORE.key.key, format!("{place} is a salt, which every client has"));
                }
                Some(key) => keys.push(key),
            }
        }
        if keys.len() > MAX_KEYS {
            self.problem(STORE.key.key, format!("has {} keys; the maximum is {MAX_KEYS}", keys.len()));
        }
        Some(StoreKeyOptions::Configured(keys))
    }

    fn redis(&mut self) -> Option<RedisOptions> {
        let nodes = self.nodes();
        let topology = self.topology();
        let database = self.database(topology.as_ref());
        let prefix = self.prefix();
        let client_certificate = self.certificate(&STORE.client_cert_file, &STORE.client_key_file);
        let ca_file = self.get(&STORE.ca_file);
        let (username, password) = self.redis_login(&STORE.username, &STORE.password);
        let (sentinel_username, sentinel_password) =
            self.redis_login(&STORE.sentinel_username, &STORE.sentinel_password);
        let (nodes, topology) = (nodes?, topology?);
        if nodes.len() > 1 && topology == RedisTopology::Standalone {
            let message = "must be one address with store.mode=standalone; did you mean sentinel or cluster?";
            self.problem(STORE.urls.key, message);
        }
        let tls = nodes.iter().any(|node| node.tls);
        if tls && nodes.iter().any(|node| !node.tls) {
            self.problem(STORE.urls.key, "must be all redis:// or all rediss://");
        }
        if !tls && (ca_file.is_some() || client_certificate.is_some()) {
            let message =
                "must be rediss:// with store.ca_file or store.client_cert_file, which have no effect otherwise";
            self.problem(STORE.urls.key, message);
        }
        Some(RedisOptions {
            topology,
            nodes,
            database: database?,
            username,
            password,
            sentinel_username,
            sentinel_password,
            ca_file,
            client_certificate,
            prefix: prefix?,
        })
    }

    fn redis_login(&mut self, user: &Key<String>, password: &Key<Secret>) -> (Option<String>, Option<Secret>) {
        let login = (self.get(user), self.get(password));
        if login.0.is_some() && login.1.is_none() {
            self.problem(user.key, format!("is required together with {password}"));
        }
        login
    }

    fn nodes(&mut self) -> Option<Vec<ServerUrl>> {
        let Some(text) = self.get(&STORE.urls) else {
            return self.missing(
                STORE.urls.key,
                "is required with store.kind=redis: redis://host:port or rediss://host:port; with store.mode=sentinel \
                 the Sentinels, with cluster some of the nodes, separated by commas",
            );
        };
        let mut nodes = Vec::new();
        for url in text.split(',').map(str::trim) {
            match node(url) {
                Ok(node) => nodes.push(node),
                Err(message) => self.problem(STORE.urls.key, message),
            }
        }
        (!nodes.is_empty()).then_some(nodes)
    }

    fn topology(&mut self) -> Option<RedisTopology> {
        let mode = self.get(&STORE.mode)?;
        match (mode, self.get(&STORE.sentinel_master)) {
            (StoreMode::Standalone, _) => Some(RedisTopology::Standalone),
            (StoreMode::Cluster, _) => Some(RedisTopology::Cluster),
            (StoreMode::Sentinel, Some(master)) => Some(RedisTopology::Sentinel { master }),
            (StoreMode::Sentinel, None) => self.missing(
                STORE.sentinel_master.key,
                "is required with store.mode=sentinel: the name of the primary server at the Sentinels",
            ),
        }
    }

    fn database(&mut self, topology: Option<&RedisTopology>) -> Option<u32> {
        let database = self.get(&STORE.database)?;
        if database > 0 && topology == Some(&RedisTopology::Cluster) {
            self.problem(STORE.database.key, "must be 0 with store.mode=cluster, which has no other");
        }
        Some(database)
    }

    fn prefix(&mut self) -> Option<String> {
        let prefix = self.get(&STORE.prefix)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/".contains(c);
        // Braces would put all keys of a cluster into one slot, and `*` would match the keys of others.
        if prefix.is_empty() || prefix.len() > 64 || !prefix.chars().all(plain) {
            self.problem(STORE.prefix.key, "must be 1 to 64 letters, digits and - _ . : /");
            return None;
        }
        Some(prefix)
    }
}

/// Parses `redis://host[:port]` or `rediss://host[:port]`.
fn node(url: &str) -> Result<ServerUrl, String> {
    const FORM: &str = "must be redis://host:port or rediss://host:port";
    // SECURITY: checked first, because the other errors show the URL, which here contains a password.
    if url.contains('@') {
        return Err(format!("{FORM}, without a user name or password: set store.username and store.password"));
    }
    let node = url::parse(url, FORM, [("redis", 6379), ("rediss", 6379)])?;
    if node.target != "/" || url.contains('#') {
        return Err(format!("{FORM}, without a path: set store.database"));
    }
    Ok(node.origin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::load;

    fn with(options: &[(&str, &str)]) -> Result<StoreOptions, String> {
        let names: Vec<_> = options.iter().map(|(name, _)| format!("STORE_{name}")).collect();
        let options: Vec<_> = names.iter().zip(options).map(|(name, (_, value))| (&**name, *value)).collect();
        load("", &options).map(|config| config.store)
    }

    #[test]
    fn kinds_of_stores() {
        assert!(matches!(with(&[]).expect("valid").kind, StoreKind::Memory));
        let file = with(&[("KIND", "file"), ("PATH", "/var/lib/tokens")]).expect("valid");
        assert!(matches!(file.kind, StoreKind::File(path) if path.as_os_str() == "/var/lib/tokens"));
        let urls = ("URLS", "rediss://a:1, rediss://[::1]:2,rediss://c");
        let kind = ("KIND", "redis");
        let sentinel = with(&[kind, urls, ("MODE", "sentinel"), ("SENTINEL_MASTER", "main"), ("DATABASE", "3")]);
        let StoreKind::Redis(redis) = sentinel.expect("valid").kind else { panic!("not Redis") };
        assert_eq!(redis.topology, RedisTopology::Sentinel { master: "main".into() });
        assert_eq!(redis.database, 3);
        let node = |host: &str, port| ServerUrl { tls: true, host: host.into(), port, socket: None };
        assert_eq!(redis.nodes, [node("a", 1), node("::1", 2), node("c", 6379)]);
    }

    #[test]
    fn invalid_stores_are_reported() {
        let redis = |more: &[(&str, &str)]| {
            with(&[&[("KIND", "redis"), ("URLS", "redis://a:1")], more].concat()).expect_err("invalid")
        };
        for (error, part) in [
            (with(&[("KIND", "file")]).expect_err("no path"), "store.path: is required"),
            (with(&[("PATH", "/x")]).expect_err("no effect"), "store.path: has no effect"),
            (with(&[("URLS", "redis://a")]).expect_err("no effect"), "store.urls: has no effect"),
            (with(&[("KIND", "redis")]).expect_err("no address"), "store.urls: is required"),
            (with(&[("KIND", "sqlite")]).expect_err("unknown"), "must be one of memory, file, redis"),
            (redis(&[("MODE", "sentinel")]), "store.sentinel_master: is required"),
            (redis(&[("SENTINEL_MASTER", "x")]), "store.sentinel_master: has no effect"),
            (redis(&[("MODE", "cluster"), ("DATABASE", "1")]), "store.database: must be 0"),
            (redis(&[("USERNAME", "x")]), "store.username: is required together with store.password"),
            (redis(&[("CA_FILE", "/ca")]), "must be rediss://"),
            (redis(&[("CLIENT_CERT_FILE", "/c")]), "store.client_key_file: is required together"),
            (redis(&[("PREFIX", "{x}")]), "store.prefix: must be 1 to 64"),
            (redis(&[("SENTINEL_PASSWORD", "x")]), "has no effect without store.mode=sentinel"),
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
        for urls in [
            "redis://a,redis://b",
            "http://a",
            "redis://a/3",
            "redis://a#3",
            "a:1",
            "redis://",
            "redis://a:x",
            "redis://a,rediss://b",
        ] {
            let error = with(&[("KIND", "redis"), ("URLS", urls)]).expect_err(urls);
            assert!(error.contains("store.urls: "), "{error}");
        }
        let error = with(&[("SENTINEL_PASSWORD", "x")]).expect_err("no effect");
        assert!(error.contains("without store.kind=redis") && !error.contains("store.mode"), "one message: {error}");
    }

    #[test]
    fn a_store_outside_the_process_needs_a_key_that_clients_do_not_have() {
        let file: [(&str, &str); 2] = [("STORE_KIND", "file"), ("STORE_PATH", "/x")];
        let users = [("AUTH_VERIFIER", "users-file"), ("AUTH_USERS_FILE", "/users")];
        let keys = |more: &[&[(&str, &str)]]| {
            Ok::<_, String>(match load("", &more.concat())?.store.keys {
                StoreKeyOptions::Configured(keys) => ("configured", keys.len()),
                StoreKeyOptions::OfSalts(keys) => ("of salts", keys.len()),
                StoreKeyOptions::Random { checksum_keys } => ("random", checksum_keys.len()),
            })
        };
        assert_eq!(keys(&[&users]), Ok(("random", 1)));
        assert_eq!(keys(&[]), Ok(("random", 1)), "a reload of the salts does not change it");
        assert_eq!(keys(&[&file]), Ok(("of salts", 1)), "the holder of the salt is trusted anyway");
        assert!(keys(&[&file, &users]).expect_err("required").contains("store.key: is required"));
        let key = "Lz8/Pz8/Pz8/Pz8/Pz8/Pz8/Pz8/Pz8/Pz8/Pz8/Pz8=";
        let bare = key.trim_end_matches('=').replace('/', "_");
        let other = StoreKey::random().to_text();
        for good in [key, &bare, other.expose()] {
            assert_eq!(keys(&[&file, &users, &[("STORE_KEY", good)]]), Ok(("configured", 1)), "{good}");
        }
        let both = format!("{key}, {}", other.expose());
        assert_eq!(keys(&[&file, &users, &[("STORE_KEY", &both)]]), Ok(("configured", 2)));
        let salt = crate::config::testing::SALT;
        for (bad, part) in [
            ("abcd", "is not 32 bytes"),
            (&format!("{key},{bare}"), "value 2 is a duplicate"),
            (salt, "value 1 is a salt"),
        ] {
            let error = keys(&[&file, &users, &[("STORE_KEY", bad)]]).expect_err(bad);
            assert!(error.contains(part) && !error.contains(key), "{error}");
        }
    }

    #[test]
    fn passwords_in_urls_are_not_shown() {
        for url in ["redis://user:sekrit@x:1", "user:sekrit@x"] {
            let error = with(&[("KIND", "redis"), ("URLS", url)]).expect_err(url);
            assert!(!error.contains("sekrit") && error.contains("store.password"), "{error}");
        }
    }
}
