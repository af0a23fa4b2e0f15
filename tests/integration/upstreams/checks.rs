//! Health checks and readiness.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::gateway::Gateway;
use crate::support::upstream::{AfterRequest, Upstream, respond};
use crate::support::wait_until;

use super::{endpoint, gateway, post};

/// Reports its health as configured, but serves all requests.
fn checked(well: &Arc<AtomicBool>) -> Upstream {
    let well = Arc::clone(well);
    Upstream::with_behaviour(move |request, stream| {
        let is_ill = request.line.starts_with("GET /health ") && !well.load(Ordering::SeqCst);
        respond(stream, if is_ill { 500 } else { 200 }, "{}")
    })
}

const CHECKED: [(&str, &str); 4] = [
    ("UPSTREAM_HEALTH_PATH", "/health"),
    ("UPSTREAM_HEALTH_INTERVAL", "50ms"),
    ("UPSTREAM_UNHEALTHY_AFTER", "2"),
    ("READINESS_UPSTREAM", "true"),
];

#[test]
fn an_unhealthy_endpoint_gets_no_requests_until_it_recovers() {
    let well = [Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true))];
    let backends = [checked(&well[0]), checked(&well[1])];
    let gateway = gateway(&[backends[0].address(), backends[1].address()], &CHECKED);
    let token = gateway.token();
    let state = |number: usize| endpoint(&gateway, backends[number].address())["state"].clone();
    wait_until("it is detected", || state(0) == "unhealthy");
    assert_eq!((state(1).as_str(), gateway.readiness()), (Some("usable"), 200));
    let requests = |number: usize| backends[number].log().iter().filter(|seen| seen.line.starts_with("POST")).count();
    let before = requests(0);
    for number in 0..20 {
        assert_eq!(post(&gateway, &token, &number.to_string()).status, 200);
    }
    assert_eq!(requests(0), before);
    let check = backends[0].log().into_iter().find(|seen| seen.line.starts_with("GET /health")).expect("a check");
    assert_eq!(check.header("host"), backends[0].address().to_string());
    assert!(check.folded_headers("x-api-key").is_empty() && check.folded_headers("authorization").is_empty());
    well[1].store(false, Ordering::SeqCst);
    wait_until("no endpoint is healthy", || state(1) == "unhealthy");
    // The health checks may be wrong, and rejecting the request would not help.
    assert_eq!(post(&gateway, &token, "x").status, 200);
    assert_eq!((state(0).as_str(), state(1).as_str()), (Some("unhealthy"), Some("unhealthy")));
    assert_eq!(gateway.readiness(), 503, "with readiness.upstream");
    well[0].store(true, Ordering::SeqCst);
    wait_until("the endpoint is healthy again", || state(0) == "usable");
    assert_eq!((post(&gateway, &token, "y").status, gateway.readiness()), (200, 200));
}

#[test]
fn readiness_depends_on_the_backend_only_if_configured() {
    let (gateway, token) = Gateway::with_token(super::closed_port(), &[("UPSTREAM_EJECT_AFTER", "1")]);
    assert_eq!(post(&gateway, &token, "a").status, 502);
    assert_eq!(post(&gateway, &token, "b").reason(), "upstream_unreachable");
    assert_eq!(gateway.readiness(), 200);
}

#[test]
fn checks_from_before_an_ejection_do_not_end_it() {
    let (well, good) = (Arc::new(AtomicBool::new(true)), Arc::<AtomicUsize>::default());
    let (is_well, count) = (Arc::clone(&well), Arc::clone(&good));
    let broken = Upstream::with_behaviour(move |request, stream| match is_well.load(Ordering::SeqCst) {
        true => {
            count.fetch_add(1, Ordering::SeqCst);
            respond(stream, 200, "{}")
        }
        false if request.line.starts_with("GET /health ") => respond(stream, 500, "{}"),
        false => AfterRequest::Close,
    });
    let sound = Upstream::start();
    let options = [
        ("UPSTREAM_HEALTH_PATH", "/health"),
        ("UPSTREAM_HEALTH_INTERVAL", "200ms"),
        ("UPSTREAM_UNHEALTHY_AFTER", "1000"),
        ("UPSTREAM_HEALTHY_AFTER", "4"),
        ("UPSTREAM_EJECT_AFTER", "1"),
        ("UPSTREAM_EJECT_TIME", "1ms"),
    ];
    let gateway = gateway(&[broken.address(), sound.address()], &options);
    let token = gateway.token();
    wait_until("it was healthy for a while", || good.load(Ordering::SeqCst) > 4);
    well.store(false, Ordering::SeqCst);
    let state = || endpoint(&gateway, broken.address())["state"].clone();
    wait_until("its probe fails", || {
        post(&gateway, &token, "a");
        state() == "unhealthy"
    });
    good.store(0, Ordering::SeqCst);
    well.store(true, Ordering::SeqCst);
    wait_until("the endpoint is healthy again", || state() == "usable");
    assert!(good.load(Ordering::SeqCst) >= 4, "{good:?}");
}
