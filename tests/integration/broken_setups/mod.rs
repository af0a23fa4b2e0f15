//! What `config check`, `doctor` and `serve` say about broken set-ups. The table is docs/broken-setups.md, which this test
//! generates (`BLESS=1`) or compares.

mod cases;
mod servers;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;

use cases::{Case, cases};
use servers::Servers;

use crate::docs::replace_page;

/// Cases that run at the same time.
const PARALLEL: usize = 4;

const HEAD: &str = "\
# Broken set-ups

What `timbr-gateway config check`, `doctor` and `serve` say about common mistakes. A test makes each of these set-ups, runs the
three commands, and writes this page (`BLESS=1 cargo test --test integration -- broken_setups`). Warnings of a set-up that works
are left out; so are the passed checks of `doctor`. `-` means that the command has nothing to say.
";

/// What the commands say about a set-up, one message per line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    check: BTreeSet<String>,
    doctor: BTreeSet<String>,
    serve: BTreeSet<String>,
}

#[test]
fn the_page_on_broken_setups_is_up_to_date() {
    let servers = Servers::start();
    let working = observe(&Case::working(&servers), &servers);
    assert!(working.serve.contains("starts"), "{working:?}");
    assert_eq!(observe(&Case::working(&servers).with_crlf(), &servers), working);
    let cases = cases(&servers);
    let next = AtomicUsize::new(0);
    let results: Vec<_> = cases.iter().map(|_| Mutex::new(Said::default())).collect();
    thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let index = cases.iter().position(|other| std::ptr::eq(other, case)).expect("it is one of them");
                    *results[index].lock().expect("no panic") = observe(case, &servers);
                }
            });
        }
    });
    let (mut page, mut missing) = (HEAD.to_owned(), Vec::new());
    for (case, said) in cases.iter().zip(results) {
        let mut said = said.into_inner().expect("no panic");
        for (all, usual) in
            [(&mut said.check, &working.check), (&mut said.doctor, &working.doctor), (&mut said.serve, &working.serve)]
        {
            all.retain(|line| line == "starts" || !usual.contains(line));
        }
        missing.extend(case.missing_words(&said));
        write_case(&mut page, case, &said);
    }
    assert!(cases.len() >= 40, "{}", cases.len());
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/broken-setups.md");
    if std::env::var_os("BLESS").is_some() {
        replace_page(&path, &page);
    }
    let now = fs::read_to_string(&path).unwrap_or_default();
    let difference = now.lines().zip(page.lines()).find(|(one, other)| one != other);
    assert!(now == page, "docs/broken-setups.md is out of date; BLESS=1 writes it: {difference:#?}");
}

fn write_case(page: &mut String, case: &Case, said: &Said) {
    let _ = writeln!(page, "\n## {}\n", case.name);
    let lines = |all: &BTreeSet<String>| match all.is_empty() {
        true => " -".to_owned(),
        false => all.iter().map(|line| format!("\n  - {line}")).collect(),
    };
    let same = |all: &BTreeSet<String>| *all == said.check && !all.is_empty();
    let or_same = |all: &BTreeSet<String>| if same(all) { " the same".to_owned() } else { lines(all) };
    let _ = writeln!(page, "- `config check`:{}", lines(&said.check));
    let _ = writeln!(page, "- `doctor`:{}", or_same(&said.doctor));
    let _ = writeln!(page, "- `serve`:{}", or_same(&said.serve));
}

/// Runs the three commands in a folder with the files of the case, so that all paths in messages are relative.
fn observe(case: &Case, servers: &Servers) -> Said {
    let folder = tempfile::tempdir().expect("a folder");
    for name in &case.folders {
        fs::create_dir(folder.path().join(name)).expect("made");
    }
    for (name, content) in &case.files {
        fs::write(folder.path().join(name), content).expect("written");
    }
    for name in &case.loops {
        symlink(name, folder.path().join(name)).expect("made");
    }
    for (name, mode) in &case.modes {
        fs::set_permissions(folder.path().join(name), Permissions::from_mode(*mode)).expect("set");
    }
    let command = |arguments: &[&str]| {
        let program = env!("CARGO_BIN_EXE_timbr-gateway");
        let mut command = match !case.modes.is_empty() && rustix::process::geteuid().is_root() {
            false => Command::new(program),
            true => {
                let mut command = Command::new("setpriv");
                command.args(["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", program]);
                command
            }
        };
        command.args(arguments).args(["-c", case.config_file]).current_dir(folder.path());
        command.env_clear().env("NO_COLOR", "1").envs(case.environment.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let mask = |text: &str| servers.mask(text);
    let check = command(&["config", "check"]).output().expect("it runs");
    let doctor = command(&[&["doctor", "--json"], &case.doctor_arguments[..]].concat()).output().expect("it runs");
    Said {
        check: messages(&check).iter().map(|line| mask(line)).collect(),
        doctor: failed_checks(&doctor).iter().map(|line| mask(line)).collect(),
        serve: serve(command(&["serve"]), case).iter().map(|line| mask(line)).collect(),
    }
}

/// The errors and warnings on standard error.
fn messages(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = text.lines().map(str::trim).filter(|line| !line.ends_with(':') && !line.is_empty());
    let mut all: Vec<_> = lines.map(|line| line.strip_prefix("error: ").unwrap_or(line).to_owned()).collect();
    if !output.status.success() && all.is_empty() {
        all.push("fails without a message".to_owned());
    }
    assert!(all.iter().collect::<BTreeSet<_>>().len() == all.len(), "a message is repeated: {all:?}");
    all
}

fn failed_checks(output: &Output) -> Vec<String> {
    let Ok(report) = serde_json::from_slice::<Value>(&output.stdout) else { return messages(output) };
    let steps = report["steps"].as_array().expect("steps");
    let not_passed = steps.iter().filter(|step| step["outcome"] != "ok");
    not_passed
        .map(|step| {
            let [name, outcome, detail, fix] =
                ["step", "outcome", "detail", "fix"].map(|key| step[key].as_str().unwrap_or_default());
            let warning = if outcome == "warning" { "warning: " } else { "" };
            if outcome == "skipped" {
                return format!("not tried: {name}: {detail}");
            }
            match name {
                // As `config check` says it.
                "configuration" | "files" => format!("{warning}{fix}: {detail}"),
                _ => format!("{warning}{name}: {detail}; fix: {fix}"),
            }
        })
        .collect()
}

/// The errors of a gateway that does not start, or `starts` and the warnings of its log.
fn serve(mut command: Command, case: &Case) -> Vec<String> {
    let mut child = command.env("TIMBR_GATEWAY_LOG_FORMAT", "json").spawn().expect("started");
    let mut log = BufReader::new(child.stderr.take().expect("piped"));
    let (mut lines, mut line) = (Vec::new(), String::new());
    let mut is_stopping = false;
    while log.read_line(&mut line).expect("a log") > 0 {
        let (has_started, is_awaited) = (line.contains("timbr-gateway started"), line.contains(case.awaited));
        lines.push(std::mem::take(&mut line));
        if !is_stopping && has_started && case.awaited.is_empty() || !case.awaited.is_empty() && is_awaited {
            is_stopping = true;
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
        }
    }
    let mut rest = String::new();
    let _ = child.stdout.take().expect("piped").read_to_string(&mut rest);
    let status = child.wait().expect("ended");
    let entries: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if !is_stopping {
        let errors =
            lines.iter().filter(|line| serde_json::from_str::<Value>(line).is_err()).cloned().collect::<String>();
        return messages(&Output { status, stdout: Vec::new(), stderr: errors.into_bytes() });
    }
    let loud = entries.iter().filter(|entry| matches!(entry["level"].as_str(), Some("WARN" | "ERROR")));
    let words = |entry: &Value| {
        let text = entry["message"].as_str().unwrap_or_default().to_owned();
        let fields = ["option", "error", "why", "store"].iter().filter_map(|key| Some((key, entry[key].as_str()?)));
        let fields: Vec<_> = fields.map(|(key, value)| format!("{key}: {value}")).collect();
        let warning = if entry["level"] == "WARN" { "warning: " } else { "" };
        let details = if fields.is_empty() { String::new() } else { format!(" ({})", fields.join(", ")) };
        format!("{warning}{text}{details}")
    };
    std::iter::once("starts".to_owned()).chain(loud.map(words)).collect()
}
