//! Redis servers for a test, on free ports: one server, one with a follower and Sentinels, or a cluster.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use redis::{Client, Connection, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};

use crate::support::wait_until;

/// A running server. Killed when dropped.
pub struct Redis {
    child: Option<Child>,
    arguments: Vec<String>,
    pub port: u16,
    _folder: tempfile::TempDir,
}

impl Redis {
    /// A server without persistence.
    pub fn start() -> Redis {
        Redis::start_with(&[])
    }

    /// With more options, such as `["--requirepass", "x"]`.
    pub fn start_with(options: &[&str]) -> Redis {
        let redis = Redis::launch(options);
        wait_until("redis-server responds", || redis.try_connect().is_some());
        redis
    }

    /// Does not wait until the server responds: it may require a password or TLS.
    pub fn launch(options: &[&str]) -> Redis {
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port();
        let dir = folder.path().to_str().expect("text").to_owned();
        let mut arguments: Vec<String> = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", &dir]
            .iter()
            .map(ToString::to_string)
            .collect();
        if !options.contains(&"--port") {
            arguments.extend(["--port".to_owned(), port.to_string()]);
        }
        arguments.extend(options.iter().map(ToString::to_string));
        let mut redis = Redis { child: None, arguments, port, _folder: folder };
        redis.run();
        redis
    }

    fn run(&mut self) {
        self.child = Some(spawn(&self.arguments));
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// A connection as the default user.
    pub fn connect(&self) -> Connection {
        self.try_connect().expect("it responds")
    }

    fn try_connect(&self) -> Option<Connection> {
        let mut connection = connection_to(self.port)?;
        let response: Result<String, _> = redis::cmd("PING").query(&mut connection);
        response.is_ok().then_some(connection)
    }

    /// The result of a command.
    pub fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut self.connect()).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// Kills the server.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Restarts the server on the same port, without its data.
    pub fn restart(&mut self) {
        self.kill();
        self.run();
        wait_until("redis-server responds again", || self.try_connect().is_some());
    }

    /// SIGSTOP: connections stay open without responses.
    pub fn hang(&self) {
        self.signal("-STOP");
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let child = self.child.as_ref().expect("it runs");
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// All keys and values, as in a dump.
    pub fn everything(&self) -> Vec<u8> {
        let mut connection = self.connect();
        let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query(&mut connection).expect("keys");
        let mut all = Vec::new();
        for key in keys {
            let kind: String = redis::cmd("TYPE").arg(&key).query(&mut connection).expect("a type");
            all.extend(&key);
            let value: redis::Value = match kind.as_str() {
                "string" => redis::cmd("GET").arg(&key).query(&mut connection),
                "hash" => redis::cmd("HGETALL").arg(&key).query(&mut connection),
                "zset" => redis::cmd("ZRANGE").arg(&key).arg((0, -1, "WITHSCORES")).query(&mut connection),
                other => panic!("a key of type {other}"),
            }
            .expect("a value");
            flatten(&value, &mut all);
        }
        all
    }
}

fn flatten(value: &redis::Value, all: &mut Vec<u8>) {
    match value {
        redis::Value::BulkString(bytes) => all.extend(bytes),
        redis::Value::Array(items) => items.iter().for_each(|item| flatten(item, all)),
        other => all.extend(format!("{other:?}").bytes()),
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if self.child.is_some() {
            // A stopped process would not exit.
            self.resume();
        }
        self.kill();
    }
}

fn spawn(arguments: &[String]) -> Child {
    // Such as the path of a valkey-server.
    let program = std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start redis-server ({error}); `tests/servers` installs it"))
}

fn connection_to(port: u16) -> Option<Connection> {
    let info: ConnectionInfo = ("127.0.0.1", port).into_connection_info().expect("an address");
    let info = info.set_redis_settings(RedisConnectionInfo::default().set_skip_set_lib_name());
    Client::open(info).expect("a client").get_connection_with_timeout(crate::support::TIMEOUT).ok()
}

/// A free port.
pub fn free_port() -> u16 {
    // Cluster nodes also listen on this port + 10000.
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = listener.local_addr().expect("an address").port();
        if port < 55_000 && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok() {
            return port;
        }
    }
}

/// A primary server with a follower, and three Sentinels that monitor them.
pub struct Sentinels {
    pub servers: Vec<Redis>,
    sentinels: Vec<Redis>,
}

impl Sentinels {
    pub fn start() -> Sentinels {
        let first = Redis::start();
        let port = first.port.to_string();
        let second = Redis::start_with(&["--replicaof", "127.0.0.1", &port]);
        wait_until("the follower replicates", || {
            second.command::<String>(&["INFO", "replication"]).contains("master_link_status:up")
        });
        let sentinels: Vec<_> = (0..3).map(|_| sentinel(first.port)).collect();
        wait_until("the Sentinels know each other and the follower", || {
            sentinels.iter().all(|sentinel| {
                let known: Vec<Vec<String>> = sentinel.command(&["SENTINEL", "SENTINELS", "main"]);
                let followers: Vec<Vec<String>> = sentinel.command(&["SENTINEL", "REPLICAS", "main"]);
                known.len() == 2 && followers.len() == 1
            })
        });
        Sentinels { servers: vec![first, second], sentinels }
    }

    pub fn urls(&self) -> String {
        self.sentinels.iter().map(Redis::url).collect::<Vec<_>>().join(",")
    }

    /// Makes the follower the primary server, with an orderly failover.
    pub fn fail_over(&self) {
        let before = self.primary();
        let _: String = self.sentinels[0].command(&["SENTINEL", "FAILOVER", "main"]);
        wait_until("the follower has become the primary server", || self.primary() != before);
    }

    /// The port of the primary server, according to the Sentinels.
    pub fn primary(&self) -> u16 {
        let address: Vec<String> = self.sentinels[0].command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"]);
        address[1].parse().expect("a port")
    }
}

fn sentinel(primary: u16) -> Redis {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sentinel.conf");
    let port = free_port();
    let dir = folder.path().display();
    let text = format!(
        "port {port}\nbind 127.0.0.1\ndir {dir}\nsentinel monitor main 127.0.0.1 {primary} 2\n\
         sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n"
    );
    std::fs::write(&file, text).expect("written");
    let arguments = vec![file.to_str().expect("text").to_owned(), "--sentinel".to_owned()];
    let mut sentinel = Redis { child: None, arguments, port, _folder: folder };
    sentinel.run();
    wait_until("a Sentinel responds", || sentinel.try_connect().is_some());
    sentinel
}

/// Three nodes that share all slots.
pub struct Cluster(pub Vec<Redis>);

impl Cluster {
    pub fn start() -> Cluster {
        let servers: Vec<_> = (0..3)
            .map(|_| Redis::start_with(&["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]))
            .collect();
        for (server, slots) in servers.iter().zip([("0", "5461"), ("5462", "10922"), ("10923", "16383")]) {
            let _: String = server.command(&["CLUSTER", "ADDSLOTSRANGE", slots.0, slots.1]);
        }
        for server in &servers[1..] {
            let _: String = servers[0].command(&["CLUSTER", "MEET", "127.0.0.1", &server.port.to_string()]);
        }
        wait_until("the cluster is complete", || {
            servers.iter().all(|server| {
                let info: String = server.command(&["CLUSTER", "INFO"]);
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
            })
        });
        Cluster(servers)
    }

    pub fn urls(&self) -> String {
        self.0.iter().map(Redis::url).collect::<Vec<_>>().join(",")
    }
}
