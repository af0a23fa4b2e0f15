//! Revocations: propagation and persistence.

use std::time::{Duration, Instant};

use timbr_gateway::store::{Revocation, TokenId};

use crate::support::client::{Client, JSON};
use crate::support::gateway::{Gateway, setup};
use crate::support::redis::Redis;
use crate::support::stores::StoreFixture;
use crate::support::upstream::Upstream;
use crate::support::wait_until;

#[test]
fn a_revocation_reaches_all_replicas_within_a_second() {
    let redis = Redis::start();
    let upstream = Upstream::start();
    let url = redis.url();
    let options = [("STORE_KIND", "redis"), ("STORE_URLS", url.as_str()), ("STORE_TIMEOUT", "2s")];
    let gateways: Vec<_> = (0..3).map(|_| Gateway::start(upstream.address(), &options)).collect();
    for gateway in &gateways {
        wait_until("the store responds", || gateway.metric("timbr_gateway_store_up") == 1.0);
    }
    let mut slowest = Duration::ZERO;
    for round in 0..5 {
        let token = gateways[round % 3].token();
        assert!(gateways.iter().all(|gateway| gateway.query(&token).status == 200), "one token for all replicas");
        let fingerprint = format!("{:?}", TokenId::from_token(token.as_bytes()))[8..16].to_owned();
        let order = match round {
            0 => "{\"user\":\"alice\"}".to_owned(),
            1 => format!("{{\"token\":\"{token}\"}}"),
            2 => "{\"all\":true}".to_owned(),
            _ => format!("{{\"fingerprint\":\"{fingerprint}\"}}"),
        };
        let begin = Instant::now();
        gateways[0].revoke(&order);
        let response = gateways[0].query(&token);
        assert_eq!(
            (response.status, response.reason().as_str()),
            (401, "token_revoked"),
            "immediately at this replica"
        );
        wait_until("the token is revoked everywhere", || {
            gateways.iter().all(|gateway| gateway.query(&token).status == 401)
        });
        slowest = slowest.max(begin.elapsed());
        assert_ne!(gateways[1].token(), token, "the login gets a new token");
    }
    println!("revoked everywhere after {slowest:?} at most");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

#[test]
fn a_revocation_lost_by_a_failover_is_written_again() {
    let fixture = StoreFixture::Redis(Redis::start());
    let StoreFixture::Redis(redis) = &fixture else { unreachable!() };
    let replica = fixture.open();
    let id = replica.mint("alice", 1).expect("minted");
    let key = redis.command::<Vec<String>>(&["KEYS", "timbr-gateway:t:*"]).pop().expect("it is there");
    let value: Vec<u8> = redis.command(&["GET", &key]);
    replica.block_on(replica.store().revoke(Revocation::Token(id.fingerprint()))).expect("it responds");
    // The state of a server that lagged behind: the token, but not its revocation.
    let _: () = redis.command(&["DEL", "timbr-gateway:marks", "timbr-gateway:events"]);
    let _: () = ::redis::cmd("SET").arg(&key).arg(&value).query(&mut redis.connect()).expect("set");
    assert!(!replica.lives(&id), "a replica that knows the revocation keeps it");
    let _: u64 = redis.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    wait_until("the revocation is written again", || redis.command::<u64>(&["HLEN", "timbr-gateway:marks"]) == 1);
    let other = fixture.open();
    assert!(!other.lives(&id), "a new replica knows it too");
}

#[test]
fn a_revocation_during_an_outage_is_local_until_the_store_returns() {
    let mut redis = Redis::start();
    let upstream = Upstream::start();
    let url = redis.url();
    let options = [("STORE_KIND", "redis"), ("STORE_URLS", url.as_str())];
    let (here, there) = (Gateway::start(upstream.address(), &options), Gateway::start(upstream.address(), &options));
    let up = |gateway: &Gateway| gateway.metric("timbr_gateway_store_up") == 1.0;
    wait_until("the store responds", || up(&here) && up(&there));
    let token = here.token();
    assert_eq!(there.query(&token).status, 200);
    redis.kill();
    wait_until("the outage is detected", || !up(&here) && !up(&there));
    let response = here.try_revoke("{\"user\":\"alice\"}");
    assert_eq!(response.status, 503);
    assert!(response.text().contains("revoked at this gateway"), "{response:?}");
    assert_eq!(here.query(&token).status, 503, "revoked regardless of the store's state");
    assert_eq!(there.query(&token).status, 200, "the other gateway cannot know yet");
    redis.restart();
    wait_until("revoked there, too", || there.query(&token).status == 401);
    assert_eq!(here.query(&token).status, 401);
}

#[test]
fn only_local_clients_may_revoke() {
    let (_, gateway, token) = setup(&[]);
    let ask = |line: &str, host: &str, kind: &str, body: &str| {
        let mut client = Client::connect(gateway.admin());
        let length = body.len();
        client.write(
            format!(
                "{line} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
            )
            .as_bytes(),
        );
        client.read_response()
    };
    let all = "{\"all\":true}";
    assert_eq!(ask("POST /tokens/revoke", "evil.example", "application/json", all).status, 403);
    assert_eq!(ask("GET /tokens", "evil.example:80", "", "").status, 403);
    assert_eq!(ask("POST /tokens/revoke", "localhost", "text/plain", all).status, 415);
    assert_eq!(ask("GET /tokens/revoke", "localhost", "", "").status, 405);
    assert_eq!(ask("POST /tokens/revoke", "localhost", "application/json", "{}").status, 400);
    assert_eq!(ask("GET /tokens?limit=0", "localhost", "", "").status, 400);
    assert_eq!(gateway.query(&token).status, 200, "none of them had an effect");
    let shown = ask("GET /tokens", "localhost", "", "");
    assert_eq!(shown.json()["tokens"][0]["user"], "alice");
    assert!(!shown.text().contains(&token[3..]), "tokens are never shown");
    assert_eq!(
        gateway.client().send("POST /tokens/revoke", &[JSON], all.as_bytes()).status,
        404,
        "not on the client listeners"
    );
    assert_eq!(ask("POST /tokens/revoke", "localhost", "application/json", all).status, 200);
    assert_eq!(gateway.query(&token).status, 401);
}
