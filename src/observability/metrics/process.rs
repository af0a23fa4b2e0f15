//! The process as the kernel accounts for it, by the names that Prometheus' own clients use.

use std::fmt::Error;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::exemplar::Exemplar;

use crate::observability::metrics::catalogue::{Described, Form};
use crate::observability::metrics::worker_collector::Encoding;

const fn of_all(name: &'static str, form: Form, help: &'static str) -> Described {
    Described { name, form, labels: &[], help, of_the_process: true }
}

const STARTED: Described =
    of_all("process_start_time_seconds", Form::Gauge, "When the process began, in seconds of Unix time");
const CPU: Described = of_all(
    "process_cpu_seconds",
    Form::Counter,
    "Time that processors have spent on the process, user and system",
);
const RESIDENT: Described = of_all("process_resident_memory_bytes", Form::Gauge, "Memory that is resident");
const VIRTUAL: Described = of_all("process_virtual_memory_bytes", Form::Gauge, "Memory that is mapped");
const DESCRIPTORS: Described = of_all("process_open_fds", Form::Gauge, "Descriptors that are open");
const MOST_DESCRIPTORS: Described =
    of_all("process_max_fds", Form::Gauge, "Descriptors that may be open at most");
const THREADS: Described = of_all("process_threads", Form::Gauge, "Threads of the process");

/// What is encoded here.
pub const DESCRIBED: &[Described] =
    &[STARTED, CPU, RESIDENT, VIRTUAL, DESCRIPTORS, MOST_DESCRIPTORS, THREADS];

/// Reads it off `/proc` each time. What cannot be read is left out.
#[derive(Debug)]
pub struct Process {
    started: f64,
}

impl Process {
    /// The calling process.
    pub fn new() -> Process {
        Process { started: started().unwrap_or_else(now) }
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Fields of `/proc/self/stat` from the third on, as proc(5) numbers them: the second is the program's name, in parentheses.
fn fields() -> Option<Vec<f64>> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, after) = text.rsplit_once(") ")?;
    Some(after.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect())
}

fn field(fields: &[f64], number: usize) -> f64 {
    fields.get(number - 3).copied().unwrap_or(0.0)
}

#[expect(clippy::cast_precision_loss, reason = "a hundred")]
fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

/// The kernel tells it in ticks since it was booted itself.
fn started() -> Option<f64> {
    let since_boot: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
    Some(now() - since_boot + field(&fields()?, 22) / ticks_per_second())
}

#[expect(clippy::cast_precision_loss, reason = "sizes of a process are exact in 53 bits")]
impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut to = Encoding(encoder);
        to.begin(&STARTED)?.encode_gauge(&self.started)?;
        let descriptors = std::fs::read_dir("/proc/self/fd").map(|found| found.count() as f64);
        let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let mut gauges = vec![
            // The directory that is being read is one.
            (DESCRIPTORS, descriptors.ok().map(|count| count - 1.0)),
            (MOST_DESCRIPTORS, most.map(|most| most as f64)),
        ];
        if let Some(fields) = fields() {
            let seconds = (field(&fields, 14) + field(&fields, 15)) / ticks_per_second();
            to.begin(&CPU)?.encode_counter(&seconds, None::<&Exemplar<NoLabelSet, f64>>)?;
            gauges.push((RESIDENT, Some(field(&fields, 24) * rustix::param::page_size() as f64)));
            gauges.push((VIRTUAL, Some(field(&fields, 23))));
            gauges.push((THREADS, Some(field(&fields, 20))));
        }
        for (what, value) in gauges {
            if let Some(value) = value {
                to.begin(&what)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}
