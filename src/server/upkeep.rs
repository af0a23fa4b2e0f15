//! What is looked after beside the requests, on the main thread.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::auth::Auth;
use crate::metrics::Metrics;
use crate::telemetry;
use crate::tls::Reloader;

/// How often certificate files are looked at.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(1);

/// How often ended tokens are forgotten.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Reads certificate files again when they change, and when somebody asks. Never ends by itself.
pub async fn keep_certificates(mut reloader: Reloader, asked: Arc<Notify>, metrics: Arc<Metrics>) {
    reloader.announce();
    let mut ticks = tokio::time::interval(CERTIFICATE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let is_asked = tokio::select! {
            () = asked.notified() => true,
            _ = ticks.tick() => false,
        };
        // A file system that does not answer holds up nothing but this.
        let reading = tokio::task::spawn_blocking(move || {
            if is_asked {
                reloader.reload();
            } else {
                reloader.look();
            }
            reloader
        });
        let Ok(back) = reading.await else { return };
        reloader = back;
        metrics.certificates_unusable.set(i64::from(reloader.is_failing()));
    }
}

/// Forgets what has ended, now and then. Never ends by itself.
pub async fn sweep(auth: Arc<Auth>) {
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        ticks.tick().await;
        auth.sweep();
        telemetry::tell_dropped_lines();
    }
}
