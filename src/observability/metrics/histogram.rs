//! Numbers that one thread writes and others may read.
//!
//! A shared counter costs every thread that adds to it a trip of its cache line between processors. Here each worker has
//! its own, adds to it without a locked instruction, and whoever reads sums them up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A count. Only the thread that owns it may add: two at once would lose additions, though nothing worse.
#[derive(Debug, Default)]
pub struct SingleWriterCounter(AtomicU64);

impl SingleWriterCounter {
    /// Adds, as the owner.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// What there is.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the buckets, in nanoseconds: from an answer of a backend beside us to a query of minutes.
const BUCKET_BOUNDS: [u64; 19] = [
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
    120_000_000_000,
    300_000_000_000,
];

/// The same in seconds.
pub fn bucket_bounds() -> impl Iterator<Item = f64> {
    BUCKET_BOUNDS.iter().map(|bound| to_seconds(*bound))
}

/// One bucket for each bound, and one for what is longer than all.
const BUCKET_COUNT: usize = BUCKET_BOUNDS.len() + 1;

/// How long something took, as the owner of a histogram notes it.
#[derive(Debug, Default)]
pub struct DurationHistogram {
    buckets: [SingleWriterCounter; BUCKET_COUNT],
    nanos: SingleWriterCounter,
}

impl DurationHistogram {
    /// Notes one, as the owner.
    pub fn record(&self, span: Duration) {
        let nanos = span.as_secs().saturating_mul(1_000_000_000).saturating_add(span.subsec_nanos().into());
        self.buckets[BUCKET_BOUNDS.partition_point(|bound| *bound < nanos)].add(1);
        self.nanos.add(nanos);
    }

    /// Adds what was noted to a sum.
    pub fn add_to(&self, sum: &mut Histogram) {
        for (total, bucket) in sum.buckets.iter_mut().zip(&self.buckets) {
            *total += bucket.get();
        }
        sum.nanos = sum.nanos.wrapping_add(self.nanos.get());
    }
}

/// What several threads have noted together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: [u64; BUCKET_COUNT],
    nanos: u64,
}

impl Histogram {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of them one after the other, in seconds.
    pub fn sum_seconds(&self) -> f64 {
        to_seconds(self.nanos)
    }

    /// Bounds in seconds, each with how many came between it and the one before.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        bucket_bounds().chain([f64::INFINITY]).zip(self.buckets).collect()
    }

    /// What another one has noted besides.
    pub fn add(&mut self, other: &Histogram) {
        for (total, bucket) in self.buckets.iter_mut().zip(other.buckets) {
            *total += bucket;
        }
        self.nanos = self.nanos.wrapping_add(other.nanos);
    }

    /// What was noted since.
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let mut rest = *self;
        for (now, before) in rest.buckets.iter_mut().zip(earlier.buckets) {
            *now = now.saturating_sub(before);
        }
        rest.nanos = rest.nanos.wrapping_sub(earlier.nanos);
        rest
    }

    /// Below which so large a part of all lies (0.99: the 99th percentile), in seconds, as Prometheus estimates it from
    /// buckets. `None`: there were none. What is longer than all bounds counts as the longest bound.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = part.clamp(0.0, 1.0) * to_f64(count);
        let (mut below, mut lower) = (0.0, 0.0);
        for (bound, bucket) in bucket_bounds().zip(self.buckets) {
            let here = to_f64(bucket);
            if here > 0.0 && below + here >= rank {
                return Some(lower + (bound - lower) * ((rank - below) / here).max(0.0));
            }
            (below, lower) = (below + here, bound);
        }
        Some(lower)
    }
}

/// Sums of nanoseconds are exact up to a hundred days, and near enough beyond.
#[expect(clippy::cast_precision_loss, reason = "as said")]
fn to_f64(value: u64) -> f64 {
    value as f64
}

fn to_seconds(nanos: u64) -> f64 {
    to_f64(nanos) / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram_of(millis: &[u64]) -> Histogram {
        let durations = DurationHistogram::default();
        millis.iter().for_each(|millis| durations.record(Duration::from_millis(*millis)));
        let mut sum = Histogram::default();
        durations.add_to(&mut sum);
        sum
    }

    #[test]
    fn a_span_counts_in_the_first_bucket_that_holds_it() {
        let histogram = histogram_of(&[0, 1, 2, 400_000]);
        let filled: Vec<_> = histogram.buckets().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(0.000_25, 1), (0.001, 1), (0.002_5, 1), (f64::INFINITY, 1)]);
        assert_eq!((histogram.count(), histogram.sum_seconds()), (4, 400.003));
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        assert_eq!(Histogram::default().quantile(0.5), None);
        let histogram = histogram_of(&[2, 2, 2, 2, 2, 2, 2, 2, 2, 70]);
        let median = histogram.quantile(0.5).expect("some");
        assert!((0.001..=0.0025).contains(&median), "{median}");
        let high = histogram.quantile(0.99).expect("some");
        assert!((0.05..=0.1).contains(&high), "{high}");
        assert_eq!(histogram_of(&[400_000]).quantile(0.5), Some(300.0));
    }

    #[test]
    fn the_difference_is_what_came_since() {
        let (before, after) = (histogram_of(&[2, 2]), histogram_of(&[2, 2, 70]));
        assert_eq!(after.since(&before), histogram_of(&[70]));
        let mut sum = before;
        sum.add(&histogram_of(&[70]));
        assert_eq!(sum, after);
    }
}
