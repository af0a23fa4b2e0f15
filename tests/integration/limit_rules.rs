//! Rate limits and concurrency limits for each caller (`limits.rules`).

use std::thread;
use std::time::{Duration, Instant};

use crate::authorization::open_session;
use crate::support::bearer::basic;
use crate::support::client::{Client, JSON, Response};
use crate::support::gateway::{Gateway, setup};
use crate::support::program::Program;
use crate::support::redis::Redis;
use crate::support::stores::StoreFixture;
use crate::support::upstream::{Upstream, respond};
use crate::support::wait_until;

const QUERY: &str = "POST /timbr/openapi/ontology/sales/query";

fn send(gateway: &Gateway, line: &str, token: &str) -> Response {
    gateway.client().send(line, &[JSON, ("x-api-key", token)], b"")
}

fn exceeded(rule: &str) -> String {
    format!("timbr_gateway_limit_rule_exceeded_total{{rule=\"{rule}\"}}")
}

#[test]
fn a_caller_above_the_rate_is_rejected_and_others_are_not() {
    let upstream = Upstream::start();
    let rules = "[{name: flood, users: 'a*', routes: openapi, requests_per_second: 0.1, burst: 3}]";
    let gateway = Gateway::start(upstream.address(), &[("LIMITS_RULES", rules)]);
    let (alice, bob) = (gateway.token(), gateway.token_of("bob", "secret"));
    gateway.expect_metric(&exceeded("flood"), 0.0);
    let statuses: Vec<_> = (0..5).map(|_| send(&gateway, QUERY, &alice).status).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    let refused = gateway.client().send(QUERY, &[JSON, ("x-api-key", &*alice), ("x-request-id", "flooded")], b"");
    assert_eq!(refused.reason(), "rate_limited");
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((8..=10).contains(&wait), "{wait}");
    assert!((0..5).all(|_| send(&gateway, QUERY, &bob).status == 200), "the rule is not for bob");
    assert_eq!(send(&gateway, "GET /timbr/api/get_ontologies/", &alice).status, 200, "nor for this route");
    assert_eq!(upstream.log().len(), 9, "rejected requests are not forwarded");
    gateway.expect_metric(&exceeded("flood"), 3.0);

    let explained = gateway.command(&["explain", "flooded"]);
    let explained = String::from_utf8(explained.stdout).expect("text");
    assert!(explained.contains("the limit of rule flood") && explained.contains("limits.rules"), "{explained}");
}

/// A stolen credential must not have a bucket per connection or protocol.
#[test]
fn the_rate_holds_over_all_connections_and_tokens_of_a_caller() {
    let rules = "[{name: all, requests_per_second: 0.1, burst: 4}]";
    let options = [("LIMITS_RULES", rules), ("WORKERS", "4")];
    let gateway = Gateway::start(Upstream::start().address(), &options);
    let (first, second) = (gateway.token_of("alice", "one"), gateway.token_of("alice", "two"));
    assert_ne!(first, second);
    let tokens = [&first, &second];
    let statuses: Vec<_> = thread::scope(|scope| {
        let send = |index: usize| send(&gateway, QUERY, tokens[index % 2]).status;
        let threads: Vec<_> = (0..12).map(|index| scope.spawn(move || send(index))).collect();
        threads.into_iter().map(|thread| thread.join().expect("sent")).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 4, "{statuses:?}");
}

/// Where logins ignore the case of names, each spelling would have a rate of its own, or escape the rule.
#[test]
fn the_rate_holds_over_all_spellings_of_a_name() {
    let rules = "[{name: one, users: Alice, requests_per_second: 0.1, burst: 2}]";
    let gateway = Gateway::start(Upstream::start().address(), &[("LIMITS_RULES", rules)]);
    let tokens = ["alice", "ALICE", "Alice", "bob"].map(|user| gateway.token_of(user, "secret"));
    assert_eq!(tokens.map(|token| send(&gateway, QUERY, &token).status), [200, 200, 429, 200]);
}

/// The backend may end such a request at once.
#[test]
fn requests_for_an_event_stream_count_for_the_rate() {
    let rules = "[{name: agents, routes: mcp, requests_per_second: 0.1, burst: 2}]";
    let gateway = Gateway::start(Upstream::start().address(), &[("LIMITS_RULES", rules)]);
    let token = gateway.token();
    let headers = [("accept", "text/event-stream"), ("x-api-key", &*token)];
    let statuses = [(); 3].map(|()| gateway.client().send("GET /timbr/api/mcp/", &headers, b"").status);
    assert_eq!(statuses, [200, 200, 429]);
}

#[test]
fn concurrent_requests_of_a_caller_are_limited_by_address_and_ontology() {
    let upstream = Upstream::with_behaviour(|_, stream| {
        thread::sleep(Duration::from_millis(500));
        respond(stream, 200, "{}")
    });
    let rules = "[{name: slow, addresses: 127.0.0.0/8, ontologies: 'sal*', concurrent: 1}, \
                 {name: elsewhere, addresses: 10.0.0.0/8, concurrent: 1}]";
    let (gateway, token) = Gateway::with_token(upstream.address(), &[("LIMITS_RULES", rules)]);
    let headers = [JSON, ("x-api-key", &*token)];
    let other = "POST /timbr/openapi/ontology/hr/query";
    let mut clients: Vec<_> = [QUERY, QUERY, other, other].map(|line| (line, gateway.client())).into();
    for (line, client) in &mut clients {
        client.write_request(line, &headers, b"");
    }
    let statuses: Vec<_> = clients.iter_mut().map(|(_, client)| client.read_response().status).collect();
    let mut of_sales = [statuses[0], statuses[1]];
    of_sales.sort_unstable();
    assert_eq!((of_sales, &statuses[2..]), ([200, 429], &[200, 200][..]));
    assert_eq!(send(&gateway, QUERY, &token).status, 200, "the place is free again");
    gateway.expect_metric(&exceeded("slow"), 1.0);
    gateway.expect_metric(&exceeded("elsewhere"), 0.0);
}

#[test]
fn the_ontology_of_a_body_counts_and_so_does_a_body_that_cannot_be_read() {
    let rules = "[{name: slow, ontologies: sales, requests_per_second: 0.01, burst: 1}]";
    let options = [("LIMITS_RULES", rules), ("LIMITS_BUFFER", "1KiB")];
    let send = |bodies: &[&str]| {
        let (_upstream, gateway, token) = setup(&options);
        let headers = [JSON, ("x-api-key", &*token)];
        let post = |body: &&str| gateway.client().send("POST /timbr/api/query/", &headers, body.as_bytes()).status;
        bodies.iter().map(post).collect::<Vec<_>>()
    };
    let [sales, hr] = ["sales", "hr"].map(|name| format!(r#"{{"query":"SELECT 1","ontology_name":"{name}"}}"#));
    assert_eq!(send(&[&sales, &hr, &sales, &hr, &hr]), [200, 200, 429, 200, 200]);
    let twice = r#"{"query":"SELECT 1","ontology_name":"hr","ontology_name":"sales"}"#;
    let large = format!(r#"{{"query":"SELECT '{}'","ontology_name":"sales"}}"#, "x".repeat(2000));
    for unreadable in [twice, &large] {
        assert_eq!(send(&[&sales, unreadable]), [200, 429], "{}", unreadable.len());
    }
}

#[test]
fn a_request_for_two_ontologies_is_rejected_if_a_rule_for_ontologies_is_enforced() {
    let body = r#"{"query":"SELECT 1","ontology_name":"sales"}"#;
    for (mode, expected) in [("enforce", (400, "ontology_ambiguous")), ("shadow", (200, ""))] {
        let rules = format!("[{{name: slow, ontologies: sales, requests_per_second: 0.01, burst: 1, mode: {mode}}}]");
        let (upstream, gateway, token) = setup(&[("LIMITS_RULES", &rules)]);
        let send = |line: &str| {
            let response =
                gateway.client().send(line, &[JSON, ("x-api-key", &*token), ("x-ontology", "hr")], body.as_bytes());
            let reason = if response.status == 200 { String::new() } else { response.reason() };
            (response.status, reason)
        };
        // The path and a header, and a header and the body.
        for line in [QUERY, "POST /timbr/api/query/"] {
            assert_eq!(send(line), (expected.0, expected.1.to_owned()), "{mode} {line}");
        }
        let (arrived, counted) = if mode == "shadow" { (2, 1.0) } else { (0, 0.0) };
        assert_eq!(upstream.log().len(), arrived, "{mode}");
        gateway.expect_metric(&exceeded("slow"), counted);
    }
}

#[test]
fn a_body_cannot_hide_an_ontology_behind_another_one_in_the_head() {
    let rules = "[{name: slow, ontologies: hr, requests_per_second: 0.01, burst: 1}]";
    let upstream = Upstream::start();
    let gateway = Gateway::start_with_file(upstream.address(), "routes: [{name: hive}]\n", &[("LIMITS_RULES", rules)]);
    let authorization = basic("token@sales", &gateway.token());
    let headers = [("Content-Type", "application/x-thrift"), ("Authorization", authorization.as_str())];
    let open = |database| gateway.client().send("POST /timbr-server", &headers, &open_session(database));
    assert_eq!(open("hr").rejection(), (400, "ontology_ambiguous".to_owned()));
    assert!(upstream.log().is_empty());
    assert_eq!((open("sales").status, open("default").status), (200, 200));
}

#[test]
fn in_shadow_mode_requests_above_the_limit_are_forwarded_and_counted() {
    let rules = "[{name: trial, requests_per_second: 0.1, burst: 1, mode: shadow}]";
    let (upstream, gateway, token) = setup(&[("LIMITS_RULES", rules)]);
    assert!((0..3).all(|_| send(&gateway, QUERY, &token).status == 200));
    gateway.expect_metric(&exceeded("trial"), 2.0);

    let (program, lines) = Program::start_logged(upstream.address(), &[("LIMITS_RULES", rules)]);
    let token = program.token();
    let mut client = Client::connect(program.http);
    assert!((0..3).all(|_| client.send(QUERY, &[JSON, ("x-api-key", &*token)], b"").status == 200));
    let marked = || {
        let queries = lines.matching(|line| line["route"] == "openapi");
        queries.iter().map(|line| line.get("limit_rule").is_some_and(|rule| rule == "trial")).collect::<Vec<_>>()
    };
    wait_until("all lines are written", || marked().len() == 3);
    assert_eq!(marked(), [false, true, true]);
}

#[test]
fn a_reload_changes_rules_and_keeps_the_counts_of_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gateway.yaml");
    let write = |rules: &str| std::fs::write(&file, format!("limits: {{rules: [{rules}]}}")).expect("written");
    let kept = "{name: kept, users: alice, requests_per_second: 0.1, burst: 1}";
    write(kept);
    let upstream = format!("http://{}", Upstream::start().address());
    let gateway = Gateway::start_with_path(file.clone(), &[("UPSTREAM_URL", &upstream)]);
    let (alice, bob) = (gateway.token(), gateway.token_of("bob", "secret"));
    assert_eq!([&alice, &alice, &bob, &bob].map(|token| send(&gateway, QUERY, token).status), [200, 429, 200, 200]);
    write(&format!("{kept}, {{name: new, users: bob, requests_per_second: 0.1, burst: 1}}"));
    assert_eq!(gateway.admin_command("POST /reload", "{}").status, 200);
    assert_eq!([&alice, &bob, &bob].map(|token| send(&gateway, QUERY, token).status), [429, 200, 429]);
    write("");
    assert_eq!(gateway.admin_command("POST /reload", "{}").status, 200);
    assert_eq!([&alice, &bob].map(|token| send(&gateway, QUERY, token).status), [200, 200]);
}

const RATE: f64 = 5.0;
const BURST: f64 = 10.0;

/// The number of requests that all gateways together admit while each is flooded for a time, and that time.
fn flood(gateways: &[Gateway], token: &str, time: Duration) -> (f64, f64) {
    let begin = Instant::now();
    let admitted: usize = thread::scope(|scope| {
        let flood = |gateway: &Gateway| {
            let mut client = gateway.client();
            let mut admitted = 0;
            while begin.elapsed() < time {
                match client.send(QUERY, &[JSON, ("x-api-key", token)], b"").status {
                    200 => admitted += 1,
                    429 => thread::sleep(Duration::from_millis(5)),
                    other => panic!("{other}"),
                }
            }
            admitted
        };
        let threads: Vec<_> = gateways.iter().map(|gateway| scope.spawn(move || flood(gateway))).collect();
        threads.into_iter().map(|thread| thread.join().expect("sent")).sum()
    });
    #[allow(clippy::cast_precision_loss, reason = "a small number")]
    let figures = (admitted as f64, begin.elapsed().as_secs_f64());
    figures
}

/// The bounds of docs/configuration.md.
fn replicas_share_a_rate<const COUNT: usize>() {
    let mut fixture = StoreFixture::Redis(Redis::start());
    let upstream = Upstream::start();
    let rules = format!("[{{name: all, requests_per_second: {RATE}, burst: {BURST}}}]");
    let options = [("LIMITS_RULES", rules.as_str()), ("STORE_MAX_STALE", "10m")];
    let gateways: [Gateway; COUNT] = fixture.gateways(&upstream, &options);
    let tokens = ["alice", "bob", "carol"].map(|user| gateways[0].token_of(user, "secret"));
    // The tokens must be in memory while Redis is down.
    for token in &tokens {
        assert!(gateways.iter().all(|gateway| send(gateway, QUERY, token).status == 200));
    }
    // The replicas know each other, and the buckets are empty again.
    thread::sleep(Duration::from_secs(3));
    #[allow(clippy::cast_precision_loss, reason = "a small number")]
    let replicas = COUNT as f64;
    let check = |what: &str, (admitted, time): (f64, f64), burst: f64| {
        let (limit, alone) = (BURST + RATE * time, replicas * (BURST + RATE * time));
        println!("{COUNT} replicas, {what}: {admitted} requests in {time:.1} s; limit {limit:.0}, unshared {alone:.0}");
        // A second of the rate, as reports need up to that time.
        let most = burst.max(limit) + (replicas - 1.0) * (1.0 + RATE);
        assert!(admitted <= most && most < alone, "{what}: {admitted} of {most}");
        assert!(admitted >= 0.6 * limit, "{what}: {admitted} of {limit}");
    };
    let time = Duration::from_secs(6);
    check("with Redis", flood(&gateways, &tokens[0], time), replicas * BURST);
    let StoreFixture::Redis(redis) = &mut fixture else { unreachable!() };
    redis.kill();
    let are_up = |up: f64| gateways.iter().all(|gateway| gateway.metric("timbr_gateway_store_up") == up);
    wait_until("the store is down", || are_up(0.0));
    thread::sleep(Duration::from_millis(300));
    check("without Redis", flood(&gateways, &tokens[1], time), BURST);
    redis.restart();
    wait_until("the store is up", || are_up(1.0));
    thread::sleep(Duration::from_millis(300));
    check("with Redis again", flood(&gateways, &tokens[2], time), replicas * BURST);
}

#[test]
fn two_replicas_share_a_rate() {
    replicas_share_a_rate::<2>();
}

#[test]
fn three_replicas_share_a_rate() {
    replicas_share_a_rate::<3>();
}

/// Redis withholds reports, repeats old ones, and contains what somebody else has written.
#[test]
fn a_lying_redis_leaves_each_replica_at_its_limit_or_below() {
    const REPORTS: &str = "timbr-gateway:attempts";
    let fixture = StoreFixture::Redis(Redis::start());
    let StoreFixture::Redis(redis) = &fixture else { unreachable!() };
    let upstream = Upstream::start();
    let options = [("LIMITS_RULES", "[{name: all, requests_per_second: 0.01, burst: 6}]")];
    let [here, there]: [Gateway; 2] = fixture.gateways(&upstream, &options);
    let [first, withheld, later, after, stale, repeated, other] =
        ["first", "withheld", "later", "after", "stale", "repeated", "other"].map(|user| here.token_of(user, "secret"));
    let admitted =
        |gateway: &Gateway, token: &str| (0..10).take_while(|_| send(gateway, QUERY, token).status == 200).count();
    let reports = || redis.command::<Vec<Vec<u8>>>(&["ZRANGE", REPORTS, "0", "-1"]);
    // What a replica reads as new.
    let write = |reports: &[Vec<u8>]| {
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis().to_string();
        let mut command = ::redis::cmd("ZADD");
        command.arg(REPORTS);
        for report in reports {
            command.arg(&now).arg(report);
        }
        command.query::<u64>(&mut redis.connect()).expect("written");
    };
    let poll = || thread::sleep(Duration::from_millis(700));
    // Two requests of this caller at one replica, in the report of that.
    let report_two = |token: &str| {
        let known = reports().len();
        assert!((0..2).all(|_| send(&there, QUERY, token).status == 200));
        wait_until("they are reported", || reports().len() > known);
        poll();
        reports()
    };

    // A full server accepts no reports. That is known after the first one.
    fixture.command_all(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    fixture.command_all(&["CONFIG", "SET", "maxmemory", "1"]);
    assert!([&here, &there].iter().all(|gateway| send(gateway, QUERY, &first).status == 200));
    poll();
    assert_eq!([&here, &there].map(|gateway| admitted(gateway, &withheld)), [3, 3], "each replica has its share");
    thread::sleep(Duration::from_secs(17));
    assert_eq!([&here, &there].map(|gateway| admitted(gateway, &later)), [3, 3], "without reports none has stopped");
    assert!([&here, &there].iter().all(|gateway| gateway.metric("timbr_gateway_store_up") == 1.0));
    fixture.command_all(&["CONFIG", "SET", "maxmemory", "0"]);
    poll();
    assert_eq!(admitted(&here, &after), 6, "rates are shared by reports again");

    let old = report_two(&stale);
    thread::sleep(Duration::from_secs(2));
    let mut forged = vec![Vec::new(), vec![7; 1 << 20]];
    forged.extend((0..2000u32).map(|number| number.to_be_bytes().repeat(20)));
    for report in &old {
        forged.extend((0..report.len()).map(|at| {
            let mut changed = report.clone();
            changed[at] ^= 1;
            changed
        }));
    }
    for _ in 0..3 {
        fixture.lose_keys(REPORTS);
        poll();
        write(&old);
        write(&forged);
        poll();
    }
    assert_eq!(admitted(&here, &stale), 6 - 2, "a report counts once, and not when it is old");

    let recent = report_two(&repeated);
    for _ in 0..3 {
        fixture.lose_keys(REPORTS);
        thread::sleep(Duration::from_millis(300));
        write(&recent);
    }
    poll();
    assert!([&here, &there].map(|gateway| admitted(gateway, &repeated)).iter().all(|count| *count <= 6 - 2));
    assert_eq!(admitted(&here, &other), 6, "no other caller is affected");
    assert!([&here, &there].iter().all(|gateway| gateway.metric("timbr_gateway_store_up") == 1.0));
}
