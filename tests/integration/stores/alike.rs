//! The contract of every store: memory, file, one Redis, Redis with Sentinels, and a Redis cluster.

use std::time::Duration;

use timbr_gateway::base::secret::Secret;
use timbr_gateway::base::user_name::UserName;
use timbr_gateway::store::{DeniedSubject, Revocation, SaltName, StopKind, StopTarget, Store, TokenEnd, TokenFilter};

use crate::support::bearer::SALT;
use crate::support::stores::{Replica, StoreFixture, id_of, new_token};
use crate::support::wait_until;

const STORE_KEY: &str = "cw/0x689RpI+jtRR7oE8h/eQsKImvJapLeSbXpwF4eA=";
const OTHER_KEY: &str = "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE=";

fn filter(user: Option<&str>, most: usize) -> TokenFilter {
    TokenFilter { user: user.map(|user| UserName::parse(user.as_bytes()).expect("valid")), limit: most }
}

/// All checks for each kind in one test, because starting the servers takes longest.
#[test]
fn every_store_fulfils_the_contract() {
    std::thread::scope(|scope| {
        for fixture in StoreFixture::all() {
            scope.spawn(move || {
                let name = fixture.name();
                println!("{name}");
                a_login_keeps_its_token(&fixture);
                an_upstream_key_is_stored_and_can_be_changed(&fixture);
                a_revoked_token_stays_revoked(&fixture);
                denied_users_are_shared_and_survive_a_restart(&fixture);
                live_tokens_are_listed(&fixture);
                concurrent_mints_of_one_login_agree(&fixture);
                persistent_stores_keep_tokens_across_restarts(&fixture);
                keys_rotate(&fixture);
                salt_usage_is_counted(&fixture);
                lost_keys_are_restored(&fixture);
                stops_are_shared_and_survive_a_restart(&fixture);
            });
        }
    });
}

fn a_login_keeps_its_token(fixture: &StoreFixture) {
    let replica = fixture.open();
    let first = replica.mint("keeps", 1).expect("minted");
    assert_eq!(first, id_of("keeps", &[1; 20]), "{}", fixture.name());
    assert_eq!(replica.mint("keeps", 2), Ok(first), "the first token stays");
    assert_ne!(replica.mint("keeps-2", 1), Ok(first), "a different login has its own token");
    assert_eq!(replica.find(&first, 0).expect("it responds").expect("it lives").user.as_str(), "keeps");
    assert!(!replica.lives(&id_of("keeps", &[2; 20])), "the second token was never stored");
    if fixture.is_shared() {
        let other = fixture.open();
        assert_eq!(other.mint("keeps", 3), Ok(first), "{}: also at a second replica", fixture.name());
        let found = other.find(&first, 0).expect("it responds").expect("it lives there too");
        let left = |replica: &crate::support::stores::Replica, expires: timbr_gateway::base::clock::Tick| {
            expires.since(replica.clock.now()).as_secs()
        };
        assert!(left(&other, found.expires).abs_diff(24 * 3600) <= 2, "{:?}", found.expires);
    }
}

fn an_upstream_key_is_stored_and_can_be_changed(fixture: &StoreFixture) {
    let replica = fixture.open();
    let id = replica.mint_with_key("with-a-key", 1, Some("tk_first")).expect("minted");
    let key_at = |replica: &crate::support::stores::Replica| {
        let record = replica.find(&id, 0).expect("it responds").expect("it lives");
        record.upstream_key().map(|key| key.expose().to_owned())
    };
    assert_eq!(key_at(&replica).as_deref(), Some("tk_first"), "{}", fixture.name());
    let other = fixture.is_shared().then(|| fixture.open());
    if let Some(other) = &other {
        assert_eq!(key_at(other).as_deref(), Some("tk_first"), "{}", fixture.name());
    }
    replica.block_on(replica.store().set_upstream_key(&id, Secret::new("tk_second".into()))).expect("it responds");
    assert_eq!(key_at(&replica).as_deref(), Some("tk_second"));
    if let Some(other) = &other {
        wait_until("the other replica knows the new key", || key_at(other).as_deref() == Some("tk_second"));
    }
    let unknown = id_of("nobody", &[9; 20]);
    replica.block_on(replica.store().set_upstream_key(&unknown, Secret::new("tk_x".into()))).expect("it responds");
    assert!(!replica.lives(&unknown));
}

fn denied_users_are_shared_and_survive_a_restart(fixture: &StoreFixture) {
    let [alice, bob] = ["d-alice", "d-bob"].map(|name| UserName::parse(name.as_bytes()).expect("valid"));
    let key = id_of("d-key", &[1; 20]).fingerprint();
    let replica = fixture.open();
    let other = fixture.is_shared().then(|| fixture.open());
    let deny = |subject, seconds| {
        replica.block_on(replica.store().deny(subject, Duration::from_secs(seconds))).expect("it responds")
    };
    let subjects =
        [DeniedSubject::User(alice.clone()), DeniedSubject::User(bob.clone()), DeniedSubject::Credential(key)];
    for subject in subjects.clone() {
        deny(subject, 3600);
    }
    deny(subjects[1].clone(), 0);
    let is_right = |store: &Store| {
        let [of_alice, of_bob] =
            [&alice, &bob].map(|user| store.denies(Some(user), id_of("d-x", &[2; 20]).fingerprint()));
        of_alice && !of_bob && store.denies(None, key)
    };
    assert!(is_right(replica.store()), "{}", fixture.name());
    if let Some(other) = &other {
        wait_until("the other replica knows it", || is_right(other.store()));
    }
    if fixture.name() == "memory" {
        return;
    }
    drop((replica, other));
    let again = fixture.open();
    wait_until("the entries are there after a restart", || is_right(again.store()));
    let other = fixture.is_shared().then(|| fixture.open());
    assert!(other.iter().all(|other| is_right(other.store())), "{}: a replica that has just started", fixture.name());
    for subject in subjects {
        again.block_on(again.store().deny(subject, Duration::ZERO)).expect("it responds");
    }
    let is_over = |replica: &Replica| !replica.store().denies(Some(&alice), key);
    assert!(is_over(&again), "{}", fixture.name());
    if let Some(other) = &other {
        wait_until("the denials end everywhere", || is_over(other));
        assert!(is_over(&fixture.open()), "{}", fixture.name());
    }
}

fn a_revoked_token_stays_revoked(fixture: &StoreFixture) {
    let replica = fixture.open();
    let user = |name: &str| UserName::parse(name.as_bytes()).expect("valid");
    let mint = |name: &str, seed| replica.mint(name, seed).expect("minted");
    let revoke = |what| replica.block_on(replica.store().revoke(what)).expect("it responds");

    let (alices, bobs) = (mint("r-alice", 1), mint("r-bob", 1));
    assert_eq!(revoke(Revocation::User(user("r-alice"))), 1);
    assert_eq!(revoke(Revocation::User(user("r-alice"))), 0, "nothing is left of it");
    assert_eq!(replica.find(&alices, 0).map(Result::err), Ok(Some(TokenEnd::Revoked)), "{}", fixture.name());
    assert!(!replica.lives(&alices) && replica.lives(&bobs), "{}", fixture.name());
    let second = mint("r-alice", 2);
    assert_ne!(second, alices, "a revoked token does not come back");
    assert!(replica.lives(&second) && !replica.lives(&alices));

    assert_eq!(revoke(Revocation::Token(bobs.fingerprint())), 1);
    assert!(!replica.lives(&bobs) && replica.lives(&second), "{}", fixture.name());

    let third = mint("r-bob", 3);
    assert!(revoke(Revocation::All) >= 2, "and those of the other checks");
    assert!(!replica.lives(&second) && !replica.lives(&third), "{}", fixture.name());
    assert!(replica.lives(&mint("r-bob", 4)));
}

fn live_tokens_are_listed(fixture: &StoreFixture) {
    let replica = fixture.open();
    let list = |filter| replica.block_on(replica.store().list(filter)).expect("it responds");
    replica.block_on(replica.store().revoke(Revocation::All)).expect("it responds");
    assert_eq!(list(filter(None, 10)).tokens, [], "{}: revoked tokens are not listed", fixture.name());
    let ids: Vec<_> = (1..=5).map(|n| replica.mint(&format!("listed-{n}"), n).expect("minted")).collect();
    let all = list(filter(None, 10));
    assert!(!all.truncated && all.tokens.len() == 5, "{}: {all:?}", fixture.name());
    assert!(all.tokens.iter().all(|line| line.minted < line.expires && line.last_used >= line.minted), "{all:?}");
    let one = list(filter(Some("listed-3"), 10));
    assert_eq!(one.tokens.len(), 1);
    assert_eq!((one.tokens[0].user.as_str(), one.tokens[0].fingerprint), ("listed-3", ids[2].fingerprint()));
    let some = list(filter(None, 3));
    assert!(some.truncated && some.tokens.len() == 3, "{}: {some:?}", fixture.name());
}

fn concurrent_mints_of_one_login_agree(fixture: &StoreFixture) {
    let replicas: Vec<_> = (0..if fixture.is_shared() { 3 } else { 1 }).map(|_| fixture.open()).collect();
    for round in 0..20 {
        let user = format!("agree-{round}");
        let seeds: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..6_u8)
                .map(|n| {
                    let (store, user) = (replicas[usize::from(n) % replicas.len()].store(), user.as_str());
                    scope.spawn(move || {
                        let runtime =
                            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                        let new = new_token(user, None);
                        runtime.block_on(store.insert(new, [n; 20], |seed| id_of(user, seed)))
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic").expect("minted")).collect()
        });
        assert!(seeds.iter().all(|seed| *seed == seeds[0]), "{}: {seeds:?}", fixture.name());
        for replica in &replicas {
            assert!(replica.lives(&id_of(&user, &seeds[0])), "{}", fixture.name());
        }
    }
}

fn persistent_stores_keep_tokens_across_restarts(fixture: &StoreFixture) {
    let replica = fixture.open();
    let (stays, ends) = (replica.mint("outlives", 1).expect("minted"), replica.mint("ends", 1).expect("minted"));
    replica.block_on(replica.store().revoke(Revocation::Token(ends.fingerprint()))).expect("it responds");
    replica.close();
    let replica = fixture.open();
    assert_eq!(replica.lives(&stays), !matches!(fixture, StoreFixture::Memory), "{}", fixture.name());
    assert!(!replica.lives(&ends), "{}", fixture.name());
    if replica.lives(&stays) {
        assert_eq!(replica.mint("outlives", 2), Ok(stays), "{}: the login gets the same token", fixture.name());
    }
    replica.close();
}

fn keys_rotate(fixture: &StoreFixture) {
    if matches!(fixture, StoreFixture::Memory) {
        return; // A memory store does not survive the process with the old key.
    }
    let keys = [STORE_KEY, OTHER_KEY].map(|key| [("STORE_KEY", key)]);
    let replica = fixture.open_with(&keys[0]);
    let old = replica.mint("rotates", 1).expect("minted");
    let denied = UserName::parse(b"rotates-denied").expect("valid");
    let deny = replica.store().deny(DeniedSubject::User(denied.clone()), Duration::from_secs(30 * 24 * 3600));
    replica.block_on(deny).expect("it responds");
    replica.close();
    let replica = fixture.open_with(&[("STORE_KEY", &format!("{OTHER_KEY},{STORE_KEY}"))]);
    // The login id is derived from the primary key, so this is a new login.
    let new = replica.mint("rotated", 2).expect("minted");
    assert!(replica.find(&old, 1).expect("it responds").is_ok(), "{}: it stays good", fixture.name());
    replica.block_on(replica.store().set_upstream_key(&old, Secret::new("tk_x".into()))).expect("it responds");
    assert!(replica.find(&old, 1).expect("it responds").expect("it lives").upstream_key().is_some());
    replica.close();
    let replica = fixture.open_with(&keys[1]);
    assert!(replica.lives(&new) && !replica.lives(&old), "{}: tokens of the old key end", fixture.name());
    assert!(replica.store().denies(Some(&denied), new.fingerprint()), "{}: denials stay", fixture.name());
    replica.close();
}

fn lost_keys_are_restored(fixture: &StoreFixture) {
    if !fixture.is_shared() {
        return;
    }
    let (here, there) = (fixture.open(), fixture.open());
    let user = UserName::parse(b"lost-2").expect("valid");
    let patterns = ["timbr-gateway:[tl]:*", "timbr-gateway:marks", "timbr-gateway:*"];
    for (seed, pattern) in (1..).step_by(10).zip(patterns) {
        let (kept, revoked) = (here.mint("lost-1", seed).expect("minted"), here.mint("lost-2", seed).expect("minted"));
        let revoke = here.store().revoke(Revocation::User(user.clone()));
        assert_eq!(here.block_on(revoke), Ok(1), "{} {pattern}", fixture.name());
        fixture.lose_keys(pattern);
        assert_eq!(here.mint("lost-1", seed + 1), Ok(kept), "{} {pattern}: the login keeps its token", fixture.name());
        wait_until("the other replica accepts it", || there.lives(&kept));
        wait_until("the other replica knows why the other one ended", || {
            there.find(&revoked, 0).is_ok_and(|found| found.err() == Some(TokenEnd::Revoked))
        });
        let fresh = fixture.open();
        wait_until("a new replica accepts it", || fresh.lives(&kept));
        assert!(!fresh.lives(&revoked), "{} {pattern}", fixture.name());
        assert_eq!(here.block_on(here.store().revoke(Revocation::Token(kept.fingerprint()))), Ok(1));
        wait_until("it is revoked everywhere", || !there.lives(&kept) && !fresh.lives(&kept));
    }
}

fn stops_are_shared_and_survive_a_restart(fixture: &StoreFixture) {
    let target = |name: &str| StopTarget::new(StopKind::Ontology, name).expect("valid");
    let replica = fixture.open();
    let other = fixture.is_shared().then(|| fixture.open());
    for (name, duration) in [("sales", None), ("hr", Some(Duration::from_secs(600)))] {
        replica.block_on(replica.store().stop(target(name), "Maintenance.", duration)).expect("it responds");
    }
    let stops = |replica: &Replica| {
        let of =
            |stop: timbr_gateway::store::ActiveStop| format!("{} {} {}", stop.target, stop.note.why, stop.note.has_end);
        replica.store().stops().into_iter().map(of).collect::<Vec<_>>()
    };
    let both = ["ontology hr Maintenance. true", "ontology sales Maintenance. false"];
    assert_eq!(stops(&replica), both, "{}", fixture.name());
    if let Some(other) = &other {
        wait_until("the other replica knows them", || stops(other) == both);
        other.block_on(other.store().resume(target("hr"))).expect("it responds");
        wait_until("one is resumed everywhere", || stops(&replica).len() == 1);
    } else {
        replica.block_on(replica.store().resume(target("hr"))).expect("it responds");
    }
    if fixture.name() != "memory" {
        drop((replica, other));
        let again = fixture.open();
        wait_until("it is there after a restart", || stops(&again) == both[1..]);
        again.block_on(again.store().resume(target("sales"))).expect("it responds");
        assert!(!again.store().has_denials() || stops(&again).is_empty());
    }
}

fn salt_usage_is_counted(fixture: &StoreFixture) {
    let salts = [OTHER_KEY, SALT].map(|salt| SaltName::new(&Secret::new(salt.to_owned())));
    let replica = fixture.open();
    let user = |name: &str| UserName::parse(name.as_bytes()).expect("valid");
    for name in ["alice", "bob", "alice"] {
        replica.store().record_salt_use(salts[1], &user(name));
    }
    let uses = || replica.block_on(replica.store().salt_usage(&salts)).expect("it responds");
    wait_until("both users are counted", || uses()[1].users == 2);
    assert_eq!((uses()[0].last_used, uses()[0].users), (None, 0), "{}", fixture.name());
    let last = uses()[1].last_used.expect("it was used").unix_seconds();
    let now = replica.clock.unix_seconds();
    assert!(last.abs_diff(now) <= Duration::from_secs(60).as_secs(), "{last} {now}");
    replica.close();
    if !matches!(fixture, StoreFixture::Memory) {
        let replica = fixture.open();
        let uses = replica.block_on(replica.store().salt_usage(&salts)).expect("it responds");
        assert_eq!(uses[1].users, 2, "{}: it survives the process", fixture.name());
        replica.close();
    }
}
