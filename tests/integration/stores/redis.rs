//! Tokens in Redis: stored data, expiry and access rights.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use timbr_gateway::config::{Sources, StoreKind, load};
use timbr_gateway::store::{RedisFailure, TokenId, check_redis};

use crate::support::bearer::{SALT, bearer};
use crate::support::client::JSON;
use crate::support::gateway::Gateway;
use crate::support::pki::Pki;
use crate::support::redis::{Cluster, Redis, Sentinels};
use crate::support::stores::StoreFixture;
use crate::support::upstream::Upstream;
use crate::support::wait_until;

fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}

#[test]
fn a_dump_contains_no_credentials_and_no_users() {
    let redis = Redis::start();
    let upstream = Upstream::start();
    let url = redis.url();
    let options = [("STORE_KIND", "redis"), ("STORE_URLS", url.as_str()), ("LIMITS_FAILURES_PER_ADDRESS", "5")];
    let gateway = Gateway::start(upstream.address(), &options);
    wait_until("the store responds", || gateway.metric("timbr_gateway_store_up") == 1.0);
    let token = gateway.token_of("somebody-by-name", "password-of-somebody");
    gateway.revoke("{\"user\":\"somebody-by-name\"}");
    let published = || redis.command::<u64>(&["ZCARD", "timbr-gateway:attempts"]);
    // The first one is the report of a replica that has nothing to report.
    wait_until("the new token is published", || published() >= 2);
    let wrong = format!("Bearer {}", bearer("x", "y").replace('A', "B"));
    gateway.client().send("POST /timbr/api/get_token", &[JSON, ("Authorization", &wrong)], b"");
    wait_until("the failure is published", || published() >= 3);
    wait_until("the salt's use is published", || redis.command::<Vec<String>>(&["KEYS", "*salt:*"]).len() == 1);
    let all = redis.everything();
    assert!(
        contains(&all, b"timbr-gateway:t:")
            && contains(&all, b"timbr-gateway:marks")
            && contains(&all, b"timbr-gateway:events")
    );
    let id = format!("{:?}", TokenId::from_token(token.as_bytes()));
    let fingerprint = &id[8..16];
    for secret in ["somebody", "password", token.as_str(), &token[3..43], fingerprint, "127.0.0.1"] {
        assert!(!contains(&all, secret.as_bytes()), "{secret}");
    }
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    assert!(!contains(&all, &hash.as_ref()[..4]), "the hash is not an index either");
}

#[test]
fn values_cannot_be_moved_or_forged() {
    let fixture = StoreFixture::Redis(Redis::start());
    let StoreFixture::Redis(redis) = &fixture else { unreachable!() };
    let replica = fixture.open();
    let (alices, bobs) = (replica.mint("alice", 1).expect("minted"), replica.mint("bob", 2).expect("minted"));
    let keys: Vec<String> = redis.command(&["KEYS", "timbr-gateway:t:*"]);
    assert_eq!(keys.len(), 2);
    // Both values are exchanged.
    let _: () = redis.command(&["RENAME", &keys[0], "aside"]);
    let _: () = redis.command(&["RENAME", &keys[1], &keys[0]]);
    let _: () = redis.command(&["RENAME", "aside", &keys[1]]);
    let other = fixture.open();
    for id in [alices, bobs] {
        assert!(other.find(&id, 0).is_err(), "neither accepted nor rejected");
    }
    let _: () = redis.command(&["SET", &keys[0], "made up"]);
    let _: () = redis.command(&["SET", &keys[1], ""]);
    for id in [alices, bobs] {
        assert!(other.find(&id, 0).is_err());
    }
}

#[test]
fn redis_expires_tokens() {
    let fixture = StoreFixture::Redis(Redis::start());
    let StoreFixture::Redis(redis) = &fixture else { unreachable!() };
    let replica = fixture.open_with(&[("TOKENS_TTL", "2s")]);
    let id = replica.mint("alice", 1).expect("minted");
    for key in redis.command::<Vec<String>>(&["KEYS", "timbr-gateway:[tl]:*"]) {
        let left: i64 = redis.command(&["PTTL", &key]);
        assert!((1..=2000).contains(&left), "{key}: {left} ms");
    }
    let other = fixture.open_with(&[("TOKENS_TTL", "2s")]);
    assert!(other.lives(&id));
    // Besides the epoch, only the reports remain by which replicas know of each other, for a minute after the last one.
    wait_until("no token remains", || {
        let mut keys = redis.command::<Vec<String>>(&["KEYS", "*"]);
        keys.sort();
        keys == ["timbr-gateway:attempts", "timbr-gateway:epoch"]
    });
    let left: i64 = redis.command(&["PTTL", "timbr-gateway:attempts"]);
    assert!((1..=60_000).contains(&left), "{left} ms");
    for replica in [&replica, &other] {
        replica.clock.advance(Duration::from_secs(2));
        assert!(!replica.lives(&id));
    }
}

#[test]
fn idle_tokens_expire_on_all_replicas_and_a_use_causes_no_write() {
    let fixture = StoreFixture::Redis(Redis::start());
    let StoreFixture::Redis(redis) = &fixture else { unreachable!() };
    let options = [("TOKENS_TTL", "1h"), ("TOKENS_IDLE_TTL", "3s")];
    let (first, second) = (fixture.open_with(&options), fixture.open_with(&options));
    let (busy, idle) = (first.mint("busy", 1).expect("minted"), first.mint("idle", 2).expect("minted"));
    assert!(second.lives(&busy) && second.lives(&idle));
    let writes = || -> u64 {
        let stats: String = redis.command(&["INFO", "commandstats"]);
        let calls = |name: &str| -> u64 {
            let line = stats.lines().find(|line| line.starts_with(&format!("cmdstat_{name}:calls=")));
            line.map_or(0, |line| line.split(['=', ',']).nth(1).expect("a number").parse().expect("a number"))
        };
        calls("set") + calls("setrange") + calls("pexpire")
    };
    let before = (writes(), Instant::now());
    let mut uses = 0;
    // Redis uses the real time; the replicas' clocks follow it. Only one replica sees the token in use.
    let began = Instant::now();
    let mut advanced = Duration::ZERO;
    while began.elapsed() < Duration::from_millis(4500) {
        let step = began.elapsed() - advanced;
        advanced += step;
        [&first, &second].iter().for_each(|replica| replica.clock.advance(step));
        for _ in 0..20 {
            assert!(first.lives(&busy), "after {:?}", began.elapsed());
            uses += 1;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let each = before.1.elapsed().as_millis() / 187; // An interval is a sixteenth of the idle lifetime.
    let written = writes() - before.0;
    println!("{uses} uses, {written} writes to tokens, {each} intervals");
    assert!(uses > 2000 && u128::from(written) <= 3 * (each + 2), "{uses} uses, {written} writes, {each} intervals");
    assert!(!first.lives(&idle) && !second.lives(&idle), "it was not used");
    assert!(second.lives(&busy), "a use at the other replica keeps it valid at this one");
}

/// The ACL rights in docs/tokens.md.
fn documented_rights() -> Vec<String> {
    let page = std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tokens.md"));
    let page = page.expect("the page");
    let line = page.lines().find_map(|line| line.strip_prefix("ACL SETUSER timbr ")).expect("the line");
    line.split_ascii_whitespace().map(str::to_owned).collect()
}

#[test]
fn tls_a_client_certificate_and_the_documented_acl_suffice() {
    let pki = Pki::new();
    let (server, server_key) = pki.issue_as("server", &["localhost"]);
    let (client, client_key) = pki.issue_as("client", &["gateway"]);
    let text = |path: &std::path::Path| path.to_str().expect("text").to_owned();
    let ca = text(&pki.ca_file());
    let rights = documented_rights().join(" ").replace("PASSWORD", "wonder");
    let tls_port = crate::support::redis::free_port().to_string();
    let redis = Redis::start_with(&[
        "--tls-port",
        &tls_port,
        "--tls-cert-file",
        &text(&server),
        "--tls-key-file",
        &text(&server_key),
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "yes",
    ]);
    let setting: Vec<_> = ["ACL", "SETUSER", "timbr"].into_iter().chain(rights.split(' ')).collect();
    let _: () = redis.command(&setting);
    let url = format!("rediss://localhost:{tls_port}");
    let (client, client_key) = (text(&client), text(&client_key));
    let upstream = Upstream::start();
    let all = [
        ("STORE_KIND", "redis"),
        ("STORE_URLS", url.as_str()),
        ("STORE_CA_FILE", &ca),
        ("STORE_CLIENT_CERT_FILE", &client),
        ("STORE_CLIENT_KEY_FILE", &client_key),
        ("STORE_USERNAME", "timbr"),
        ("STORE_PASSWORD", "wonder"),
        ("STORE_PREFIX", "timbr-gateway:"),
        ("STORE_TIMEOUT", "2s"),
        ("TOKENS_IDLE_TTL", "2s"),
    ];
    let up = |gateway: &Gateway| gateway.metric("timbr_gateway_store_up") == 1.0;
    let (gateway, other) = (Gateway::start(upstream.address(), &all), Gateway::start(upstream.address(), &all));
    wait_until("the store responds", || up(&gateway) && up(&other));
    let token = gateway.token();
    let used = || other.query(&token).status;
    assert_eq!(used(), 200);
    wait_until("uses are published", || {
        redis.command::<String>(&["INFO", "commandstats"]).contains("cmdstat_setrange")
    });
    assert_eq!(gateway.get("/tokens")["tokens"][0]["user"], "alice");
    assert_eq!(gateway.get("/salts")["salts"][0]["users"], 1);
    gateway.revoke("{\"all\":true}");
    wait_until("the token is revoked", || used() == 401);
    let denied: String = redis.command(&["INFO", "errorstats"]);
    assert!(!denied.contains("NOPERM"), "{denied}");

    // Each of these alone prevents access.
    for without in ["STORE_CLIENT_CERT_FILE", "STORE_CA_FILE", "STORE_PASSWORD"] {
        let mut some: Vec<_> = all.iter().copied().filter(|(name, _)| *name != without).collect();
        if without == "STORE_CLIENT_CERT_FILE" {
            some.retain(|(name, _)| *name != "STORE_CLIENT_KEY_FILE");
        }
        if without == "STORE_PASSWORD" {
            some.push(("STORE_PASSWORD", "wrong"));
        }
        let gateway = Gateway::start(upstream.address(), &some);
        assert_eq!(gateway.login("alice", "secret").rejection(), (503, "token_store_unavailable".into()), "{without}");
        std::thread::sleep(Duration::from_millis(300));
        assert!(!up(&gateway), "{without}");
    }
}

/// What `doctor` says about the store with these options.
fn check(options: &[(&str, String)]) -> Result<(), RedisFailure> {
    let mut environment: Vec<(OsString, OsString)> =
        vec![("API_AUTH_SALT".into(), SALT.into()), ("TIMBR_GATEWAY_UPSTREAM_URL".into(), "http://127.0.0.1:1".into())];
    environment.extend(options.iter().map(|(name, value)| (format!("TIMBR_GATEWAY_{name}").into(), value.into())));
    let (config, _) = load(&Sources { environment, ..Sources::default() }).expect("valid options");
    let StoreKind::Redis(options) = &config.store.kind else { panic!("not Redis") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(check_redis(options))
}

#[test]
fn doctor_tries_each_permission_and_leaves_no_key() {
    let redis = Redis::start();
    let fixture_options = |more: &[(&'static str, &str)]| {
        let all = [("STORE_KIND", "redis"), ("STORE_URLS", &redis.url()), ("STORE_PREFIX", "timbr-gateway:")];
        all.iter().chain(more).map(|(name, value)| (*name, (*value).to_owned())).collect::<Vec<_>>()
    };
    let options = fixture_options(&[("STORE_USERNAME", "timbr"), ("STORE_PASSWORD", "wonder")]);
    let rights = documented_rights().join(" ").replace("PASSWORD", "wonder");
    let set_rights = |rights: &str| {
        let _: () = redis
            .command(&[&["ACL", "SETUSER", "timbr", "reset"], &rights.split(' ').collect::<Vec<_>>()[..]].concat());
    };
    set_rights(&rights);
    check(&options).expect("the documented permissions suffice");
    assert_eq!(redis.command::<u64>(&["DBSIZE"]), 0);
    // The client library uses these two, with a database or a cluster.
    let commands = rights.split(' ').filter(|right| right.starts_with('+') && !["+ping", "+select"].contains(right));
    for command in commands {
        set_rights(&format!("{rights} -{}", &command[1..]));
        let failure = check(&options).expect_err(command);
        let name = command[1..].split('|').next().expect("a name");
        assert!(failure.message.contains(&format!("'{name}")), "{command}: {failure:?}");
        assert!(failure.fix.starts_with("the ACL of store.username"), "{command}: {failure:?}");
    }
    let keys: Vec<String> = redis.command(&["KEYS", "*"]);
    let stays = |key: &&String| redis.command::<i64>(&["PTTL", key]) == -1;
    assert_eq!(keys.iter().find(stays), None, "what cannot be deleted expires");

    for fixture in [StoreFixture::Cluster(Cluster::start()), StoreFixture::Sentinels(Sentinels::start())] {
        check(&fixture.options()).expect("it has all permissions");
    }
}

#[test]
fn different_prefixes_do_not_share_tokens() {
    let fixture = StoreFixture::Redis(Redis::start());
    let ours = fixture.open_with(&[("STORE_PREFIX", "ours:"), ("STORE_DATABASE", "3")]);
    let theirs = fixture.open_with(&[("STORE_PREFIX", "theirs:"), ("STORE_DATABASE", "3")]);
    let id = ours.mint("alice", 1).expect("minted");
    assert!(!theirs.lives(&id));
    assert_ne!(theirs.mint("alice", 2), Ok(id));
    theirs.block_on(theirs.store().revoke(timbr_gateway::store::Revocation::All)).expect("it responds");
    assert!(ours.lives(&id));
}

#[test]
fn wrong_passwords_count_at_every_replica() {
    let redis = Redis::start();
    let upstream = Upstream::start();
    let url = redis.url();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("users");
    std::fs::write(&file, format!("alice:{}\n", bcrypt::hash("wonder", 4).expect("hashed"))).expect("written");
    let options = [
        ("STORE_KIND", "redis"),
        ("STORE_URLS", url.as_str()),
        ("STORE_TIMEOUT", "2s"),
        ("STORE_KEY", "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE="),
        ("AUTH_VERIFIER", "users-file"),
        ("AUTH_USERS_FILE", file.to_str().expect("text")),
        ("LIMITS_FAILURES_PER_USER", "5"),
    ];
    let gateways: Vec<_> = (0..3).map(|_| Gateway::start(upstream.address(), &options)).collect();
    for gateway in &gateways {
        wait_until("the store responds", || gateway.metric("timbr_gateway_store_up") == 1.0);
    }
    let try_at = |gateway: &Gateway, password: &str| gateway.login("alice", password).status;
    for _ in 0..5 {
        assert_eq!(try_at(&gateways[0], "wrong"), 401);
    }
    assert_eq!(try_at(&gateways[0], "wrong"), 429);
    let begin = Instant::now();
    wait_until("the other replicas have received it", || {
        gateways[1..].iter().all(|gateway| try_at(gateway, "wrong") == 429)
    });
    println!("other replicas reject after {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(10));
}
