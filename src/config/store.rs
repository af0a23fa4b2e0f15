//! Reads the options of the token store. Connects to no server.

use std::time::Duration;

use crate::base::secret::Secret;
use crate::config::choices::{StoreMode, StoreType};
use crate::config::options::{Key, STORE};
use crate::config::reader::Reader;
use crate::config::{RedisNode, RedisOptions, RedisTopology, StoreKind, StoreOptions};

/// The longest time that a request waits for the store, even if `store.timeout` is longer.
const MAX_TIMEOUT: Duration = Duration::from_secs(10);

impl Reader<'_> {
    pub(super) fn store(&mut self) -> Option<StoreOptions> {
        let timeout = self.get(&STORE.timeout);
        let max_stale = self.get(&STORE.max_stale);
        let kind = self.get(&STORE.kind)?;
        if kind != StoreType::File {
            self.reject_set(&[STORE.path.key], "has no effect without store.kind=file");
        }
        if kind != StoreType::Redis {
            let keys = [
                STORE.urls.key,
                STORE.sentinel_master.key,
                STORE.username.key,
                STORE.password.key,
                STORE.sentinel_username.key,
                STORE.sentinel_password.key,
                STORE.ca_file.key,
                STORE.client_cert_file.key,
                STORE.client_key_file.key,
            ];
            self.reject_set(&keys, "has no effect without store.kind=redis");
        }
        let kind = match (kind, self.get(&STORE.path)) {
            (StoreType::Memory, _) => Some(StoreKind::Memory),
            (StoreType::Redis, _) => self.redis().map(Box::new).map(StoreKind::Redis),
            (StoreType::File, Some(path)) => Some(StoreKind::File(path)),
            (StoreType::File, None) => {
                self.missing(STORE.path.key, "is required with store.kind=file: the file for the tokens")
            }
        };
        Some(StoreOptions { kind: kind?, timeout: timeout?.min(MAX_TIMEOUT), max_stale: max_stale? })
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
        if !matches!(topology, RedisTopology::Sentinel { .. }) {
            let keys = [STORE.sentinel_username.key, STORE.sentinel_password.key];
            self.reject_set(&keys, "has no effect without store.mode=sentinel");
        }
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

    fn nodes(&mut self) -> Option<Vec<RedisNode>> {
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
        if mode != StoreMode::Sentinel {
            self.reject_set(&[STORE.sentinel_master.key], "has no effect without store.mode=sentinel");
        }
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
fn node(url: &str) -> Result<RedisNode, String> {
    const FORM: &str = "must be redis://host:port or rediss://host:port";
    // SECURITY: checked first, because the other errors show the URL, which here contains a password.
    if url.contains('@') {
        return Err(format!("{FORM}, without a user name or password: set store.username and store.password"));
    }
    let (scheme, rest) = url.split_once("://").ok_or_else(|| format!("{FORM}, not {url:?}"))?;
    let tls = match scheme {
        "redis" => false,
        "rediss" => true,
        _ => return Err(format!("{FORM}, not {url:?}")),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#']) {
        return Err(format!("{FORM}, without a path: set store.database"));
    }
    let authority: http::uri::Authority = rest.parse().map_err(|_| format!("{FORM}, not {url:?}"))?;
    let bare = authority.as_str() == authority.host();
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.is_empty() || authority.port_u16().is_some() == bare {
        return Err(format!("{FORM}, not {url:?}"));
    }
    Ok(RedisNode { tls, host, port: authority.port_u16().unwrap_or(6379) })
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
        let node = |host: &str, port| RedisNode { tls: true, host: host.into(), port };
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
        for urls in
            ["redis://a,redis://b", "http://a", "redis://a/3", "a:1", "redis://", "redis://a:x", "redis://a,rediss://b"]
        {
            let error = with(&[("KIND", "redis"), ("URLS", urls)]).expect_err(urls);
            assert!(error.contains("store.urls: "), "{error}");
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
