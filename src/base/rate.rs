//! The generic cell rate algorithm: a leaky bucket that is stored as the moment at which it will be empty.

use std::time::{Duration, Instant};

/// A rate with a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The time in which one request drains.
    interval: Duration,
    /// The time in which a full bucket drains.
    capacity: Duration,
}

impl Rate {
    /// `per_second` requests on average, and up to `burst` of them at once. `None` if the rate is not positive, or if
    /// it is too high or too low to be measured.
    pub fn new(per_second: f64, burst: u32) -> Option<Rate> {
        let interval = Duration::try_from_secs_f64(per_second.recip()).ok()?;
        let capacity = interval.checked_mul(burst)?;
        // A clock that counts nanoseconds cannot distinguish shorter intervals.
        (per_second > 0.0 && interval >= Duration::from_nanos(100) && capacity <= MAX_CAPACITY && burst > 0)
            .then_some(Rate { interval, capacity })
    }

    /// Adds a request to a bucket that is empty at `empty_at`: the moment at which it is empty afterwards, or the time
    /// until there is room again.
    pub fn admit(self, empty_at: Option<Instant>, now: Instant) -> Result<Instant, Duration> {
        let after = empty_at.map_or(now, |empty_at| empty_at.max(now)) + self.interval;
        match after.duration_since(now).checked_sub(self.capacity) {
            None | Some(Duration::ZERO) => Ok(after),
            Some(wait) => Err(wait),
        }
    }
}

/// The longest time in which a full bucket drains.
const MAX_CAPACITY: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let rate = Rate::new(2.0, 3).expect("valid");
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut empty_at = None;
        for (millis, expected) in [
            (0, Ok(())),
            (0, Ok(())),
            (0, Ok(())),
            (0, Err(500)),
            (400, Err(100)),
            (500, Ok(())),
            (501, Err(499)),
            (9000, Ok(())),
            (9000, Ok(())),
            (9000, Ok(())),
            (9000, Err(500)),
        ] {
            let result = rate.admit(empty_at, at(millis)).map(|after| empty_at = Some(after));
            assert_eq!(result.map_err(|wait| wait.as_millis()), expected, "after {millis} ms");
        }
    }

    #[test]
    fn rates_are_bounded() {
        for (per_second, burst) in [(0.0, 1), (-1.0, 1), (f64::NAN, 1), (1.0, 0), (1e9, 1), (1e-9, 1), (0.1, u32::MAX)]
        {
            assert_eq!(Rate::new(per_second, burst), None, "{per_second} {burst}");
        }
        assert!(Rate::new(0.01, 1).is_some() && Rate::new(1e6, 1000).is_some());
    }
}
