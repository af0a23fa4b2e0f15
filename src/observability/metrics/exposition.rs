//! The two text formats of `/metrics`, and the choice between them.

use prometheus_client::encoding::prometheus_text;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::registry::Registry;

/// A text format that Prometheus reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpositionFormat {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The Prometheus text format 0.0.4, which more programs support.
    PlainText,
}

impl ExpositionFormat {
    /// The format that an `accept` header prefers; OpenMetrics if it names neither.
    pub fn from_accept(accept: &str) -> ExpositionFormat {
        let weight = |wanted: &str| {
            let weight_in = |range: &str| {
                let mut parts = range.split(';').map(str::trim);
                let matches = parts.next().is_some_and(|media_type| media_type.eq_ignore_ascii_case(wanted));
                let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse().ok());
                weight.filter(|_| matches)
            };
            accept.split(',').filter_map(weight_in).fold(0.0_f32, f32::max)
        };
        let (open, plain) = (weight("application/openmetrics-text"), weight("text/plain"));
        if plain > open { ExpositionFormat::PlainText } else { ExpositionFormat::OpenMetrics }
    }

    /// Value of the `content-type` header.
    pub fn content_type(self) -> &'static str {
        match self {
            ExpositionFormat::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            ExpositionFormat::PlainText => prometheus_text::CONTENT_TYPE,
        }
    }

    pub(super) fn encode(self, registries: &[&Registry]) -> String {
        let mut text = String::new();
        let written = registries.iter().try_for_each(|registry| match self {
            ExpositionFormat::OpenMetrics => encode_registry(&mut text, registry),
            ExpositionFormat::PlainText => prometheus_text::encode(&mut text, registry),
        });
        written.expect("writing into memory does not fail");
        if self == ExpositionFormat::OpenMetrics {
            encode_eof(&mut text).expect("writing into memory does not fail");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_header_selects_the_format() {
        for (accept, format) in [
            ("", ExpositionFormat::OpenMetrics),
            ("*/*", ExpositionFormat::OpenMetrics),
            ("text/plain; version=0.0.4", ExpositionFormat::PlainText),
            ("text/plain", ExpositionFormat::PlainText),
            ("text/plain;q=0", ExpositionFormat::OpenMetrics),
            // Prometheus 2 and 3.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                ExpositionFormat::OpenMetrics,
            ),
            ("text/plain;version=0.0.4;q=0.9,application/openmetrics-text;q=0.5", ExpositionFormat::PlainText),
        ] {
            assert_eq!(ExpositionFormat::from_accept(accept), format, "{accept}");
        }
    }
}
