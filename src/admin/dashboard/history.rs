//! What was counted over the last hour, for curves: the last five minutes finely, the hour coarsely.
//!
//! Memory is bounded: so many points of two series, each with the few reasons that requests were refused for in its time.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::observability::metrics::{Histogram, Sum};

/// How often the finer series is added to.
pub const STEP: Duration = Duration::from_secs(2);

/// Points of the finer series: five minutes.
const FINE: usize = 150;

/// Points of the finer series that the last minute has.
const MINUTE: usize = 30;

/// Steps of the finer series that the coarser one takes together.
const COARSER: u32 = 5;

/// Points of the coarser series: an hour.
const COARSE: usize = 360;

/// Reasons that are told apart in a series; those of the others are many and rare.
const MOST_REASONS: usize = 12;

/// What was counted since the start, or within some time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Came through from the backend, and below 500.
    answered: u64,
    /// The client's to mend: a reason, and below 500.
    refused: u64,
    /// 500 and above, whoever said so.
    failed: u64,
    /// By reason, whatever the status.
    reasons: Vec<(&'static str, u64)>,
    durations: Histogram,
}

/// Both series.
#[derive(Debug)]
pub struct History {
    last: Counts,
    fine: Series,
    coarse: Series,
    /// What the next point of the coarser series has so far.
    pending: Point,
}

#[derive(Debug)]
struct Series {
    points: VecDeque<Point>,
    most: usize,
}

#[derive(Clone, Debug, Default)]
struct Point {
    /// Its end, in seconds since the Unix epoch.
    at: f64,
    /// How long it lasted, in seconds; longer than the step if the machine slept.
    lasted: f64,
    counts: Counts,
}

impl Counts {
    /// What all workers have counted so far.
    pub fn of(sum: &Sum) -> Counts {
        let mut counts = Counts::default();
        for route in &sum.routes {
            for answers in &route.answers {
                let kind = match (answers.status, answers.reason) {
                    ("5xx", _) => &mut counts.failed,
                    (_, "") => &mut counts.answered,
                    _ => &mut counts.refused,
                };
                *kind += answers.count;
                counts.add_reason(answers.reason, answers.count);
            }
            counts.durations.add(&route.total);
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

    fn add(&mut self, other: &Counts) {
        self.answered += other.answered;
        self.refused += other.refused;
        self.failed += other.failed;
        self.durations.add(&other.durations);
        for (reason, count) in &other.reasons {
            self.add_reason(reason, *count);
        }
    }

    /// What came since.
    fn since(&self, earlier: &Counts) -> Counts {
        let reasons = self
            .reasons
            .iter()
            .map(|(reason, count)| (*reason, count.saturating_sub(earlier.count_of(reason))));
        Counts {
            answered: self.answered.saturating_sub(earlier.answered),
            refused: self.refused.saturating_sub(earlier.refused),
            failed: self.failed.saturating_sub(earlier.failed),
            reasons: reasons.filter(|(_, count)| *count > 0).collect(),
            durations: self.durations.since(&earlier.durations),
        }
    }

    fn told(&self) -> Value {
        json!({
            "answered": self.answered,
            "refused": self.refused,
            "failed": self.failed,
            "p50": self.millis(0.5),
            "p95": self.millis(0.95),
            "p99": self.millis(0.99),
        })
    }

    /// A quantile of the durations, rounded to what buckets can tell.
    fn millis(&self, part: f64) -> Option<f64> {
        self.durations.quantile(part).map(|seconds| (seconds * 1e5).round() / 1e2)
    }
}

impl History {
    /// Begins with what was counted before, of which nothing is shown.
    pub fn new(counted: Counts) -> History {
        let series = |most| Series { points: VecDeque::with_capacity(most), most };
        History { last: counted, fine: series(FINE), coarse: series(COARSE), pending: Point::default() }
    }

    /// Adds what was counted since the last time, `lasted` ago.
    pub fn add(&mut self, counted: Counts, lasted: Duration) {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let point = Point { at, lasted: lasted.as_secs_f64(), counts: counted.since(&self.last) };
        self.last = counted;
        self.pending.at = at;
        self.pending.lasted += point.lasted;
        self.pending.counts.add(&point.counts);
        self.fine.push(point);
        if self.pending.lasted >= (STEP * COARSER).as_secs_f64() - STEP.as_secs_f64() / 2.0 {
            self.coarse.push(std::mem::take(&mut self.pending));
        }
    }

    /// Whether over a twentieth of the requests of the last minute failed, and not just one or two.
    pub fn fails_often(&self) -> bool {
        let minute = self.minute();
        let all = minute.answered + minute.refused + minute.failed;
        minute.failed >= 5 && minute.failed * 20 > all
    }

    fn minute(&self) -> Counts {
        let mut counts = Counts::default();
        self.fine.points.iter().rev().take(MINUTE).for_each(|point| counts.add(&point.counts));
        counts
    }

    /// Both series as the page draws them, and the last minute.
    pub fn told(&self) -> Value {
        let seconds: f64 = self.fine.points.iter().rev().take(MINUTE).map(|point| point.lasted).sum();
        let mut told = self.minute().told();
        told["seconds"] = seconds.max(1.0).into();
        json!({ "fine": self.fine.told(None), "coarse": self.coarse.told(Some(&self.pending)), "minute": told })
    }
}

impl Series {
    fn push(&mut self, point: Point) {
        if self.points.len() == self.most {
            self.points.pop_front();
        }
        self.points.push_back(point);
    }

    /// Columns of equal length; `pending` is a last point that is not complete.
    fn told(&self, pending: Option<&Point>) -> Value {
        let points: Vec<_> = self.points.iter().chain(pending.filter(|point| point.lasted > 0.0)).collect();
        let mut whole = Counts::default();
        points.iter().for_each(|point| whole.add(&point.counts));
        let rates = |count: fn(&Counts) -> u64| -> Vec<f64> {
            points.iter().map(|point| point.rate(count(&point.counts))).collect()
        };
        let quantiles =
            |part: f64| -> Vec<_> { points.iter().map(|point| point.counts.millis(part)).collect() };
        let mut reasons = whole.reasons.clone();
        reasons.sort_by_key(|(reason, count)| (std::cmp::Reverse(*count), *reason));
        let rest: u64 = reasons.iter().skip(MOST_REASONS).map(|(_, count)| count).sum();
        reasons.truncate(MOST_REASONS);
        let reasons: Vec<_> = reasons
            .iter()
            .map(|(reason, total)| {
                let counts: Vec<_> = points.iter().map(|point| point.counts.count_of(reason)).collect();
                json!({ "reason": reason, "total": total, "points": counts })
            })
            .collect();
        json!({
            "t": points.iter().map(|point| point.at.round()).collect::<Vec<_>>(),
            "answered": rates(|counts| counts.answered),
            "refused": rates(|counts| counts.refused),
            "failed": rates(|counts| counts.failed),
            "p50": quantiles(0.5),
            "p95": quantiles(0.95),
            "p99": quantiles(0.99),
            "reasons": reasons,
            "other_reasons": rest,
            "whole": whole.told(),
        })
    }
}

impl Point {
    /// A second, to three digits behind the point.
    #[expect(clippy::cast_precision_loss, reason = "counts of seconds are far below")]
    fn rate(&self, count: u64) -> f64 {
        (count as f64 / self.lasted.max(0.001) * 1e3).round() / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(answered: u64, reasons: &[(&'static str, u64)]) -> Counts {
        let refused = reasons.iter().map(|(_, count)| count).sum();
        Counts { answered, refused, reasons: reasons.to_vec(), ..Counts::default() }
    }

    #[test]
    fn points_tell_what_came_since_the_last_one() {
        let mut history = History::new(counts(100, &[("not_found", 7)]));
        history.add(counts(104, &[("not_found", 7)]), STEP);
        history.add(counts(104, &[("not_found", 9), ("api_key_missing", 1)]), STEP);
        let told = history.told();
        assert_eq!(told["fine"]["answered"], json!([2.0, 0.0]));
        assert_eq!(told["fine"]["refused"], json!([0.0, 1.5]));
        assert_eq!(told["fine"]["whole"]["refused"], 3);
        let reasons = &told["fine"]["reasons"];
        assert_eq!((&reasons[0]["reason"], &reasons[0]["points"]), (&json!("not_found"), &json!([0, 2])));
        assert_eq!(reasons[1]["total"], 1);
        assert_eq!(told["fine"]["p95"], json!([null, null]), "nothing is known of no request");
        assert_eq!(told["minute"]["answered"], 4);
    }

    #[test]
    fn the_coarser_series_takes_steps_together_and_shows_those_that_are_left() {
        let mut history = History::new(Counts::default());
        for step in 1..=7 {
            history.add(counts(step * 10, &[]), STEP);
        }
        assert_eq!(history.told()["coarse"]["answered"], json!([5.0, 5.0]));
        assert_eq!(history.coarse.points.len(), 1);
    }

    #[test]
    fn what_is_older_than_the_series_goes() {
        let mut history = History::new(Counts::default());
        for step in 0..2000 {
            history.add(counts(step, &[]), STEP);
        }
        assert_eq!((history.fine.points.len(), history.coarse.points.len()), (FINE, COARSE));
        assert_eq!(history.told()["fine"]["whole"]["answered"], json!(FINE));
    }
}
