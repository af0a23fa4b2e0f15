//! What an operator should look at about the backends, for the banner of the dashboard.

use crate::admin::dashboard::attention::AttentionItem;
use crate::admin::dashboard::overview::has_usable_endpoint;
use crate::config::DEFAULT_UPSTREAM;
use crate::observability::metrics::EndpointCounts;
use crate::upstream::{Backends, LONG_SILENCE, NameStatus, UpstreamStatus};

/// Problems of the backends of one upstream.
pub fn items(backends: &Backends) -> Vec<AttentionItem> {
    let status = backends.status();
    let silent = status.endpoints.iter().find_map(|endpoint| silence_item(&endpoint.address, &endpoint.counts));
    let names = status.names.iter().filter_map(name_item);
    upstream_item(backends, &status).into_iter().chain(silent).chain(names).collect()
}

fn upstream_item(backends: &Backends, status: &UpstreamStatus) -> Option<AttentionItem> {
    let of = match backends.name() {
        DEFAULT_UPSTREAM => String::new(),
        name => format!(" of the upstream {name}"),
    };
    let all = status.endpoints.len();
    let ejected = status.endpoints.iter().filter(|endpoint| endpoint.state != "usable").count();
    if all == 0 {
        let message = format!("No endpoint{of} is known");
        let remedy = "Requests get 502: no name in `upstream.url` has an address yet.";
        return Some(AttentionItem::bad(message, remedy, Some("upstreams")));
    }
    if !has_usable_endpoint(status) {
        return Some(AttentionItem::bad(
            format!("No endpoint{of} is usable: {ejected} of {all} are ejected"),
            "Requests get 502 or 503. Check that the backend runs and listens on `upstream.url`; `timbr-gateway doctor` \
             checks the whole path.",
            Some("upstreams"),
        ));
    }
    (ejected > 0).then(|| {
        AttentionItem::warn(
            format!("{ejected} of {all} endpoints{of} are ejected"),
            "The other endpoints get their requests.",
            Some("upstreams"),
        )
    })
}

/// An endpoint that hangs fails only after `upstream.response_timeout`, which is long.
fn silence_item(
    address: &str,
    &EndpointCounts { silent_seconds: seconds, waiting, .. }: &EndpointCounts,
) -> Option<AttentionItem> {
    (seconds >= LONG_SILENCE.as_secs()).then(|| {
        AttentionItem::warn(
            format!("{address} has sent no response for {seconds} s, and {waiting} requests wait"),
            "It hangs, or all its queries are long. `timbr-gateway doctor` finds out, and `timbr-gateway queries running` \
             lists the queries, if `journal.enabled` is set.",
            Some("upstreams"),
        )
    })
}

pub fn slow_item(median: f64) -> AttentionItem {
    AttentionItem::warn(
        format!("Half of the requests of the last minute took {median:.0} s or more"),
        "If `upstream_ms` in the access log is as high as `head_ms`, the backend is slow; otherwise they wait in the queue or \
         for the server that verifies passwords. `timbr-gateway queries slow` lists them, if `journal.enabled` is set.",
        Some("traffic"),
    )
}

fn name_item(name: &NameStatus) -> Option<AttentionItem> {
    let error = name.failing.as_ref()?;
    Some(AttentionItem::warn(
        format!("The backend's name {} cannot be resolved: {error}", name.host),
        "Requests go to its previous addresses, if there are any. Check the DNS server and the resolver of this machine.",
        Some("upstreams"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_without_a_response_is_shown() {
        let item = |silent_seconds| {
            let counts = EndpointCounts { silent_seconds, waiting: 3, ..EndpointCounts::default() };
            silence_item("10.0.0.1:80", &counts).map(|item| item.message)
        };
        let expected = "10.0.0.1:80 has sent no response for 75 s, and 3 requests wait".to_owned();
        assert_eq!([59, 75].map(item), [None, Some(expected)]);
    }
}
