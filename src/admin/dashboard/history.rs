//! The traffic of the last hour as time series: the last five minutes at high resolution, the hour at low resolution.
//! It knows nothing about the page that draws it.
//!
//! Memory is bounded: a fixed number of points in two series, each with the rejection reasons of its interval.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::base::clock;
use crate::observability::metrics::{Histogram, RequestOutcome, RouteTotals};

/// Time between two points of the fine series.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(2);

/// Queries may take long, but an operator wants to know if most of them do; as in the alert `TimbrGatewaySlow`.
const LONG_DURATION: Duration = Duration::from_secs(30);

/// Points of the fine series: five minutes.
const FINE_POINTS: usize = 150;

/// Points of the fine series in one minute.
const POINTS_PER_MINUTE: usize = 30;

/// Points of the fine series that make one point of the coarse series.
const SAMPLES_PER_COARSE_POINT: u32 = 5;

/// Points of the coarse series: one hour.
const COARSE_POINTS: usize = 360;

/// Reasons with their own counts in a series; the others are rare, and are added up.
const MAX_REASONS: usize = 12;

/// Counts of requests within an interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrafficCounts {
    /// Responses of the backend below 500.
    answered: u64,
    /// Client errors: rejections below 500.
    rejected: u64,
    /// Status 500 and above, from the gateway or the backend.
    failed: u64,
    /// Counts by reason, of any status.
    reasons: Vec<(&'static str, u64)>,
    /// Until the end of the response.
    durations: Histogram,
    /// Until its head.
    to_head: Histogram,
}

/// Both series.
#[derive(Debug)]
pub struct TrafficHistory {
    fine: HistorySeries,
    coarse: HistorySeries,
    /// The incomplete next point of the coarse series.
    pending: HistoryPoint,
}

#[derive(Debug)]
struct HistorySeries {
    points: VecDeque<HistoryPoint>,
    capacity: usize,
}

#[derive(Clone, Debug, Default)]
struct HistoryPoint {
    /// The end of the interval, in seconds since the Unix epoch.
    at: f64,
    /// The length of the interval; longer than the sample interval if the machine was suspended.
    seconds: f64,
    counts: TrafficCounts,
}

impl TrafficCounts {
    /// Adds up the counts of all routes.
    pub fn from_routes(routes: &[RouteTotals]) -> TrafficCounts {
        let mut counts = TrafficCounts::default();
        for route in routes {
            for responses in &route.responses {
                let sum = match responses.outcome() {
                    RequestOutcome::Answered => &mut counts.answered,
                    RequestOutcome::Rejected => &mut counts.rejected,
                    RequestOutcome::Failed => &mut counts.failed,
                };
                *sum += responses.count;
                counts.add_reason(responses.reason, responses.count);
            }
            counts.durations.add(&route.total);
            counts.to_head.add(&route.to_head);
        }
        counts
    }

    fn add_reason(&mut self, reason: &'static str, count: u64) {
        if reason.is_empty() || count == 0 {
            return;
        }
        match self.reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, total)) => *total += count,
            None => self.reasons.push((reason, count)),
        }
    }

    fn count_of(&self, reason: &str) -> u64 {
        self.reasons.iter().find(|(known, _)| *known == reason).map_or(0, |(_, count)| *count)
    }

    fn add(&mut self, other: &TrafficCounts) {
        self.answered += other.answered;
        self.rejected += other.rejected;
        self.failed += other.failed;
        self.durations.add(&other.durations);
        self.to_head.add(&other.to_head);
        for (reason, count) in &other.reasons {
            self.add_reason(reason, *count);
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "answered": self.answered,
            "refused": self.rejected,
            "failed": self.failed,
            "p50": self.quantile_millis(0.5),
            "p95": self.quantile_millis(0.95),
            "p99": self.quantile_millis(0.99),
        })
    }

    /// A quantile of the durations in milliseconds, rounded to the precision of the buckets.
    fn quantile_millis(&self, quantile: f64) -> Option<f64> {
        self.durations.quantile(quantile).map(|seconds| (seconds * 1e5).round() / 1e2)
    }
}

impl TrafficHistory {
    /// Starts without points.
    pub fn new() -> TrafficHistory {
        let series = |capacity| HistorySeries { points: VecDeque::with_capacity(capacity), capacity };
        TrafficHistory { fine: series(FINE_POINTS), coarse: series(COARSE_POINTS), pending: HistoryPoint::default() }
    }

    /// Adds what was counted since the last call, which was `elapsed` ago.
    pub fn add(&mut self, counts: TrafficCounts, elapsed: Duration) {
        let at = clock::since_epoch(SystemTime::now()).as_secs_f64();
        let point = HistoryPoint { at, seconds: elapsed.as_secs_f64(), counts };
        self.pending.at = at;
        self.pending.seconds += point.seconds;
        self.pending.counts.add(&point.counts);
        self.fine.push(point);
        if self.pending.seconds
            >= (SAMPLE_INTERVAL * SAMPLES_PER_COARSE_POINT).as_secs_f64() - SAMPLE_INTERVAL.as_secs_f64() / 2.0
        {
            self.coarse.push(std::mem::take(&mut self.pending));
        }
    }

    /// Returns whether more than 5 % of the requests of the last minute failed, and at least five.
    pub fn has_high_failure_rate(&self) -> bool {
        let minute = self.last_minute();
        let all = minute.answered + minute.rejected + minute.failed;
        minute.failed >= 5 && minute.failed * 20 > all
    }

    /// The percentage of the requests of the last minute that were rejected, if it is over 20 % of at least 20 requests.
    pub fn high_rejection_percentage(&self) -> Option<u64> {
        let minute = self.last_minute();
        let all = minute.answered + minute.rejected + minute.failed;
        (all >= 20 && minute.rejected * 5 > all).then(|| minute.rejected * 100 / all)
    }

    /// The median time until the response head in the last minute, in seconds, if it is long and of at least five requests.
    pub fn long_median(&self) -> Option<f64> {
        let to_head = self.last_minute().to_head;
        to_head.quantile(0.5).filter(|median| to_head.count() >= 5 && *median >= LONG_DURATION.as_secs_f64())
    }

    /// The number of requests of the last five minutes that were rejected for one of these reasons.
    pub fn recent_count_of(&self, reasons: &[&str]) -> u64 {
        let of = |point: &HistoryPoint| reasons.iter().map(|reason| point.counts.count_of(reason)).sum::<u64>();
        self.fine.points.iter().map(of).sum()
    }

    fn last_minute(&self) -> TrafficCounts {
        let mut counts = TrafficCounts::default();
        self.fine.points.iter().rev().take(POINTS_PER_MINUTE).for_each(|point| counts.add(&point.counts));
        counts
    }

    /// Both series and the last minute, for the charts.
    pub fn to_json(&self) -> Value {
        let seconds: f64 = self.fine.points.iter().rev().take(POINTS_PER_MINUTE).map(|point| point.seconds).sum();
        let mut minute = self.last_minute().to_json();
        minute["seconds"] = seconds.max(1.0).into();
        json!({ "fine": self.fine.to_json(None), "coarse": self.coarse.to_json(Some(&self.pending)), "minute": minute })
    }
}

impl HistorySeries {
    fn push(&mut self, point: HistoryPoint) {
        if self.points.len() == self.capacity {
            self.points.pop_front();
        }
        self.points.push_back(point);
    }

    /// Columns of equal length; `pending` is an incomplete last point.
    fn to_json(&self, pending: Option<&HistoryPoint>) -> Value {
        let points: Vec<_> = self.points.iter().chain(pending.filter(|point| point.seconds > 0.0)).collect();
        let mut total = TrafficCounts::default();
        points.iter().for_each(|point| total.add(&point.counts));
        let rates = |count: fn(&TrafficCounts) -> u64| -> Vec<f64> {
            points.iter().map(|point| point.rate(count(&point.counts))).collect()
        };
        let quantiles =
            |quantile: f64| -> Vec<_> { points.iter().map(|point| point.counts.quantile_millis(quantile)).collect() };
        let mut reasons = total.reasons.clone();
        reasons.sort_by_key(|(reason, count)| (std::cmp::Reverse(*count), *reason));
        let other: u64 = reasons.iter().skip(MAX_REASONS).map(|(_, count)| count).sum();
        reasons.truncate(MAX_REASONS);
        let reasons: Vec<_> = reasons
            .iter()
            .map(|(reason, count)| {
                let counts: Vec<_> = points.iter().map(|point| point.counts.count_of(reason)).collect();
                json!({ "reason": reason, "total": count, "points": counts })
            })
            .collect();
        json!({
            "t": points.iter().map(|point| point.at.round()).collect::<Vec<_>>(),
            "answered": rates(|counts| counts.answered),
            "refused": rates(|counts| counts.rejected),
            "failed": rates(|counts| counts.failed),
            "p50": quantiles(0.5),
            "p95": quantiles(0.95),
            "p99": quantiles(0.99),
            "reasons": reasons,
            "other_reasons": other,
            "whole": total.to_json(),
        })
    }
}

impl HistoryPoint {
    /// Requests per second, rounded to three decimals.
    #[expect(clippy::cast_precision_loss, reason = "counts of seconds are far below")]
    fn rate(&self, count: u64) -> f64 {
        (count as f64 / self.seconds.max(0.001) * 1e3).round() / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(answered: u64, reasons: &[(&'static str, u64)]) -> TrafficCounts {
        let refused = reasons.iter().map(|(_, count)| count).sum();
        TrafficCounts { answered, rejected: refused, reasons: reasons.to_vec(), ..TrafficCounts::default() }
    }

    #[test]
    fn points_hold_the_counts_of_their_interval() {
        let mut history = TrafficHistory::new();
        history.add(counts(4, &[]), SAMPLE_INTERVAL);
        history.add(counts(0, &[("not_found", 2), ("api_key_missing", 1)]), SAMPLE_INTERVAL);
        let document = history.to_json();
        assert_eq!(document["fine"]["answered"], json!([2.0, 0.0]));
        assert_eq!(document["fine"]["refused"], json!([0.0, 1.5]));
        assert_eq!(document["fine"]["whole"]["refused"], 3);
        let reasons = &document["fine"]["reasons"];
        assert_eq!((&reasons[0]["reason"], &reasons[0]["points"]), (&json!("not_found"), &json!([0, 2])));
        assert_eq!(reasons[1]["total"], 1);
        assert_eq!(document["fine"]["p95"], json!([null, null]), "without requests, there are no durations");
        assert_eq!(document["minute"]["answered"], 4);
    }

    #[test]
    fn the_coarse_series_combines_samples_and_includes_the_incomplete_point() {
        let mut history = TrafficHistory::new();
        for _ in 0..7 {
            history.add(counts(10, &[]), SAMPLE_INTERVAL);
        }
        assert_eq!(history.to_json()["coarse"]["answered"], json!([5.0, 5.0]));
        assert_eq!(history.coarse.points.len(), 1);
    }

    #[test]
    fn a_minute_of_long_requests_is_noticed() {
        let mut history = TrafficHistory::new();
        let slow = TrafficCounts { to_head: Histogram::of(&[Duration::from_secs(40); 4]), ..counts(4, &[]) };
        history.add(slow.clone(), SAMPLE_INTERVAL);
        assert_eq!(history.long_median(), None, "few requests");
        history.add(slow, SAMPLE_INTERVAL);
        assert!(history.long_median().is_some_and(|median| median >= 30.0), "{:?}", history.long_median());
    }

    #[test]
    fn the_oldest_points_are_dropped() {
        let mut history = TrafficHistory::new();
        for _ in 0..2000 {
            history.add(counts(1, &[]), SAMPLE_INTERVAL);
        }
        assert_eq!((history.fine.points.len(), history.coarse.points.len()), (FINE_POINTS, COARSE_POINTS));
        assert_eq!(history.to_json()["fine"]["whole"]["answered"], json!(FINE_POINTS));
    }
}
