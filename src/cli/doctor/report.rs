//! Collects the results of all checks, and prints them as text or JSON.

use std::io::{self, Write};

use serde::Serialize;

use crate::observability::log::is_color_enabled;

/// The results of all checks.
pub struct DoctorReport {
    steps: Vec<DoctorCheck>,
    format: OutputFormat,
}

/// How the report is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// Each check when it has finished, because some take long.
    Text,
    /// Everything at the end.
    Json,
}

/// Whether a text report is colored.
#[derive(Clone, Copy)]
enum Color {
    On,
    Off,
}

#[derive(Serialize)]
struct DoctorCheck {
    step: &'static str,
    outcome: CheckOutcome,
    detail: String,
    /// The setting to change; `None` unless something is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum CheckOutcome {
    Ok,
    Warning,
    Failed,
    Skipped,
}

impl CheckOutcome {
    /// The label in a text report, and its color as an SGR parameter (ECMA-48).
    fn label_and_color(self) -> (&'static str, &'static str) {
        match self {
            CheckOutcome::Ok => ("ok", "32"),
            CheckOutcome::Warning => ("warning", "33"),
            CheckOutcome::Failed => ("FAILED", "31"),
            CheckOutcome::Skipped => ("skipped", "2"),
        }
    }
}

impl DoctorReport {
    pub fn new(format: OutputFormat) -> DoctorReport {
        DoctorReport { steps: Vec::new(), format }
    }

    /// Records a passed check.
    pub fn ok(&mut self, step: &'static str, detail: impl Into<String>) {
        self.record(DoctorCheck { step, outcome: CheckOutcome::Ok, detail: detail.into(), fix: None });
    }

    /// Records a passed check whose result may not be intended; `fix` is the setting to change in that case.
    pub fn warning(&mut self, step: &'static str, detail: impl Into<String>, fix: impl Into<String>) {
        let fix = Some(fix.into());
        self.record(DoctorCheck { step, outcome: CheckOutcome::Warning, detail: detail.into(), fix });
    }

    /// Records a failed check; `fix` is the setting to change.
    pub fn failed(&mut self, step: &'static str, detail: impl Into<String>, fix: impl Into<String>) {
        let fix = Some(fix.into());
        self.record(DoctorCheck { step, outcome: CheckOutcome::Failed, detail: detail.into(), fix });
    }

    /// Records a check that could not run, and the reason.
    pub fn skipped(&mut self, step: &'static str, why: impl Into<String>) {
        self.record(DoctorCheck { step, outcome: CheckOutcome::Skipped, detail: why.into(), fix: None });
    }

    /// True if no check has failed.
    pub fn is_healthy(&self) -> bool {
        self.steps.iter().all(|step| step.outcome != CheckOutcome::Failed)
    }

    /// The last line of a text report, or the whole JSON report:
    /// `{"healthy": …, "steps": [{"step": …, "outcome": "ok|warning|failed|skipped", "detail": …, "fix": …}]}`
    pub fn summary(&self) -> String {
        match self.format {
            OutputFormat::Json => serde_json::json!({"healthy": self.is_healthy(), "steps": self.steps}).to_string(),
            OutputFormat::Text if self.is_healthy() => {
                let skipped: Vec<_> = self
                    .steps
                    .iter()
                    .filter(|step| step.outcome == CheckOutcome::Skipped)
                    .map(|step| step.step)
                    .collect();
                // Steps of one name, such as `route`, follow each other.
                let named = skipped.chunk_by(|one, other| one == other).map(|same| match same {
                    [one] => (*one).to_owned(),
                    _ => format!("{} ({} times)", same[0], same.len()),
                });
                match skipped.is_empty() {
                    true => "All checks passed.".to_owned(),
                    false => format!("All checks passed. Skipped: {}.", named.collect::<Vec<_>>().join(", ")),
                }
            }
            OutputFormat::Text => "Some checks failed.".to_owned(),
        }
    }

    fn record(&mut self, check: DoctorCheck) {
        if self.format == OutputFormat::Text {
            // If standard output is closed, the exit code still shows the result.
            let color = if is_color_enabled(&io::stdout()) { Color::On } else { Color::Off };
            let _ = io::stdout().write_all(check.to_lines(color).as_bytes());
        }
        self.steps.push(check);
    }
}

impl DoctorCheck {
    /// One line, and a second one with the fix.
    fn to_lines(&self, color: Color) -> String {
        let (label, sgr) = self.outcome.label_and_color();
        let padded = format!("{label:<8}");
        let label = match color {
            Color::On => format!("\x1b[{sgr}m{padded}\x1b[0m"),
            Color::Off => padded,
        };
        let mut lines = format!("{label} {:<15} {}\n", self.step, self.detail);
        if let Some(fix) = &self.fix {
            lines += &format!("{:<8} {:<15} fix: {fix}\n", "", "");
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_printed_with_or_without_color() {
        let check = DoctorCheck {
            step: "dns",
            outcome: CheckOutcome::Failed,
            detail: "no address".into(),
            fix: Some("it".into()),
        };
        assert_eq!(
            check.to_lines(Color::Off),
            "FAILED   dns             no address\n                         fix: it\n"
        );
        assert!(check.to_lines(Color::On).starts_with("\x1b[31mFAILED  \x1b[0m dns "));
    }
}
