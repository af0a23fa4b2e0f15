//! Redis servers for a test, on free ports: one server, one with a follower and Sentinels, or a cluster.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use redis::{Client, Connection, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};
use socket2::{Domain, Socket, Type};

use crate::support::pki::Pki;
use crate::support::wait_until;

/// A running server. Killed when dropped.
pub struct Redis {
    child: Option<Child>,
    arguments: Vec<String>,
    pub port: u16,
    /// The port for clients that use TLS, besides `port`, by which tests control the server.
    tls: Option<(u16, Arc<Pki>)>,
    /// The ports of a killed server, which no other server may get: it would be taken for this one.
    reserved: Vec<Socket>,
    _folder: tempfile::TempDir,
}

/// A certificate authority that has issued a certificate for servers on this machine.
pub fn server_pki() -> Arc<Pki> {
    let pki = Pki::new();
    pki.issue_as("server", &["localhost", "127.0.0.1"]);
    Arc::new(pki)
}

/// The options of a server or Sentinel that uses TLS for clients and for its peers.
fn tls_options(port: u16, pki: &Pki) -> Vec<(&'static str, String)> {
    let file = |name: &str| pki.folder().join(name).to_str().expect("text").to_owned();
    vec![
        ("tls-port", port.to_string()),
        ("tls-cert-file", file("server.crt")),
        ("tls-key-file", file("server.key")),
        ("tls-ca-cert-file", pki.ca_file().to_str().expect("text").to_owned()),
        ("tls-auth-clients", "no".to_owned()),
        ("tls-replication", "yes".to_owned()),
    ]
}

impl Redis {
    /// A server without persistence.
    pub fn start() -> Redis {
        Redis::start_with(&[])
    }

    /// With more options, such as `["--requirepass", "x"]`.
    pub fn start_with(options: &[&str]) -> Redis {
        Redis::start_for(None, options)
    }

    /// With TLS for its clients, if there is an authority.
    pub fn start_for(pki: Option<&Arc<Pki>>, options: &[&str]) -> Redis {
        let redis = Redis::launch_for(pki, options);
        wait_until("redis-server responds", || redis.try_connect().is_some());
        redis
    }

    /// Does not wait until the server responds: it may require a password.
    pub fn launch(options: &[&str]) -> Redis {
        Redis::launch_for(None, options)
    }

    fn launch_for(pki: Option<&Arc<Pki>>, options: &[&str]) -> Redis {
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
        let tls = pki.map(|pki| (free_port(), Arc::clone(pki)));
        for (name, value) in tls.iter().flat_map(|(port, pki)| tls_options(*port, pki)) {
            arguments.extend([format!("--{name}"), value]);
        }
        let mut redis = Redis { child: None, arguments, port, tls, reserved: Vec::new(), _folder: folder };
        redis.run();
        redis
    }

    fn run(&mut self) {
        self.reserved.clear();
        self.child = Some(spawn(&self.arguments));
    }

    pub fn url(&self) -> String {
        match &self.tls {
            Some((port, _)) => format!("rediss://localhost:{port}"),
            None => format!("redis://127.0.0.1:{}", self.port),
        }
    }

    /// The port for its clients and its peers.
    pub fn client_port(&self) -> u16 {
        self.tls.as_ref().map_or(self.port, |(port, _)| *port)
    }

    /// The authority of its certificate, if it uses TLS.
    pub fn pki(&self) -> Option<&Pki> {
        self.tls.as_ref().map(|(_, pki)| &**pki)
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
            self.reserved = [self.port, self.client_port()].into_iter().filter_map(|port| reserve(port).ok()).collect();
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

/// Binds a port on which connections are still refused.
fn reserve(port: u16) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // The port has connections that have just been closed.
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    socket.set_reuse_address(false)?;
    Ok(socket)
}

/// A primary server with a follower, and three Sentinels that monitor them.
pub struct Sentinels {
    pub servers: Vec<Redis>,
    sentinels: Vec<Redis>,
}

impl Sentinels {
    pub fn start() -> Sentinels {
        Sentinels::start_for(None)
    }

    pub fn start_for(pki: Option<&Arc<Pki>>) -> Sentinels {
        let first = Redis::start_for(pki, &[]);
        let port = first.client_port();
        let second = Redis::start_for(pki, &["--replicaof", "127.0.0.1", &port.to_string()]);
        wait_until("the follower replicates", || {
            second.command::<String>(&["INFO", "replication"]).contains("master_link_status:up")
        });
        let sentinels: Vec<_> = (0..3).map(|_| sentinel(pki, port)).collect();
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

    /// The position of the primary server, according to the Sentinels.
    pub fn primary(&self) -> usize {
        let address: Vec<String> = self.sentinels[0].command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"]);
        let port: u16 = address[1].parse().expect("a port");
        self.servers.iter().position(|server| server.client_port() == port).expect("one of them")
    }

    /// Restarts the primary server without its data. The Sentinels do not notice it, as it is too short.
    pub fn restart_primary(&mut self) {
        for sentinel in &self.sentinels {
            let _: String = sentinel.command(&["SENTINEL", "SET", "main", "down-after-milliseconds", "60000"]);
        }
        let primary = self.primary();
        self.servers[primary].restart();
    }
}

fn sentinel(pki: Option<&Arc<Pki>>, primary: u16) -> Redis {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sentinel.conf");
    let port = free_port();
    let tls = pki.map(|pki| (free_port(), Arc::clone(pki)));
    let dir = folder.path().display();
    let mut text = format!("port {port}\nbind 127.0.0.1\ndir {dir}\n");
    for (name, value) in tls.iter().flat_map(|(port, pki)| tls_options(*port, pki)) {
        text += &format!("{name} {value}\n");
    }
    text += &format!(
        "sentinel monitor main 127.0.0.1 {primary} 2\nsentinel down-after-milliseconds main 500\n\
         sentinel failover-timeout main 3000\n"
    );
    std::fs::write(&file, text).expect("written");
    let arguments = vec![file.to_str().expect("text").to_owned(), "--sentinel".to_owned()];
    let mut sentinel = Redis { child: None, arguments, port, tls, reserved: Vec::new(), _folder: folder };
    sentinel.run();
    wait_until("a Sentinel responds", || sentinel.try_connect().is_some());
    sentinel
}

/// Three nodes that share all slots.
pub struct Cluster(pub Vec<Redis>);

/// The first and the last slot of each node.
const SLOTS: [(u16, u16); 3] = [(0, 5461), (5462, 10_922), (10_923, 16_383)];

impl Cluster {
    pub fn start() -> Cluster {
        Cluster::start_for(None)
    }

    pub fn start_for(pki: Option<&Arc<Pki>>) -> Cluster {
        let tls = if pki.is_some() { "yes" } else { "no" };
        let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--tls-cluster", tls];
        let servers: Vec<_> = SLOTS.iter().map(|_| Redis::start_for(pki, &options)).collect();
        for (server, (first, last)) in servers.iter().zip(SLOTS) {
            let _: String = server.command(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
        }
        for server in &servers[1..] {
            let port = server.client_port().to_string();
            let _: String = servers[0].command(&["CLUSTER", "MEET", "127.0.0.1", &port]);
        }
        let cluster = Cluster(servers);
        cluster.wait_until_complete();
        cluster
    }

    fn wait_until_complete(&self) {
        wait_until("the cluster is complete", || {
            self.0.iter().all(|server| {
                let info: String = server.command(&["CLUSTER", "INFO"]);
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
            })
        });
    }

    pub fn urls(&self) -> String {
        self.0.iter().map(Redis::url).collect::<Vec<_>>().join(",")
    }

    /// The node that has this key.
    pub fn node_of(&self, key: &str) -> &Redis {
        let slot: u16 = self.0[0].command(&["CLUSTER", "KEYSLOT", key]);
        let node = SLOTS.iter().position(|(_, last)| slot <= *last).expect("all slots have a node");
        &self.0[node]
    }

    /// Restarts all nodes without their data.
    pub fn restart(&mut self) {
        self.0.iter_mut().for_each(Redis::restart);
        self.wait_until_complete();
    }
}
