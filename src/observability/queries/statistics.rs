//! Statistics of the last hour by user, ontology and fingerprint, and the slowest statements, in bounded memory.
//!
//! The hour consists of twelve parts of five minutes. Each part has at most [`MAX_KEYS`] keys of each kind. A new key
//! takes the place of the one with the smallest weight and inherits that weight (space-saving, Metwally et al. 2005): any
//! key with more than 1/[`MAX_KEYS`] of a part's total duration is in its list, even if clients invent
//! names. Evicted keys are added to a row for all others, so that sums stay exact. Keys, texts and statements together
//! take at most about 3 MiB.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::base::label_values::label_values;
use crate::base::truncate::truncate;
use crate::observability::queries::CompletedQuery;

/// The time that the statistics cover; the oldest part of five minutes is dropped as a whole.
pub const STATISTICS_PERIOD: Duration = Duration::from_secs(60 * 60);

const PART: Duration = Duration::from_secs(5 * 60);

/// Maximum number of keys of one kind in one part.
const MAX_KEYS: usize = 128;

/// Maximum number of slow statements in one part.
const MAX_SLOWEST: usize = 20;

/// Maximum bytes of the text beside a fingerprint.
const MAX_LABEL: usize = 256;

/// What a statement weighs besides its duration, so that many fast ones count too.
const MIN_WEIGHT: Duration = Duration::from_millis(1);

label_values! {
    /// What statements are grouped by.
    StatisticsKey {
        /// The proven user.
        User = "user",
        /// The ontology.
        Ontology = "ontology",
        /// The statement without its literals.
        Fingerprint = "fingerprint",
    }
}

/// Sums over statements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueryTotals {
    /// Number of statements.
    pub count: u64,
    /// Those without a complete, successful response.
    pub errors: u64,
    /// Sum of the durations.
    pub total: Duration,
    /// The longest duration.
    pub max: Duration,
    /// Bytes of the response bodies.
    pub sent: u64,
}

impl QueryTotals {
    fn add(&mut self, other: QueryTotals) {
        self.count += other.count;
        self.errors += other.errors;
        self.total += other.total;
        self.max = self.max.max(other.max);
        self.sent = self.sent.saturating_add(other.sent);
    }

    /// The mean duration.
    pub fn mean(&self) -> Duration {
        u32::try_from(self.count).ok().and_then(|count| self.total.checked_div(count)).unwrap_or_default()
    }
}

impl From<&CompletedQuery> for QueryTotals {
    fn from(query: &CompletedQuery) -> QueryTotals {
        let errors = u64::from(query.is_error());
        QueryTotals { count: 1, errors, total: query.total, max: query.total, sent: query.sent }
    }
}

/// A user, ontology or fingerprint with its sums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopRow {
    /// Empty for statements without one.
    pub key: Box<str>,
    /// The beginning of the text of a fingerprint.
    pub label: Option<Box<str>>,
    /// Its sums. If a key was evicted for a while, they are too small.
    pub totals: QueryTotals,
}

/// The keys with the longest total duration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopList {
    /// The longest total duration first.
    pub rows: Vec<TopRow>,
    /// All statements that are in no row.
    pub other: QueryTotals,
}

/// The statistics of the last hour.
#[derive(Debug, Default)]
pub struct QueryStatistics {
    /// The oldest first.
    parts: VecDeque<StatisticsPart>,
}

#[derive(Debug)]
struct StatisticsPart {
    began: Instant,
    tables: [KeyTable; StatisticsKey::ALL.len()],
    slowest: Vec<CompletedQuery>,
}

#[derive(Debug, Default)]
struct KeyTable {
    entries: HashMap<Box<str>, KeyEntry>,
    other: QueryTotals,
}

#[derive(Debug)]
struct KeyEntry {
    totals: QueryTotals,
    label: Option<Box<str>>,
    /// Its own, and what it has inherited.
    weight: Duration,
}

impl QueryStatistics {
    /// Adds a statement that ended now.
    pub fn record(&mut self, now: Instant, query: CompletedQuery) {
        self.expire(now);
        if self.parts.back().is_none_or(|part| now.saturating_duration_since(part.began) >= PART) {
            self.parts.push_back(StatisticsPart { began: now, tables: Default::default(), slowest: Vec::new() });
        }
        let part = self.parts.back_mut().expect("it has just been added");
        let totals = QueryTotals::from(&query);
        let [users, ontologies, fingerprints] = &mut part.tables;
        let facts = &query.facts;
        users.add(&facts.user, totals, None);
        ontologies.add(&facts.ontology, totals, None);
        let fingerprint = facts.fingerprint.map(|fingerprint| fingerprint.to_string()).unwrap_or_default();
        let label = facts.text.as_deref().filter(|_| facts.fingerprint.is_some());
        fingerprints.add(&fingerprint, totals, label);
        part.add_slow(query);
    }

    /// The slowest statements, the slowest first.
    pub fn slowest(&mut self, now: Instant, limit: usize) -> Vec<CompletedQuery> {
        self.expire(now);
        let mut all: Vec<_> = self.parts.iter().flat_map(|part| &part.slowest).collect();
        all.sort_by_key(|query| std::cmp::Reverse(query.total));
        all.into_iter().take(limit).cloned().collect()
    }

    /// The keys with the longest total duration.
    pub fn top(&mut self, now: Instant, by: StatisticsKey, limit: usize) -> TopList {
        self.expire(now);
        let mut sums: HashMap<&str, TopRow> = HashMap::new();
        let mut list = TopList::default();
        for table in self.parts.iter().map(|part| &part.tables[by as usize]) {
            list.other.add(table.other);
            for (key, entry) in &table.entries {
                let row = sums.entry(key).or_insert_with(|| TopRow {
                    key: key.clone(),
                    label: entry.label.clone(),
                    totals: QueryTotals::default(),
                });
                row.totals.add(entry.totals);
            }
        }
        list.rows = sums.into_values().collect();
        list.rows.sort_by(|one, two| (two.totals.total, &one.key).cmp(&(one.totals.total, &two.key)));
        let rest = list.rows.split_off(limit.min(list.rows.len()));
        rest.iter().for_each(|row| list.other.add(row.totals));
        list
    }

    fn expire(&mut self, now: Instant) {
        while self.parts.front().is_some_and(|part| now.saturating_duration_since(part.began) >= STATISTICS_PERIOD) {
            self.parts.pop_front();
        }
    }
}

impl StatisticsPart {
    fn add_slow(&mut self, query: CompletedQuery) {
        if self.slowest.len() < MAX_SLOWEST {
            self.slowest.push(query);
        } else if let Some(fastest) = self.slowest.iter_mut().min_by_key(|slow| slow.total)
            && fastest.total < query.total
        {
            *fastest = query;
        }
    }
}

impl KeyTable {
    fn add(&mut self, key: &str, totals: QueryTotals, label: Option<&str>) {
        let weight = totals.total + MIN_WEIGHT;
        if let Some(entry) = self.entries.get_mut(key) {
            entry.totals.add(totals);
            entry.weight += weight;
            return;
        }
        let inherited = if self.entries.len() < MAX_KEYS { Duration::ZERO } else { self.evict_lightest() };
        let label = label.map(|text| truncate(text, MAX_LABEL).into());
        self.entries.insert(key.into(), KeyEntry { totals, label, weight: inherited + weight });
    }

    /// Returns the weight of the evicted key.
    fn evict_lightest(&mut self) -> Duration {
        let lightest = self.entries.iter().min_by_key(|(_, entry)| entry.weight).map(|(key, _)| key.clone());
        let Some(entry) = lightest.and_then(|key| self.entries.remove(&key)) else { return Duration::ZERO };
        self.other.add(entry.totals);
        entry.weight
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::StatusCode;

    use super::*;
    use crate::http::statement::{Statement, StatementFormat};
    use crate::observability::queries::QueryFacts;
    use crate::observability::queries::tests::facts;

    fn query(user: &str, sql: &str, millis: u64) -> CompletedQuery {
        let facts = QueryFacts {
            fingerprint: Statement::read(StatementFormat::Sql, sql.as_bytes()).fingerprint(),
            text: Some(sql.into()),
            ..facts(user)
        };
        CompletedQuery {
            facts: Arc::new(facts),
            request_id: "r".into(),
            ended: Duration::ZERO,
            queued: Duration::ZERO,
            to_head: None,
            total: Duration::from_millis(millis),
            sent: 10,
            status: StatusCode::OK,
            reason: "",
        }
    }

    impl QueryStatistics {
        /// Bytes of keys, labels and texts, with their entries.
        fn bytes(&self) -> usize {
            let of_table = |table: &KeyTable| -> usize {
                let entry = size_of::<(Box<str>, KeyEntry)>();
                let texts = table.entries.iter();
                table.entries.capacity() * (entry + 1)
                    + texts
                        .map(|(key, entry)| key.len() + entry.label.as_ref().map_or(0, |label| label.len()))
                        .sum::<usize>()
            };
            let of_query = |query: &CompletedQuery| {
                let facts = &query.facts;
                size_of::<CompletedQuery>() + size_of::<QueryFacts>() + facts.text.as_ref().map_or(0, |text| text.len())
            };
            let parts = self.parts.iter();
            parts
                .map(|part| {
                    part.tables.iter().map(of_table).sum::<usize>() + part.slowest.iter().map(of_query).sum::<usize>()
                })
                .sum()
        }
    }

    #[test]
    fn statements_are_summed_by_user_and_by_fingerprint() {
        let (mut statistics, now) = (QueryStatistics::default(), Instant::now());
        statistics.record(now, query("alice", "SELECT a FROM t WHERE x = 1", 30));
        statistics.record(now, query("bob", "SELECT a FROM t WHERE x = 2", 10));
        statistics.record(now, CompletedQuery { reason: "queue_full", ..query("bob", "SELECT b FROM t", 5) });
        let users = statistics.top(now, StatisticsKey::User, 10);
        let rows: Vec<_> = users.rows.iter().map(|row| (&*row.key, row.totals.count, row.totals.errors)).collect();
        assert_eq!(rows, [("alice", 1, 0), ("bob", 2, 1)]);
        let fingerprints = statistics.top(now, StatisticsKey::Fingerprint, 1);
        let first = &fingerprints.rows[0];
        assert_eq!((first.totals.count, first.totals.max.as_millis(), first.totals.mean().as_millis()), (2, 30, 20));
        assert_eq!(first.label.as_deref(), Some("SELECT a FROM t WHERE x = 1"));
        assert_eq!((fingerprints.rows.len(), fingerprints.other.count), (1, 1), "the limit keeps the sums");
        let slow: Vec<_> = statistics.slowest(now, 2).iter().map(|query| query.total.as_millis()).collect();
        assert_eq!(slow, [30, 10]);
    }

    #[test]
    fn what_is_older_than_an_hour_is_dropped() {
        let (mut statistics, start) = (QueryStatistics::default(), Instant::now());
        let minute = |minutes: u64| start + Duration::from_secs(60 * minutes);
        for at in 0..200 {
            statistics.record(minute(at), query("alice", "SELECT 1", 1));
            assert!(statistics.parts.len() <= 12, "{} parts", statistics.parts.len());
        }
        let count = statistics.top(minute(200), StatisticsKey::User, 1).rows[0].totals.count;
        assert!((50..=60).contains(&count), "{count}");
        assert!(statistics.top(minute(300), StatisticsKey::User, 1).rows.is_empty());
        assert!(statistics.slowest(minute(300), 1).is_empty());
    }

    /// An authenticated client can invent statements, and ontologies too.
    #[test]
    fn memory_is_bounded_whatever_clients_send_and_heavy_users_stay() {
        let (mut statistics, start) = (QueryStatistics::default(), Instant::now());
        let long = "x".repeat(300);
        for number in 0..100_000_u64 {
            // All parts of an hour are filled.
            let now = start + Duration::from_millis(number * 35);
            statistics.record(now, query(&format!("user-{number}"), &format!("SELECT {long}{number}"), number % 7));
            if number % 50 == 0 {
                statistics.record(now, query("alice", "SELECT 1", 100));
            }
        }
        let end = start + Duration::from_secs(3500);
        assert!(statistics.parts.iter().flat_map(|part| &part.tables).all(|table| table.entries.len() <= MAX_KEYS));
        assert!(statistics.bytes() < 3 * 1024 * 1024, "{} bytes", statistics.bytes());
        for by in StatisticsKey::ALL.iter().copied() {
            let list = statistics.top(end, by, 10);
            let count: u64 = list.rows.iter().map(|row| row.totals.count).sum::<u64>() + list.other.count;
            assert_eq!(count, 102_000, "{by:?}: no statement is lost");
        }
        let first = &statistics.top(end, StatisticsKey::User, 1).rows[0];
        assert_eq!((&*first.key, first.totals.count), ("alice", 2000));
        let total = statistics.top(end, StatisticsKey::Fingerprint, 1).rows[0].totals.total;
        assert_eq!(total, Duration::from_secs(200), "the heavy statement is found among 100,000 others");
    }
}
