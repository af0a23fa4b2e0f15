//! Several upstreams behind one gateway: each route has one of them, with its own limits.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::gateway::Gateway;
use crate::support::upstream::{Upstream, respond};
use crate::support::wait_until;

use super::JSON;

fn gateway(api: &Upstream, server: &Upstream, more_of_server: &str, options: &[(&str, &str)]) -> Gateway {
    let url = format!("http://{}", server.address());
    let file = format!(
        "upstreams:\n  - {{name: timbr-server, url: '{url}'{more_of_server}}}\n\
         routes:\n  - {{name: reports, prefix: /reports/, content_types: [application/json], upstream: timbr-server}}\n"
    );
    Gateway::start_with_file(api.address(), &file, options)
}

#[test]
fn a_request_reaches_the_upstream_of_its_route_and_keys_are_verified_by_the_default_one() {
    let verifying = |seen: &crate::support::upstream::Recorded, stream: &mut std::net::TcpStream| {
        let is_known = seen.header("x-api-key") == "tk_known";
        respond(stream, if is_known { 200 } else { 401 }, "{}")
    };
    let (api, server) = (Upstream::with_behaviour(verifying), Upstream::start());
    let gateway = gateway(&api, &server, "", &[]);
    let send =
        |path: &str, key: &str| gateway.client().send(&format!("GET {path}"), &[JSON, ("x-api-key", key)], b"").status;
    assert_eq!(send("/reports/x", "tk_known"), 200);
    assert_eq!(send("/reports/x", "tk_unknown"), 401);
    let lines: Vec<_> = server.log().iter().map(|seen| seen.line.clone()).collect();
    assert_eq!(lines, ["GET /reports/x HTTP/1.1"]);
    assert!(api.log().iter().all(|seen| seen.line.contains("/timbr/api/get_ontologies/")));
    assert_eq!(send("/timbr/api/x", "tk_known"), 200);
    assert_eq!(server.log().len(), 1);
    let status = gateway.get("/upstreams");
    let endpoints: Vec<_> = status["endpoints"].as_array().expect("a list").iter().collect();
    let names: Vec<_> = endpoints.iter().map(|endpoint| endpoint["upstream"].as_str().expect("a name")).collect();
    assert_eq!(names, ["default", "timbr-server"]);
    let address = server.address();
    let labels = format!("upstream=\"timbr-server\",backend=\"{address}\",address=\"{address}\"");
    gateway.expect_metric(&format!("timbr_gateway_upstream_answers_total{{{labels}}}"), 1.0);
}

#[test]
fn each_upstream_has_its_own_limit() {
    static OPEN: AtomicBool = AtomicBool::new(false);
    let held = Upstream::with_behaviour(|_, stream| {
        wait_until("it may respond", || OPEN.load(Ordering::SeqCst));
        respond(stream, 200, "{}")
    });
    let api = Upstream::start();
    let gateway = gateway(&api, &held, ", requests: 1, queue: 0", &[("UPSTREAM_REQUESTS", "1")]);
    let token = gateway.token();
    let headers = [JSON, ("x-api-key", &*token)];
    let mut first = gateway.begin("GET /reports/x", &headers, b"");
    wait_until("it has arrived", || held.log().len() == 1);
    assert_eq!(gateway.client().send("GET /reports/x", &headers, b"").reason(), "queue_full");
    assert_eq!(gateway.client().send("GET /timbr/api/x", &headers, b"").status, 200, "a different upstream");
    OPEN.store(true, Ordering::SeqCst);
    assert_eq!(first.read_response().status, 200);
}

#[test]
fn each_upstream_has_its_own_timeouts() {
    let slow = || {
        Upstream::with_behaviour(|_, stream| {
            std::thread::sleep(std::time::Duration::from_millis(600));
            respond(stream, 200, "{}")
        })
    };
    let (api, server) = (slow(), slow());
    let gateway = gateway(&api, &server, ", response_timeout: 100ms", &[]);
    let token = gateway.token();
    let send = |path: &str| gateway.client().send(&format!("GET {path}"), &[JSON, ("x-api-key", &token)], b"");
    assert_eq!(send("/reports/x").reason(), "upstream_timeout");
    assert_eq!(send("/timbr/api/x").status, 200);
}

#[test]
fn a_reload_adds_changes_and_removes_upstreams() {
    let (api, one, two) = (Upstream::start(), Upstream::start(), Upstream::start());
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("gateway.yaml");
    let write = |upstreams: &[(&str, &Upstream)], route: &str| {
        let entry = |(name, upstream): &(&str, &Upstream)| {
            format!("  - {{name: {name}, url: 'http://{}'}}\n", upstream.address())
        };
        let list: String = upstreams.iter().map(entry).collect();
        let route =
            format!("{{name: reports, prefix: /reports/, content_types: [application/json], upstream: {route}}}");
        let url = format!("upstream: {{url: 'http://{}'}}", api.address());
        std::fs::write(&path, format!("{url}\nupstreams:\n{list}routes:\n  - {route}\n")).expect("written");
    };
    write(&[("one", &one)], "one");
    let gateway = Gateway::start_with_path(path.clone(), &[("UPSTREAM_URL", "")]);
    let token = gateway.token();
    let send = || gateway.client().send("GET /reports/x", &[JSON, ("x-api-key", &token)], b"").status;
    assert_eq!((send(), one.log().len()), (200, 1));
    write(&[("two", &two), ("one", &one)], "two");
    assert_eq!(gateway.admin_command("POST /reload", "{}").status, 200);
    assert_eq!((send(), one.log().len(), two.log().len()), (200, 1, 1));
    write(&[("two", &one)], "two");
    assert_eq!(gateway.admin_command("POST /reload", "{}").status, 200);
    assert_eq!((send(), one.log().len(), two.log().len()), (200, 2, 1));
    write(&[("two", &one)], "default");
    assert_eq!(gateway.admin_command("POST /reload", "{}").status, 200);
    assert_eq!((send(), api.log().len(), one.log().len()), (200, 1, 2));
}
