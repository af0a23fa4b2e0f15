//! A panic ends one request, not the connection with its other requests, nor the worker.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::Poll;

/// The future panicked. The panic's hook has told where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panicked;

/// Drives a future to its end, or to its panic.
///
/// What it had begun is dropped with it, as if the client had gone away. What it shares with others is made for that:
/// locks are taken over when poisoned, and none is held while something is waited for.
///
/// It is pinned by the caller: a future that is handed over by value has its room twice in the one that waits for it.
pub async fn catch_panic<T>(mut future: Pin<&mut impl Future<Output = T>>) -> Result<T, Panicked> {
    std::future::poll_fn(|cx| {
        // Never polled again after a panic: the result is ready then.
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
    async fn a_result_is_passed_through() {
        let slow = async {
            tokio::task::yield_now().await;
            1
        };
        assert_eq!(catch_panic(pin!(slow)).await, Ok(1));
    }

    #[tokio::test]
    async fn a_panic_at_any_step_is_a_result() {
        struct Noted<'a>(&'a std::cell::Cell<bool>);
        impl Drop for Noted<'_> {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let dropped = std::cell::Cell::new(false);
        let at_once: Result<(), _> = catch_panic(pin!(async { panic!("meant") })).await;
        assert_eq!(at_once, Err(Panicked));
        let later: Result<(), _> = catch_panic(pin!(async {
            let _held = Noted(&dropped);
            tokio::task::yield_now().await;
            panic!("meant")
        }))
        .await;
        assert_eq!(later, Err(Panicked));
        assert!(dropped.get(), "what it held was given back");
    }
}
