//! Bytes of one client connection to the whole gateway with a backend. Nothing may panic, and no request may reach the
//! backend without the valid key.

#![no_main]

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use timbr_gateway::admission::Admission;
use timbr_gateway::auth::Auth;
use timbr_gateway::base::clock::Clock;
use timbr_gateway::base::current::Current;
use timbr_gateway::config::{Sources, load};
use timbr_gateway::downstream::reaper::Reaper;
use timbr_gateway::downstream::{Service, ServingConfig, serve};
use timbr_gateway::gateway::Gateway;
use timbr_gateway::gateway::recent_rejections::RecentRejections;
use timbr_gateway::observability::metrics::Metrics;
use timbr_gateway::observability::queries::QueryJournal;
use timbr_gateway::upstream::{Backends, UpstreamClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;
use tokio::time::timeout;

/// The only valid key, and its hash. No other text contains it, so input that contains it may be forwarded.
const KEY: &str = "k0";
const KEY_FILE: &str = "alice:d1a5ac9a015fac2ef7b341673635512a1511f41fe37d111b267f039eec5d4f58\n";

/// Time without data after which the client closes. Everything runs on one thread, so no data is in transit then.
const QUIET_TIMEOUT: Duration = Duration::from_millis(4);

struct Fixture {
    runtime: Runtime,
    local: LocalSet,
    service: Rc<Service>,
    reaper: Rc<Reaper>,
    listener: TcpListener,
    address: SocketAddr,
    arrived: Rc<RefCell<Vec<u8>>>,
}

thread_local!(static FIXTURE: Fixture = Fixture::new());

impl Fixture {
    fn new() -> Fixture {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let local = LocalSet::new();
        let arrived = Rc::<RefCell<Vec<u8>>>::default();
        let (listener, backend) = local.block_on(&runtime, async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
            let backend = TcpListener::bind("127.0.0.1:0").await.expect("bound");
            let address = backend.local_addr().expect("an address");
            tokio::task::spawn_local(run_backend(backend, Rc::clone(&arrived)));
            (listener, address)
        });
        let keys = std::env::temp_dir().join(format!("timbr-gateway-fuzz-{}.keys", std::process::id()));
        std::fs::write(&keys, KEY_FILE).expect("written");
        let variable = |name: &str, value: String| (name.into(), value.into());
        let environment = vec![
            variable("API_AUTH_SALT", "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=".to_owned()),
            variable("TIMBR_GATEWAY_UPSTREAM_URL", format!("http://{backend}")),
            variable("TIMBR_GATEWAY_TOKENS_KEYS_FILE", keys.display().to_string()),
            variable("TIMBR_GATEWAY_TOKENS_FOREIGN", "reject".to_owned()),
            variable("TIMBR_GATEWAY_LIMITS_FAILURES_PER_ADDRESS", "0".to_owned()),
        ];
        let (config, _) = load(&Sources { environment, ..Sources::default() }).expect("valid");
        let auth = Arc::new(Auth::new(&config, &Clock::system()).expect("loaded"));
        let backends = Backends::new(config.upstream.clone(), vec![None], 1);
        // It starts tasks.
        let upstream = local.block_on(&runtime, async { UpstreamClient::new(backends, 0, Arc::default()) });
        let metrics = Arc::<Metrics>::default();
        let admission = Arc::new(Admission::new(config.limits, &[], Vec::new(), Arc::clone(&metrics)));
        let rejections = RecentRejections::new(1).recorder(0);
        let queries = QueryJournal::new(1, metrics.queries.clone()).recorder(0);
        let clients = vec![upstream];
        let gateway = Rc::new(Gateway::new(&config, auth, clients, Arc::clone(&admission), rejections, queries));
        let config = Arc::new(config);
        let serving = ServingConfig { gateway, config: Arc::clone(&config), admission };
        let service = Service { serving: Current::new(Rc::new(serving)), tls: None };
        let address = listener.local_addr().expect("an address");
        let reaper = Rc::new(Reaper::new(config.timeouts, 1, metrics));
        Fixture { runtime, local, service: Rc::new(service), reaper, listener, address, arrived }
    }

    /// Serves one connection whose client sends these bytes and then closes.
    async fn run_connection(&self, bytes: &[u8]) {
        let mut client = TcpStream::connect(self.address).await.expect("connected");
        let (stream, peer) = self.listener.accept().await.expect("accepted");
        let admission = Arc::clone(&self.service.serving.get().admission);
        let permit = admission.admit_connection(peer.ip(), false, || false).expect("one connection at a time");
        let serving = serve(Rc::clone(&self.service), stream, peer, self.reaper.register(permit));
        let served = tokio::task::spawn_local(serving);
        let (mut reader, mut writer) = client.split();
        let mut responses = vec![0; 64 * 1024];
        let writing = async {
            let _ = writer.write_all(bytes).await;
            writer
        };
        let reading =
            async { while matches!(timeout(QUIET_TIMEOUT, reader.read(&mut responses)).await, Ok(Ok(1..))) {} };
        let (mut writer, ()) = (writing.await, reading.await);
        let _ = writer.shutdown().await;
        drop(client);
        // The gateway waits for the rest of a rejected body, and for the backend: both end soon after the client.
        match timeout(Duration::from_secs(5), served).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("the connection's task failed: {error}"),
            Err(_) => panic!("the connection did not end after its client closed"),
        }
        // Wait for data in transit to the backend: it belongs to this connection, not to the next one.
        loop {
            let before = self.arrived.borrow().len();
            tokio::time::sleep(Duration::from_millis(1)).await;
            if self.arrived.borrow().len() == before {
                return;
            }
        }
    }
}

/// A backend that records all input and sends a response for each read.
async fn run_backend(listener: TcpListener, arrived: Rc<RefCell<Vec<u8>>>) {
    loop {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        let arrived = Rc::clone(&arrived);
        tokio::task::spawn_local(async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                arrived.borrow_mut().extend_from_slice(&buffer[..count]);
                let response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
                if stream.write_all(response).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn contains(text: &[u8], part: &str) -> bool {
    text.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part.as_bytes()))
}

fuzz_target!(|data: &[u8]| {
    FIXTURE.with(|fixture| {
        fixture.arrived.borrow_mut().clear();
        fixture.local.block_on(&fixture.runtime, fixture.run_connection(data));
        let arrived = fixture.arrived.borrow();
        if !arrived.is_empty() {
            assert!(contains(data, KEY), "a request without the key: {}", arrived.escape_ascii());
            assert!(contains(&arrived, "x-forwarded-user: alice\r\n"), "{}", arrived.escape_ascii());
            assert!(!contains(&arrived, "transfer-encoding: chunked\r\ncontent-length"), "two lengths");
        }
    });
});
