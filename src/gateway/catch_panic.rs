//! Limits a panic to one request: the connection with its other requests, and the worker, continue.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::Poll;

/// The future panicked. The panic hook has logged where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panicked;

/// Polls a future until it is ready or panics.
///
/// After a panic, the future is dropped as if the client had closed the connection. The state that it shares with
/// other requests allows that: no lock is held across an await, and locks do not stay poisoned.
///
/// The caller pins it, because a future that is passed by value needs its memory twice in the future that awaits it.
pub async fn catch_panic<T>(mut future: Pin<&mut impl Future<Output = T>>) -> Result<T, Panicked> {
    std::future::poll_fn(|cx| {
        // Never polled again after a panic, as the result is ready then.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(result)) => Poll::Ready(Ok(result)),
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn a_panic_in_any_phase_is_a_result() {
        struct SetOnDrop<'a>(&'a std::cell::Cell<bool>);
        impl Drop for SetOnDrop<'_> {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let dropped = std::cell::Cell::new(false);
        let immediately: Result<(), _> = catch_panic(pin!(async { panic!("intended") })).await;
        assert_eq!(immediately, Err(Panicked));
        let later: Result<(), _> = catch_panic(pin!(async {
            let _held = SetOnDrop(&dropped);
            tokio::task::yield_now().await;
            panic!("intended")
        }))
        .await;
        assert_eq!(later, Err(Panicked));
        assert!(dropped.get(), "its guards were released");
    }
}
