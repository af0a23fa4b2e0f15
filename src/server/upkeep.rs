//! What is looked after beside the requests, on the main thread.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;

use crate::auth::Auth;
use crate::control::{ReloadOrder, Reloaded};
use crate::metrics::Metrics;
use crate::telemetry;
use crate::tls::Reloader;

/// How often the files that are read again are looked at.
const FILES_INTERVAL: Duration = Duration::from_secs(1);

/// How often ended tokens are forgotten.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Reads files again when they change, and when somebody asks. Never ends by itself.
pub async fn keep_files(
    mut reloader: Option<Reloader>,
    auth: Arc<Auth>,
    mut asked: UnboundedReceiver<ReloadOrder>,
    metrics: Arc<Metrics>,
) {
    if let Some(reloader) = &mut reloader {
        reloader.announce();
    }
    let mut ticks = tokio::time::interval(FILES_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let order = tokio::select! {
            Some(order) = asked.recv() => Some(order),
            _ = ticks.tick() => None,
        };
        let is_asked = order.is_some();
        let auth = Arc::clone(&auth);
        // A file system that does not answer holds up nothing but this.
        let reading = tokio::task::spawn_blocking(move || {
            match &mut reloader {
                Some(reloader) if is_asked => reloader.reload(),
                Some(reloader) => reloader.look(),
                None => {}
            }
            auth.look(is_asked);
            (reloader, auth.is_failing(), auth.failing_issuers(), auth.store().tokens())
        });
        let Ok((back, is_failing, issuers, tokens)) = reading.await else { return };
        reloader = back;
        if let Some(ReloadOrder { reply, .. }) = order {
            let _ = reply.send(Reloaded::Taken { needs_restart: Vec::new() });
        }
        let certificates = reloader.as_ref().is_some_and(Reloader::is_failing);
        if let Some(reloader) = &reloader {
            metrics.certificates_are(&reloader.ends());
        }
        metrics.tokens.set(i64::try_from(tokens).unwrap_or(i64::MAX));
        metrics.certificates_unusable.set(i64::from(certificates));
        metrics.users_unusable.set(i64::from(is_failing));
        metrics.issuers_unusable.set(i64::try_from(issuers).unwrap_or(i64::MAX));
    }
}

/// Fetches the keys with which tokens of identity providers are verified. Never ends by itself.
pub async fn keep_issuers_keys(auth: Arc<Auth>) {
    auth.keep_issuers_keys().await;
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
