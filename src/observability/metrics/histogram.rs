//! Histograms of durations: one that a worker records into, and one that sums up workers. Neither knows what is
//! measured.

use std::time::Duration;

use crate::base::counter::SingleWriterCounter;

/// Upper bounds of the buckets in nanoseconds, from the response of a local backend to a query that runs for an hour.
const BUCKET_BOUNDS: [u64; 22] = [
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
    600_000_000_000,
    1_800_000_000_000,
    3_600_000_000_000,
];

/// Upper bounds of the buckets in seconds.
pub fn bucket_bounds() -> impl Iterator<Item = f64> {
    BUCKET_BOUNDS.iter().map(|bound| to_seconds(*bound))
}

/// One bucket per bound, and one for longer durations.
const BUCKET_COUNT: usize = BUCKET_BOUNDS.len() + 1;

/// A histogram that only the owning thread records into.
#[derive(Debug, Default)]
pub struct DurationHistogram {
    buckets: [SingleWriterCounter; BUCKET_COUNT],
    nanos: SingleWriterCounter,
}

impl DurationHistogram {
    /// Records a duration. Only the owning thread may call this.
    pub fn record(&self, duration: Duration) {
        let nanos = duration.as_secs().saturating_mul(1_000_000_000).saturating_add(duration.subsec_nanos().into());
        self.buckets[BUCKET_BOUNDS.partition_point(|bound| *bound < nanos)].increment();
        self.nanos.add(nanos);
    }

    /// Adds all recorded durations to `sum`.
    pub fn add_to(&self, sum: &mut Histogram) {
        for (total, bucket) in sum.buckets.iter_mut().zip(&self.buckets) {
            *total += bucket.get();
        }
        sum.nanos = sum.nanos.wrapping_add(self.nanos.get());
    }
}

/// The sum of the histograms of several threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: [u64; BUCKET_COUNT],
    nanos: u64,
}

impl Histogram {
    /// Number of recorded durations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Sum of the recorded durations in seconds.
    pub fn sum_seconds(&self) -> f64 {
        to_seconds(self.nanos)
    }

    /// Pairs of upper bound in seconds and number of durations in that bucket (not cumulative).
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        bucket_bounds().chain([f64::INFINITY]).zip(self.buckets).collect()
    }

    /// Adds the durations of `other`.
    pub fn add(&mut self, other: &Histogram) {
        for (total, bucket) in self.buckets.iter_mut().zip(other.buckets) {
            *total += bucket;
        }
        self.nanos = self.nanos.wrapping_add(other.nanos);
    }

    /// The durations recorded after `earlier` was taken.
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let mut rest = *self;
        for (now, before) in rest.buckets.iter_mut().zip(earlier.buckets) {
            *now = now.saturating_sub(before);
        }
        rest.nanos = rest.nanos.wrapping_sub(earlier.nanos);
        rest
    }

    /// Estimates a quantile (0.99 is the 99th percentile) in seconds, by linear interpolation in a bucket as Prometheus
    /// does. `None` without durations. Durations above the last bound count as the last bound.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = quantile.clamp(0.0, 1.0) * to_f64(count);
        let (mut below, mut lower) = (0.0, 0.0);
        for (bound, bucket) in bucket_bounds().zip(self.buckets) {
            let in_bucket = to_f64(bucket);
            if in_bucket > 0.0 && below + in_bucket >= rank {
                return Some(lower + (bound - lower) * ((rank - below) / in_bucket).max(0.0));
            }
            (below, lower) = (below + in_bucket, bound);
        }
        Some(lower)
    }
}

#[cfg(test)]
impl Histogram {
    /// With these durations.
    pub fn of(durations: &[Duration]) -> Histogram {
        let (recorded, mut sum) = (DurationHistogram::default(), Histogram::default());
        durations.iter().for_each(|duration| recorded.record(*duration));
        recorded.add_to(&mut sum);
        sum
    }
}

/// Exact for sums of nanoseconds up to a hundred days, and close enough beyond.
#[expect(clippy::cast_precision_loss, reason = "documented above")]
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
    fn a_duration_counts_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let histogram = histogram_of(&[0, 1, 2, 4_000_000]);
        let filled: Vec<_> = histogram.buckets().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(0.000_25, 1), (0.001, 1), (0.002_5, 1), (f64::INFINITY, 1)]);
        assert_eq!((histogram.count(), histogram.sum_seconds()), (4, 4000.003));
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        assert_eq!(Histogram::default().quantile(0.5), None);
        let histogram = histogram_of(&[2, 2, 2, 2, 2, 2, 2, 2, 2, 70]);
        let median = histogram.quantile(0.5).expect("some");
        assert!((0.001..=0.0025).contains(&median), "{median}");
        let high = histogram.quantile(0.99).expect("some");
        assert!((0.05..=0.1).contains(&high), "{high}");
        assert_eq!(histogram_of(&[4_000_000]).quantile(0.5), Some(3600.0));
    }

    #[test]
    fn since_returns_only_later_durations() {
        let (before, after) = (histogram_of(&[2, 2]), histogram_of(&[2, 2, 70]));
        assert_eq!(after.since(&before), histogram_of(&[70]));
        let mut sum = before;
        sum.add(&histogram_of(&[70]));
        assert_eq!(sum, after);
    }
}
