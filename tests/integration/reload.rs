//! The configuration is read again while requests are answered.

use std::path::PathBuf;
use std::time::Duration;

use timbr_gateway::app::RunOutcome;

use crate::support::bearer::{SALT, bearer_with};
use crate::support::client::{Answer, Client};
use crate::support::gateway::Gateway;
use crate::support::h2_client::H2Client;
use crate::support::upstream::{Upstream, answer};
use crate::support::wait_until;

const JSON: (&str, &str) = ("Content-Type", "application/json");
const NEW_SALT: &str = "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE=";

/// A gateway with a file that the test writes.
struct Ground {
    gateway: Gateway,
    file: PathBuf,
    _folder: tempfile::TempDir,
}

impl Ground {
    fn start(file: &str, options: &[(&str, &str)]) -> Ground {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gateway.yaml");
        std::fs::write(&path, file).expect("written");
        // What the file says is not to be said by variables.
        let silent = [("API_AUTH_SALT", ""), ("UPSTREAM_URL", "")];
        let unset = silent.into_iter().filter(|(name, _)| !options.iter().any(|(other, _)| other == name));
        let options: Vec<_> = unset.chain(options.iter().copied()).collect();
        let gateway = Gateway::start_with_path(path.clone(), &options);
        Ground { gateway, file: path, _folder: folder }
    }

    fn write(&self, file: &str) {
        // As editors and the kubelet do it: nobody reads half of it.
        let new = self.file.with_extension("new");
        std::fs::write(&new, file).expect("written");
        std::fs::rename(new, &self.file).expect("renamed");
    }

    fn reload(&self) -> Answer {
        self.gateway.order("POST /reload", "{}")
    }

    /// Writes the file and has it taken.
    fn take(&self, file: &str) {
        self.write(file);
        let answer = self.reload();
        assert_eq!((answer.status, answer.json()["status"].as_str()), (200, Some("success")), "{answer:?}");
    }

    fn reloads(&self, result: &str) -> f64 {
        self.gateway.metric(&format!("timbr_gateway_config_reloads_total{{outcome=\"{result}\"}}"))
    }
}

fn config(upstream: &Upstream, more: &str) -> String {
    format!("api_auth_salt: \"{SALT}\"\nupstream: {{url: \"http://{}\"}}\n{more}", upstream.address())
}

fn get(client: &mut Client, key: &str) -> u16 {
    client.send("GET /timbr/api/x", &[JSON, ("x-api-key", key)], b"").status
}

#[test]
fn the_next_request_of_an_open_connection_meets_the_new_one_and_those_in_flight_end_by_the_old_one() {
    let slow = Upstream::behaving(|_, stream| {
        std::thread::sleep(Duration::from_millis(700));
        answer(stream, 200, "{}")
    });
    let (first, second) = (Upstream::start(), Upstream::start());
    let ground = Ground::start(&config(&first, ""), &[("WORKERS", "2")]);
    let token = ground.gateway.token();
    let h2 = H2Client::connect(ground.gateway.https(), ground.gateway.certificate_pem());
    let over_h2 = || h2.send("GET /timbr/api/x", &[JSON, ("x-api-key", &token)], b"").status;
    let mut client = ground.gateway.client();
    assert_eq!((get(&mut client, &token), over_h2(), first.log().len()), (200, 200, 2));
    ground.take(&config(&slow, ""));
    let mut waiting = ground.gateway.client();
    waiting.write_request("GET /timbr/api/x", &[JSON, ("x-api-key", &token)], b"");
    wait_until("it is in flight", || slow.log().len() == 1);
    ground.take(&config(&second, "limits: {uri: 300B}\n"));
    assert_eq!((get(&mut client, &token), over_h2()), (200, 200), "the token outlives it");
    assert_eq!((first.log().len(), slow.log().len(), second.log().len()), (2, 1, 2));
    let long = format!("GET /timbr/api/{}", "x".repeat(300));
    assert_eq!(client.send(&long, &[JSON, ("x-api-key", &token)], b"").status, 414, "limits are new too");
    assert_eq!(waiting.read_answer(false).status, 200);
    assert_eq!((ground.reloads("success"), ground.reloads("failure")), (2.0, 0.0));
}

#[test]
fn what_cannot_be_used_is_refused_with_all_its_errors_and_is_taken_once_it_is_mended() {
    let (first, second) = (Upstream::start(), Upstream::start());
    let ground = Ground::start(&config(&first, ""), &[]);
    let token = ground.gateway.token();
    ground.write(&config(&second, "timeouts: {idle: 5}\ntokens: {keys_file: /nonexistent}\nnonsense: 1\n"));
    let refused = ground.reload();
    let told = refused.json();
    let options: Vec<_> = told["problems"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["option"].as_str())
        .collect();
    assert_eq!((refused.status, options), (422, vec!["timeouts.idle", "nonsense"]), "{told}");
    assert!(told["data"].as_str().is_some_and(|text| text.contains("did you mean") || text.contains("unit")));
    // What the files say is looked at when what was typed is in order.
    ground
        .write(&config(&second, "tokens: {keys_file: /nonexistent}\ntls: {cert_file: /no, key_file: /no}\n"));
    let told = ground.reload().json();
    assert_eq!(told["problems"].as_array().map(Vec::len), Some(2), "{told}");
    assert_eq!(get(&mut ground.gateway.client(), &token), 200);
    assert_eq!((first.log().len(), second.log().len()), (1, 0), "the one before stays in force");
    let successful = || ground.gateway.metric("timbr_gateway_config_last_reload_successful");
    assert_eq!(successful(), 0.0);
    ground.write(&config(&second, ""));
    wait_until("it is taken without being asked for", || successful() == 1.0);
    assert_eq!(get(&mut ground.gateway.client(), &token), 200);
    assert_eq!((first.log().len(), second.log().len()), (1, 1));
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_is_taken() {
    let (first, second) = (Upstream::start(), Upstream::start());
    let ground = Ground::start(&config(&first, ""), &[("WORKERS", ""), ("LISTEN_ADMIN", "127.0.0.1:0")]);
    let token = ground.gateway.token();
    ground.write(&config(&second, "workers: 7\nstore: {timeout: 1s}\n"));
    for _ in 0..2 {
        let told = ground.reload().json();
        assert_eq!(told["needs_restart"], serde_json::json!(["store.timeout", "workers"]), "{told}");
    }
    assert_eq!(get(&mut ground.gateway.client(), &token), 200);
    assert_eq!(second.log().len(), 1);
}

#[test]
fn a_new_salt_is_taken_and_tokens_end_with_theirs() {
    let upstream = Upstream::start();
    let of = |salts: &str| {
        format!("api_auth_salt: \"{salts}\"\nupstream: {{url: \"http://{}\"}}\n", upstream.address())
    };
    // Else a token whose salt is gone would be asked about, as a key that only the backend may know.
    let ground = Ground::start(&of(SALT), &[("TOKENS_FOREIGN", "reject")]);
    let login = |salt: &str| {
        let authorization = format!("Bearer {}", bearer_with(salt, "alice", "secret"));
        let fields = [JSON, ("Authorization", authorization.as_str())];
        let answer = ground.gateway.client().send("POST /timbr/api/get_token", &fields, b"");
        (answer.status == 200).then(|| answer.json()["data"][0].as_str().expect("a token").to_owned())
    };
    let old = login(SALT).expect("the salt is known");
    assert!(login(NEW_SALT).is_none());
    ground.take(&of(&format!("{NEW_SALT},{SALT}")));
    let mut client = ground.gateway.client();
    let new = login(NEW_SALT).expect("the salt is known");
    assert_ne!(old, new);
    assert_eq!(
        (get(&mut client, &old), get(&mut client, &new)),
        (200, 200),
        "it is good until its salt is gone"
    );
    assert_eq!(login(SALT).as_ref(), Some(&new), "the primary salt makes the tokens");
    ground.take(&of(NEW_SALT));
    let ended = client.send("GET /timbr/api/x", &[JSON, ("x-api-key", &old)], b"");
    assert_eq!(ended.status, 401, "{ended:?}");
    assert_eq!(get(&mut client, &new), 200);
    assert!(login(SALT).is_none());
    let listed = ground.gateway.get("/tokens");
    assert_eq!(listed["tokens"].as_array().map(Vec::len), Some(1), "{listed}");
}

#[test]
fn another_backend_is_asked_about_foreign_keys_anew() {
    let knows = |known: bool| {
        Upstream::behaving(move |request, stream| {
            let good = known && request.field("x-api-key") == "tk_theirs";
            answer(stream, if good { 200 } else { 401 }, "{}")
        })
    };
    let (first, second) = (knows(true), knows(false));
    let ground = Ground::start(&config(&first, ""), &[]);
    let mut client = ground.gateway.client();
    assert_eq!(get(&mut client, "tk_theirs"), 200);
    let asked = first.log().len();
    ground.take(&config(&first, "timeouts: {idle: 50s}\n"));
    assert_eq!((get(&mut client, "tk_theirs"), first.log().len()), (200, asked + 1), "its yes is remembered");
    ground.take(&config(&second, ""));
    assert_eq!(get(&mut client, "tk_theirs"), 401);
}

/// A line of the users file; `cost` doubles the work with each step.
fn user(name: &str, password: &str, cost: u32) -> String {
    format!("{name}:{}\n", bcrypt::hash(password, cost).expect("hashed"))
}

#[test]
fn tokens_that_a_stricter_verifier_has_not_granted_end_with_the_one_that_did() {
    let upstream = Upstream::start();
    let folder = tempfile::tempdir().expect("a folder");
    let users = folder.path().join("users");
    std::fs::write(&users, user("alice", "wonder", 4)).expect("written");
    let ground = Ground::start(&config(&upstream, ""), &[]);
    // Whoever has the salt may name anybody.
    let made_up = ground.gateway.token_of("root", "anything");
    let mut client = ground.gateway.client();
    assert_eq!(get(&mut client, &made_up), 200);
    ground.take(&config(&upstream, "auth: {verifier: salt-holder, bearer_max_age: 5m}\n"));
    assert_eq!(get(&mut client, &made_up), 200, "the verifier is the same");
    ground.take(&config(
        &upstream,
        &format!("auth: {{verifier: users-file, users_file: \"{}\"}}\n", users.display()),
    ));
    assert_eq!(get(&mut client, &made_up), 401);
    let token = ground.gateway.token_of("alice", "wonder");
    assert_eq!(get(&mut client, &token), 200);
    let listed = ground.gateway.get("/tokens");
    assert_eq!(listed["tokens"].as_array().map(Vec::len), Some(1), "{listed}");
}

#[test]
fn a_backend_is_shown_no_key_that_another_one_gave() {
    let giving = |key: &'static str| {
        Upstream::behaving(move |request, stream| {
            let is_login = request.line.starts_with("POST /timbr/api/get_token ");
            answer(
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
    let ground = Ground::start(&of(&first, ""), &[]);
    let token = ground.gateway.token();
    let mut client = ground.gateway.client();
    assert_eq!(get(&mut client, &token), 200);
    ground.take(&of(&first, ", response_timeout: 77s"));
    assert_eq!(get(&mut client, &token), 200, "the backend is the same");
    ground.take(&of(&second, ""));
    assert_eq!(get(&mut client, &token), 401);
    let token = ground.gateway.token();
    assert_eq!(get(&mut client, &token), 200);
    let shown: Vec<_> = second.log().iter().map(|seen| seen.field("x-api-key").to_owned()).collect();
    assert_eq!(shown, ["", "tk_second"]);
}

#[test]
fn who_is_taken_out_while_the_password_is_looked_at_gets_no_token() {
    let upstream = Upstream::start();
    let folder = tempfile::tempdir().expect("a folder");
    let users = folder.path().join("users");
    let (alice, bob) = (user("alice", "wonder", 4), user("bob", "builder", 12));
    std::fs::write(&users, format!("{alice}{bob}")).expect("written");
    let more = format!("auth: {{verifier: users-file, users_file: \"{}\"}}\n", users.display());
    let ground = Ground::start(&config(&upstream, &more), &[]);
    let authorization = format!("Bearer {}", bearer_with(SALT, "bob", "builder"));
    let mut waiting = ground.gateway.client();
    waiting.write_request("POST /timbr/api/get_token", &[JSON, ("Authorization", &authorization)], b"");
    wait_until("the password is looked at", || {
        ground.gateway.metric("timbr_gateway_requests_in_flight") == 1.0
    });
    std::fs::write(&users, alice).expect("written");
    assert_eq!(ground.reload().status, 200);
    let answered = waiting.read_answer(false);
    assert_eq!((answered.status, answered.reason().as_str()), (503, "token_store_unavailable"));
    let listed = ground.gateway.get("/tokens");
    assert_eq!(listed["tokens"].as_array().map(Vec::len), Some(0), "{listed}");
}

#[test]
fn keys_of_a_file_come_and_go_with_it() {
    let upstream = Upstream::start();
    let folder = tempfile::tempdir().expect("a folder");
    let keys = folder.path().join("keys");
    // SHA-256 of "one" and of "two".
    let one = "alice:7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed\n";
    let two = "bob:3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3\n";
    std::fs::write(&keys, one).expect("written");
    let more = format!("tokens: {{keys_file: \"{}\", foreign: reject}}\n", keys.display());
    let ground = Ground::start(&config(&upstream, &more), &[("LIMITS_FAILURES_PER_ADDRESS", "0")]);
    let mut client = ground.gateway.client();
    assert_eq!((get(&mut client, "one"), get(&mut client, "two")), (200, 401));
    std::fs::write(&keys, two).expect("written");
    wait_until("the file is read again", || get(&mut ground.gateway.client(), "two") == 200);
    assert_eq!(get(&mut client, "one"), 401);
    std::fs::write(&keys, "nonsense").expect("written");
    wait_until("it is told", || ground.gateway.metric("timbr_gateway_config_last_reload_successful") == 0.0);
    assert_eq!(
        (ground.reloads("failure"), get(&mut client, "two")),
        (1.0, 200),
        "what was read before stays"
    );
}

#[test]
fn operators_order_the_end_and_pages_of_other_sites_do_not() {
    let upstream = Upstream::start();
    let ground = Ground::start(&config(&upstream, ""), &[]);
    let from = |fields: &str| {
        let mut client = Client::connect(ground.gateway.admin());
        client.write(format!("POST /quit HTTP/1.1\r\n{fields}Content-Length: 2\r\n\r\n{{}}").as_bytes());
        client.read_answer(false).status
    };
    let json = "Content-Type: application/json\r\n";
    assert_eq!(from(&format!("Host: localhost\r\nOrigin: http://evil.test\r\n{json}")), 403);
    assert_eq!(from(&format!("Host: evil.test\r\n{json}")), 403, "a name that leads here is not ours");
    assert_eq!(from("Host: localhost\r\nContent-Type: text/plain\r\n"), 415);
    let get = Client::connect(ground.gateway.admin()).send("GET /drain", &[("Host", "localhost")], b"");
    assert!(get.status == 400 || get.status == 403 || get.status == 405, "{get:?}");
    assert_eq!(ground.gateway.order("POST /drain", "{}").status, 200);
    let Ground { gateway, _folder, .. } = ground;
    assert_eq!(gateway.ended(), RunOutcome::Drained { cut: 0 });
    let ground = Ground::start(&config(&upstream, ""), &[]);
    assert_eq!(ground.gateway.order("POST /quit", "{}").status, 200);
    let Ground { gateway, _folder, .. } = ground;
    assert_eq!(gateway.ended(), RunOutcome::Aborted);
}
