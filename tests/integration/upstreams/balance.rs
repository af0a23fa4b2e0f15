//! Load balancing.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::upstream::{Upstream, respond};
use crate::support::wait_until;

use super::{endpoint, gateway, post};

#[test]
fn each_backend_receives_requests_with_its_own_host() {
    let backends: Vec<_> = (0..3).map(|_| Upstream::start()).collect();
    let addresses: Vec<_> = backends.iter().map(Upstream::address).collect();
    let gateway = gateway(&addresses, &[]);
    let token = gateway.token();
    for number in 0..60 {
        assert_eq!(post(&gateway, &token, &number.to_string()).status, 200);
    }
    for backend in &backends {
        let log = backend.log();
        assert!(log.len() >= 5, "of 60 requests one of three got {}", log.len());
        assert!(log.iter().all(|seen| seen.header("host") == backend.address().to_string()));
        let told = endpoint(&gateway, backend.address());
        assert_eq!((told["state"].as_str(), told["answers"].as_u64()), (Some("usable"), Some(log.len() as u64)));
        assert_eq!(told["authority"], backend.address().to_string());
    }
    assert_eq!(backends.iter().map(|backend| backend.log().len()).sum::<usize>(), 60);
}

#[test]
fn a_slow_backend_gets_fewer_requests() {
    static HELD: AtomicBool = AtomicBool::new(true);
    let slow = Upstream::with_behaviour(|_, stream| {
        wait_until("it may respond", || !HELD.load(Ordering::SeqCst));
        respond(stream, 200, "{}")
    });
    let quick = Upstream::start();
    let gateway = gateway(&[slow.address(), quick.address()], &[]);
    let token = gateway.token();
    let headers = [super::JSON, ("x-api-key", &*token)];
    // Until the slow backend holds one of them.
    let mut clients = Vec::new();
    while slow.log().is_empty() {
        let mut client = gateway.client();
        let before = quick.log().len();
        client.write_request("POST /timbr/api/x", &headers, b"{}");
        clients.push(client);
        wait_until("the request has arrived", || slow.log().len() == 1 || quick.log().len() > before);
    }
    let told = endpoint(&gateway, slow.address());
    assert_eq!((told["in_flight"].as_u64(), told["open"].as_u64()), (Some(1), Some(1)), "{told}");
    for number in 0..40 {
        assert_eq!(post(&gateway, &token, &number.to_string()).status, 200);
    }
    assert_eq!(slow.log().len(), 1, "the other one had fewer requests each time");
    HELD.store(false, Ordering::SeqCst);
    for client in &mut clients {
        assert_eq!(client.read_response().status, 200);
    }
}
