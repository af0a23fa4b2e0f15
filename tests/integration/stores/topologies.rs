//! Sentinels and clusters: failing servers and failovers.

use std::time::{Duration, Instant};

use crate::support::stores::StoreFixture;
use crate::support::upstream::Upstream;
use crate::support::wait_until;

#[test]
fn an_orderly_failover_loses_no_token() {
    let fixture = StoreFixture::Sentinels(crate::support::redis::Sentinels::start());
    let StoreFixture::Sentinels(servers) = &fixture else { unreachable!() };
    let upstream = Upstream::start();
    let [here, there] = fixture.gateways(&upstream, &[("STORE_TIMEOUT", "500ms")]);
    let (known, unknown) = (here.token_of("known", "secret"), there.token_of("unknown", "secret"));
    let before = servers.primary();
    let begin = Instant::now();
    servers.fail_over();
    println!("the Sentinels took {:?}", begin.elapsed());
    let tries = std::cell::Cell::new(0);
    wait_until("new tokens are made again", || {
        assert_eq!(here.query(&known).status, 200, "a known token stays valid");
        let status = here.login("new", "secret").status;
        assert!(matches!(status, 200 | 503), "{status}");
        tries.set(tries.get() + 1);
        status == 200
    });
    println!("new tokens are made {:?} after the failover was requested, at attempt {}", begin.elapsed(), tries.get());
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    assert_ne!(servers.primary(), before);
    assert_eq!(here.query(&unknown).status, 200, "a token from before the failover stays valid");
    wait_until("the other replica finds the new token", || there.login("new", "secret").status == 200);
    assert_eq!(here.token_of("new", "secret"), there.token_of("new", "secret"));
}

#[test]
fn a_killed_primary_is_replaced() {
    let mut fixture = StoreFixture::Sentinels(crate::support::redis::Sentinels::start());
    let upstream = Upstream::start();
    let [gateway] = fixture.gateways(&upstream, &[("STORE_TIMEOUT", "500ms")]);
    let known = gateway.token_of("known", "secret");
    let StoreFixture::Sentinels(servers) = &mut fixture else { unreachable!() };
    let primary = servers.primary();
    wait_until("the follower has the token", || servers.servers[1 - primary].command::<u64>(&["DBSIZE"]) >= 2);
    let begin = Instant::now();
    servers.servers[primary].kill();
    wait_until("new tokens are made again", || {
        assert_eq!(gateway.query(&known).status, 200, "a known token stays valid");
        gateway.login("new", "secret").status == 200
    });
    println!("tokens are made again {:?} after the primary server was killed", begin.elapsed());
    let [fresh] = fixture.gateways(&upstream, &[("STORE_TIMEOUT", "500ms")]);
    assert_eq!(fresh.query(&known).status, 200, "the follower had the token");
}

#[test]
fn known_tokens_survive_the_loss_of_a_cluster_node() {
    let mut fixture = StoreFixture::Cluster(crate::support::redis::Cluster::start());
    let upstream = Upstream::start();
    let gateways: [_; 2] = fixture.gateways(&upstream, &[("STORE_TIMEOUT", "300ms")]);
    let tokens: Vec<_> = (0..12).map(|n| gateways[0].token_of(&format!("user-{n}"), "secret")).collect();
    assert!(tokens.iter().all(|token| gateways[1].query(token).status == 200));
    let StoreFixture::Cluster(servers) = &mut fixture else { unreachable!() };
    let counts: Vec<u64> = servers.0.iter().map(|server| server.command(&["DBSIZE"])).collect();
    assert!(counts.iter().all(|count| *count > 0), "keys are spread: {counts:?}");
    servers.0[2].kill();
    // This cluster has no replicas, so it goes down; known tokens stay valid.
    wait_until("the outage is detected", || gateways[0].metric("timbr_gateway_store_up") == 0.0);
    assert!(
        tokens.iter().all(|token| gateways[0].query(token).status == 200 && gateways[1].query(token).status == 200)
    );
    assert_eq!(gateways[0].login("new", "secret").status, 503);
    servers.0[2].restart();
    wait_until("the cluster is complete again", || gateways[0].login("new", "secret").status == 200);
}
