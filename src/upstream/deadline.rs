//! A timer that is set much more often than it expires.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// A point in time by which something must have happened.
///
/// Usually it does happen, and the deadline moves on with every request. Arming and disarming a timer each time costs
/// more than one that sometimes fires too early and finds that the deadline has moved.
#[derive(Default)]
pub struct Deadline {
    due: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// Moves the deadline.
    pub fn set(&mut self, due: Instant) {
        self.due = Some(due);
    }

    /// Ready at the deadline; never, if none was set.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(due) = self.due else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() > due {
            timer.as_mut().reset(due);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= due {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    const SHORT: Duration = Duration::from_millis(30);

    #[tokio::test]
    async fn it_expires_at_the_time_that_was_set_last() {
        let mut deadline = Deadline::default();
        let begun = Instant::now();
        deadline.set(begun + 2 * SHORT);
        assert!(poll_fn(|cx| Poll::Ready(deadline.poll(cx))).await.is_pending());
        // Later than before,
        deadline.set(begun + 4 * SHORT);
        poll_fn(|cx| deadline.poll(cx)).await;
        assert!(begun.elapsed() >= 4 * SHORT);
        // again after it expired,
        deadline.set(Instant::now() + 3600 * SHORT);
        assert!(poll_fn(|cx| Poll::Ready(deadline.poll(cx))).await.is_pending());
        // and earlier.
        let begun = Instant::now();
        deadline.set(begun + SHORT);
        poll_fn(|cx| deadline.poll(cx)).await;
        assert!(begun.elapsed() >= SHORT && begun.elapsed() < 1000 * SHORT);
    }
}
