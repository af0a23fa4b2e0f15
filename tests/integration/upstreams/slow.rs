//! Hanging requests do not delay others.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::program::Program;
use crate::support::upstream::{AfterRequest, Upstream, respond};

use super::JSON;

/// Hangs on one route for longer than the timeout, and serves others immediately.
fn hanging_on_one_route() -> Upstream {
    Upstream::with_behaviour(|request, stream| {
        if request.line.contains("/timbr/openapi/") {
            thread::sleep(Duration::from_secs(4));
            return AfterRequest::Close;
        }
        respond(stream, 200, "{}")
    })
}

/// The 50th and the 99th percentile of sequential requests.
fn percentiles(client: &mut Client, headers: &[(&str, &str)], requests: usize) -> (Duration, Duration) {
    let mut times: Vec<_> = (0..requests)
        .map(|_| {
            let start = Instant::now();
            assert_eq!(client.send("POST /timbr/api/x", headers, b"{}").status, 200);
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    (times[requests / 2], times[requests * 99 / 100])
}

/// `SLOW_ROUTE_REQUESTS` sets the number of measured requests; published figures need more than the test.
#[test]
fn a_hanging_route_does_not_slow_other_routes() {
    const HANGING: usize = 100;
    let requests = std::env::var("SLOW_ROUTE_REQUESTS").ok().and_then(|text| text.parse().ok()).unwrap_or(500);
    let upstream = hanging_on_one_route();
    let options = [("UPSTREAM_RESPONSE_TIMEOUT", "2s"), ("LISTEN_ADMIN", "127.0.0.1:0"), ("LIMITS_REQUESTS", "101")];
    let program = Program::start(upstream.address(), &options);
    let token = program.token();
    let headers = [JSON, ("x-api-key", &*token)];
    let mut client = Client::connect(program.http);
    percentiles(&mut client, &headers, requests);
    let before = percentiles(&mut client, &headers, requests);
    let start = Instant::now();
    let hanging: Vec<_> = (0..HANGING)
        .map(|_| {
            let mut client = Client::connect(program.http);
            client.write_request("POST /timbr/openapi/x", &headers, b"{}");
            client
        })
        .collect();
    crate::support::wait_until("they hang", || {
        upstream.log().iter().filter(|seen| seen.line.contains("openapi")).count() == HANGING
    });
    let all_there = start.elapsed();
    let during = percentiles(&mut client, &headers, requests);
    // One more is admitted besides the hundred, and no other.
    let mut held = Client::connect(program.http);
    held.write_request("POST /timbr/openapi/x", &headers, b"{}");
    crate::support::wait_until("it hangs, too", || {
        upstream.log().iter().filter(|seen| seen.line.contains("openapi")).count() > HANGING
    });
    let refused = Client::connect(program.http).send("POST /timbr/api/x", &headers, b"{}");
    let capped = (refused.status, start.elapsed());
    for mut client in hanging {
        assert_eq!(client.read_response().rejection(), (504, "upstream_timeout".into()));
    }
    let waited = start.elapsed();
    println!(
        "p50/p99 of one route: {before:?} before, {during:?} while {HANGING} requests of another hang (all there after \
         {all_there:?}); 504 after {waited:?}; the next one {capped:?}"
    );
    assert!(waited >= Duration::from_secs(2) && waited < Duration::from_secs(20) + all_there, "{waited:?}");
    if capped.1 < Duration::from_secs(2) {
        assert_eq!((refused.status, refused.reason().as_str()), (503, "overloaded"));
    }
    // A wide margin, for a machine with other load, which may have begun since.
    let after = percentiles(&mut client, &headers, requests);
    assert!(during.0 < before.0.max(after.0) * 3 + Duration::from_millis(5), "{before:?} {during:?} {after:?}");
}

#[test]
fn a_hanging_backend_is_replaced_by_the_other_one() {
    let hanging = Upstream::with_behaviour(|_, _| {
        thread::sleep(Duration::from_secs(15));
        AfterRequest::Close
    });
    let sound = Upstream::start();
    let options = [("UPSTREAM_RESPONSE_TIMEOUT", "1s"), ("UPSTREAM_EJECT_AFTER", "3")];
    let gateway = super::gateway(&[hanging.address(), sound.address()], &options);
    let token = gateway.token();
    let mut late = 0;
    for number in 0..60 {
        let start = Instant::now();
        let got = super::post(&gateway, &token, &number.to_string());
        if got.status != 200 {
            assert_eq!((got.status, got.reason().as_str()), (504, "upstream_timeout"));
            assert!(start.elapsed() < Duration::from_secs(14), "{:?}", start.elapsed());
            late += 1;
        }
    }
    assert!(late <= 3, "{late} of 60");
    let told = super::endpoint(&gateway, hanging.address());
    assert_eq!((told["state"].as_str(), told["why"].as_str()), (Some("ejected"), Some("response_timeout")), "{told}");
}

/// Long before `upstream.response_timeout`.
#[test]
fn a_backend_that_hangs_is_noticed() {
    let (upstream, is_open) = Upstream::gate();
    let gateway = super::gateway(&[upstream.address()], &[]);
    let token = gateway.token();
    let silence = || super::endpoint(&gateway, upstream.address())["silent_seconds"].as_u64().expect("a number");
    let hanging = [(); 2].map(|()| {
        let mut client = gateway.client();
        client.write_request("POST /timbr/api/x", &[JSON, ("x-api-key", &*token)], b"{}");
        client
    });
    crate::support::wait_until("nothing is heard of it", || silence() >= 1);
    let labels = format!("upstream=\"default\",backend=\"{0}\",address=\"{0}\"", upstream.address());
    assert!(gateway.metric(&format!("timbr_gateway_upstream_silent_seconds{{{labels}}}")) >= 1.0);
    is_open.store(true, Ordering::SeqCst);
    for mut client in hanging {
        assert_eq!(client.read_response().status, 200);
    }
    crate::support::wait_until("it responds again", || silence() == 0);
}

/// A long query does not indicate a failing backend, as long as the backend serves others.
#[test]
fn long_queries_do_not_eject_a_backend() {
    let backends = [hanging_on_one_route(), hanging_on_one_route()];
    let options = [("WORKERS", "1"), ("UPSTREAM_RESPONSE_TIMEOUT", "2s"), ("UPSTREAM_EJECT_AFTER", "2")];
    let gateway = super::gateway(&backends.each_ref().map(Upstream::address), &options);
    let token = gateway.token();
    let headers = [JSON, ("x-api-key", &*token)];
    let seen = |backend: &Upstream, route| backend.log().iter().filter(|request| request.line.contains(route)).count();
    let all = |route| backends.iter().map(|backend| seen(backend, route)).sum::<usize>();
    // Sequential, so that both backends get the same number and either may get the others.
    let mut long: Vec<_> = (1..=16)
        .map(|number| {
            let client = gateway.begin("POST /timbr/openapi/x", &headers, b"{}");
            crate::support::wait_until("it hangs", || all("/timbr/openapi/") == number);
            client
        })
        .collect();
    let mut others = 0;
    while backends.iter().any(|backend| seen(backend, "/timbr/api/x") == 0) {
        assert_eq!(super::post(&gateway, &token, &others.to_string()).status, 200);
        others += 1;
        assert!(others < 200, "one backend receives all of them");
    }
    for client in &mut long {
        assert_eq!(client.read_response().reason(), "upstream_timeout");
    }
    for backend in &backends {
        assert_eq!(seen(backend, "/timbr/openapi/"), 8);
        let told = super::endpoint(&gateway, backend.address());
        assert_eq!((told["state"].as_str(), told["ejections"].as_u64()), (Some("usable"), Some(0)), "{told}");
    }
}
