//! Which requests are traced, as `OTEL_TRACES_SAMPLER` says it.

use crate::observability::trace::TraceId;

/// What decides where the client has not, or is not asked.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Root {
    All,
    None,
    /// Traces whose id lies below this, of 2^63.
    Below(u64),
}

/// Decides about each request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    root: Root,
    /// Whether a client that says whether it traces the request decides about it.
    parent_based: bool,
}

impl Sampler {
    /// By the names of the specification; `argument` is the ratio of those that take one.
    pub fn named(name: &str, argument: Option<&str>) -> Result<Sampler, String> {
        let ratio = || {
            let ratio = argument.map_or(Ok(1.0), str::parse::<f64>);
            let valid = ratio.ok().filter(|ratio| (0.0..=1.0).contains(ratio));
            valid.map(below).ok_or_else(|| "OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1".to_owned())
        };
        let (root, parent_based) = match name {
            "always_on" => (Root::All, false),
            "always_off" => (Root::None, false),
            "traceidratio" => (ratio()?, false),
            "parentbased_always_on" => (Root::All, true),
            "parentbased_always_off" => (Root::None, true),
            "parentbased_traceidratio" => (ratio()?, true),
            other => {
                return Err(format!(
                    "OTEL_TRACES_SAMPLER must be always_on, always_off, traceidratio or one of these with parentbased_ \
                     before it, not {other:?}"
                ));
            }
        };
        Ok(Sampler { root, parent_based })
    }

    /// Whether a request is traced; `parent` is what its client decided, if it did.
    pub fn wants(&self, trace_id: &TraceId, parent: Option<bool>) -> bool {
        match (parent, self.root) {
            (Some(sampled), _) if self.parent_based => sampled,
            (_, Root::All) => true,
            (_, Root::None) => false,
            (_, Root::Below(bound)) => {
                let low = u64::from_be_bytes(trace_id[8..].try_into().expect("eight bytes"));
                low >> 1 < bound
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 2^63")]
fn below(ratio: f64) -> Root {
    Root::Below((ratio * 9_223_372_036_854_775_808.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_decided_is_followed_where_it_is_asked() {
        let wants = |name: &str, parent| Sampler::named(name, None).expect("known").wants(&[7; 16], parent);
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
        assert!(Sampler::named("jaeger_remote", None).is_err());
        assert!(Sampler::named("traceidratio", Some("2")).is_err());
    }

    #[test]
    fn a_ratio_takes_that_part_of_all_ids() {
        let sampler = Sampler::named("parentbased_traceidratio", Some("0.25")).expect("valid");
        let random = fastrand::Rng::with_seed(1);
        let mut random = random;
        let taken = (0..10_000).filter(|_| sampler.wants(&random.u128(..).to_be_bytes(), None)).count();
        assert!((2300..2700).contains(&taken), "{taken}");
    }
}
