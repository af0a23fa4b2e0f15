//! Standard `process_…` metrics, read from the kernel at each scrape.

use std::fmt::Error;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;

use crate::base::clock;
use crate::observability::metrics::catalogue::{MetricDescriptor, collected_metrics};

collected_metrics! {
    START_TIME = Gauge "process_start_time_seconds" []
        "Start time of the process in seconds since the Unix epoch";
    CPU_SECONDS = Counter "process_cpu_seconds" [] "User and system CPU time of the process";
    RESIDENT_MEMORY = Gauge "process_resident_memory_bytes" [] "Resident memory";
    VIRTUAL_MEMORY = Gauge "process_virtual_memory_bytes" [] "Virtual memory";
    OPEN_FDS = Gauge "process_open_fds" [] "Open file descriptors";
    MAX_FDS = Gauge "process_max_fds" [] "Maximum number of open file descriptors";
    THREADS = Gauge "process_threads" [] "Number of threads";
}

/// Reads `/proc` at each scrape, and omits what cannot be read.
#[derive(Debug)]
pub struct ProcessCollector {
    start_time: f64,
}

impl ProcessCollector {
    /// For the calling process.
    pub fn new() -> ProcessCollector {
        ProcessCollector { start_time: read_start_time().unwrap_or_else(now) }
    }
}

fn now() -> f64 {
    clock::since_epoch(SystemTime::now()).as_secs_f64()
}

/// The fields of `/proc/self/stat` from the third on, in the numbering of proc(5). The second is the program's name in
/// parentheses, which may contain spaces.
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

/// The kernel reports the start in ticks since boot.
fn read_start_time() -> Option<f64> {
    let since_boot: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
    Some(now() - since_boot + stat_field(&read_stat()?, 22) / ticks_per_second())
}

#[expect(clippy::cast_precision_loss, reason = "sizes of a process are exact in 53 bits")]
impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        START_TIME.start(&mut encoder)?.encode_gauge(&self.start_time)?;
        let descriptors = std::fs::read_dir("/proc/self/fd").map(|entries| entries.count() as f64);
        let max_fds = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let mut gauges = vec![
            // One of them is the directory being read.
            (OPEN_FDS, descriptors.ok().map(|count| count - 1.0)),
            (MAX_FDS, max_fds.map(|max| max as f64)),
        ];
        if let Some(fields) = read_stat() {
            let seconds = (stat_field(&fields, 14) + stat_field(&fields, 15)) / ticks_per_second();
            CPU_SECONDS.start(&mut encoder)?.encode_counter(&seconds, None::<&Exemplar<NoLabelSet, f64>>)?;
            gauges.push((RESIDENT_MEMORY, Some(stat_field(&fields, 24) * rustix::param::page_size() as f64)));
            gauges.push((VIRTUAL_MEMORY, Some(stat_field(&fields, 23))));
            gauges.push((THREADS, Some(stat_field(&fields, 20))));
        }
        for (descriptor, value) in gauges {
            if let Some(value) = value {
                descriptor.start(&mut encoder)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}
