//! The process as the kernel accounts for it, by the names that Prometheus' own clients use.

use std::fmt::Error;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::exemplar::Exemplar;

use crate::observability::metrics::catalogue::{MetricDescriptor, MetricKind};
use crate::observability::metrics::worker_collector::CollectorEncoder;

const fn process_metric(name: &'static str, form: MetricKind, help: &'static str) -> MetricDescriptor {
    MetricDescriptor { name, kind: form, labels: &[], help, is_process_metric: true }
}

const START_TIME: MetricDescriptor = process_metric(
    "process_start_time_seconds",
    MetricKind::Gauge,
    "When the process began, in seconds of Unix time",
);
const CPU_SECONDS: MetricDescriptor = process_metric(
    "process_cpu_seconds",
    MetricKind::Counter,
    "Time that processors have spent on the process, user and system",
);
const RESIDENT_MEMORY: MetricDescriptor =
    process_metric("process_resident_memory_bytes", MetricKind::Gauge, "Memory that is resident");
const VIRTUAL_MEMORY: MetricDescriptor =
    process_metric("process_virtual_memory_bytes", MetricKind::Gauge, "Memory that is mapped");
const OPEN_FDS: MetricDescriptor =
    process_metric("process_open_fds", MetricKind::Gauge, "Descriptors that are open");
const MAX_FDS: MetricDescriptor =
    process_metric("process_max_fds", MetricKind::Gauge, "Descriptors that may be open at most");
const THREADS: MetricDescriptor =
    process_metric("process_threads", MetricKind::Gauge, "Threads of the process");

/// What is encoded here.
pub const DESCRIPTORS: &[MetricDescriptor] =
    &[START_TIME, CPU_SECONDS, RESIDENT_MEMORY, VIRTUAL_MEMORY, OPEN_FDS, MAX_FDS, THREADS];

/// Reads it off `/proc` each time. What cannot be read is left out.
#[derive(Debug)]
pub struct ProcessCollector {
    start_time: f64,
}

impl ProcessCollector {
    /// The calling process.
    pub fn new() -> ProcessCollector {
        ProcessCollector { start_time: read_start_time().unwrap_or_else(now) }
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Fields of `/proc/self/stat` from the third on, as proc(5) numbers them: the second is the program's name, in parentheses.
fn read_stat() -> Option<Vec<f64>> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, after) = text.rsplit_once(") ")?;
    Some(after.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect())
}

fn stat_field(fields: &[f64], number: usize) -> f64 {
    fields.get(number - 3).copied().unwrap_or(0.0)
}

#[expect(clippy::cast_precision_loss, reason = "a hundred")]
fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

/// The kernel tells it in ticks since it was booted itself.
fn read_start_time() -> Option<f64> {
    let since_boot: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
    Some(now() - since_boot + stat_field(&read_stat()?, 22) / ticks_per_second())
}

#[expect(clippy::cast_precision_loss, reason = "sizes of a process are exact in 53 bits")]
impl Collector for ProcessCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut to = CollectorEncoder(encoder);
        to.start_metric(&START_TIME)?.encode_gauge(&self.start_time)?;
        let descriptors = std::fs::read_dir("/proc/self/fd").map(|found| found.count() as f64);
        let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let mut gauges = vec![
            // The directory that is being read is one.
            (OPEN_FDS, descriptors.ok().map(|count| count - 1.0)),
            (MAX_FDS, most.map(|most| most as f64)),
        ];
        if let Some(fields) = read_stat() {
            let seconds = (stat_field(&fields, 14) + stat_field(&fields, 15)) / ticks_per_second();
            to.start_metric(&CPU_SECONDS)?.encode_counter(&seconds, None::<&Exemplar<NoLabelSet, f64>>)?;
            gauges.push((RESIDENT_MEMORY, Some(stat_field(&fields, 24) * rustix::param::page_size() as f64)));
            gauges.push((VIRTUAL_MEMORY, Some(stat_field(&fields, 23))));
            gauges.push((THREADS, Some(stat_field(&fields, 20))));
        }
        for (what, value) in gauges {
            if let Some(value) = value {
                to.start_metric(&what)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}
