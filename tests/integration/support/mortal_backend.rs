//! A backend that can be killed with all its connections, and that counts what arrives.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

/// A backend that can be killed with all its connections.
pub struct MortalBackend {
    address: SocketAddr,
    dead: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    accepting: Option<thread::JoinHandle<()>>,
}

/// The number of times each request arrived.
pub type Arrived = Arc<Mutex<HashMap<String, u32>>>;

impl MortalBackend {
    /// Listens at this address, and counts there what arrives. The response takes 5 ms; it has 300 KB if `large` is in the
    /// path.
    pub fn start(address: SocketAddr, arrived: &Arrived) -> MortalBackend {
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
                thread::spawn(move || {
                    serve(&stream, &arrived);
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        MortalBackend { address, dead, streams, accepting: Some(accepting) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the listener and all connections.
    pub fn kill(mut self) {
        self.dead.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.accepting.take().expect("once").join().expect("no panic");
        for stream in self.streams.lock().expect("no panic").drain(..) {
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn serve(mut stream: &TcpStream, arrived: &Mutex<HashMap<String, u32>>) {
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
            let blanks = " ".repeat(if head.contains("large") { 300_000 } else { 0 });
            let length = blanks.len() + 2;
            let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{{{blanks}}}");
            if stream.write_all(response.as_bytes()).is_err() {
                return;
            }
        }
        match stream.read(&mut some) {
            Ok(count) if count > 0 => unread.extend_from_slice(&some[..count]),
            _ => return,
        }
    }
}
