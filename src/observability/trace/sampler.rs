//! The samplers of the OpenTelemetry specification, as `OTEL_TRACES_SAMPLER` names them. A sampler knows a trace id and
//! the decision of the client, and nothing else of a request.

use crate::observability::trace::TraceId;

/// Decides where the client made no decision, or where it is ignored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum SamplingRule {
    Always,
    Never,
    /// Traces whose id, reduced to 63 bits, is below this bound.
    IdBelow(u64),
}

/// Decides which requests are traced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    rule: SamplingRule,
    /// Whether the sampling decision of the client takes precedence.
    follows_parent: bool,
}

impl Sampler {
    /// Parses the name of a sampler; `argument` is the ratio (0 to 1, default 1) for the samplers that take one. An
    /// error is a message that names the variable.
    pub fn from_name(name: &str, argument: Option<&str>) -> Result<Sampler, String> {
        let ratio = || {
            let ratio = argument.map_or(Ok(1.0), str::parse::<f64>);
            let valid = ratio.ok().filter(|ratio| (0.0..=1.0).contains(ratio));
            valid.map(ratio_rule).ok_or_else(|| "OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1".to_owned())
        };
        let (rule, follows_parent) = match name {
            "always_on" => (SamplingRule::Always, false),
            "always_off" => (SamplingRule::Never, false),
            "traceidratio" => (ratio()?, false),
            "parentbased_always_on" => (SamplingRule::Always, true),
            "parentbased_always_off" => (SamplingRule::Never, true),
            "parentbased_traceidratio" => (ratio()?, true),
            other => {
                return Err(format!(
                    "OTEL_TRACES_SAMPLER must be always_on, always_off, traceidratio or one of these with the prefix \
                     parentbased_, not {other:?}"
                ));
            }
        };
        Ok(Sampler { rule, follows_parent })
    }

    /// Whether a request is traced. `parent` is the sampling decision of the client; `None` without trace context.
    pub fn is_sampled(&self, trace_id: &TraceId, parent: Option<bool>) -> bool {
        match (parent, self.rule) {
            (Some(sampled), _) if self.follows_parent => sampled,
            (_, SamplingRule::Always) => true,
            (_, SamplingRule::Never) => false,
            (_, SamplingRule::IdBelow(bound)) => {
                let low = u64::from_be_bytes(trace_id[8..].try_into().expect("eight bytes"));
                low >> 1 < bound
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 2^63")]
fn ratio_rule(ratio: f64) -> SamplingRule {
    SamplingRule::IdBelow((ratio * 9_223_372_036_854_775_808.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_based_samplers_follow_the_client() {
        let is_sampled =
            |name: &str, parent| Sampler::from_name(name, None).expect("known").is_sampled(&[7; 16], parent);
        for (name, root, sampled, unsampled) in [
            ("always_on", true, true, true),
            ("always_off", false, false, false),
            ("parentbased_always_on", true, true, false),
            ("parentbased_always_off", false, true, false),
            ("traceidratio", true, true, true),
        ] {
            let all = (is_sampled(name, None), is_sampled(name, Some(true)), is_sampled(name, Some(false)));
            assert_eq!(all, (root, sampled, unsampled), "{name}");
        }
        assert!(Sampler::from_name("jaeger_remote", None).is_err());
        assert!(Sampler::from_name("traceidratio", Some("2")).is_err());
    }

    #[test]
    fn a_ratio_samples_that_share_of_ids() {
        let sampler = Sampler::from_name("parentbased_traceidratio", Some("0.25")).expect("valid");
        let mut random = fastrand::Rng::with_seed(1);
        let sampled = (0..10_000).filter(|_| sampler.is_sampled(&random.u128(..).to_be_bytes(), None)).count();
        assert!((2300..2700).contains(&sampled), "{sampled}");
    }
}
