//! A file system without space, on which the gateway has its token file, its audit log and its users file.

use std::fs;
use std::path::Path;

use crate::support::program::{Program, run, run_with_options};
use crate::support::small_disk::SmallDisk;
use crate::support::upstream::Upstream;
use crate::support::wait_until;

/// Enough for the token file and some space beside it.
const DISK_MIB: u32 = 8;

fn text_of(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn the_gateway_continues_says_what_to_do_and_recovers() {
    let disk = SmallDisk::mount(DISK_MIB);
    let (tokens, audit, users) = (disk.path("tokens"), disk.path("audit"), disk.path("users"));
    let hash = bcrypt::hash("secret", 4).expect("hashed");
    let known: String = (0..2000).map(|number| format!("user-{number}:{hash}\n")).collect();
    fs::write(&users, &known).expect("written");
    let options = [
        ("STORE_KIND", "file"),
        ("STORE_PATH", text_of(&tokens)),
        ("STORE_KEY", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="),
        ("AUDIT_FILE", text_of(&audit)),
        ("AUTH_VERIFIER", "users-file"),
        ("AUTH_USERS_FILE", text_of(&users)),
        ("TOKENS_FOREIGN", "reject"),
        ("LISTEN_ADMIN", "127.0.0.1:0"),
    ];
    let upstream = Upstream::start();
    let (mut program, log) = Program::start_logged(upstream.address(), &options);
    let mut confirmed = vec![program.login("user-0", "secret").token()];

    disk.fill();
    let refused = (1..2000).find_map(|number| {
        let response = program.login(&format!("user-{number}"), "secret");
        if response.status != 200 {
            return Some(response);
        }
        confirmed.push(response.token());
        None
    });
    let refused = refused.expect("a disk without space");
    assert_eq!((refused.status, refused.reason()), (503, "token_store_unavailable".to_owned()));
    assert_eq!(program.query(&confirmed[0]).status, 200, "known tokens keep working");
    assert_eq!(program.login("user-0", "secret").token(), confirmed[0], "a known login gets its token");
    // Each attempt is a line of the audit log, whose last page of memory may have had room.
    wait_until("lost lines are counted", || {
        assert_eq!(program.login("user-1999", "secret").status, 503);
        program.metric("timbr_gateway_log_lines_dropped_total") > Some(0.0)
    });
    for (what, path) in [("cannot write to the token file", &tokens), ("cannot write to the audit log", &audit)] {
        let message = format!("{what} {}: No space left on device (os error 28); free some space", path.display());
        wait_until(what, || log.has_message(&message));
    }
    wait_until("lost lines are reported", || log.has_message("log lines lost"));
    assert_eq!(program.metric("timbr_gateway_store_up"), Some(0.0));

    let listeners = [("UPSTREAM_URL", "http://127.0.0.1:1"), ("LISTEN_HTTPS", "off"), ("LISTEN_HTTP", "127.0.0.1:0")];
    let all = [&options[..], &listeners].concat();
    let check = run_with_options(&["config", "check"], &all);
    let shown = String::from_utf8_lossy(&check.stderr);
    for key in ["store.path", "audit.file"] {
        let warning = format!("warning: {key}: is on a file system with 0 MiB left: free some space");
        assert!(shown.contains(&warning), "{shown}");
    }
    let doctor = run_with_options(&["doctor"], &all);
    let shown = String::from_utf8_lossy(&doctor.stdout);
    assert_eq!(shown.matches("is on a file system with 0 MiB left: free some space").count(), 2, "{shown}");
    let add = ["users", "add", "--password-stdin", "new-user", "--auth-users-file", text_of(&users)];
    let add = run(&add, &[], "secret\n");
    let shown = String::from_utf8_lossy(&add.stderr);
    assert!(!add.status.success() && shown.contains(&format!("cannot write {}", users.display())), "{shown}");
    assert!(shown.contains("free some space"), "{shown}");
    assert_eq!(fs::read_to_string(&users).expect("read"), known, "the old file is complete");

    for (line, body) in [
        ("POST /stop", r#"{"kind": "route", "name": "get_token", "why": "Full."}"#),
        ("POST /stop", r#"{"kind": "ontology", "name": "sales", "why": "Full."}"#),
        ("POST /resume", r#"{"kind": "route", "name": "get_token"}"#),
        ("POST /tokens/revoke", r#"{"user": "user-0", "deny_seconds": 3600}"#),
    ] {
        assert_eq!(program.admin(line, body).status, 200, "{line}");
    }
    let ended = confirmed.remove(0);
    let is_kept = |program: &Program| {
        let response = program.admin("GET /stops", "");
        let stops = response.json()["stops"].as_array().map(Vec::len);
        assert_eq!((stops, program.query(&ended).status), (Some(1), 401), "{response:?}");
        assert_eq!(program.login("user-0", "secret").reason(), "credential_denied");
    };

    // A crash while there is no space.
    program.kill();
    let (mut program, log) = Program::start_logged(upstream.address(), &options);
    for token in &confirmed {
        assert_eq!(program.query(token).status, 200, "a confirmed token survives");
    }
    assert_eq!(program.login("user-1999", "secret").status, 503);
    is_kept(&program);

    disk.free();
    wait_until("logins work again", || program.login("user-1999", "secret").status == 200);
    wait_until("this is logged", || log.has_message("the token file can be written again"));
    wait_until("this is logged", || log.has_message("can be written again"));
    let granted = || fs::read_to_string(&audit).expect("read").contains("\"user\":\"user-1999\"");
    wait_until("the audit log has lines again", || program.login("user-1999", "secret").status == 200 && granted());
    assert_eq!(program.metric("timbr_gateway_store_up"), Some(1.0));
    program.kill();
    let mut program = Program::start(upstream.address(), &options);
    is_kept(&program);
    program.begin_shutdown();
    assert!(program.wait().success());
}
