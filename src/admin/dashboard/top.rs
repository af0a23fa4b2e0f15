//! Who and what has the most requests: users, addresses, routes and reasons of the last minutes, in bounded memory. It
//! knows nothing about the page that shows them.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::observability::metrics::{CallerTally, RouteTotals, TakenCallers};

/// Intervals that are kept, the incomplete one included.
const INTERVALS: usize = 5;

/// Maximum number of names of a kind in one interval; those with the fewest requests are forgotten.
const MAX_NAMES: usize = 500;

/// Names of each kind that are shown.
const MAX_SHOWN: usize = 10;

/// The length of an interval.
const INTERVAL: Duration = Duration::from_secs(60);

/// The requests of the last minutes by name.
#[derive(Debug, Default)]
pub struct TopCallers {
    /// The newest one is the last.
    intervals: VecDeque<TopInterval>,
}

#[derive(Debug, Default)]
struct TopInterval {
    length: Duration,
    users: Tallies,
    addresses: Tallies,
    routes: Tallies,
    reasons: HashMap<&'static str, u64>,
}

type Tallies = HashMap<String, CallerTally>;

impl TopCallers {
    /// Adds what was counted since the last call, which was `elapsed` ago.
    pub fn add(&mut self, callers: TakenCallers, routes: &[RouteTotals], elapsed: Duration) {
        if self.intervals.back().is_none_or(|last| last.length >= INTERVAL) {
            if self.intervals.len() == INTERVALS {
                self.intervals.pop_front();
            }
            self.intervals.push_back(TopInterval::default());
        }
        let interval = self.intervals.back_mut().expect("one was added");
        interval.length += elapsed;
        for (user, tally) in callers.users {
            add(&mut interval.users, user.as_str(), &tally);
        }
        for (address, tally) in callers.addresses {
            add(&mut interval.addresses, &network_text(address), &tally);
        }
        routes.iter().for_each(|route| interval.add_route(route));
        shrink(&mut interval.users);
        shrink(&mut interval.addresses);
    }

    /// The names with the most requests, those with the most first.
    pub fn to_json(&self) -> Value {
        let seconds: Duration = self.intervals.iter().map(|interval| interval.length).sum();
        let top = |of: fn(&TopInterval) -> &Tallies| {
            let mut sums = Tallies::new();
            for (name, tally) in self.intervals.iter().flat_map(of) {
                add(&mut sums, name, tally);
            }
            let mut sums: Vec<_> = sums.into_iter().collect();
            sums.sort_by(|(one, a), (other, b)| (Reverse(a.requests), one).cmp(&(Reverse(b.requests), other)));
            sums.truncate(MAX_SHOWN);
            let row = |(name, tally): &(String, CallerTally)| {
                json!({
                    "name": name,
                    "requests": tally.requests,
                    "rejected": tally.rejected,
                    "failed": tally.failed,
                    "reason": tally.reason,
                })
            };
            sums.iter().map(row).collect::<Vec<_>>()
        };
        let mut reasons: HashMap<&str, u64> = HashMap::new();
        for (reason, count) in self.intervals.iter().flat_map(|interval| &interval.reasons) {
            *reasons.entry(reason).or_default() += count;
        }
        let mut reasons: Vec<_> = reasons.into_iter().collect();
        reasons.sort_by_key(|(reason, count)| (Reverse(*count), *reason));
        reasons.truncate(MAX_SHOWN);
        let reasons: Vec<_> =
            reasons.iter().map(|(reason, count)| json!({ "name": reason, "requests": count })).collect();
        json!({
            "seconds": seconds.as_secs_f64().round(),
            "users": top(|interval| &interval.users),
            "addresses": top(|interval| &interval.addresses),
            "routes": top(|interval| &interval.routes),
            "reasons": reasons,
        })
    }
}

impl TopInterval {
    fn add_route(&mut self, route: &RouteTotals) {
        let mut tally = CallerTally::default();
        for responses in &route.responses {
            tally.count(responses.outcome(), responses.count);
            if !responses.reason.is_empty() {
                *self.reasons.entry(responses.reason).or_default() += responses.count;
                tally.reason = responses.reason;
            }
        }
        if tally.requests > 0 {
            add(&mut self.routes, if route.name.is_empty() { "none" } else { &route.name }, &tally);
        }
    }
}

fn add(tallies: &mut Tallies, name: &str, tally: &CallerTally) {
    match tallies.get_mut(name) {
        Some(known) => known.add(tally),
        None => drop(tallies.insert(name.to_owned(), *tally)),
    }
}

/// Forgets the names with the fewest requests, if there are too many.
fn shrink(tallies: &mut Tallies) {
    if tallies.len() > MAX_NAMES {
        let mut all: Vec<_> = tallies.drain().collect();
        all.select_nth_unstable_by_key(MAX_NAMES / 2, |(_, tally)| Reverse(tally.requests));
        tallies.extend(all.drain(..MAX_NAMES / 2));
    }
}

fn network_text(network: IpAddr) -> String {
    match network {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(network) => format!("{network}/64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::user_name::UserName;

    fn callers(users: &[(&str, u64)]) -> TakenCallers {
        let of = |(name, requests): &(&str, u64)| {
            let user = UserName::parse(name.as_bytes()).expect("valid");
            (user, CallerTally { requests: *requests, ..CallerTally::default() })
        };
        TakenCallers { users: users.iter().map(of).collect(), addresses: Vec::new() }
    }

    fn names(top: &TopCallers) -> Vec<(String, u64)> {
        let document = top.to_json();
        let of =
            |row: &Value| (row["name"].as_str().unwrap_or_default().to_owned(), row["requests"].as_u64().unwrap_or(0));
        document["users"].as_array().expect("a list").iter().map(of).collect()
    }

    #[test]
    fn the_busiest_come_first_and_old_intervals_end() {
        let mut top = TopCallers::default();
        let minute = Duration::from_secs(60);
        top.add(callers(&[("alice", 5), ("bob", 7)]), &[], minute);
        top.add(callers(&[("alice", 5)]), &[], minute);
        assert_eq!(names(&top), [("alice".to_owned(), 10), ("bob".to_owned(), 7)]);
        for _ in 0..4 {
            top.add(callers(&[]), &[], minute);
        }
        assert_eq!(names(&top), [("alice".to_owned(), 5)]);
        assert_eq!(top.to_json()["seconds"], 300.0);
    }

    #[test]
    fn memory_is_bounded() {
        let mut top = TopCallers::default();
        for number in 0..2000 {
            let name = format!("user-{number}");
            top.add(callers(&[(&name, 1), ("busy", 2)]), &[], Duration::ZERO);
        }
        assert!(top.intervals[0].users.len() <= MAX_NAMES);
        assert_eq!(names(&top)[0], ("busy".to_owned(), 4000));
        top.intervals.clear();
        let all: Vec<_> = (0..2000).map(|number| format!("user-{number}")).collect();
        top.add(callers(&all.iter().map(|name| (&**name, 1)).collect::<Vec<_>>()), &[], Duration::ZERO);
        assert!(!names(&top).is_empty(), "callers with as many requests as all others");
    }
}
