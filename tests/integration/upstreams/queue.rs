//! The concurrency limit at the backend: the fair queue, its limits, and clients that leave it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::h2_client::H2Client;
use crate::support::program::{Lines, Program};
use crate::support::upstream::{Upstream, respond};
use crate::support::wait_until;

use super::JSON;

const QUERY: &str = "POST /timbr/api/x";

fn queued(gateway: &Gateway) -> f64 {
    gateway.metric("timbr_gateway_requests_queued")
}

/// Takes `pause` for each request, and records the maximum concurrency.
fn busy(pause: Duration, most: &Arc<AtomicUsize>) -> Upstream {
    let (now, most) = (AtomicUsize::new(0), Arc::clone(most));
    Upstream::with_behaviour(move |_, stream| {
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        thread::sleep(pause);
        now.fetch_sub(1, Ordering::SeqCst);
        respond(stream, 200, "{}")
    })
}

/// A client that has sent its query.
fn sent(gateway: &Gateway, token: &str) -> Client {
    gateway.begin(QUERY, &[JSON, ("x-api-key", token)], b"{}")
}

#[test]
fn queries_of_one_user_do_not_block_other_users() {
    const QUERIES: usize = 200;
    let most = Arc::<AtomicUsize>::default();
    let upstream = busy(Duration::from_millis(25), &most);
    let gateway = Gateway::start(upstream.address(), &[("UPSTREAM_REQUESTS", "4")]);
    let (alice, bob) = (gateway.token(), gateway.token_of("bob", "secret"));
    let dashboard: Vec<_> = (0..QUERIES).map(|_| sent(&gateway, &alice)).collect();
    wait_until("they wait", || queued(&gateway) > 100.0);
    let start = Instant::now();
    let before = upstream.log().len();
    assert_eq!(sent(&gateway, &bob).read_response().status, 200);
    let waited = start.elapsed();
    let of_bob = |seen: &crate::support::upstream::Recorded| seen.header("x-forwarded-user") == "bob";
    let place = upstream.log().iter().position(of_bob).expect("it arrived") - before;
    for mut client in dashboard {
        assert_eq!(client.read_response().status, 200);
    }
    println!("one query behind {QUERIES}: {place} before it, {waited:?}; {:?} for all", start.elapsed());
    assert!(place < 40, "{place} earlier requests were served first");
    assert_eq!(most.load(Ordering::SeqCst), 4, "the limit is never exceeded");
    assert_eq!((upstream.log().len(), queued(&gateway)), (QUERIES + 1, 0.0));
}

#[test]
fn requests_pass_over_full_endpoints_and_wait_while_all_are_full() {
    let (first, open_first) = Upstream::gate();
    let (second, open_second) = Upstream::gate();
    let backends = [first.address(), second.address()];
    let gateway = super::gateway(&backends, &[("UPSTREAM_REQUESTS_PER_ENDPOINT", "2")]);
    let token = gateway.token();
    let mut clients: Vec<_> = (0..6).map(|_| sent(&gateway, &token)).collect();
    wait_until("four have arrived", || (first.log().len(), second.log().len()) == (2, 2));
    wait_until("two wait", || queued(&gateway) == 2.0);
    open_first.store(true, Ordering::SeqCst);
    wait_until("the others are served", || first.log().len() == 4 && queued(&gateway) == 0.0);
    assert_eq!(second.log().len(), 2, "it is full");
    open_second.store(true, Ordering::SeqCst);
    for client in &mut clients {
        assert_eq!(client.read_response().status, 200);
    }
}

#[test]
fn an_endpoint_that_does_not_listen_keeps_no_slot() {
    let (upstream, open) = Upstream::gate();
    let backends = [upstream.address(), super::closed_port()];
    let options = [("UPSTREAM_REQUESTS_PER_ENDPOINT", "2"), ("UPSTREAM_EJECT_AFTER", "1")];
    let gateway = super::gateway(&backends, &options);
    let token = gateway.token();
    // At least the second one is sent to the closed port first, as the other endpoint has a request then.
    let mut clients: Vec<_> = (0..2).map(|_| sent(&gateway, &token)).collect();
    wait_until("they have arrived", || upstream.log().len() == 2);
    let dead = super::endpoint(&gateway, backends[1]);
    assert_eq!((dead["state"].as_str(), dead["in_flight"].as_u64()), (Some("ejected"), Some(0)), "{dead}");
    clients.push(sent(&gateway, &token));
    wait_until("it waits for the healthy endpoint", || queued(&gateway) == 1.0);
    open.store(true, Ordering::SeqCst);
    for client in &mut clients {
        assert_eq!(client.read_response().status, 200);
    }
}

/// Nothing was sent, so a request that could not connect waits for the endpoints that are full.
#[test]
fn a_request_that_cannot_connect_waits_for_a_full_endpoint() {
    let (upstream, open) = Upstream::gate();
    let backends = [upstream.address(), super::closed_port()];
    let options = [("UPSTREAM_REQUESTS_PER_ENDPOINT", "1"), ("UPSTREAM_EJECT_AFTER", "0")];
    let gateway = super::gateway(&backends, &options);
    let token = gateway.token();
    let mut clients: Vec<_> = (0..4).map(|_| sent(&gateway, &token)).collect();
    wait_until("the others wait", || upstream.log().len() == 1 && queued(&gateway) == 3.0);
    open.store(true, Ordering::SeqCst);
    for client in &mut clients {
        assert_eq!(client.read_response().status, 200);
    }
    assert_eq!((upstream.log().len(), queued(&gateway)), (4, 0.0));
}

/// The other endpoint is there, but busy: the client should try again.
#[test]
fn a_request_that_cannot_connect_and_waits_too_long_gets_queue_timeout() {
    let (upstream, open) = Upstream::gate();
    let backends = [upstream.address(), super::closed_port()];
    let options =
        [("UPSTREAM_REQUESTS_PER_ENDPOINT", "1"), ("UPSTREAM_EJECT_AFTER", "0"), ("UPSTREAM_QUEUE_TIMEOUT", "300ms")];
    let gateway = super::gateway(&backends, &options);
    let token = gateway.token();
    let mut served = sent(&gateway, &token);
    wait_until("it has arrived", || upstream.log().len() == 1);
    let late = sent(&gateway, &token).read_response();
    assert_eq!((late.status, late.reason().as_str(), late.header("retry-after")), (503, "queue_timeout", "1"));
    open.store(true, Ordering::SeqCst);
    assert_eq!((served.read_response().status, upstream.log().len()), (200, 1));
}

#[test]
fn queue_rejections_have_a_retry_after() {
    let (upstream, open) = Upstream::gate();
    let options = [("UPSTREAM_REQUESTS", "1"), ("UPSTREAM_QUEUE", "2"), ("UPSTREAM_QUEUE_TIMEOUT", "600ms")];
    let gateway = Gateway::start(upstream.address(), &options);
    let (alice, bob) = (gateway.token(), gateway.token_of("bob", "secret"));
    let mut served = sent(&gateway, &alice);
    wait_until("the request has arrived", || upstream.log().len() == 1);
    let mut waiting = sent(&gateway, &alice);
    wait_until("it waits", || queued(&gateway) == 1.0);
    let mut last = sent(&gateway, &alice);
    wait_until("it waits", || queued(&gateway) == 2.0);
    let full = sent(&gateway, &alice).read_response();
    assert_eq!((full.status, full.reason().as_str(), full.header("retry-after")), (503, "queue_full", "1"));
    // Bob has no queued request; Alice's last one is evicted.
    let start = Instant::now();
    let mut other = sent(&gateway, &bob);
    assert_eq!(last.read_response().reason(), "queue_full");
    for client in [&mut waiting, &mut other] {
        let late = client.read_response();
        assert_eq!((late.status, late.reason().as_str()), (503, "queue_timeout"));
        assert_eq!(late.header("retry-after"), "1");
    }
    assert!(start.elapsed() >= Duration::from_millis(590), "{:?}", start.elapsed());
    open.store(true, Ordering::SeqCst);
    assert_eq!(served.read_response().status, 200);
    assert_eq!(upstream.log().len(), 1, "no further request was sent");
    assert_eq!(sent(&gateway, &bob).read_response().status, 200);
}

#[test]
fn queued_requests_are_served_during_a_drain() {
    let most = Arc::<AtomicUsize>::default();
    let upstream = busy(Duration::from_millis(50), &most);
    let (gateway, token) = Gateway::with_token(upstream.address(), &[("UPSTREAM_REQUESTS", "2")]);
    let clients: Vec<_> = (0..10).map(|_| sent(&gateway, &token)).collect();
    wait_until("they wait", || queued(&gateway) > 3.0);
    gateway.begin_shutdown();
    for mut client in clients {
        assert_eq!(client.read_response().status, 200);
    }
    assert_eq!((upstream.log().len(), most.load(Ordering::SeqCst)), (10, 2));
}

/// The access log lines of queries.
fn queries(lines: &Lines) -> Vec<(u64, String)> {
    let of_queries = lines.matching(|line| line["path"] == "/timbr/api/x");
    of_queries
        .iter()
        .map(|line| (line["status"].as_u64().expect("a status"), line["request_id"].as_str().unwrap_or("").to_owned()))
        .collect()
}

#[test]
fn a_disconnected_client_leaves_the_queue_or_aborts_its_query() {
    for queued in [false, true] {
        let (upstream, open) = Upstream::gate();
        // A query whose client has left keeps its slot while the backend works on it.
        let slots = if queued { "1" } else { "2" };
        let options = [("UPSTREAM_REQUESTS", slots), ("LISTEN_ADMIN", "127.0.0.1:0")];
        let (program, lines) = Program::start_logged(upstream.address(), &options);
        let token = program.token();
        let headers = |id: &'static str| [JSON, ("x-api-key", token.as_str()), ("x-request-id", id)];
        let mut first = Client::connect(program.http);
        if queued {
            first.write_request(QUERY, &headers("first"), b"{}");
            wait_until("the first request has arrived", || upstream.log().len() == 1);
        }
        let here = usize::from(queued);
        // HTTP/1, with a body that is not read while the request is queued.
        let mut leaving = Client::connect(program.http);
        leaving.write_request(QUERY, &headers("leaves"), b"{\"a\":1}");
        let is_there = |sent: usize| match queued {
            true => program.metric("timbr_gateway_requests_queued") == Some(1.0),
            false => upstream.log().len() == sent,
        };
        wait_until("the request has arrived", || is_there(1));
        drop(leaving);
        wait_until("the disconnect is logged", || queries(&lines).contains(&(499, "leaves".to_owned())));
        let h2 = H2Client::connect(program.https, &program.authority_pem);
        h2.send_and_reset(
            QUERY,
            &headers("leaves-h2"),
            || is_there(2),
            || queries(&lines).contains(&(499, "leaves-h2".to_owned())),
        );
        if !queued {
            assert_eq!(upstream.log().len(), 2);
        }
        open.store(true, Ordering::SeqCst);
        if queued {
            assert_eq!(first.read_response().status, 200);
            assert_eq!(upstream.log().len(), here, "abandoned requests were not sent");
        }
        // The slots are released: no further request would be served otherwise.
        let mut next = Client::connect(program.http);
        assert_eq!(next.send(QUERY, &headers("next"), b"{}").status, 200);
    }
}
