//! What was found, for people and for programs.

use std::fmt::Write as _;

use serde::Serialize;

/// All steps in their order.
#[derive(Default, Serialize)]
pub struct Report {
    steps: Vec<Step>,
}

#[derive(Serialize)]
struct Step {
    step: &'static str,
    outcome: Outcome,
    detail: String,
    /// What to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok,
    Failed,
    Skipped,
}

impl Report {
    /// A step is as it should be.
    pub fn ok(&mut self, step: &'static str, detail: impl Into<String>) {
        self.steps.push(Step { step, outcome: Outcome::Ok, detail: detail.into(), mend: None });
    }

    /// A step is not; `mend` is what to change.
    pub fn failed(&mut self, step: &'static str, detail: impl Into<String>, mend: impl Into<String>) {
        let mend = Some(mend.into());
        self.steps.push(Step { step, outcome: Outcome::Failed, detail: detail.into(), mend });
    }

    /// A step could not be tried.
    pub fn skipped(&mut self, step: &'static str, why: impl Into<String>) {
        self.steps.push(Step { step, outcome: Outcome::Skipped, detail: why.into(), mend: None });
    }

    /// Whether nothing has failed.
    pub fn is_healthy(&self) -> bool {
        self.steps.iter().all(|step| step.outcome != Outcome::Failed)
    }

    /// A line for each step, and one for what mends it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for step in &self.steps {
            let word = match step.outcome {
                Outcome::Ok => "ok",
                Outcome::Failed => "FAILED",
                Outcome::Skipped => "skipped",
            };
            let _ = writeln!(text, "{word:<8} {:<15} {}", step.step, step.detail);
            if let Some(mend) = &step.mend {
                let _ = writeln!(text, "{:<8} {:<15} mend: {mend}", "", "");
            }
        }
        let _ =
            write!(text, "{}", if self.is_healthy() { "Nothing is broken." } else { "Something is broken." });
        text
    }

    /// `{"healthy": …, "steps": [{"step": …, "outcome": "ok|failed|skipped", "detail": …, "mend": …}]}`
    pub fn json(&self) -> String {
        serde_json::json!({"healthy": self.is_healthy(), "steps": self.steps}).to_string()
    }
}
