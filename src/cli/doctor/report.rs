//! What was found, for people and for programs.

use std::io::{self, Write};

use serde::Serialize;

use crate::observability::log::is_colourful;

/// All steps in their order.
pub struct Report {
    steps: Vec<Step>,
    manner: Manner,
}

/// How it is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Each step as soon as it was tried: some take their time.
    Lines,
    /// All at the end.
    Json,
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
    Warning,
    Failed,
    Skipped,
}

impl Outcome {
    /// The word of the report, and its colour (ECMA-48).
    fn word(self) -> (&'static str, &'static str) {
        match self {
            Outcome::Ok => ("ok", "32"),
            Outcome::Warning => ("warning", "33"),
            Outcome::Failed => ("FAILED", "31"),
            Outcome::Skipped => ("skipped", "2"),
        }
    }
}

impl Report {
    pub fn new(manner: Manner) -> Report {
        Report { steps: Vec::new(), manner }
    }

    /// A step is as it should be.
    pub fn ok(&mut self, step: &'static str, detail: impl Into<String>) {
        self.tell(Step { step, outcome: Outcome::Ok, detail: detail.into(), mend: None });
    }

    /// Nothing is broken, but somebody may have meant something else; `mend` is what to change then.
    pub fn warning(&mut self, step: &'static str, detail: impl Into<String>, mend: impl Into<String>) {
        let mend = Some(mend.into());
        self.tell(Step { step, outcome: Outcome::Warning, detail: detail.into(), mend });
    }

    /// A step is not; `mend` is what to change.
    pub fn failed(&mut self, step: &'static str, detail: impl Into<String>, mend: impl Into<String>) {
        let mend = Some(mend.into());
        self.tell(Step { step, outcome: Outcome::Failed, detail: detail.into(), mend });
    }

    /// A step could not be tried.
    pub fn skipped(&mut self, step: &'static str, why: impl Into<String>) {
        self.tell(Step { step, outcome: Outcome::Skipped, detail: why.into(), mend: None });
    }

    /// Whether nothing has failed.
    pub fn is_healthy(&self) -> bool {
        self.steps.iter().all(|step| step.outcome != Outcome::Failed)
    }

    /// The last line; as JSON, everything:
    /// `{"healthy": …, "steps": [{"step": …, "outcome": "ok|warning|failed|skipped", "detail": …, "mend": …}]}`
    pub fn conclusion(&self) -> String {
        match self.manner {
            Manner::Json => {
                serde_json::json!({"healthy": self.is_healthy(), "steps": self.steps}).to_string()
            }
            Manner::Lines if self.is_healthy() => "Nothing is broken.".to_owned(),
            Manner::Lines => "Something is broken.".to_owned(),
        }
    }

    fn tell(&mut self, step: Step) {
        if self.manner == Manner::Lines {
            // Who does not listen hears the conclusion by the exit code.
            let _ = io::stdout().write_all(step.lines(is_colourful(&io::stdout())).as_bytes());
        }
        self.steps.push(step);
    }
}

impl Step {
    /// A line, and one for what mends it.
    fn lines(&self, colourful: bool) -> String {
        let (word, colour) = self.outcome.word();
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
        let step = Step {
            step: "dns",
            outcome: Outcome::Failed,
            detail: "no address".into(),
            mend: Some("it".into()),
        };
        assert_eq!(
            step.lines(false),
            "FAILED   dns             no address\n                         mend: it\n"
        );
        assert!(step.lines(true).starts_with("\x1b[31mFAILED  \x1b[0m dns "));
    }
}
