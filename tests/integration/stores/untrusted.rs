//! Redis loses keys, is full, or contains what somebody else has written: no invalid token is accepted, and valid ones
//! come back.

use std::time::{Duration, Instant};

use timbr_gateway::store::{Revocation, TokenEnd};

use crate::support::gateway::Gateway;
use crate::support::redis::{Cluster, Redis, Sentinels, server_pki};
use crate::support::stores::StoreFixture;
use crate::support::upstream::Upstream;
use crate::support::wait_until;

const EVENTS: &str = "timbr-gateway:events";
const MARKS: &str = "timbr-gateway:marks";

/// All checks for each kind in one test, because starting the servers takes longest.
fn check(mut fixture: StoreFixture) {
    let checks = [
        replayed_events_neither_extend_tokens_nor_prevent_revocations,
        an_older_mark_does_not_undo_a_revocation,
        a_full_server_is_not_a_lost_one,
        all_replicas_accept_the_token_of_a_login_after_keys_were_lost,
        a_token_that_the_store_has_lost_is_restored_by_the_replica_that_knows_it,
        an_idle_lifetime_applies_to_older_tokens,
    ];
    for check in checks {
        check(&fixture);
        fixture.command_all(&["FLUSHALL"]);
    }
    an_empty_server_is_filled_again_without_rejections(&mut fixture);
}

#[test]
fn one_server() {
    check(StoreFixture::Redis(Redis::start()));
}

#[test]
fn one_server_over_tls() {
    check(StoreFixture::Redis(Redis::start_for(Some(&server_pki()), &[])));
}

#[test]
fn sentinels() {
    check(StoreFixture::Sentinels(Sentinels::start()));
}

#[test]
fn sentinels_over_tls() {
    check(StoreFixture::Sentinels(Sentinels::start_for(Some(&server_pki()))));
}

#[test]
fn a_cluster() {
    check(StoreFixture::Cluster(Cluster::start()));
}

#[test]
fn a_cluster_over_tls() {
    check(StoreFixture::Cluster(Cluster::start_for(Some(&server_pki()))));
}

fn is_up(gateway: &Gateway) -> bool {
    gateway.metric("timbr_gateway_store_up") == 1.0
}

fn replayed_events_neither_extend_tokens_nor_prevent_revocations(fixture: &StoreFixture) {
    let (redis, upstream) = (fixture.server_of(EVENTS), Upstream::start());
    let [gateway] = fixture.gateways(&upstream, &[("TOKENS_TTL", "1h")]);
    gateway.token();
    gateway.revoke("{\"all\":true}");
    wait_until("the event is there", || redis.command::<u64>(&["ZCARD", EVENTS]) == 1);
    let event: Vec<Vec<u8>> = redis.command(&["ZRANGE", EVENTS, "0", "-1"]);
    let mut connection = redis.connect();
    // Again at another time, far in the future, and changed in each byte, which makes it unreadable.
    for (index, score) in ["1", "99999999999999", "+inf"].iter().enumerate() {
        let mut copy = event[0].clone();
        copy[index] ^= 1;
        let _: u64 = ::redis::cmd("ZADD").arg((EVENTS, score, copy)).query(&mut connection).expect("added");
    }
    let _: u64 = ::redis::cmd("ZADD").arg((EVENTS, "99999999999999", &event[0])).query(&mut connection).expect("moved");
    std::thread::sleep(Duration::from_millis(600));
    let token = gateway.token();
    assert_eq!(gateway.query(&token).status, 200, "logins are not blocked");
    let listed = gateway.get("/tokens");
    let expires = listed["tokens"][0]["expires"].as_u64().expect("a time");
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    assert!(expires <= now + 3601, "it expires in {} s", expires - now);
    gateway.revoke("{\"user\":\"alice\"}");
    assert_eq!(gateway.query(&token).reason(), "token_revoked");
    wait_until("entries from the future are removed", || redis.command::<u64>(&["ZCARD", EVENTS]) <= 2);
}

fn an_older_mark_does_not_undo_a_revocation(fixture: &StoreFixture) {
    let redis = fixture.server_of(MARKS);
    let replica = fixture.open();
    let user = timbr_gateway::base::user_name::UserName::parse(b"alice").expect("valid");
    let revoke = || replica.block_on(replica.store().revoke(Revocation::User(user.clone()))).expect("it responds");
    replica.mint("alice", 1).expect("minted");
    revoke();
    let old: Vec<Vec<u8>> = redis.command(&["HGETALL", MARKS]);
    let second = replica.mint("alice", 2).expect("minted");
    let tokens = fixture.keys("timbr-gateway:t:*").into_iter().map(|key| {
        let value: Vec<u8> = fixture.server_of(&key).command(&["GET", &key]);
        (key, value)
    });
    let tokens: Vec<_> = tokens.collect();
    revoke();
    assert_eq!(redis.command::<u64>(&["HLEN", MARKS]), 1, "one mark for each user");
    // The attacker restores the whole state from before the second revocation.
    let mut connection = redis.connect();
    let _: u64 = ::redis::cmd("HSET").arg((MARKS, &old[0], &old[1])).query(&mut connection).expect("set");
    tokens.iter().for_each(|(key, value)| fixture.set(key, value));
    assert_eq!(replica.find(&second, 0).expect("it responds").err(), Some(TokenEnd::Revoked));
    // A mark that was moved to another field, or made up, is ignored.
    let _: u64 = ::redis::cmd("HSET").arg((MARKS, "elsewhere", &old[1])).query(&mut connection).expect("set");
    let _: u64 = ::redis::cmd("HSET").arg((MARKS, "made-up", "x")).query(&mut connection).expect("set");
    let other = fixture.open();
    assert!(other.mint("bob", 3).is_ok());
    drop(other);
    // With a new connection, the replica that knows the later time writes it back.
    fixture.command_all(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    wait_until("the mark is written again", || {
        let other = fixture.open();
        other.find(&second, 0).expect("it responds").err() == Some(TokenEnd::Revoked)
    });
}

fn a_full_server_is_not_a_lost_one(fixture: &StoreFixture) {
    let upstream = Upstream::start();
    let [here, there] = fixture.gateways(&upstream, &[("TOKENS_FOREIGN", "reject")]);
    let tokens: Vec<_> = (0..98).map(|number| here.token_of(&format!("user-{number}"), "secret")).collect();
    let held: Vec<_> = (0..2).map(|number| there.token_of(&format!("held-{number}"), "secret")).collect();
    assert!(held.iter().all(|token| here.query(token).status == 200));
    fixture.command_all(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    fixture.command_all(&["CONFIG", "SET", "maxmemory", "1"]);
    // A failure report, and a revocation, cannot be written.
    let stranger = format!("tk_{}", "0".repeat(56));
    assert_eq!(there.query(&stranger).status, 401);
    let revoked = here.try_revoke("{\"user\":\"held-0\"}");
    assert_eq!(revoked.status, 503, "{revoked:?}");
    let told = here.query(&held[0]);
    assert_eq!(told.status, 401, "{revoked:?} {told:?}");
    let mut refused = 0;
    for token in &tokens {
        refused += usize::from(there.query(token).status != 200);
        assert!(is_up(&there) && is_up(&here));
    }
    println!("{}: a full server refused {refused} of {} first uses of valid tokens", fixture.name(), tokens.len());
    assert_eq!(refused, 0);
    fixture.command_all(&["CONFIG", "SET", "maxmemory", "0"]);
    wait_until("the revocation is published", || there.query(&held[0]).status == 401);
    assert_eq!(there.query(&held[1]).status, 200);
    let [fresh] = fixture.gateways(&upstream, &[]);
    wait_until("it is known here, too", || fresh.query(&held[0]).reason() == "token_revoked");
}

fn all_replicas_accept_the_token_of_a_login_after_keys_were_lost(fixture: &StoreFixture) {
    let upstream = Upstream::start();
    let [here, there] = fixture.gateways(&upstream, &[]);
    let (mut refused, mut rounds) = (0, 0);
    for round in 0..10 {
        let user = format!("user-{round}");
        let first = here.token_of(&user, "secret");
        if round % 2 == 0 {
            fixture.command_all(&["FLUSHALL"]);
        } else {
            fixture.lose_keys("timbr-gateway:[tl]:*");
        }
        // The login is told nothing that the other replica refuses.
        let again = here.token_of(&user, "secret");
        assert_eq!(again, first);
        rounds += 1;
        refused += usize::from(there.query(&again).status != 200);
    }
    println!("{}: {refused} of {rounds} tokens refused after keys were lost", fixture.name());
    assert_eq!(refused, 0);
}

fn a_token_that_the_store_has_lost_is_restored_by_the_replica_that_knows_it(fixture: &StoreFixture) {
    let upstream = Upstream::start();
    let [here, there] = fixture.gateways(&upstream, &[]);
    let [kept, revoked] = ["kept", "revoked"].map(|user| here.token_of(user, "secret"));
    here.revoke("{\"user\":\"revoked\"}");
    fixture.lose_keys("timbr-gateway:t:*");
    // Neither rejected nor accepted, as long as another replica may know it.
    let response = there.query(&kept);
    let told = (response.status, response.reason(), response.header("retry-after").to_owned());
    assert_eq!(told, (503, "token_store_unavailable".into(), "1".into()));
    let begin = Instant::now();
    wait_until("the token is restored", || there.query(&kept).status == 200);
    println!("{}: a lost token was restored after {:?}", fixture.name(), begin.elapsed());
    wait_until("the revoked one is known", || there.query(&revoked).reason() == "token_revoked");
    // A token that no replica knows ends.
    drop(here);
    let lost = there.token_of("lost", "secret");
    drop(there);
    fixture.command_all(&["FLUSHALL"]);
    let [fresh] = fixture.gateways(&upstream, &[]);
    assert_eq!(fresh.query(&lost).status, 503);
    wait_until("no replica has restored it", || fresh.query(&lost).reason() == "token_expired");
}

/// `TOKENS=20000` gives the figure of docs/tokens.md.
fn an_empty_server_is_filled_again_without_rejections(fixture: &mut StoreFixture) {
    let count: usize = std::env::var("TOKENS").ok().and_then(|text| text.parse().ok()).unwrap_or(500).min(20_000);
    let upstream = Upstream::start();
    let [here] = fixture.gateways(&upstream, &[("LIMITS_TOKENS_PER_ADDRESS", "0")]);
    let tokens: Vec<_> = (0..count).map(|number| here.token_of(&format!("user-{number}"), "secret")).collect();
    fixture.restart_empty();
    let begin = Instant::now();
    let [there] = fixture.gateways(&upstream, &[]);
    let waited = std::cell::Cell::new(0);
    for token in tokens.iter().rev().step_by(count / 100) {
        wait_until("it is restored", || match there.query(token).status {
            200 => true,
            503 => {
                waited.set(waited.get() + 1);
                std::thread::sleep(Duration::from_millis(20));
                false
            }
            other => panic!("{other}"),
        });
    }
    wait_until("all are restored", || fixture.keys("timbr-gateway:t:*").len() == tokens.len());
    let (name, time) = (fixture.name(), begin.elapsed());
    println!("{name}: {count} tokens restored after {time:?}; {} requests were asked to try again", waited.get());
}

fn an_idle_lifetime_applies_to_older_tokens(fixture: &StoreFixture) {
    let replica = fixture.open_with(&[("TOKENS_TTL", "1h")]);
    let (idle, used) = (replica.mint("idle", 1).expect("minted"), replica.mint("used", 2).expect("minted"));
    replica.close();
    // The idle one was last used long ago.
    let old = std::time::UNIX_EPOCH.elapsed().expect("after 1970") - Duration::from_secs(1200);
    let old = u64::try_from(old.as_millis()).expect("small").to_be_bytes();
    for key in fixture.keys("timbr-gateway:t:*") {
        let value: Vec<u8> = fixture.server_of(&key).command(&["GET", &key]);
        fixture.set(&key, &[&old[..], &value[8..]].concat());
        let replica = fixture.open_with(&[("TOKENS_IDLE_TTL", "10m")]);
        let is_idle = !replica.lives(&idle);
        if !is_idle {
            // This was the other one.
            assert!(!replica.lives(&used));
        }
        fixture.set(&key, &value);
        let replica = fixture.open_with(&[("TOKENS_IDLE_TTL", "10m")]);
        assert!(replica.lives(&idle) && replica.lives(&used));
    }
}
