//! Token stores of each kind, opened like replicas.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use timbr_gateway::base::clock::Clock;
use timbr_gateway::base::secret::Secret;
use timbr_gateway::base::user_name::UserName;
use timbr_gateway::config::{Sources, load};
use timbr_gateway::observability::metrics::StoreMetrics;
use timbr_gateway::store::{
    CredentialFailure, FetchedToken, KeyNumber, LoginId, NewToken, PRIMARY_KEY, RunningDriver, Seed, Store,
    TokenBinding, TokenId, Unavailable,
};

use crate::support::bearer::SALT;
use crate::support::gateway::Gateway;
use crate::support::pki::Pki;
use crate::support::redis::{Cluster, Redis, Sentinels, server_pki};
use crate::support::upstream::Upstream;
use crate::support::wait_until;

/// The servers or files of a store. Removed when dropped.
pub enum StoreFixture {
    Memory,
    File(tempfile::TempDir),
    Redis(Redis),
    Sentinels(Sentinels),
    Cluster(Cluster),
}

impl StoreFixture {
    /// One store of each kind.
    pub fn all() -> Vec<StoreFixture> {
        let folder = tempfile::tempdir().expect("a folder");
        vec![
            StoreFixture::Memory,
            StoreFixture::File(folder),
            StoreFixture::Redis(Redis::start()),
            StoreFixture::Redis(Redis::start_for(Some(&server_pki()), &[])),
            StoreFixture::Sentinels(Sentinels::start()),
            StoreFixture::Cluster(Cluster::start()),
        ]
    }

    /// The Redis servers that accept writes.
    pub fn servers(&self) -> Vec<&Redis> {
        match self {
            StoreFixture::Memory | StoreFixture::File(_) => vec![],
            StoreFixture::Redis(server) => vec![server],
            StoreFixture::Sentinels(all) => vec![&all.servers[all.primary()]],
            StoreFixture::Cluster(all) => all.0.iter().collect(),
        }
    }

    /// The Redis server that has this key.
    pub fn server_of(&self, key: &str) -> &Redis {
        match self {
            StoreFixture::Cluster(all) => all.node_of(key),
            other => other.servers()[0],
        }
    }

    /// The names of all keys that match.
    pub fn keys(&self, pattern: &str) -> Vec<String> {
        self.servers().iter().flat_map(|server| server.command::<Vec<String>>(&["KEYS", pattern])).collect()
    }

    /// Deletes the keys that match, as an eviction or a loss of data does. The connections stay open.
    pub fn lose_keys(&self, pattern: &str) {
        for key in self.keys(pattern) {
            let _: u64 = self.server_of(&key).command(&["DEL", &key]);
        }
    }

    /// Writes a value without an expiry.
    pub fn set(&self, key: &str, value: &[u8]) {
        let mut connection = self.server_of(key).connect();
        let _: () = ::redis::cmd("SET").arg((key, value)).query(&mut connection).expect("set");
    }

    /// Sends a command to each server.
    pub fn command_all(&self, words: &[&str]) {
        for server in self.servers() {
            let _: ::redis::Value = server.command(words);
        }
    }

    /// Restarts the Redis servers without their data.
    pub fn restart_empty(&mut self) {
        match self {
            StoreFixture::Memory | StoreFixture::File(_) => {}
            StoreFixture::Redis(server) => server.restart(),
            StoreFixture::Sentinels(all) => all.restart_primary(),
            StoreFixture::Cluster(all) => all.restart(),
        }
    }

    /// The authority of the servers' certificates, if they use TLS.
    fn pki(&self) -> Option<&Pki> {
        match self {
            StoreFixture::Memory | StoreFixture::File(_) => None,
            StoreFixture::Redis(server) => server.pki(),
            StoreFixture::Sentinels(all) => all.servers[0].pki(),
            StoreFixture::Cluster(all) => all.0[0].pki(),
        }
    }

    pub fn name(&self) -> &'static str {
        match (self, self.pki().is_some()) {
            (StoreFixture::Memory, _) => "memory",
            (StoreFixture::File(_), _) => "file",
            (StoreFixture::Redis(_), false) => "redis",
            (StoreFixture::Redis(_), true) => "redis over TLS",
            (StoreFixture::Sentinels(_), false) => "sentinel",
            (StoreFixture::Sentinels(_), true) => "sentinel over TLS",
            (StoreFixture::Cluster(_), false) => "cluster",
            (StoreFixture::Cluster(_), true) => "cluster over TLS",
        }
    }

    /// Returns whether several replicas can share the store.
    pub fn is_shared(&self) -> bool {
        !matches!(self, StoreFixture::Memory | StoreFixture::File(_))
    }

    pub fn path(&self) -> PathBuf {
        let StoreFixture::File(folder) = self else { panic!("{} has no file", self.name()) };
        folder.path().join("tokens")
    }

    /// The options for this store, as environment variables without the prefix `TIMBR_GATEWAY_`.
    pub fn options(&self) -> Vec<(&'static str, String)> {
        let (urls, mode) = match self {
            StoreFixture::Memory => return vec![],
            StoreFixture::File(_) => {
                return vec![("STORE_KIND", "file".into()), ("STORE_PATH", self.path().to_str().expect("text").into())];
            }
            StoreFixture::Redis(server) => (server.url(), &[][..]),
            StoreFixture::Sentinels(servers) => {
                (servers.urls(), &[("STORE_MODE", "sentinel"), ("STORE_SENTINEL_MASTER", "main")][..])
            }
            StoreFixture::Cluster(servers) => (servers.urls(), &[("STORE_MODE", "cluster")][..]),
        };
        // Many tests run at the same time on few cores.
        let mut options =
            vec![("STORE_KIND", "redis".to_owned()), ("STORE_URLS", urls), ("STORE_TIMEOUT", "2s".to_owned())];
        options.extend(mode.iter().map(|(name, value)| (*name, (*value).to_owned())));
        options.extend(self.pki().map(|pki| ("STORE_CA_FILE", pki.ca_file().to_str().expect("text").to_owned())));
        options
    }

    /// Gateways that share the store.
    pub fn gateways<const COUNT: usize>(&self, upstream: &Upstream, options: &[(&str, &str)]) -> [Gateway; COUNT] {
        let own = self.options();
        let mut all: Vec<_> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
        all.extend(options);
        let gateways = std::array::from_fn(|_| Gateway::start(upstream.address(), &all));
        for gateway in &gateways {
            wait_until("the store responds", || gateway.metric("timbr_gateway_store_up") == 1.0);
        }
        gateways
    }

    /// A replica with default options.
    pub fn open(&self) -> Replica {
        self.open_with(&[])
    }

    /// A replica with more options, which take precedence.
    pub fn open_with(&self, options: &[(&str, &str)]) -> Replica {
        let mut all: Vec<(String, String)> =
            self.options().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        all.extend(options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Replica::open(&all)
    }
}

/// An open store with its clock and runtime.
pub struct Replica {
    store: Option<Arc<Store>>,
    running: Option<RunningDriver>,
    pub clock: Clock,
    pub up: Gauge,
    runtime: tokio::runtime::Runtime,
}

impl Replica {
    fn open(options: &[(String, String)]) -> Replica {
        let mut environment = vec![
            ("API_AUTH_SALT".into(), SALT.into()),
            ("TIMBR_GATEWAY_UPSTREAM_URL".into(), "http://127.0.0.1:1".into()),
        ];
        for (name, value) in options {
            if name == "API_AUTH_SALT" {
                environment[0].1 = value.into();
            } else {
                environment.push((format!("TIMBR_GATEWAY_{name}").into(), value.into()));
            }
        }
        let (config, _) = load(&Sources { environment, ..Sources::default() }).expect("valid options");
        let clock = Clock::manual(std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs());
        let store = Arc::new(Store::new(&config, &clock).expect("a store"));
        let metrics = StoreMetrics::default();
        let up = metrics.up.clone();
        let running = store.start(&metrics, Box::new(|_: CredentialFailure| {})).expect("it starts");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let replica = Replica { store: Some(store), running, clock, up, runtime };
        wait_until("the store responds", || replica.up.get() == 1);
        replica
    }

    pub fn store(&self) -> &Store {
        self.store.as_ref().expect("it is open")
    }

    pub fn shared(&self) -> Arc<Store> {
        Arc::clone(self.store.as_ref().expect("it is open"))
    }

    /// Returns the user's token: an existing one, or a new one with this seed.
    pub fn mint(&self, user: &str, seed: u8) -> Result<TokenId, Unavailable> {
        self.mint_with_key(user, seed, None)
    }

    pub fn mint_with_key(&self, user: &str, seed: u8, key: Option<&str>) -> Result<TokenId, Unavailable> {
        let token = new_token(user, key);
        if let Some(seed) = self.store().find_seed(&token.user, &token.login, |seed| id_of(user, seed)) {
            return Ok(id_of(user, &seed));
        }
        let seed = self.block_on(self.store().insert(token, [seed; 20], |seed| id_of(user, seed)))?;
        Ok(id_of(user, &seed))
    }

    /// Finds the token in memory or in the persistent store.
    pub fn find(&self, id: &TokenId, key: KeyNumber) -> Result<FetchedToken, Unavailable> {
        match self.store().find(id) {
            Some(record) => Ok(Ok(record)),
            None => self.block_on(self.store().fetch(id, key)),
        }
    }

    /// Returns whether the token is accepted. One that the store does not have is not, but not yet rejected either.
    pub fn lives(&self, id: &TokenId) -> bool {
        self.find(id, PRIMARY_KEY).is_ok_and(|found| found.is_ok())
    }

    pub fn block_on<T>(&self, operation: impl Future<Output = T>) -> T {
        self.runtime.block_on(operation)
    }

    /// Closes the store.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        drop(self.store.take());
        let finished = self.running.take().is_none_or(|running| running.join_within(Duration::from_secs(5)));
        assert!(finished || std::thread::panicking(), "the store's thread does not end");
    }
}

pub fn new_token(user: &str, key: Option<&str>) -> NewToken {
    // Uniformly distributed, like a keyed hash.
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, user.as_bytes());
    NewToken {
        login: LoginId(*hash.as_ref().first_chunk().expect("32 bytes")),
        user: UserName::parse(user.as_bytes()).expect("valid"),
        groups: None,
        upstream_key: key.map(|key| Secret::new(key.into())),
        binding: TokenBinding([7; 8]),
        key: PRIMARY_KEY,
    }
}

pub fn id_of(user: &str, seed: &Seed) -> TokenId {
    TokenId::from_token(&[user.as_bytes(), seed].concat())
}
