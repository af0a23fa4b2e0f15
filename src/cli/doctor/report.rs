//! What was found, for people and for programs.

use std::io::{self, Write};

use serde::Serialize;

use crate::observability::log::is_color_enabled;

/// All steps in their order.
pub struct DoctorReport {
    steps: Vec<DoctorCheck>,
    format: OutputFormat,
}

/// How it is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// Each step as soon as it was tried: some take their time.
    Text,
    /// All at the end.
    Json,
}

#[derive(Serialize)]
struct DoctorCheck {
    step: &'static str,
    outcome: CheckOutcome,
    detail: String,
    /// What to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
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
    /// The word of the report, and its colour (ECMA-48).
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

    /// A step is as it should be.
    pub fn ok(&mut self, step: &'static str, detail: impl Into<String>) {
        self.record(DoctorCheck { step, outcome: CheckOutcome::Ok, detail: detail.into(), mend: None });
    }

    /// Nothing is broken, but somebody may have meant something else; `mend` is what to change then.
    pub fn warning(&mut self, step: &'static str, detail: impl Into<String>, mend: impl Into<String>) {
        let mend = Some(mend.into());
        self.record(DoctorCheck { step, outcome: CheckOutcome::Warning, detail: detail.into(), mend });
    }

    /// A step is not; `mend` is what to change.
    pub fn failed(&mut self, step: &'static str, detail: impl Into<String>, mend: impl Into<String>) {
        let mend = Some(mend.into());
        self.record(DoctorCheck { step, outcome: CheckOutcome::Failed, detail: detail.into(), mend });
    }

    /// A step could not be tried.
    pub fn skipped(&mut self, step: &'static str, why: impl Into<String>) {
        self.record(DoctorCheck { step, outcome: CheckOutcome::Skipped, detail: why.into(), mend: None });
    }

    /// Whether nothing has failed.
    pub fn is_healthy(&self) -> bool {
        self.steps.iter().all(|step| step.outcome != CheckOutcome::Failed)
    }

    /// The last line; as JSON, everything:
    /// `{"healthy": …, "steps": [{"step": …, "outcome": "ok|warning|failed|skipped", "detail": …, "mend": …}]}`
    pub fn summary(&self) -> String {
        match self.format {
            OutputFormat::Json => {
                serde_json::json!({"healthy": self.is_healthy(), "steps": self.steps}).to_string()
            }
            OutputFormat::Text if self.is_healthy() => "Nothing is broken.".to_owned(),
            OutputFormat::Text => "Something is broken.".to_owned(),
        }
    }

    fn record(&mut self, step: DoctorCheck) {
        if self.format == OutputFormat::Text {
            // Who does not listen hears the conclusion by the exit code.
            let _ = io::stdout().write_all(step.to_lines(is_color_enabled(&io::stdout())).as_bytes());
        }
        self.steps.push(step);
    }
}

impl DoctorCheck {
    /// A line, and one for what mends it.
    fn to_lines(&self, colourful: bool) -> String {
        let (word, colour) = self.outcome.label_and_color();
        let padded = format!("{word:<8}");
        let word = if colourful { format!("\x1b[{colour}m{padded}\x1b[0m") } else { padded };
        let mut lines = format!("{word} {:<15} {}\n", self.step, self.detail);
        if let Some(mend) = &self.mend {
            lines += &format!("{:<8} {:<15} mend: {mend}\n", "", "");
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_a_line_with_colours_only_where_they_are_wanted() {
        let step = DoctorCheck {
            step: "dns",
            outcome: CheckOutcome::Failed,
            detail: "no address".into(),
            mend: Some("it".into()),
        };
        assert_eq!(
            step.to_lines(false),
            "FAILED   dns             no address\n                         mend: it\n"
        );
        assert!(step.to_lines(true).starts_with("\x1b[31mFAILED  \x1b[0m dns "));
    }
}
