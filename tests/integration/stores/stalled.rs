//! A command stalls for longer than `store.timeout` on a connection that stays usable. What it would have told the
//! other replicas, or this one, is not lost.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use timbr_gateway::base::user_name::UserName;
use timbr_gateway::store::{DeniedSubject, Revocation, TokenId};

use crate::support::redis::Redis;
use crate::support::stores::{Replica, StoreFixture};
use crate::support::wait_until;

type Filter = fn(&[u8]) -> bool;

/// Forwards commands to a server. Those that the filter selects do not arrive, and their reply is late.
struct Proxy {
    address: SocketAddr,
    /// While a test holds the lock, nothing is forwarded.
    filter: Arc<Mutex<Filter>>,
    stalled: Arc<AtomicUsize>,
}

impl Proxy {
    fn start(server: SocketAddr, delay: Duration) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let proxy = Proxy { address, filter: Arc::new(Mutex::new(|_| false)), stalled: Arc::default() };
        let (filter, stalled) = (Arc::clone(&proxy.filter), Arc::clone(&proxy.stalled));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(server)) else { return };
                let ends = |stream: &TcpStream| stream.try_clone().expect("a second descriptor");
                let (mut replies, mut to) = (ends(&server), ends(&client));
                std::thread::spawn(move || std::io::copy(&mut replies, &mut to));
                let (filter, stalled) = (Arc::clone(&filter), Arc::clone(&stalled));
                std::thread::spawn(move || {
                    let is_selected = |command: &[u8]| filter.lock().expect("no panic")(command);
                    pass_commands(client, server, is_selected, || {
                        stalled.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(delay);
                    });
                });
            }
        });
        proxy
    }

    fn stall(&self, filter: Filter) {
        *self.filter.lock().expect("no panic") = filter;
    }

    fn wait_until_stalled(&self, count: usize) {
        wait_until("a command stalls", || self.stalled.load(Ordering::Relaxed) >= count);
    }
}

fn pass_commands(mut client: TcpStream, mut server: TcpStream, is_selected: impl Fn(&[u8]) -> bool, wait: impl Fn()) {
    let (mut received, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    while let Ok(count @ 1..) = client.read(&mut buffer) {
        received.extend(&buffer[..count]);
        while let Some(length) = command_length(&received) {
            let command: Vec<u8> = received.drain(..length).collect();
            let passed = if is_selected(&command) {
                wait();
                client.write_all(b":1\r\n")
            } else {
                server.write_all(&command)
            };
            if passed.is_err() {
                break;
            }
        }
    }
    let _ = server.shutdown(std::net::Shutdown::Both);
}

/// The length of the first command; `None` while it is incomplete.
fn command_length(bytes: &[u8]) -> Option<usize> {
    let number = |from: usize| {
        let line = bytes.get(from..)?;
        let length = line.windows(2).position(|pair| pair == b"\r\n")?;
        let number: usize = std::str::from_utf8(&line[1..length]).ok()?.parse().ok()?;
        Some((number, from + length + 2))
    };
    let (count, mut end) = number(0)?;
    for _ in 0..count {
        let (length, begin) = number(end)?;
        end = begin + length + 2;
    }
    (end <= bytes.len()).then_some(end)
}

fn contains(command: &[u8], part: &[u8]) -> bool {
    command.windows(part.len()).any(|window| window == part)
}

/// A command that writes an event. One that reads them has more arguments.
fn is_event(command: &[u8]) -> bool {
    command.starts_with(b"*6\r\n$7\r\nEVALSHA\r\n") && contains(command, b":events\r\n")
}

#[test]
fn a_revocation_is_published_although_its_event_stalls_twice() {
    let fixture = StoreFixture::Redis(Redis::start());
    let proxy = Proxy::start(fixture.servers()[0].address(), Duration::from_millis(450));
    let url = format!("redis://{}", proxy.address);
    let (here, there) = (fixture.open_with(&[("STORE_URLS", &url), ("STORE_TIMEOUT", "300ms")]), fixture.open());
    let id = here.mint("alice", 1).expect("minted");
    assert!(there.lives(&id));
    proxy.stall(is_event);
    let revoked = here.block_on(here.store().revoke(Revocation::Token(id.fingerprint())));
    assert!(revoked.is_err(), "its event did not arrive in time");
    proxy.wait_until_stalled(2);
    proxy.stall(|_| false);
    wait_until("the other replica knows", || !there.lives(&id));
}

#[test]
fn events_are_applied_although_the_read_of_the_marks_stalls() {
    let fixture = StoreFixture::Redis(Redis::start());
    let proxy = Proxy::start(fixture.servers()[0].address(), Duration::from_millis(1200));
    let url = format!("redis://{}", proxy.address);
    let (here, there) = (fixture.open(), fixture.open_with(&[("STORE_URLS", &url), ("STORE_TIMEOUT", "1s")]));
    let id = here.mint("alice", 1).expect("minted");
    assert!(there.lives(&id));
    {
        // One poll finds the event, and that the epoch has changed.
        let mut filter = proxy.filter.lock().expect("no panic");
        here.block_on(here.store().revoke(Revocation::Token(id.fingerprint()))).expect("revoked");
        fixture.lose_keys("timbr-gateway:epoch");
        *filter = |command| contains(command, b"HSCAN");
    }
    proxy.wait_until_stalled(1);
    proxy.stall(|_| false);
    wait_until("the revocation is applied", || !there.lives(&id));
}

#[test]
fn marks_that_a_replica_restores_reach_those_that_started_before() {
    let fixture = StoreFixture::Redis(Redis::start());
    let proxy = Proxy::start(fixture.servers()[0].address(), Duration::ZERO);
    let url = format!("redis://{}", proxy.address);
    let here = fixture.open_with(&[("STORE_URLS", &url)]);
    let user = UserName::parse(b"alice").expect("valid");
    let deny = here.store().deny(DeniedSubject::user(&user), Duration::from_secs(3600));
    here.block_on(deny).expect("denied");
    let denies = |replica: &Replica| replica.store().denies(Some(&user), TokenId::from_token(b"x").fingerprint());
    let there = {
        let _nothing_passes = proxy.filter.lock().expect("no panic");
        fixture.lose_keys("timbr-gateway:*");
        let there = fixture.open();
        assert!(!denies(&there), "no replica has restored it yet");
        there
    };
    wait_until("the other replica knows it", || denies(&there));
    // An eviction removes what is rarely read.
    fixture.lose_keys("timbr-gateway:marks");
    wait_until("they are restored", || !fixture.keys("timbr-gateway:marks").is_empty());
    assert!(denies(&fixture.open()));
}
