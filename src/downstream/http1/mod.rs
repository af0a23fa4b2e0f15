//! An HTTP/1 connection: one request after the other, each answered before the next one is looked at.
//!
//! The gateway reads HTTP/1 itself, with `crate::http::h1`, and not through a library made to get along with everybody: a
//! head that is refused gets the same kind of answer, with its id and its access line, as any other refusal.

mod response;
mod wire;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::{Method, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::base::current::InForce;
use crate::downstream::activity::{Activity, Order};
use crate::downstream::socket::Socket;
use crate::downstream::watched_io::WatchedIo;
use crate::downstream::{LONGEST_DISCARD, MOST_DISCARDED, Terms};
use crate::gateway::Reply;
use crate::gateway::context::Client;
use crate::gateway::rejection::Rejection;
use crate::http::client_body::ClientBody;
use crate::http::h1::head::{HeadError, HeadLimits, HeadScanner};
use crate::http::h1::request::{RequestHead, parse_request};
use crate::http::headers::Head;

use response::Asked;
use wire::Wire;

/// What a connection may ask for before it has to begin anew.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Of each head.
    pub head: HeadLimits,
    /// Most requests.
    pub requests: u64,
    /// Longest life.
    pub age: Option<Duration>,
}

/// Why a connection ends without further ado.
enum End {
    /// The reaper says so.
    Cut,
    /// The client has left, or its bytes do not arrive.
    Lost(io::Error),
    /// An answer broke off. The client must not take what it has for the whole.
    Broken,
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        End::Lost(error)
    }
}

/// What a connection is to do.
enum Next {
    /// To answer: the head of a request, or what is wrong with it.
    Head(Result<Vec<u8>, HeadError>),
    /// To wait, and hold little memory meanwhile.
    Rest,
    /// To end.
    Nothing,
}

struct Connection<I> {
    wire: Rc<RefCell<Wire<I>>>,
    terms: InForce<Rc<Terms>>,
    client: Rc<Client>,
    activity: Rc<Activity>,
    bounds: Bounds,
    begun: Instant,
    requests: u64,
    /// The reaper wants an end after the request in flight.
    closing: bool,
}

/// Serves a connection to its end.
pub async fn serve<I>(
    io: WatchedIo<I>,
    terms: InForce<Rc<Terms>>,
    client: Rc<Client>,
    activity: Rc<Activity>,
) -> io::Result<()>
where
    I: AsyncRead + AsyncWrite + Socket + Unpin + 'static,
{
    let mut connection = Connection {
        wire: Rc::new(RefCell::new(Wire::new(io))),
        bounds: terms.now().http1_bounds(),
        terms,
        client,
        activity,
        begun: Instant::now(),
        requests: 0,
        closing: false,
    };
    let ended = connection.run().await;
    connection.wire.borrow_mut().give_up_body();
    match ended {
        Ok(()) | Err(End::Cut | End::Broken) => Ok(()),
        Err(End::Lost(error)) => Err(error),
    }
}

impl<I> Connection<I>
where
    I: AsyncRead + AsyncWrite + Socket + Unpin + 'static,
{
    async fn run(&mut self) -> Result<(), End> {
        while let Next::Head(head) = self.next(false).await? {
            // In the heap, so that a connection is small while it has no request.
            if !Box::pin(self.work(head)).await? {
                break;
            }
        }
        self.wire.borrow_mut().give_up_body();
        let wire = Rc::clone(&self.wire);
        Ok(self.obeying(|cx, _| wire.borrow_mut().poll_shutdown(cx)).await??)
    }

    /// Answers requests for as long as one follows the other soon. Says whether there can be further ones.
    async fn work(&mut self, first: Result<Vec<u8>, HeadError>) -> Result<bool, End> {
        let mut head = first;
        loop {
            let goes_on = match head.and_then(|head| parse_request(head, &self.bounds.head)) {
                Ok(head) => self.exchange(head).await?,
                Err(error) => Box::pin(self.refuse(rejection(error))).await?,
            };
            if !goes_on {
                return Ok(false);
            }
            head = match self.next(true).await? {
                Next::Head(head) => head,
                Next::Rest => return Ok(true),
                Next::Nothing => return Ok(false),
            };
        }
    }

    /// Waits for the next request, or, if the connection `may_rest`, for the reaper to say that it has waited for long.
    async fn next(&mut self, may_rest: bool) -> Result<Next, End> {
        self.bounds = self.terms.now().http1_bounds();
        let (wire, bounds) = (Rc::clone(&self.wire), self.bounds);
        let activity = Rc::clone(&self.activity);
        let mut scanner = HeadScanner::default();
        let head = self.obeying(|cx, closing| {
            let mut wire = wire.borrow_mut();
            match wire.poll_head(cx, &mut scanner, &bounds.head) {
                // A part of it is here, and must be followed by the rest.
                Poll::Pending if wire.has_unread() => {
                    activity.head_begun();
                    Poll::Pending
                }
                // Asked to close: but a request that is already there is answered.
                Poll::Pending if closing => Poll::Ready(Ok(Next::Nothing)),
                Poll::Pending if may_rest && activity.rests() => Poll::Ready(Ok(Next::Rest)),
                polled => polled.map_ok(|head| head.map_or(Next::Nothing, Next::Head)),
            }
        });
        match head.await {
            Ok(next) => Ok(next?),
            Err(End::Cut) if wire.borrow().has_unread() => {
                Box::pin(self.say_too_slow()).await;
                Err(End::Cut)
            }
            Err(end) => Err(end),
        }
    }

    /// Tells a client whose head does not come why it is cut off, if it takes that at once.
    async fn say_too_slow(&mut self) {
        let wire = Rc::clone(&self.wire);
        let mut saying = pin!(self.refuse(Rejection::RequestHeadStalled));
        poll_fn(|cx| {
            if saying.as_mut().poll(cx).is_ready() {
                let _ = wire.borrow_mut().poll_shutdown(cx);
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Answers what cannot be read as a request. The connection ends, as nobody knows where the next request begins.
    async fn refuse(&mut self, rejection: Rejection) -> Result<bool, End> {
        let in_flight = self.activity.request();
        let gateway = Rc::clone(&self.terms.now().gateway);
        let reply = gateway.refuse(Rc::clone(&self.client), &rejection);
        let asked = Asked { method: Method::GET, version: Version::HTTP_11, keep_alive: false };
        self.activity.linger();
        self.answer(&asked, reply, false).await?;
        drop(in_flight);
        Ok(false)
    }

    /// Answers a request. Says whether there can be another one.
    async fn exchange(&mut self, head: RequestHead) -> Result<bool, End> {
        let in_flight = self.activity.request();
        self.requests += 1;
        let RequestHead { head, version, framing, keep_alive, expects_continue } = head;
        // SECURITY: what follows a request for a tunnel is not meant for us, and not taken for requests.
        let keep_alive = keep_alive && head.method != Method::CONNECT;
        let asked = Asked { method: head.method.clone(), version, keep_alive };
        self.wire.borrow_mut().expect_body(framing, expects_continue);
        let reply = self.handle(head).await?;
        let is_passable = self.body_is_passable();
        // Who asked for the end may still have said something, if only that it ends TLS, and must see the answer.
        if !is_passable || !keep_alive {
            self.activity.linger();
        }
        let goes_on = self.answer(&asked, reply, is_passable).await?;
        let goes_on = goes_on && self.pass_over_body().await?;
        drop(in_flight);
        Ok(goes_on && !self.closing)
    }

    /// Has the gateway answer. A client that leaves meanwhile is not answered, and its query is given up.
    async fn handle(&mut self, head: Head) -> Result<Reply, End> {
        let wire = Rc::clone(&self.wire);
        let body = if wire.borrow().body_is_ended() {
            ClientBody::Empty
        } else {
            ClientBody::Http1(Rc::clone(&self.wire) as Rc<_>)
        };
        let (gateway, client) = (Rc::clone(&self.terms.now().gateway), Rc::clone(&self.client));
        let mut handling = pin!(gateway.handle(client, head, body));
        let answered = self.obeying(|cx, _| match handling.as_mut().poll(cx) {
            Poll::Ready(reply) => Poll::Ready(Some(reply)),
            Poll::Pending => wire.borrow_mut().poll_gone(cx).map(|()| None),
        });
        answered.await?.ok_or_else(|| End::Lost(io::ErrorKind::ConnectionAborted.into()))
    }

    /// Whether what is left of the request's body, if anything, is little enough to be read and forgotten.
    fn body_is_passable(&self) -> bool {
        let wire = self.wire.borrow();
        // What somebody began to read and gave up is too large, too slow or broken, or still on its way up.
        let is_small = wire.body_left().is_none_or(|left| left <= MOST_DISCARDED);
        wire.body_is_ended() || (is_small && wire.body_is_untouched())
    }

    /// Reads and forgets what nobody has read of a body. Says whether it came to its end; if not, so does the
    /// connection.
    ///
    /// SECURITY: what is left of it must never be taken for the next request.
    async fn pass_over_body(&mut self) -> Result<bool, End> {
        let wire = Rc::clone(&self.wire);
        if wire.borrow().body_is_ended() {
            return Ok(true);
        }
        let mut read = 0;
        let activity = Rc::clone(&self.activity);
        let discarding = self.obeying(|cx, _| {
            loop {
                match ready!(wire.borrow_mut().poll_body(cx)) {
                    None => return Poll::Ready(true),
                    Some(Ok(bytes)) => read += bytes.len() as u64,
                    Some(Err(_)) => return Poll::Ready(false),
                }
                if read > MOST_DISCARDED {
                    activity.linger();
                    return Poll::Ready(false);
                }
            }
        });
        timeout(LONGEST_DISCARD, discarding).await.unwrap_or(Ok(false))
    }

    /// Waits, and listens to the reaper meanwhile. `poll` is told whether the connection is asked to close.
    async fn obeying<T>(
        &mut self,
        mut poll: impl FnMut(&mut Context<'_>, bool) -> Poll<T>,
    ) -> Result<T, End> {
        let (activity, closing) = (&self.activity, &mut self.closing);
        poll_fn(|cx| {
            activity.wake_for_orders(cx.waker());
            match activity.take_order() {
                Some(Order::Cut) => return Poll::Ready(Err(End::Cut)),
                Some(Order::Close) => *closing = true,
                None => {}
            }
            poll(cx, *closing).map(Ok)
        })
        .await
    }
}

fn rejection(error: HeadError) -> Rejection {
    match error {
        HeadError::Malformed(what) => Rejection::RequestMalformed(what),
        HeadError::TooLarge | HeadError::TooManyFields => Rejection::RequestHeadTooLarge,
        HeadError::TargetTooLong => Rejection::TargetTooLong,
    }
}
