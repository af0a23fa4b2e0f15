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
use crate::support::pki::Pki;
use crate::support::redis::{Cluster, Redis, Sentinels, free_port};
use crate::support::wait_until;

/// The servers or files of a store. Removed when dropped.
#[expect(clippy::large_enum_variant, reason = "a test has one of them")]
pub enum StoreFixture {
    Memory,
    File(tempfile::TempDir),
    Redis(Redis),
    /// The same over TLS, at the second port.
    Tls(Redis, u16, Pki),
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
            StoreFixture::tls(),
            StoreFixture::Sentinels(Sentinels::start()),
            StoreFixture::Cluster(Cluster::start()),
        ]
    }

    fn tls() -> StoreFixture {
        let (pki, port) = (Pki::new(), free_port());
        let (certificate, key) = pki.issue("localhost");
        let files = [certificate, key, pki.ca_file()].map(|path| path.to_str().expect("text").to_owned());
        let redis = Redis::start_with(&[
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &files[0],
            "--tls-key-file",
            &files[1],
            "--tls-ca-cert-file",
            &files[2],
            "--tls-auth-clients",
            "no",
        ]);
        StoreFixture::Tls(redis, port, pki)
    }

    /// Deletes the keys that match, as an eviction or a loss of data does. The connections stay open.
    pub fn lose_keys(&self, pattern: &str) {
        let servers: Vec<&Redis> = match self {
            StoreFixture::Memory | StoreFixture::File(_) => vec![],
            StoreFixture::Redis(server) | StoreFixture::Tls(server, ..) => vec![server],
            StoreFixture::Sentinels(all) => {
                let primary = all.primary();
                all.servers.iter().filter(|server| server.port == primary).collect()
            }
            StoreFixture::Cluster(all) => all.0.iter().collect(),
        };
        for server in servers {
            for key in server.command::<Vec<String>>(&["KEYS", pattern]) {
                let _: u64 = server.command(&["DEL", &key]);
            }
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            StoreFixture::Memory => "memory",
            StoreFixture::File(_) => "file",
            StoreFixture::Redis(_) => "redis",
            StoreFixture::Tls(..) => "tls",
            StoreFixture::Sentinels(_) => "sentinel",
            StoreFixture::Cluster(_) => "cluster",
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
        let redis = |urls: String| vec![("STORE_KIND", "redis".into()), ("STORE_URLS", urls)];
        // Many tests run at the same time on few cores.
        let patient = ("STORE_TIMEOUT", "2s".to_owned());
        match self {
            StoreFixture::Memory => vec![],
            StoreFixture::File(_) => {
                vec![("STORE_KIND", "file".into()), ("STORE_PATH", self.path().to_str().expect("text").into())]
            }
            StoreFixture::Redis(server) => [redis(server.url()), vec![patient]].concat(),
            StoreFixture::Tls(_, port, pki) => [
                redis(format!("rediss://localhost:{port}")),
                vec![("STORE_CA_FILE", pki.ca_file().to_str().expect("text").into()), patient],
            ]
            .concat(),
            StoreFixture::Sentinels(servers) => [
                redis(servers.urls()),
                vec![("STORE_MODE", "sentinel".into()), ("STORE_SENTINEL_MASTER", "main".into()), patient],
            ]
            .concat(),
            StoreFixture::Cluster(servers) => {
                [redis(servers.urls()), vec![("STORE_MODE", "cluster".into()), patient]].concat()
            }
        }
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
        if let Some(seed) = self.store().find_seed(&token.login, |seed| id_of(user, seed)) {
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
        upstream_key: key.map(|key| Secret::new(key.into())),
        binding: TokenBinding([7; 8]),
        key: PRIMARY_KEY,
    }
}

pub fn id_of(user: &str, seed: &Seed) -> TokenId {
    TokenId::from_token(&[user.as_bytes(), seed].concat())
}
