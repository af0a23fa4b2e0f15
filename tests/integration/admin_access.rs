//! Who may use admin commands: clients of the loopback address, holders of the token, or users of the Unix socket.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Output;

use crate::support::client::{Client, JSON};
use crate::support::gateway::Gateway;
use crate::support::program::{Program, run_with_options};
use crate::support::upstream::Upstream;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const LOCAL: (&str, &str) = ("Host", "localhost");

/// What needs an operator, with a body.
const OPERATORS: [(&str, &[u8]); 8] = [
    ("GET /tokens", b""),
    ("GET /salts", b""),
    ("GET /log-level", b""),
    ("PUT /log-level", b"{\"level\":\"info\"}"),
    ("POST /tokens/revoke", b"{\"user\":\"nobody\"}"),
    ("POST /reload", b"{}"),
    ("POST /drain", b"{}"),
    ("POST /quit", b"{}"),
];

/// The status of a request over the Unix socket.
fn ask_socket(path: &Path, line: &str, body: &str) -> u16 {
    let mut stream = UnixStream::connect(path).expect("connected");
    let length = body.len();
    let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n");
    stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes()).expect("sent");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("a response");
    response.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn with_token_or_socket_a_neighbour_on_the_loopback_address_is_no_operator() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("admin/socket");
    let path = socket.to_str().expect("text");
    let upstream = Upstream::start();
    for options in [
        &[("LISTEN_ADMIN_COMMANDS", "token"), ("LISTEN_ADMIN_TOKEN", TOKEN)][..],
        &[("LISTEN_ADMIN_COMMANDS", "socket"), ("LISTEN_ADMIN_SOCKET", path)],
    ] {
        let gateway = Gateway::start(upstream.address(), options);
        for (line, body) in OPERATORS {
            for wrong in ["", "Bearer 0123456789abcdef0123456789abcdeX", "Bearer ", TOKEN, &format!("Basic {TOKEN}")] {
                let headers = [LOCAL, JSON, ("Authorization", wrong)];
                let response = Client::connect(gateway.admin()).send(line, &headers, body);
                assert_eq!(response.status, 403, "{line} {wrong}: {response:?}");
                assert!(!response.text().contains(TOKEN));
            }
        }
        for line in ["GET /livez", "GET /readyz", "GET /metrics", "GET /overview", "GET /refusals", "GET /"] {
            assert_eq!(Client::connect(gateway.admin()).send(line, &[LOCAL], b"").status, 200, "{line}");
        }
        let authorization = format!("Bearer {TOKEN}");
        let right = [LOCAL, JSON, ("Authorization", authorization.as_str())];
        let status = Client::connect(gateway.admin()).send("GET /tokens", &right, b"").status;
        assert_eq!(status, if options[0].1 == "token" { 200 } else { 403 });
        let from_elsewhere = [("Host", "evil.test"), right[2]];
        assert_eq!(Client::connect(gateway.admin()).send("GET /tokens", &from_elsewhere, b"").status, 403);
    }
}

#[test]
fn the_socket_admits_its_users_and_is_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("admin/socket");
    let path = socket.to_str().expect("text");
    let upstream = Upstream::start();
    let options = [("LISTEN_ADMIN_COMMANDS", "socket"), ("LISTEN_ADMIN_SOCKET", path), ("LISTEN_ADMIN", "off")];
    let gateway = Gateway::start(upstream.address(), &options);
    assert_eq!(std::fs::metadata(&socket).expect("it exists").permissions().mode() & 0o777, 0o600);
    for (line, body) in &OPERATORS[..5] {
        let body = std::str::from_utf8(body).expect("text");
        let expected = if line.contains("/log-level") { 404 } else { 200 };
        assert_eq!(ask_socket(&socket, line, body), expected, "{line}");
    }
    assert_eq!(ask_socket(&socket, "GET /metrics", ""), 200);
    let second = run_with_options(
        &["serve", "--listen-https", "off", "--listen-http", "127.0.0.1:0"],
        &[("UPSTREAM_URL", "http://127.0.0.1:1"), ("LISTEN_ADMIN", "off"), ("LISTEN_ADMIN_SOCKET", path)],
    );
    assert_eq!(second.status.code(), Some(1));
    let expected = format!("error: listen.admin_socket: cannot listen on {path}");
    assert!(errors(&second).contains(&expected) && errors(&second).contains("in use"), "{second:?}");
    assert_eq!(ask_socket(&socket, "GET /livez", ""), 200, "the first gateway still has it");
    drop(gateway);
    assert!(!socket.exists());
}

#[test]
fn a_gateway_does_not_start_with_a_socket_that_others_could_replace() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).expect("set");
    let socket = folder.path().join("socket");
    let serve = run_with_options(
        &["serve", "--listen-https", "off", "--listen-http", "127.0.0.1:0"],
        &[
            ("UPSTREAM_URL", "http://127.0.0.1:1"),
            ("LISTEN_ADMIN", "off"),
            ("LISTEN_ADMIN_SOCKET", socket.to_str().expect("text")),
        ],
    );
    assert_eq!(serve.status.code(), Some(1));
    assert!(errors(&serve).contains("is writable by other users"), "{serve:?}");
    assert!(!socket.exists());
}

#[test]
fn the_command_line_finds_the_socket_or_the_token() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("text").to_owned()
    };
    let upstream = Upstream::start();
    let token_file = file("token", &format!("{TOKEN}\n"));
    let socket = folder.path().join("socket");
    let socket = socket.to_str().expect("text");
    let modes = [
        format!("admin_commands: token, admin_token_file: {token_file}"),
        format!("admin_commands: socket, admin_socket: {socket}"),
    ];
    for mode in modes {
        let serve = format!("listen: {{admin: '127.0.0.1:0', {mode}}}\n");
        let gateway = Gateway::start_with_file(upstream.address(), &serve, &[]);
        gateway.token_of("alice", "secret");
        let config = file("gateway.yaml", &format!("listen: {{admin: '{}', {mode}}}\n", gateway.admin()));
        let run = |arguments: &[&str]| run_with_options(arguments, &[("CONFIG", &config)]);
        let list = run(&["tokens", "list"]);
        assert!(String::from_utf8_lossy(&list.stdout).contains("alice"), "{mode}: {list:?}");
        for arguments in [&["healthcheck"][..], &["tokens", "revoke", "--user", "alice"], &["salt", "status"]] {
            let output = run(arguments);
            assert!(output.status.success(), "{mode} {arguments:?}: {output:?}");
        }
        let bare = run_with_options(&["tokens", "list", "--listen-admin", &gateway.admin().to_string()], &[]);
        assert_eq!(bare.status.code(), Some(1), "without socket and token");
        assert!(errors(&bare).contains("returned 403"), "{bare:?}");
        assert!(run(&["drain"]).status.success(), "{mode}");
        gateway.wait();
    }
}

#[test]
fn the_audit_log_names_the_operator() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let path = socket.to_str().expect("text");
    let options = [("LISTEN_ADMIN_COMMANDS", "socket"), ("LISTEN_ADMIN_SOCKET", path), ("LISTEN_ADMIN", "127.0.0.1:0")];
    let (program, lines) = Program::start_logged(Upstream::start().address(), &options);
    assert_eq!(ask_socket(&socket, "PUT /log-level", "{\"level\":\"warn\"}"), 200);
    let admin = program.admin.expect("it is on");
    assert_eq!(Client::connect(admin).send("POST /drain", &[LOCAL, JSON], b"{}").status, 403);
    let audited = |what: &str| lines.expect(what, |line| line["target"] == "audit" && line["what"] == what);
    let (done, denied) = (audited("log-level"), audited("drain"));
    assert_eq!((&done["decision"], &done["via"]), (&"done".into(), &"socket".into()));
    assert_eq!(done["operator_uid"], rustix::process::geteuid().as_raw());
    assert_eq!(done["operator_pid"], std::process::id());
    assert!(done["operator"].is_string() && done["client"].is_null(), "{done}");
    assert_eq!((&denied["decision"], &denied["client"]), (&"denied".into(), &"127.0.0.1".into()));
}

#[test]
fn metrics_are_not_readable_by_dns_rebinding() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    for (host, status) in
        [("localhost", 200), ("127.0.0.1:9180", 200), ("evil.test", 403), ("localhost.evil.test", 403)]
    {
        let response = Client::connect(gateway.admin()).send("GET /metrics", &[("Host", host)], b"");
        assert_eq!(response.status, status, "{host}");
    }
    assert_eq!(Client::connect(gateway.admin()).send("GET /livez", &[("Host", "10.0.0.1")], b"").status, 200);
}

#[test]
fn config_check_says_what_a_neighbour_could_do() {
    let shown = |more: &[(&str, &str)]| {
        let output =
            run_with_options(&["config", "check"], &[&[("UPSTREAM_URL", "http://127.0.0.1:1")], more].concat());
        assert!(output.status.success(), "{output:?}");
        errors(&output)
    };
    assert!(shown(&[]).contains("a neighbour container in the pod, can list and revoke tokens"));
    assert!(!shown(&[("LISTEN_ADMIN", "off")]).contains("neighbour"));
    let closed = [("LISTEN_ADMIN_COMMANDS", "socket"), ("LISTEN_ADMIN_SOCKET", "/run/x/socket")];
    assert!(!shown(&closed).contains("neighbour"));
}
