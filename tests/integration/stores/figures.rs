//! Memory per token and lookup times. `TOKENS=1000000` in a release build gives the figures of docs/tokens.md (`make
//! figures`); the default is smaller and only checks that this works.

use std::time::{Duration, Instant};

use timbr_gateway::base::user_name::UserName;
use timbr_gateway::store::{LoginId, NewToken, PRIMARY_KEY, Seed, Store, TokenBinding, TokenFilter, TokenId};
use tokio::task::JoinSet;

use crate::support::redis::Redis;
use crate::support::stores::{Replica, StoreFixture};

/// The number of concurrent logins.
const TOGETHER: usize = 1000;

fn count() -> u32 {
    std::env::var("TOKENS").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000)
}

fn seed(number: u32) -> Seed {
    let mut seed = [0; 20];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    seed
}

fn id(number: u32) -> TokenId {
    TokenId::from_token(&seed(number))
}

fn token(number: u32) -> NewToken {
    let mut login = [0; 16];
    // Uniformly distributed, like hashes.
    login.copy_from_slice(&aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &number.to_be_bytes()).as_ref()[..16]);
    let user = UserName::parse(format!("user-{number}@example.com").as_bytes()).expect("valid");
    let binding = TokenBinding([0; 8]);
    NewToken { login: LoginId(login), user, groups: None, upstream_key: None, binding, key: PRIMARY_KEY }
}

/// Makes tokens concurrently; returns the duration.
fn fill(replica: &Replica, count: u32) -> Duration {
    let begin = Instant::now();
    let store: std::sync::Arc<Store> = replica.shared();
    if store.is_memory_only() {
        // Sequential: nothing waits, and tasks would fragment the measured memory.
        replica.block_on(async {
            for number in 0..count {
                store.insert(token(number), seed(number), |seed| TokenId::from_token(seed)).await.expect("minted");
            }
        });
        return begin.elapsed();
    }
    replica.block_on(async {
        let mut under_way = JoinSet::new();
        for number in 0..count {
            if under_way.len() >= TOGETHER {
                under_way.join_next().await.expect("some").expect("no panic");
            }
            let store = std::sync::Arc::clone(&store);
            under_way.spawn(async move {
                store.insert(token(number), seed(number), |seed| TokenId::from_token(seed)).await.expect("minted");
            });
        }
        while under_way.join_next().await.is_some() {}
    });
    begin.elapsed()
}

/// The 99th percentile and the maximum.
fn p99(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() * 99 / 100], times[times.len() - 1])
}

fn lookups(replica: &Replica, count: u32, among: u32) -> (Duration, Duration) {
    let ids: Vec<_> = (0..count).map(|_| id(fastrand::u32(..among))).collect();
    let times = ids.iter().map(|id| {
        let begin = Instant::now();
        assert!(replica.store().find(id).is_some());
        begin.elapsed()
    });
    p99(times.collect())
}

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("read");
    statm.split(' ').nth(1).expect("a number").parse::<usize>().expect("a number") * 4096
}

#[test]
fn a_million_tokens() {
    let count = count();
    in_memory(count);
    in_a_file(count);
    in_redis(count);
}

fn in_memory(count: u32) {
    let options = [("TOKENS_MAX", "2000000"), ("TOKENS_TTL", "1h")];
    let few = StoreFixture::Memory.open_with(&options);
    fill(&few, 1000);
    let (among_few, _) = lookups(&few, 100_000, 1000);
    drop(few);
    let before = resident();
    let replica = StoreFixture::Memory.open_with(&options);
    let made = fill(&replica, count);
    let each = resident().saturating_sub(before) / count as usize;
    let (found, longest) = lookups(&replica, 1_000_000.min(10 * count), count);
    println!(
        "memory: {count} tokens made in {made:?}, {each} bytes each; a lookup takes {found:?} (p99; {among_few:?} among \
         1000), {longest:?} at most"
    );
    // Half of them expire, while the other half is looked up.
    let replica = StoreFixture::Memory.open_with(&options);
    fill(&replica, count);
    replica.clock.advance(Duration::from_secs(3601));
    let store = replica.shared();
    let newer = |number: u32| number + count;
    replica.block_on(async {
        for number in 0..1000 {
            let number = newer(number);
            store.insert(token(number), seed(number), |seed| TokenId::from_token(seed)).await.expect("minted");
        }
    });
    let (took, (usual, pause)) = std::thread::scope(|scope| {
        let sweeping = scope.spawn(|| {
            let begin = Instant::now();
            store.sweep();
            begin.elapsed()
        });
        let mut times = Vec::new();
        while !sweeping.is_finished() {
            for number in 0..1000 {
                let id = id(newer(number));
                let begin = Instant::now();
                assert!(store.find(&id).is_some());
                times.push(begin.elapsed());
            }
        }
        (sweeping.join().expect("no panic"), p99(times))
    });
    println!(
        "a sweep of {count} ended tokens takes {took:?}; meanwhile a lookup takes {usual:?} (p99), {pause:?} at most"
    );
    assert!(found < Duration::from_micros(50), "{found:?}");
    if count >= 1_000_000 {
        assert!(each <= 300, "{each} bytes");
    }
}

fn in_a_file(count: u32) {
    let fixture = StoreFixture::File(tempfile::tempdir().expect("a folder"));
    let options = [("TOKENS_MAX", "2000000")];
    let replica = fixture.open_with(&options);
    let made = fill(&replica, count);
    replica.close();
    let size = std::fs::metadata(fixture.path()).expect("it is there").len();
    let begin = Instant::now();
    let replica = fixture.open_with(&options);
    let opened = begin.elapsed();
    assert!((0..count).step_by(997).all(|number| replica.store().find(&id(number)).is_some()));
    println!(
        "file: {count} tokens made in {made:?} ({TOGETHER} concurrently), {} bytes each; opened again in {opened:?}",
        size / u64::from(count)
    );
    let begin = Instant::now();
    let one = 100;
    for number in count..count + one {
        replica.mint(&format!("one-{number}"), 1).expect("minted");
    }
    println!("one login after the other: {:?} each", begin.elapsed() / one);
}

fn in_redis(count: u32) {
    // Three round trips each; the result does not depend on the number of tokens.
    let count = count.min(200_000);
    let fixture = StoreFixture::Redis(Redis::start());
    let StoreFixture::Redis(redis) = &fixture else { unreachable!() };
    let used = || -> u64 {
        let info: String = redis.command(&["INFO", "memory"]);
        let line = info.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("a line");
        line.parse().expect("a number")
    };
    let replica = fixture.open();
    let before = used();
    let made = fill(&replica, count);
    let each = (used() - before) / u64::from(count);
    let other = fixture.open();
    let times = (0..count.min(20_000)).map(|number| {
        let begin = Instant::now();
        assert!(other.find(&id(number), 0).expect("it responds").is_ok());
        begin.elapsed()
    });
    let (found, longest) = p99(times.collect());
    let begin = Instant::now();
    let listing =
        other.block_on(other.store().list(TokenFilter { user: None, limit: 2_000_000 })).expect("it responds");
    assert_eq!(listing.tokens.len(), count as usize);
    println!(
        "redis: {count} tokens made in {made:?} ({TOGETHER} at once), {each} bytes of Redis each; a first lookup takes \
         {found:?} (p99), {longest:?} at most; all listed in {:?}",
        begin.elapsed()
    );
}
