//! Which requests are traced, as `OTEL_TRACES_SAMPLER` says it.

use crate::observability::trace::TraceId;

/// What decides where the client has not, or is not asked.
#[derive(Clone, Copy, Debug, PartialEq)]
enum SamplingRule {
    Always,
    Never,
    /// Traces whose id lies below this, of 2^63.
    IdBelow(u64),
}

/// Decides about each request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    rule: SamplingRule,
    /// Whether a client that says whether it traces the request decides about it.
    follows_parent: bool,
}

impl Sampler {
    /// By the names of the specification; `argument` is the ratio of those that take one.
    pub fn from_name(name: &str, argument: Option<&str>) -> Result<Sampler, String> {
        let ratio = || {
            let ratio = argument.map_or(Ok(1.0), str::parse::<f64>);
            let valid = ratio.ok().filter(|ratio| (0.0..=1.0).contains(ratio));
            valid
                .map(ratio_rule)
                .ok_or_else(|| "OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1".to_owned())
        };
        let (root, parent_based) = match name {
            "always_on" => (SamplingRule::Always, false),
            "always_off" => (SamplingRule::Never, false),
            "traceidratio" => (ratio()?, false),
            "parentbased_always_on" => (SamplingRule::Always, true),
            "parentbased_always_off" => (SamplingRule::Never, true),
            "parentbased_traceidratio" => (ratio()?, true),
            other => {
                return Err(format!(
                    "OTEL_TRACES_SAMPLER must be always_on, always_off, traceidratio or one of these with parentbased_ \
                     before it, not {other:?}"
                ));
            }
        };
        Ok(Sampler { rule: root, follows_parent: parent_based })
    }

    /// Whether a request is traced; `parent` is what its client decided, if it did.
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
    fn a_client_that_decided_is_followed_where_it_is_asked() {
        let wants =
            |name: &str, parent| Sampler::from_name(name, None).expect("known").is_sampled(&[7; 16], parent);
        for (name, alone, of_sampled, of_unsampled) in [
            ("always_on", true, true, true),
            ("always_off", false, false, false),
            ("parentbased_always_on", true, true, false),
            ("parentbased_always_off", false, true, false),
            ("traceidratio", true, true, true),
        ] {
            let all = (wants(name, None), wants(name, Some(true)), wants(name, Some(false)));
            assert_eq!(all, (alone, of_sampled, of_unsampled), "{name}");
        }
        assert!(Sampler::from_name("jaeger_remote", None).is_err());
        assert!(Sampler::from_name("traceidratio", Some("2")).is_err());
    }

    #[test]
    fn a_ratio_takes_that_part_of_all_ids() {
        let sampler = Sampler::from_name("parentbased_traceidratio", Some("0.25")).expect("valid");
        let random = fastrand::Rng::with_seed(1);
        let mut random = random;
        let taken = (0..10_000).filter(|_| sampler.is_sampled(&random.u128(..).to_be_bytes(), None)).count();
        assert!((2300..2700).contains(&taken), "{taken}");
    }
}
