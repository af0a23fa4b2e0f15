//! Revocations: how soon they are everywhere, and that they stay.

use std::time::{Duration, Instant};

use timbr_gateway::store::{Revocation, TokenId};

use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::redis::Redis;
use crate::support::stores::Ground;
use crate::support::upstream::Upstream;
use crate::support::wait_until;

const JSON: (&str, &str) = ("Content-Type", "application/json");

fn status(gateway: &Gateway, token: &str) -> u16 {
    gateway.client().send("GET /timbr/api/x", &[JSON, ("x-api-key", token)], b"").status
}

#[test]
fn what_is_revoked_at_one_replica_ends_at_all_within_a_second() {
    let redis = Redis::start();
    let upstream = Upstream::start();
    let url = redis.url();
    let options = [("STORE_KIND", "redis"), ("STORE_URLS", url.as_str()), ("STORE_TIMEOUT", "2s")];
    let gateways: Vec<_> = (0..3).map(|_| Gateway::start(upstream.address(), &options)).collect();
    for gateway in &gateways {
        wait_until("the store answers", || gateway.metric("timbr_gateway_store_up") == 1.0);
    }
    let mut slowest = Duration::ZERO;
    for round in 0..5 {
        let token = gateways[round % 3].token();
        assert!(gateways.iter().all(|gateway| status(gateway, &token) == 200), "one token for all");
        let fingerprint = format!("{:?}", TokenId::from_token(token.as_bytes()))[8..16].to_owned();
        let order = match round {
            0 => "{\"user\":\"alice\"}".to_owned(),
            1 => format!("{{\"token\":\"{token}\"}}"),
            2 => "{\"all\":true}".to_owned(),
            _ => format!("{{\"fingerprint\":\"{fingerprint}\"}}"),
        };
        let begin = Instant::now();
        gateways[0].revoke(&order);
        let answer = gateways[0].client().send("GET /timbr/api/x", &[JSON, ("x-api-key", &token)], b"");
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (401, "token_expired"),
            "at once where it was said"
        );
        wait_until("it has ended everywhere", || {
            gateways.iter().all(|gateway| status(gateway, &token) == 401)
        });
        slowest = slowest.max(begin.elapsed());
        assert_ne!(gateways[1].token(), token, "the login has another one now");
    }
    println!("revoked everywhere after {slowest:?} at most");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

#[test]
fn a_revocation_that_a_failover_lost_is_written_again() {
    let ground = Ground::Redis(Redis::start());
    let Ground::Redis(redis) = &ground else { unreachable!() };
    let replica = ground.open();
    let id = replica.mint("alice", 1).expect("minted");
    let key = redis.command::<Vec<String>>(&["KEYS", "*t:*"]).pop().expect("it is there");
    let value: Vec<u8> = redis.command(&["GET", &key]);
    replica.block_on(replica.store().revoke(Revocation::Token(id.fingerprint()))).expect("it answers");
    // What a server knows that was behind: the token, and not that it was revoked.
    let _: () = redis.command(&["DEL", "timbr-gateway:notices"]);
    let _: () = ::redis::cmd("SET").arg(&key).arg(&value).query(&mut redis.connect()).expect("set");
    assert!(!replica.lives(&id), "who knows of it does not forget it");
    let _: u64 = redis.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    wait_until("it is written again", || redis.command::<u64>(&["XLEN", "timbr-gateway:notices"]) == 1);
    let other = ground.open();
    assert!(!other.lives(&id), "a replica that was not there then knows it too");
}

#[test]
fn a_revocation_during_an_outage_holds_here_at_once_and_elsewhere_afterwards() {
    let mut redis = Redis::start();
    let upstream = Upstream::start();
    let url = redis.url();
    let options = [("STORE_KIND", "redis"), ("STORE_URLS", url.as_str())];
    let (here, there) =
        (Gateway::start(upstream.address(), &options), Gateway::start(upstream.address(), &options));
    let up = |gateway: &Gateway| gateway.metric("timbr_gateway_store_up") == 1.0;
    wait_until("the store answers", || up(&here) && up(&there));
    let token = here.token();
    assert_eq!(status(&there, &token), 200);
    redis.kill();
    wait_until("that is noticed", || !up(&here) && !up(&there));
    let answer = here.try_revoke("{\"user\":\"alice\"}");
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("ended at this gateway"), "{answer:?}");
    assert_eq!(status(&here, &token), 503, "not any more, whatever the store may say of it one day");
    assert_eq!(status(&there, &token), 200, "it cannot know");
    redis.restart();
    wait_until("there it has ended too", || status(&there, &token) == 401);
    assert_eq!(status(&here, &token), 401);
}

#[test]
fn only_who_is_here_may_revoke() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[]);
    let token = gateway.token();
    let ask = |line: &str, host: &str, kind: &str, body: &str| {
        let mut client = Client::connect(gateway.admin());
        let length = body.len();
        client.write(
            format!("{line} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}")
                .as_bytes(),
        );
        client.read_answer(false)
    };
    let all = "{\"all\":true}";
    assert_eq!(ask("POST /tokens/revoke", "evil.example", "application/json", all).status, 403);
    assert_eq!(ask("GET /tokens", "evil.example:80", "", "").status, 403);
    assert_eq!(ask("POST /tokens/revoke", "localhost", "text/plain", all).status, 415);
    assert_eq!(ask("GET /tokens/revoke", "localhost", "", "").status, 405);
    assert_eq!(ask("POST /tokens/revoke", "localhost", "application/json", "{}").status, 400);
    assert_eq!(ask("GET /tokens?limit=0", "localhost", "", "").status, 400);
    assert_eq!(status(&gateway, &token), 200, "none of them did anything");
    let shown = ask("GET /tokens", "localhost", "", "");
    assert_eq!(shown.json()["tokens"][0]["user"], "alice");
    assert!(!shown.text().contains(&token[3..]), "a token is never shown");
    assert_eq!(
        gateway.client().send("POST /tokens/revoke", &[JSON], all.as_bytes()).status,
        404,
        "not where clients are"
    );
    assert_eq!(ask("POST /tokens/revoke", "localhost", "application/json", all).status, 200);
    assert_eq!(status(&gateway, &token), 401);
}
