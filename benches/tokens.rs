//! Memory per token, and the cost of a lookup, with a thousand and with a million tokens.
//!
//! Lookups are in random order, as by many users, so that they include the processor's cache misses. `make bench`
//! measures the same for `tokens.keys_file`, as part of complete requests.

use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use timbr_gateway::base::clock::Clock;
use timbr_gateway::base::user_name::UserName;
use timbr_gateway::config::StoreKey;
use timbr_gateway::store::{KeyRing, LoginId, NewToken, PRIMARY_KEY, Store, TokenBinding, TokenId, TokenLimits};

/// The same allocator as in the gateway.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Maximum resident bytes per minted token: its record, its login, its entry in the expiry queue.
const MAX_BYTES: usize = 250;

/// Maximum cost of a lookup, including the hash of the token, with many tokens divided by that with few.
const MAX_RATIO: f64 = 1.5;

const FEW: u64 = 1_000;
const MANY: u64 = 1_000_000;
const LOOKUPS: u64 = 2_000_000;

fn main() {
    let (few, _) = filled(FEW);
    let (many, bytes) = filled(MANY);
    // Alternating, and the minimum of each: other load on the machine can only add time.
    let mut best = [f64::INFINITY; 2];
    for _ in 0..5 {
        best[0] = best[0].min(nanoseconds(&few, FEW));
        best[1] = best[1].min(nanoseconds(&many, MANY));
    }
    let ratio = best[1] / best[0];
    let verdict = |met| if met { "met" } else { "missed" };
    println!(
        "{MANY} minted tokens take {bytes} bytes each; the target of at most {MAX_BYTES} is {}",
        verdict(bytes <= MAX_BYTES)
    );
    println!(
        "a lookup takes {:.0} ns with {FEW} tokens and {:.0} ns with {MANY}, ratio {ratio:.2}; the target of at most {MAX_RATIO} is {}",
        best[0],
        best[1],
        verdict(ratio <= MAX_RATIO)
    );
}

/// A store with `count` tokens, and the resident bytes per token.
fn filled(count: u64) -> (Store, usize) {
    let before = resident();
    let day = Duration::from_secs(86_400);
    let limits = TokenLimits { ttl: day, idle_ttl: None, max: usize::MAX, max_per_user: 0 };
    let store = Store::in_memory(limits, KeyRing::new(&[StoreKey::random()]), Clock::system());
    for number in 0..count {
        let user = UserName::parse(format!("user{number}").as_bytes()).expect("a name");
        let login = LoginId((u128::from(number) << 64 | u128::from(number)).to_be_bytes());
        let new =
            NewToken { login, user, groups: None, upstream_key: None, binding: TokenBinding([0; 8]), key: PRIMARY_KEY };
        let mut kept = pin!(store.insert(new, [0; 20], |_| TokenId::from_token(&token(number))));
        let kept = kept.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(kept, Poll::Ready(Ok(_))), "the memory store never waits");
    }
    let taken = resident().saturating_sub(before);
    (store, taken / usize::try_from(count).expect("64 bits"))
}

/// A token of the same length as the gateway's.
fn token(number: u64) -> [u8; 59] {
    let mut token = [b'0'; 59];
    token[..8].copy_from_slice(&number.to_le_bytes());
    token
}

/// The mean time of a lookup by token.
fn nanoseconds(store: &Store, count: u64) -> f64 {
    let mut random = fastrand::Rng::with_seed(1);
    let begun = Instant::now();
    for _ in 0..LOOKUPS {
        let id = TokenId::from_token(&token(random.u64(0..count)));
        assert!(black_box(store.find(&id)).is_some());
    }
    begun.elapsed().as_secs_f64() * 1e9 / LOOKUPS as f64
}

/// Resident bytes of this process, from `/proc`.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("resident memory");
    let kib: usize = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    kib * 1024
}
