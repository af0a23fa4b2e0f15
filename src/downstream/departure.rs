//! Detects that a client disconnects while its upload is blocked, when nothing is read from its socket. It knows nothing
//! about HTTP.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// Time without progress before the first probe. The interval doubles with each one.
const FIRST_PROBE_DELAY: Duration = Duration::from_secs(2);

/// Watches the socket of a client from which nothing is read.
pub struct DepartureWatch {
    /// `None` if there is no file descriptor left: then the next read or write detects the departure.
    fin: Option<Pin<Box<dyn Future<Output = io::Result<()>>>>>,
    probe_timer: Pin<Box<Sleep>>,
    probe_interval: Duration,
}

impl DepartureWatch {
    /// Watches a socket until the watch is dropped.
    pub fn new(socket: &TcpStream) -> DepartureWatch {
        DepartureWatch {
            fin: duplicate(socket).ok().map(|socket| Box::pin(wait_for_fin(socket)) as _),
            probe_timer: Box::pin(sleep(FIRST_PROBE_DELAY)),
            probe_interval: FIRST_PROBE_DELAY,
        }
    }

    /// Ready when the client has closed its side of the connection (EPOLLRDHUP).
    pub fn poll_departure(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.fin {
            Some(fin) => fin.as_mut().poll(cx).map(drop),
            None => Poll::Pending,
        }
    }

    /// Ready when a probe has to be sent. A client that has closed its socket while the receive window was full cannot
    /// send its FIN, but resets the connection when it receives data.
    pub fn poll_probe(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.probe_timer.as_mut().poll(cx));
        self.probe_interval *= 2;
        self.probe_timer.as_mut().reset(Instant::now() + self.probe_interval);
        // Registers the waker for the next probe.
        let _ = self.probe_timer.as_mut().poll(cx);
        Poll::Ready(())
    }

    /// Records that the upload has made progress.
    pub fn record_progress(&mut self) {
        self.probe_interval = FIRST_PROBE_DELAY;
        self.probe_timer.as_mut().reset(Instant::now() + FIRST_PROBE_DELAY);
    }
}

/// A second descriptor of the socket with its own readiness: on the first one, unread data hides the FIN.
fn duplicate(socket: &TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(socket.as_fd().try_clone_to_owned()?.into())
}

async fn wait_for_fin(socket: TcpStream) -> io::Result<()> {
    while !socket.ready(Interest::READABLE).await?.is_read_closed() {
        // Unread data does not matter: clears its readiness.
        let _ = socket.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_fin_behind_unread_data_is_detected() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let mut client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connected");
        let (socket, _) = listener.accept().await.expect("accepted");
        client.write_all(b"unread").await.expect("sent");
        socket.readable().await.expect("data");
        let mut watch = DepartureWatch::new(&socket);
        let is_gone = poll_fn(|cx| Poll::Ready(watch.poll_departure(cx).is_ready())).await;
        assert!(!is_gone, "unread data alone is not a departure");
        drop(client);
        poll_fn(|cx| watch.poll_departure(cx)).await;
        let mut data = [0; 10];
        assert_eq!(socket.try_read(&mut data).expect("the data is still there"), 6);
    }
}
