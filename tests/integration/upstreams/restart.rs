//! A backend restart under load.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use crate::support::gateway::Gateway;

use super::JSON;

/// A backend that can be killed with all its connections.
struct Mortal {
    dead: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    accepting: Option<thread::JoinHandle<()>>,
}

/// The number of times each request arrived.
type Arrived = Arc<Mutex<HashMap<String, u32>>>;

impl Mortal {
    fn born(address: SocketAddr, arrived: &Arrived) -> Mortal {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("set");
        socket.bind(&address.into()).expect("bound");
        socket.listen(128).expect("listening");
        let listener = TcpListener::from(socket);
        let (dead, streams) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<TcpStream>>>::default());
        let (is_dead, all, arrived) = (Arc::clone(&dead), Arc::clone(&streams), Arc::clone(arrived));
        let accepting = thread::spawn(move || {
            for stream in listener.incoming() {
                if is_dead.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.expect("a connection");
                all.lock().expect("no panic").push(stream.try_clone().expect("a descriptor"));
                let arrived = Arc::clone(&arrived);
                thread::spawn(move || serve(stream, &arrived));
            }
        });
        Mortal { dead, streams, accepting: Some(accepting) }
    }

    fn die(mut self, address: SocketAddr) {
        self.dead.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(address);
        self.accepting.take().expect("once").join().expect("no panic");
        for stream in self.streams.lock().expect("no panic").drain(..) {
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn serve(mut stream: TcpStream, arrived: &Mutex<HashMap<String, u32>>) {
    let mut unread = Vec::new();
    let mut some = [0; 4096];
    loop {
        while let Some(end) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
            let head: Vec<u8> = unread.drain(..end + 4).collect();
            let head = String::from_utf8(head).expect("text");
            let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            let length: usize = header("content-length: ").parse().unwrap_or_default();
            while unread.len() < length {
                match stream.read(&mut some) {
                    Ok(count) if count > 0 => unread.extend_from_slice(&some[..count]),
                    _ => return,
                }
            }
            unread.drain(..length);
            *arrived.lock().expect("no panic").entry(header("x-request-id: ").to_owned()).or_default() += 1;
            thread::sleep(Duration::from_millis(5));
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").is_err() {
                return;
            }
        }
        match stream.read(&mut some) {
            Ok(count) if count > 0 => unread.extend_from_slice(&some[..count]),
            _ => return,
        }
    }
}

/// The outcome of a request: its time, its status, and whether it is idempotent.
type Outcome = (Instant, u16, bool);

#[test]
fn a_backend_restart_under_load_sends_no_post_twice() {
    const LOADERS: usize = 4;
    const RATE: u32 = 200;
    const SECONDS: u32 = 6;
    let address = super::closed_port();
    let arrived = Arrived::default();
    let first = Mortal::born(address, &arrived);
    let gateway = Gateway::start(address, &[]);
    let token = gateway.token();
    let begun = Instant::now();
    let loaders: Vec<_> = (0..LOADERS)
        .map(|loader| {
            let (mut client, token) = (gateway.client(), token.clone());
            thread::spawn(move || {
                let mut outcomes: Vec<Outcome> = Vec::new();
                for number in 0..RATE * SECONDS / LOADERS as u32 {
                    let due = begun + Duration::from_secs(1) * number * LOADERS as u32 / RATE;
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    let id = format!("{loader}-{number}");
                    let headers = [JSON, ("x-api-key", token.as_str()), ("x-request-id", id.as_str())];
                    let sent = Instant::now();
                    let got = client.send("POST /timbr/api/x", &headers, b"{}");
                    outcomes.push((sent, got.status, got.header("retry-after") == "1"));
                }
                outcomes
            })
        })
        .collect();
    let at = |seconds: u64| {
        thread::sleep((begun + Duration::from_secs(seconds)).saturating_duration_since(Instant::now()));
    };
    at(2);
    first.die(address);
    at(4);
    let _second = Mortal::born(address, &arrived);
    let listening = Instant::now();
    let outcomes: Vec<_> = loaders.into_iter().flat_map(|loader| loader.join().expect("no panic")).collect();
    let last_failure = outcomes.iter().filter(|(_, status, _)| *status != 200).map(|(sent, ..)| *sent).max();
    let count = |status: u16| outcomes.iter().filter(|(_, other, _)| *other == status).count();
    println!(
        "{} requests: {} 200, {} 502, {} 503; the last failure {:?} after listen()",
        outcomes.len(),
        count(200),
        count(502),
        count(503),
        last_failure.map(|sent| sent.saturating_duration_since(listening))
    );
    assert!(outcomes.iter().all(|(_, status, again)| *status == 200 || ([502, 503].contains(status) && *again)));
    assert!(count(502) > 100, "requests are rejected at once: {}", count(502));
    let late = |sent: &Instant| *sent > listening + Duration::from_secs(1);
    assert!(!outcomes.iter().any(|(sent, status, _)| late(sent) && *status != 200));
    let most = arrived.lock().expect("no panic").values().copied().max();
    assert_eq!(most, Some(1), "each request arrived at most once");
}
