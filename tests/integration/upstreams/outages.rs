//! Failing and recovering backends.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::gateway::Gateway;
use crate::support::upstream::{AfterRequest, UnresponsiveAddress, Upstream, respond, write};
use crate::support::wait_until;

use super::{closed_port, endpoint, gateway, post};

#[test]
fn a_backend_that_is_down_fails_no_request() {
    let (up, down) = (Upstream::start(), closed_port());
    let gateway = gateway(&[down, up.address()], &[("UPSTREAM_EJECT_AFTER", "3")]);
    let token = gateway.token();
    for number in 0..40 {
        assert_eq!(post(&gateway, &token, &number.to_string()).status, 200);
    }
    assert_eq!(up.log().len(), 40);
    assert!(up.log().iter().all(|seen| seen.header("host") == up.address().to_string()));
    let told = endpoint(&gateway, down);
    assert_eq!((told["state"].as_str(), told["why"].as_str()), (Some("ejected"), Some("connect_failed")));
    assert_eq!((told["failures"].as_u64(), told["ejections"].as_u64()), (Some(3), Some(1)), "{told}");
    let series = |name: &str, address| {
        gateway.metric(&format!(
            "timbr_gateway_upstream_{name}{{upstream=\"default\",backend=\"{address}\",address=\"{address}\"}}"
        ))
    };
    assert_eq!((series("usable", down), series("failures_total", down)), (0.0, 3.0));
    assert_eq!((series("usable", up.address()), series("answers_total", up.address())), (1.0, 40.0));
    let back = Upstream::listen_on(TcpListener::bind(down).expect("bound"), |_, stream| respond(stream, 200, "{}"));
    let listening = Instant::now();
    wait_until("the endpoint is healthy again", || endpoint(&gateway, down)["state"] == "usable");
    assert!(listening.elapsed() < Duration::from_secs(8), "{:?}", listening.elapsed());
    wait_until("it gets requests", || {
        assert_eq!(post(&gateway, &token, "again").status, 200);
        !back.log().is_empty()
    });
}

#[test]
fn the_only_endpoint_is_used_even_if_it_is_ejected() {
    let down = closed_port();
    let (gateway, token) = Gateway::with_token(down, &[("UPSTREAM_EJECT_AFTER", "3")]);
    for _ in 0..20 {
        let refused = post(&gateway, &token, "a");
        assert_eq!((refused.status, refused.reason().as_str()), (502, "upstream_unreachable"));
        assert_eq!(refused.header("retry-after"), "1");
    }
    assert_eq!(endpoint(&gateway, down)["state"], "ejected");
    let back = Upstream::listen_on(TcpListener::bind(down).expect("bound"), |_, stream| respond(stream, 200, "{}"));
    assert_eq!(post(&gateway, &token, "b").status, 200, "at once");
    assert_eq!((back.log().len(), endpoint(&gateway, down)["state"].as_str()), (1, Some("usable")));
}

/// Whatever happens to the other one: its own ejection was decided when there was an alternative.
#[test]
fn an_ejected_endpoint_is_used_again_when_the_other_one_fails() {
    let well = Arc::<AtomicBool>::default();
    let (broken, alternative) =
        (misbehaving(|stream| respond(stream, 503, "{}"), &well), TcpListener::bind("127.0.0.1:0").expect("bound"));
    let address = alternative.local_addr().expect("an address");
    let sound = std::thread::spawn(move || {
        // Responds to the first requests only.
        for stream in alternative.incoming().take(12) {
            let mut stream = stream.expect("a connection");
            let _ = std::io::Read::read(&mut stream, &mut [0; 4096]);
            write(&mut stream, b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}");
        }
    });
    let options = [("UPSTREAM_EJECT_AFTER", "2"), ("UPSTREAM_EJECT_TIME", "5m")];
    let gateway = gateway(&[broken.address(), address], &options);
    let token = gateway.token();
    while endpoint(&gateway, broken.address())["state"] != "ejected" {
        post(&gateway, &token, "a");
    }
    well.store(true, Ordering::SeqCst);
    // The health checker connects to neither: the requests use up the other backend.
    while !sound.is_finished() {
        post(&gateway, &token, "b");
    }
    sound.join().expect("no panic");
    wait_until("requests are served again", || post(&gateway, &token, "c").status == 200);
    for number in 0..10 {
        assert_eq!(post(&gateway, &token, &number.to_string()).status, 200);
    }
    assert_eq!(endpoint(&gateway, broken.address())["state"], "usable");
}

#[test]
fn a_single_backend_is_never_ejected_for_its_responses() {
    let broken = Upstream::with_behaviour(|_, _| AfterRequest::Close);
    let (gateway, token) = Gateway::with_token(broken.address(), &[("UPSTREAM_EJECT_AFTER", "2")]);
    for number in 0..6 {
        assert_eq!(post(&gateway, &token, &number.to_string()).rejection(), (502, "upstream_closed".into()));
    }
    let told = endpoint(&gateway, broken.address());
    assert_eq!((told["state"].as_str(), told["failures"].as_u64()), (Some("usable"), Some(6)));
}

type Misbehaviour = fn(&mut TcpStream) -> AfterRequest;

/// Misbehaves until it is healthy.
fn misbehaving(how: Misbehaviour, well: &Arc<AtomicBool>) -> Upstream {
    let well = Arc::clone(well);
    Upstream::with_behaviour(move |_, stream| match well.load(Ordering::SeqCst) {
        true => respond(stream, 200, "{}"),
        false => how(stream),
    })
}

#[test]
fn an_ejected_endpoint_is_probed_with_one_request() {
    let bad: [(&str, Misbehaviour); 3] = [
        ("closed_without_answer", |_| AfterRequest::Close),
        ("invalid_answer", |stream| write(stream, b"NONSENSE\r\n\r\n")),
        ("status_502_503_504", |stream| respond(stream, 503, "{}")),
    ];
    for (why, how) in bad {
        let well = Arc::<AtomicBool>::default();
        let (broken, sound) = (misbehaving(how, &well), Upstream::start());
        let options = [("UPSTREAM_EJECT_AFTER", "3"), ("UPSTREAM_EJECT_TIME", "300ms")];
        let gateway = gateway(&[broken.address(), sound.address()], &options);
        let token = gateway.token();
        let state = || endpoint(&gateway, broken.address())["state"].as_str().expect("a state").to_owned();
        let (mut sent, mut ejected) = (0, Instant::now());
        while state() == "usable" {
            ejected = Instant::now();
            sent += 1;
            assert!(sent < 100, "{why}: it is not ejected");
            post(&gateway, &token, "a");
        }
        assert_eq!((state(), endpoint(&gateway, broken.address())["why"].as_str()), ("ejected".into(), Some(why)));
        assert_eq!(broken.log().len(), 3, "{why}");
        // After the ejection time one request is sent as a probe; it fails, and the next ejection is longer.
        wait_until("a probe is sent", || {
            let answered = post(&gateway, &token, "b").status == 200;
            assert!(answered || broken.log().len() == 4, "{why}");
            !answered
        });
        assert!(ejected.elapsed() >= Duration::from_millis(250), "{why}: {:?}", ejected.elapsed());
        assert_eq!((state(), broken.log().len()), ("ejected".to_owned(), 4), "{why}");
        well.store(true, Ordering::SeqCst);
        wait_until("the next probe succeeds", || {
            assert_eq!(post(&gateway, &token, "d").status, 200, "{why}");
            state() == "usable"
        });
        assert!(broken.log().len() >= 5 && endpoint(&gateway, broken.address())["ejections"] == 2, "{why}");
    }
}

#[test]
fn an_ejected_endpoint_is_probed_if_all_requests_have_an_affinity() {
    let well = Arc::<AtomicBool>::default();
    let (broken, sound) = (misbehaving(|stream| respond(stream, 503, "{}"), &well), Upstream::start());
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gateway.yaml");
    std::fs::write(&file, "routes: [{name: api, affinity: user}]\n").expect("written");
    let urls = [&broken, &sound].map(|backend| format!("http://{}", backend.address())).join(",");
    let options = [("UPSTREAM_URLS", &*urls), ("UPSTREAM_EJECT_AFTER", "3"), ("UPSTREAM_EJECT_TIME", "100ms")];
    let gateway = Gateway::start_with_path(file, &[&[("UPSTREAM_URL", "")][..], &options].concat());
    let tokens = ["a", "b", "c", "d", "e", "f", "g", "h"].map(|user| gateway.token_of(user, "secret"));
    let state = || endpoint(&gateway, broken.address())["state"].as_str().expect("a state").to_owned();
    let send_for_all = || tokens.iter().for_each(|token| drop(post(&gateway, token, "a")));
    wait_until("it is ejected", || {
        send_for_all();
        state() == "ejected"
    });
    well.store(true, Ordering::SeqCst);
    wait_until("it is used again", || {
        send_for_all();
        state() == "usable"
    });
}

#[test]
fn an_unresponsive_backend_is_ejected_without_failed_requests() {
    let (silent, sound) = (UnresponsiveAddress::start(), Upstream::start());
    let options = [("UPSTREAM_CONNECT_TIMEOUT", "600ms"), ("UPSTREAM_EJECT_AFTER", "2")];
    let gateway = gateway(&[silent.address(), sound.address()], &options);
    let token = gateway.token();
    wait_until("the endpoint is ejected", || {
        assert_eq!(post(&gateway, &token, "a").status, 200);
        endpoint(&gateway, silent.address())["state"] == "ejected"
    });
    let told = endpoint(&gateway, silent.address());
    assert_eq!(told["why"], "connect_timeout", "{told}");
    // An attempt to connect to the other one would take half of the timeout.
    let is_slow = |_: &i32| {
        let start = Instant::now();
        assert_eq!(post(&gateway, &token, "b").status, 200);
        start.elapsed() >= Duration::from_millis(300)
    };
    let slow = (0..40).filter(is_slow).count();
    assert!(slow < 5, "{slow} of 40");
}
