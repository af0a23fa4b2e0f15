//! Passes the cancellation of a query from the admin listener to the task of its request.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// Shared by the task of a request and the admin listener, which run on different threads.
#[derive(Debug, Default)]
pub struct Cancellation(Mutex<CancellationState>);

#[derive(Debug, Default)]
struct CancellationState {
    why: Option<Arc<str>>,
    waker: Option<Waker>,
}

impl Cancellation {
    /// Cancels the query and wakes its task. Returns false if it was cancelled before.
    pub fn cancel(&self, why: Arc<str>) -> bool {
        let mut state = self.0.lock();
        if state.why.is_some() {
            return false;
        }
        state.why = Some(why);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Ready with the operator's words once the query is cancelled, and from then on.
    pub fn poll_cancelled(&self, cx: &mut Context<'_>) -> Poll<Arc<str>> {
        let mut state = self.0.lock();
        if let Some(why) = &state.why {
            return Poll::Ready(Arc::clone(why));
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_waiting_task_is_woken_from_another_thread() {
        let cancellation = Arc::<Cancellation>::default();
        let other = Arc::clone(&cancellation);
        let thread = std::thread::spawn(move || other.cancel("why".into()));
        let why = std::future::poll_fn(|cx| cancellation.poll_cancelled(cx)).await;
        assert_eq!(&*why, "why");
        assert!(thread.join().expect("no panic"));
        assert!(!cancellation.cancel("again".into()));
    }
}
