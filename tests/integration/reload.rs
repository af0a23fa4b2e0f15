//! Reloads of the configuration while requests are served.

use std::io::{ErrorKind, Read};
use std::path::PathBuf;
use std::time::Duration;

use timbr_gateway::app::RunOutcome;

use crate::support::bearer::{SALT, bearer_with};
use crate::support::client::{Client, JSON, Response};
use crate::support::gateway::Gateway;
use crate::support::h2_client::H2Client;
use crate::support::upstream::{Upstream, respond};
use crate::support::wait_until;

const NEW_SALT: &str = "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE=";

/// A gateway with a configuration file that the test writes.
struct StoreFixture {
    gateway: Gateway,
    file: PathBuf,
    _folder: tempfile::TempDir,
}

impl StoreFixture {
    fn start(file: &str, options: &[(&str, &str)]) -> StoreFixture {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gateway.yaml");
        std::fs::write(&path, file).expect("written");
        // The file sets these options, so the environment must not.
        let silent = [("API_AUTH_SALT", ""), ("UPSTREAM_URL", "")];
        let unset = silent.into_iter().filter(|(name, _)| !options.iter().any(|(other, _)| other == name));
        let options: Vec<_> = unset.chain(options.iter().copied()).collect();
        let gateway = Gateway::start_with_path(path.clone(), &options);
        StoreFixture { gateway, file: path, _folder: folder }
    }

    fn write(&self, file: &str) {
        // Written to a new file and renamed, as editors and the kubelet do.
        let new = self.file.with_extension("new");
        std::fs::write(&new, file).expect("written");
        std::fs::rename(new, &self.file).expect("renamed");
    }

    fn reload(&self) -> Response {
        self.gateway.admin_command("POST /reload", "{}")
    }

    /// Writes the file and reloads.
    fn take(&self, file: &str) {
        self.write(file);
        let response = self.reload();
        assert_eq!((response.status, response.json()["status"].as_str()), (200, Some("success")), "{response:?}");
    }

    fn reloads(&self, result: &str) -> f64 {
        self.gateway.metric(&format!("timbr_gateway_config_reloads_total{{outcome=\"{result}\"}}"))
    }
}

fn config(upstream: &Upstream, more: &str) -> String {
    format!("api_auth_salt: \"{SALT}\"\nupstream: {{url: \"http://{}\"}}\n{more}", upstream.address())
}

/// The kernel would keep what a client does not read, also after a close.
#[test]
fn without_memory_unread_responses_are_reset_and_idle_connections_closed() {
    const LENGTH: usize = 16 << 20;
    let upstream = Upstream::with_behaviour(|request, stream| {
        let length = if request.line.contains("large") { LENGTH } else { 2 };
        respond(stream, 200, &"x".repeat(length))
    });
    let fixture = StoreFixture::start(&config(&upstream, ""), &[("TIMEOUTS_WRITE", "300s")]);
    let token = fixture.gateway.token();
    let [mut unread, mut read, mut idle] = [(), (), ()].map(|()| fixture.gateway.client());
    for client in [&mut unread, &mut read] {
        client.write_request("GET /timbr/api/large", &[JSON, ("x-api-key", &token)], b"");
    }
    assert_eq!(idle.query(&token).status, 200);
    wait_until("all have arrived", || upstream.log().len() == 3);
    fixture.take(&config(&upstream, "limits: {memory: 1MiB}\n"));
    assert!(idle.is_closed());
    assert!(read.read_head().is_some());
    for _ in 0..LENGTH >> 20 {
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(read.read_bytes(1 << 20).len(), 1 << 20, "its client reads");
    }
    let mut got = Vec::new();
    let end = unread.try_clone().read_to_end(&mut got).map_err(|error| error.kind());
    assert!(end == Err(ErrorKind::ConnectionReset) && got.len() < LENGTH, "{end:?} after {} bytes", got.len());
}

#[test]
fn new_requests_use_the_new_snapshot_and_requests_in_flight_the_old_one() {
    let slow = Upstream::with_behaviour(|_, stream| {
        std::thread::sleep(Duration::from_millis(700));
        respond(stream, 200, "{}")
    });
    let (first, second) = (Upstream::start(), Upstream::start());
    let fixture = StoreFixture::start(&config(&first, ""), &[("WORKERS", "2")]);
    let token = fixture.gateway.token();
    let h2 = H2Client::connect(fixture.gateway.https(), fixture.gateway.certificate_pem());
    let over_h2 = || h2.send("GET /timbr/api/x", &[JSON, ("x-api-key", &token)], b"").status;
    let mut client = fixture.gateway.client();
    assert_eq!((client.query(&token).status, over_h2(), first.log().len()), (200, 200, 2));
    fixture.take(&config(&slow, ""));
    let mut waiting = fixture.gateway.client();
    waiting.write_request("GET /timbr/api/x", &[JSON, ("x-api-key", &token)], b"");
    wait_until("the request is in flight", || slow.log().len() == 1);
    fixture.take(&config(&second, "limits: {uri: 300B}\n"));
    assert_eq!((client.query(&token).status, over_h2()), (200, 200), "the token stays valid");
    assert_eq!((first.log().len(), slow.log().len(), second.log().len()), (2, 1, 2));
    let long = format!("GET /timbr/api/{}", "x".repeat(300));
    assert_eq!(client.send(&long, &[JSON, ("x-api-key", &token)], b"").status, 414, "the new limits apply");
    assert_eq!(waiting.read_response().status, 200);
    assert_eq!((fixture.reloads("success"), fixture.reloads("failure")), (2.0, 0.0));
}

#[test]
fn an_invalid_configuration_is_rejected_with_all_errors_until_it_is_fixed() {
    let (first, second) = (Upstream::start(), Upstream::start());
    let fixture = StoreFixture::start(&config(&first, ""), &[]);
    let token = fixture.gateway.token();
    fixture.write(&config(&second, "timeouts: {idle: 5}\ntokens: {keys_file: /nonexistent}\nnonsense: 1\n"));
    let refused = fixture.reload();
    let told = refused.json();
    let options: Vec<_> =
        told["problems"].as_array().expect("a list").iter().filter_map(|one| one["option"].as_str()).collect();
    assert_eq!((refused.status, options), (422, vec!["nonsense", "timeouts.idle"]), "{told}");
    assert!(told["data"].as_str().is_some_and(|text| text.contains("did you mean") || text.contains("unit")));
    // The files are read only if all options are valid.
    fixture.write(&config(&second, "tokens: {keys_file: /nonexistent}\ntls: {cert_file: /no, key_file: /no}\n"));
    let told = fixture.reload().json();
    assert_eq!(told["problems"].as_array().map(Vec::len), Some(2), "{told}");
    assert_eq!(fixture.gateway.query(&token).status, 200);
    assert_eq!((first.log().len(), second.log().len()), (1, 0), "the previous configuration stays active");
    let successful = || fixture.gateway.metric("timbr_gateway_config_last_reload_successful");
    assert_eq!(successful(), 0.0);
    fixture.write(&config(&second, ""));
    wait_until("the file is reloaded automatically", || successful() == 1.0);
    assert_eq!(fixture.gateway.query(&token).status, 200);
    assert_eq!((first.log().len(), second.log().len()), (1, 1));
}

#[test]
fn options_that_need_a_restart_are_reported_and_the_others_applied() {
    let (first, second) = (Upstream::start(), Upstream::start());
    let fixture = StoreFixture::start(&config(&first, ""), &[("WORKERS", ""), ("LISTEN_ADMIN", "127.0.0.1:0")]);
    let token = fixture.gateway.token();
    fixture.write(&config(&second, "workers: 7\nstore: {timeout: 1s}\n"));
    for _ in 0..2 {
        let told = fixture.reload().json();
        assert_eq!(told["needs_restart"], serde_json::json!(["store.timeout", "workers"]), "{told}");
    }
    assert_eq!(fixture.gateway.query(&token).status, 200);
    assert_eq!(second.log().len(), 1);
}

#[test]
fn a_new_salt_is_applied_and_tokens_of_removed_salts_are_revoked() {
    let upstream = Upstream::start();
    let of =
        |salts: &str| format!("api_auth_salt: \"{salts}\"\nupstream: {{url: \"http://{}\"}}\n", upstream.address());
    // Otherwise a token of a removed salt would be checked at the backend as a foreign key.
    let fixture = StoreFixture::start(&of(SALT), &[("TOKENS_FOREIGN", "reject")]);
    let login = |salt: &str| {
        let authorization = format!("Bearer {}", bearer_with(salt, "alice", "secret"));
        let headers = [JSON, ("Authorization", authorization.as_str())];
        let response = fixture.gateway.client().send("POST /timbr/api/get_token", &headers, b"");
        (response.status == 200).then(|| response.token())
    };
    let old = login(SALT).expect("the salt is known");
    assert!(login(NEW_SALT).is_none());
    fixture.take(&of(&format!("{NEW_SALT},{SALT}")));
    let mut client = fixture.gateway.client();
    let new = login(NEW_SALT).expect("the salt is known");
    assert_ne!(old, new);
    assert_eq!(
        (client.query(&old).status, client.query(&new).status),
        (200, 200),
        "the token is valid until its salt is removed"
    );
    assert_eq!(
        login(SALT).as_ref(),
        Some(&old),
        "without a verifier, a token ends with the salt that proved its login"
    );
    fixture.take(&of(NEW_SALT));
    let ended = client.query(&old);
    assert_eq!(ended.status, 401, "{ended:?}");
    assert_eq!(client.query(&new).status, 200);
    assert!(login(SALT).is_none());
    let listed = fixture.gateway.get("/tokens");
    assert_eq!(listed["tokens"].as_array().map(Vec::len), Some(1), "{listed}");
}

#[test]
fn a_new_backend_checks_foreign_keys_again() {
    let knows = |known: bool| {
        Upstream::with_behaviour(move |request, stream| {
            let good = known && request.header("x-api-key") == "tk_theirs";
            respond(stream, if good { 200 } else { 401 }, "{}")
        })
    };
    let (first, second) = (knows(true), knows(false));
    let fixture = StoreFixture::start(&config(&first, ""), &[]);
    let mut client = fixture.gateway.client();
    assert_eq!(client.query("tk_theirs").status, 200);
    let asked = first.log().len();
    fixture.take(&config(&first, "timeouts: {idle: 50s}\n"));
    assert_eq!((client.query("tk_theirs").status, first.log().len()), (200, asked + 1), "the verdict is cached");
    fixture.take(&config(&second, ""));
    assert_eq!(client.query("tk_theirs").status, 401);
}

/// A line of the users file. `cost` is the bcrypt cost.
fn user(name: &str, password: &str, cost: u32) -> String {
    format!("{name}:{}\n", bcrypt::hash(password, cost).expect("hashed"))
}

#[test]
fn a_stricter_verifier_revokes_the_tokens_of_the_previous_one() {
    let upstream = Upstream::start();
    let folder = tempfile::tempdir().expect("a folder");
    let users = folder.path().join("users");
    std::fs::write(&users, user("alice", "wonder", 4)).expect("written");
    let fixture = StoreFixture::start(&config(&upstream, ""), &[]);
    // A client with the salt can log in as any user.
    let made_up = fixture.gateway.token_of("root", "anything");
    let mut client = fixture.gateway.client();
    assert_eq!(client.query(&made_up).status, 200);
    fixture.take(&config(&upstream, "auth: {verifier: salt-holder, bearer_max_age: 5m}\n"));
    assert_eq!(client.query(&made_up).status, 200, "the verifier has not changed");
    fixture.take(&config(&upstream, &format!("auth: {{verifier: users-file, users_file: \"{}\"}}\n", users.display())));
    assert_eq!(client.query(&made_up).status, 401);
    let token = fixture.gateway.token_of("alice", "wonder");
    assert_eq!(client.query(&token).status, 200);
    let listed = fixture.gateway.get("/tokens");
    assert_eq!(listed["tokens"].as_array().map(Vec::len), Some(1), "{listed}");
}

#[test]
fn upstream_keys_are_not_sent_to_a_different_backend() {
    let giving = |key: &'static str| {
        Upstream::with_behaviour(move |request, stream| {
            let is_login = request.line.starts_with("POST /timbr/api/get_token ");
            respond(
                stream,
                200,
                &if is_login { format!(r#"{{"status":"success","data":["{key}"]}}"#) } else { "{}".into() },
            )
        })
    };
    let (first, second) = (giving("tk_first"), giving("tk_second"));
    let of = |upstream: &Upstream, more: &str| {
        let place = format!("url: \"http://{}\", credential: delegate{more}", upstream.address());
        format!("api_auth_salt: \"{SALT}\"\nauth: {{verifier: delegate}}\nupstream: {{{place}}}\n")
    };
    let fixture = StoreFixture::start(&of(&first, ""), &[]);
    let token = fixture.gateway.token();
    let mut client = fixture.gateway.client();
    assert_eq!(client.query(&token).status, 200);
    fixture.take(&of(&first, ", response_timeout: 77s"));
    assert_eq!(client.query(&token).status, 200, "the backend has not changed");
    fixture.take(&of(&second, ""));
    assert_eq!(client.query(&token).status, 401);
    let token = fixture.gateway.token();
    assert_eq!(client.query(&token).status, 200);
    let shown: Vec<_> = second.log().iter().map(|seen| seen.header("x-api-key").to_owned()).collect();
    assert_eq!(shown, ["", "tk_second"]);
}

#[test]
fn a_user_removed_during_the_login_gets_no_token() {
    let upstream = Upstream::start();
    let folder = tempfile::tempdir().expect("a folder");
    let users = folder.path().join("users");
    let (alice, bob) = (user("alice", "wonder", 4), user("bob", "builder", 12));
    std::fs::write(&users, format!("{alice}{bob}")).expect("written");
    let more = format!("auth: {{verifier: users-file, users_file: \"{}\"}}\n", users.display());
    let fixture = StoreFixture::start(&config(&upstream, &more), &[]);
    let authorization = format!("Bearer {}", bearer_with(SALT, "bob", "builder"));
    let mut waiting = fixture.gateway.client();
    waiting.write_request("POST /timbr/api/get_token", &[JSON, ("Authorization", &authorization)], b"");
    wait_until("the password is being checked", || fixture.gateway.metric("timbr_gateway_requests_in_flight") == 1.0);
    std::fs::write(&users, alice).expect("written");
    assert_eq!(fixture.reload().status, 200);
    assert_eq!(waiting.read_response().rejection(), (401, "credentials_wrong".into()));
    let listed = fixture.gateway.get("/tokens");
    assert_eq!(listed["tokens"].as_array().map(Vec::len), Some(0), "{listed}");
}

#[test]
fn the_keys_file_is_reloaded() {
    let upstream = Upstream::start();
    let folder = tempfile::tempdir().expect("a folder");
    let keys = folder.path().join("keys");
    // SHA-256 of "one" and "two".
    let one = "alice:7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed\n";
    let two = "bob:3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3\n";
    std::fs::write(&keys, one).expect("written");
    let more = format!("tokens: {{keys_file: \"{}\", foreign: reject}}\n", keys.display());
    let fixture = StoreFixture::start(&config(&upstream, &more), &[("LIMITS_FAILURES_PER_ADDRESS", "0")]);
    let mut client = fixture.gateway.client();
    assert_eq!((client.query("one").status, client.query("two").status), (200, 401));
    std::fs::write(&keys, two).expect("written");
    wait_until("the file is reloaded", || fixture.gateway.query("two").status == 200);
    assert_eq!(client.query("one").status, 401);
    std::fs::write(&keys, "nonsense").expect("written");
    wait_until("the failure is reported", || {
        fixture.gateway.metric("timbr_gateway_config_last_reload_successful") == 0.0
    });
    assert_eq!((fixture.reloads("failure"), client.query("two").status), (1.0, 200), "the previous keys stay active");
}

#[test]
fn admin_commands_are_rejected_from_other_sites() {
    let upstream = Upstream::start();
    let fixture = StoreFixture::start(&config(&upstream, ""), &[]);
    let from = |headers: &str| {
        let mut client = Client::connect(fixture.gateway.admin());
        client.write(format!("POST /quit HTTP/1.1\r\n{headers}Content-Length: 2\r\n\r\n{{}}").as_bytes());
        client.read_response().status
    };
    let json = "Content-Type: application/json\r\n";
    assert_eq!(from(&format!("Host: localhost\r\nOrigin: http://evil.test\r\n{json}")), 403);
    assert_eq!(from(&format!("Host: evil.test\r\n{json}")), 403, "a name that resolves here is not accepted");
    assert_eq!(from("Host: localhost\r\nContent-Type: text/plain\r\n"), 415);
    let get = Client::connect(fixture.gateway.admin()).send("GET /drain", &[("Host", "localhost")], b"");
    assert!(get.status == 400 || get.status == 403 || get.status == 405, "{get:?}");
    assert_eq!(fixture.gateway.admin_command("POST /drain", "{}").status, 200);
    let StoreFixture { gateway, _folder, .. } = fixture;
    assert_eq!(gateway.wait(), RunOutcome::Drained { cut: 0 });
    let fixture = StoreFixture::start(&config(&upstream, ""), &[]);
    assert_eq!(fixture.gateway.admin_command("POST /quit", "{}").status, 200);
    let StoreFixture { gateway, _folder, .. } = fixture;
    assert_eq!(gateway.wait(), RunOutcome::Aborted);
}
