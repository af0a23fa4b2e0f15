//! The stream of server-sent events (HTML standard, section 9.2) that keeps pages up to date. It knows nothing about
//! the contents of the sections.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, Sleep, sleep_until};

/// Sent when nothing has changed, so that both sides detect a lost connection.
const HEARTBEAT: &[u8] = b": heartbeat\n\n";

/// One section of the dashboard as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The name, which is also the name of the event.
    pub name: &'static str,
    /// JSON on one line.
    pub json: Rc<str>,
}

/// The current state of all sections.
pub type Sections = Rc<[Section]>;

/// A response body that sends each section when it changes. A slow reader skips intermediate states. Ends when the
/// sender is dropped.
pub struct EventStream {
    source: Pin<Box<dyn Future<Output = (watch::Receiver<Sections>, bool)>>>,
    sent: Vec<Section>,
    heartbeat_interval: Duration,
    heartbeat: Pin<Box<Sleep>>,
    is_finished: bool,
    _permit: OwnedSemaphorePermit,
}

impl EventStream {
    /// Starts with all sections, and sends a heartbeat after `heartbeat_interval` without a change.
    pub fn new(
        mut source: watch::Receiver<Sections>,
        permit: OwnedSemaphorePermit,
        heartbeat_interval: Duration,
    ) -> EventStream {
        source.mark_changed();
        EventStream {
            source: Box::pin(wait_for_change(source)),
            sent: Vec::new(),
            heartbeat_interval,
            heartbeat: Box::pin(sleep_until(Instant::now() + heartbeat_interval)),
            is_finished: false,
            _permit: permit,
        }
    }

    /// Events for the sections that this client does not have in their current form.
    fn changed_events(&mut self, sections: &[Section]) -> String {
        let mut text = String::new();
        for section in sections {
            if !self.sent.contains(section) {
                text += &format!("event: {}\ndata: {}\n\n", section.name, section.json);
            }
        }
        self.sent = sections.to_vec();
        text
    }
}

/// Waits for a change; false if the sender was dropped.
async fn wait_for_change(mut source: watch::Receiver<Sections>) -> (watch::Receiver<Sections>, bool) {
    let is_new = source.changed().await.is_ok();
    (source, is_new)
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        if this.is_finished {
            return Poll::Ready(None);
        }
        let mut text = String::new();
        while let Poll::Ready((mut source, is_new)) = this.source.as_mut().poll(cx) {
            let sections = Rc::clone(&source.borrow_and_update());
            text += &this.changed_events(&sections);
            if !is_new {
                this.is_finished = true;
                break;
            }
            this.source = Box::pin(wait_for_change(source));
        }
        if text.is_empty() && !this.is_finished && pin!(&mut this.heartbeat).poll(cx).is_ready() {
            text += std::str::from_utf8(HEARTBEAT).expect("ASCII");
        }
        if text.is_empty() {
            return if this.is_finished { Poll::Ready(None) } else { Poll::Pending };
        }
        this.heartbeat.as_mut().reset(Instant::now() + this.heartbeat_interval);
        Poll::Ready(Some(Ok(Frame::data(text.into()))))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::BodyExt;
    use tokio::sync::Semaphore;

    use super::*;

    fn sections(all: &[(&'static str, &str)]) -> Sections {
        all.iter().map(|(name, json)| Section { name, json: (*json).into() }).collect()
    }

    async fn next(events: &mut EventStream) -> Option<String> {
        let frame = events.frame().await?.expect("it never fails").into_data().expect("data");
        Some(String::from_utf8(frame.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn all_sections_are_sent_first_and_then_the_changed_ones() {
        let permits = Arc::new(Semaphore::new(1));
        let (sender, receiver) = watch::channel(sections(&[("state", "1"), ("store", "{}")]));
        let permit = Arc::clone(&permits).acquire_owned().await.expect("a permit");
        let mut events = EventStream::new(receiver, permit, Duration::from_millis(5));
        let first = next(&mut events).await.expect("all sections");
        assert_eq!(first, "event: state\ndata: 1\n\nevent: store\ndata: {}\n\n");
        assert_eq!(next(&mut events).await.expect("a heartbeat"), ": heartbeat\n\n");
        sender.send_replace(sections(&[("state", "2"), ("store", "{}")]));
        assert_eq!(next(&mut events).await.expect("a change"), "event: state\ndata: 2\n\n");
        sender.send_replace(sections(&[("state", "3"), ("store", "{}")]));
        drop(sender);
        assert_eq!(next(&mut events).await.expect("the last change"), "event: state\ndata: 3\n\n");
        assert_eq!(next(&mut events).await, None);
        assert_eq!(permits.available_permits(), 0);
        drop(events);
        assert_eq!(permits.available_permits(), 1);
    }
}
