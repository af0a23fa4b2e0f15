//! Backends that fail, and come back.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::gateway::Gateway;
use crate::support::upstream::{Silent, Then, Upstream, answer, write};
use crate::support::wait_until;

use super::{closed_port, endpoint, gateway, post};

#[test]
fn a_backend_that_is_down_costs_no_request() {
    let (up, down) = (Upstream::start(), closed_port());
    let gateway = gateway(&[down, up.address()], &[("UPSTREAM_EJECT_AFTER", "3")]);
    let token = gateway.token();
    for number in 0..40 {
        assert_eq!(post(&gateway, &token, &number.to_string()).status, 200);
    }
    assert_eq!(up.log().len(), 40);
    assert!(up.log().iter().all(|seen| seen.field("host") == up.address().to_string()));
    let told = endpoint(&gateway, down);
    assert_eq!((told["state"].as_str(), told["why"].as_str()), (Some("ejected"), Some("connect_failed")));
    assert_eq!((told["failures"].as_u64(), told["ejections"].as_u64()), (Some(3), Some(1)), "{told}");
    let series = |name: &str, address| {
        gateway
            .metric(&format!("timbr_gateway_upstream_{name}{{backend=\"{address}\",address=\"{address}\"}}"))
    };
    assert_eq!((series("usable", down), series("failures_total", down)), (0.0, 3.0));
    assert_eq!((series("usable", up.address()), series("answers_total", up.address())), (1.0, 40.0));
    let back = Upstream::on(TcpListener::bind(down).expect("bound"), |_, stream| answer(stream, 200, "{}"));
    let listening = Instant::now();
    wait_until("it is in use again", || endpoint(&gateway, down)["state"] == "usable");
    assert!(listening.elapsed() < Duration::from_secs(1), "{:?}", listening.elapsed());
    wait_until("it gets requests", || {
        assert_eq!(post(&gateway, &token, "again").status, 200);
        !back.log().is_empty()
    });
}

#[test]
fn where_nobody_is_left_requests_are_refused_at_once_until_somebody_is_back() {
    let down = closed_port();
    let gateway = Gateway::start(down, &[("UPSTREAM_EJECT_AFTER", "3")]);
    let token = gateway.token();
    for _ in 0..3 {
        let refused = post(&gateway, &token, "a");
        assert_eq!((refused.status, refused.reason().as_str()), (502, "upstream_unreachable"));
    }
    for _ in 0..20 {
        let refused = post(&gateway, &token, "b");
        assert_eq!((refused.status, refused.reason().as_str()), (503, "upstream_unavailable"));
        assert_eq!(refused.field("retry-after"), "1");
    }
    assert_eq!(endpoint(&gateway, down)["failures"], 3, "nobody tried any more");
    let back = Upstream::on(TcpListener::bind(down).expect("bound"), |_, stream| answer(stream, 200, "{}"));
    let listening = Instant::now();
    wait_until("requests are answered again", || post(&gateway, &token, "c").status == 200);
    assert!(listening.elapsed() < Duration::from_secs(1), "{:?}", listening.elapsed());
    assert_eq!(back.log().len(), 1);
}

#[test]
fn one_backend_alone_stays_in_use_whatever_it_answers() {
    let broken = Upstream::behaving(|_, _| Then::Close);
    let gateway = Gateway::start(broken.address(), &[("UPSTREAM_EJECT_AFTER", "2")]);
    let token = gateway.token();
    for number in 0..6 {
        let refused = post(&gateway, &token, &number.to_string());
        assert_eq!((refused.status, refused.reason().as_str()), (502, "upstream_closed"));
    }
    let told = endpoint(&gateway, broken.address());
    assert_eq!((told["state"].as_str(), told["failures"].as_u64()), (Some("usable"), Some(6)));
}

type Misbehaviour = fn(&mut TcpStream) -> Then;

/// Does so with requests, until it is well.
fn misbehaving(how: Misbehaviour, well: &Arc<AtomicBool>) -> Upstream {
    let well = Arc::clone(well);
    Upstream::behaving(move |_, stream| match well.load(Ordering::SeqCst) {
        true => answer(stream, 200, "{}"),
        false => how(stream),
    })
}

#[test]
fn a_backend_that_breaks_down_is_left_alone_for_a_while_and_tried_with_one_request() {
    let bad: [(&str, Misbehaviour); 3] = [
        ("closed_without_answer", |_| Then::Close),
        ("invalid_answer", |stream| write(stream, b"NONSENSE\r\n\r\n")),
        ("status_502_503_504", |stream| answer(stream, 503, "{}")),
    ];
    for (why, how) in bad {
        let well = Arc::<AtomicBool>::default();
        let (broken, sound) = (misbehaving(how, &well), Upstream::start());
        let options = [("UPSTREAM_EJECT_AFTER", "3"), ("UPSTREAM_EJECT_TIME", "300ms")];
        let gateway = gateway(&[broken.address(), sound.address()], &options);
        let token = gateway.token();
        let state = || endpoint(&gateway, broken.address())["state"].as_str().expect("a state").to_owned();
        let mut sent = 0;
        while state() == "usable" {
            sent += 1;
            assert!(sent < 100, "{why}: it stays in use");
            post(&gateway, &token, "a");
        }
        assert_eq!(
            (state(), endpoint(&gateway, broken.address())["why"].as_str()),
            ("ejected".into(), Some(why))
        );
        assert_eq!(broken.log().len(), 3, "{why}");
        let ejected = Instant::now();
        // It has its time to serve, and then one request is tried; that fails, and it is out for longer.
        wait_until("a request is tried", || {
            let answered = post(&gateway, &token, "b").status == 200;
            assert!(answered || broken.log().len() == 4, "{why}");
            !answered
        });
        assert!(ejected.elapsed() >= Duration::from_millis(250), "{why}: {:?}", ejected.elapsed());
        assert_eq!((state(), broken.log().len()), ("ejected".to_owned(), 4), "{why}");
        well.store(true, Ordering::SeqCst);
        wait_until("the next trial succeeds", || {
            assert_eq!(post(&gateway, &token, "d").status, 200, "{why}");
            state() == "usable"
        });
        assert!(broken.log().len() >= 5 && endpoint(&gateway, broken.address())["ejections"] == 2, "{why}");
    }
}

#[test]
fn a_backend_that_drops_what_comes_costs_time_and_no_request_until_it_is_out_of_use() {
    let (silent, sound) = (Silent::start(), Upstream::start());
    let options = [("UPSTREAM_CONNECT_TIMEOUT", "600ms"), ("UPSTREAM_EJECT_AFTER", "2")];
    let gateway = gateway(&[silent.address(), sound.address()], &options);
    let token = gateway.token();
    wait_until("it is out of use", || {
        assert_eq!(post(&gateway, &token, "a").status, 200);
        endpoint(&gateway, silent.address())["state"] == "ejected"
    });
    let told = endpoint(&gateway, silent.address());
    assert_eq!(told["why"], "connect_timeout", "{told}");
    let at_once = Instant::now();
    for _ in 0..20 {
        assert_eq!(post(&gateway, &token, "b").status, 200);
    }
    assert!(at_once.elapsed() < Duration::from_millis(300), "{:?}", at_once.elapsed());
}
