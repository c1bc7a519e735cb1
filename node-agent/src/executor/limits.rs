//! Which limits a step gets, and which of them must hold.
//!
//! | who names it | value | must hold |
//! | --- | --- | --- |
//! | the job | the job's, which is at most the node's `max` (see [`super::policy`]) | yes |
//! | the node's `max` | the node's `defaults` if smaller, else `max` | yes |
//! | the node's `defaults` | that | no |
//! | nobody | [`BUILT_IN`] | no |
//!
//! A weight is no limit that a job could stay below: one that asks for none gets the usual one, or the node's `max` if that
//! is less.

use windlass_crds::protocol::{ResourceLimits, SandboxRules};
use windlass_crds::sandbox_job::Resources;

/// Limits of a step when nobody names any. No limit of cpu, because an idle processor is of no use to anybody; memory
/// and disk so that a mistake does not take down a small host; processes so that a fork bomb stays small while every
/// build tool works.
pub(crate) const BUILT_IN: ResourceLimits = ResourceLimits {
    cpu_millis: None,
    memory_bytes: Some(512 << 20),
    pids: Some(1024),
    disk_bytes: Some(1 << 30),
    cpu_weight: None,
    io_read_bps: None,
    io_write_bps: None,
    files: Some(65_536),
};

/// The weight of a step without one.
const USUAL_WEIGHT: u64 = 100;

/// A limit and whether it must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effective {
    /// Somebody insists: what cannot be enforced keeps the step from running.
    Named(u64),
    /// Nobody insists: it is enforced where possible.
    Default(u64),
}

impl Effective {
    /// The limit, whoever names it.
    pub(crate) const fn value(self) -> u64 {
        match self {
            Self::Named(value) | Self::Default(value) => value,
        }
    }
}

/// The limits of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EffectiveLimits {
    /// Thousandths of a core.
    pub(crate) cpu_millis: Option<Effective>,
    pub(crate) memory_bytes: Option<Effective>,
    pub(crate) pids: Option<Effective>,
    pub(crate) disk_bytes: Option<Effective>,
    /// 1 to 10000.
    pub(crate) cpu_weight: Option<Effective>,
    pub(crate) io_read_bps: Option<Effective>,
    pub(crate) io_write_bps: Option<Effective>,
    pub(crate) files: Option<Effective>,
}

/// The limits of a job's steps under the node's rules.
pub(crate) fn resolve(job: &Resources, rules: &SandboxRules) -> EffectiveLimits {
    let job = ResourceLimits {
        cpu_millis: job.cpu.map(windlass_crds::Cpu::millis),
        memory_bytes: job.memory.map(windlass_crds::Bytes::get),
        pids: job.pids,
        disk_bytes: job.disk.map(windlass_crds::Bytes::get),
        cpu_weight: job.cpu_weight,
        io_read_bps: job.io_read.map(windlass_crds::Bytes::get),
        io_write_bps: job.io_write.map(windlass_crds::Bytes::get),
        files: job.files,
    };
    let SandboxRules { defaults, max, .. } = rules;
    let pids = |limits: &ResourceLimits| limits.pids.map(u64::from);
    let files = |limits: &ResourceLimits| limits.files.map(u64::from);
    let weight = |limits: &ResourceLimits| limits.cpu_weight.map(u64::from);
    let usual = weight(max).and(Some(weight(defaults).unwrap_or(USUAL_WEIGHT)));
    EffectiveLimits {
        cpu_millis: one(job.cpu_millis, max.cpu_millis, defaults.cpu_millis, BUILT_IN.cpu_millis),
        memory_bytes: one(job.memory_bytes, max.memory_bytes, defaults.memory_bytes, BUILT_IN.memory_bytes),
        pids: one(pids(&job), pids(max), pids(defaults), pids(&BUILT_IN)),
        disk_bytes: one(job.disk_bytes, max.disk_bytes, defaults.disk_bytes, BUILT_IN.disk_bytes),
        cpu_weight: one(weight(&job), weight(max), usual.or(weight(defaults)), weight(&BUILT_IN)),
        io_read_bps: one(job.io_read_bps, max.io_read_bps, defaults.io_read_bps, BUILT_IN.io_read_bps),
        io_write_bps: one(job.io_write_bps, max.io_write_bps, defaults.io_write_bps, BUILT_IN.io_write_bps),
        files: one(files(&job), files(max), files(defaults), files(&BUILT_IN)),
    }
}

fn one(
    job: Option<u64>,
    max: Option<u64>,
    defaults: Option<u64>,
    built_in: Option<u64>,
) -> Option<Effective> {
    match (job, max, defaults) {
        (Some(job), _, _) => Some(Effective::Named(job)),
        (None, Some(max), Some(default)) => Some(Effective::Named(default.min(max))),
        (None, Some(max), None) => Some(Effective::Named(max)),
        (None, None, Some(default)) => Some(Effective::Default(default)),
        (None, None, None) => built_in.map(Effective::Default),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_comes_from_the_job_then_the_nodes_max_then_its_defaults_then_ours() {
        use Effective::{Default, Named};
        let table = [
            (Some(3), Some(5), Some(4), Some(9), Some(Named(3))),
            (Some(3), None, None, Some(9), Some(Named(3))),
            (None, Some(5), Some(4), Some(9), Some(Named(4))),
            (None, Some(5), Some(8), Some(9), Some(Named(5))),
            (None, Some(5), None, Some(9), Some(Named(5))),
            (None, None, Some(4), Some(9), Some(Default(4))),
            (None, None, None, Some(9), Some(Default(9))),
            (None, None, None, None, None),
        ];
        for (job, max, defaults, built_in, expected) in table {
            assert_eq!(
                one(job, max, defaults, built_in),
                expected,
                "{job:?} {max:?} {defaults:?} {built_in:?}"
            );
        }
    }

    #[test]
    fn every_limit_of_a_job_is_taken_over() {
        let job = Resources {
            cpu: Some("1500m".parse().unwrap()),
            memory: Some("64Mi".parse().unwrap()),
            pids: Some(7),
            disk: Some("1Mi".parse().unwrap()),
            cpu_weight: Some(50),
            io_read: Some("2Mi".parse().unwrap()),
            io_write: Some("3Mi".parse().unwrap()),
            files: Some(99),
        };
        let limits = resolve(&job, &SandboxRules::default());
        assert_eq!(limits.cpu_millis, Some(Effective::Named(1500)));
        assert_eq!(limits.memory_bytes, Some(Effective::Named(64 << 20)));
        assert_eq!(limits.pids, Some(Effective::Named(7)));
        assert_eq!(limits.disk_bytes, Some(Effective::Named(1 << 20)));
        assert_eq!(limits.cpu_weight, Some(Effective::Named(50)));
        assert_eq!(limits.io_read_bps, Some(Effective::Named(2 << 20)));
        assert_eq!(limits.io_write_bps, Some(Effective::Named(3 << 20)));
        assert_eq!(limits.files, Some(Effective::Named(99)));
        let limits = resolve(&Resources::default(), &SandboxRules::default());
        assert_eq!(limits.cpu_millis, None);
        assert_eq!(limits.memory_bytes, Some(Effective::Default(512 << 20)));
        assert_eq!(limits.pids, Some(Effective::Default(1024)));
        assert_eq!(limits.disk_bytes, Some(Effective::Default(1 << 30)));
        assert_eq!((limits.cpu_weight, limits.io_read_bps, limits.io_write_bps), (None, None, None));
        assert_eq!(limits.files, Some(Effective::Default(65_536)));
    }

    #[test]
    fn a_job_without_a_weight_gets_the_usual_one_unless_the_node_allows_less() {
        let weight = |job: Option<u32>, max: Option<u32>, default: Option<u32>| {
            let mut rules = SandboxRules::default();
            rules.max.cpu_weight = max;
            rules.defaults.cpu_weight = default;
            resolve(&Resources { cpu_weight: job, ..Resources::default() }, &rules).cpu_weight
        };
        assert_eq!(weight(None, Some(10_000), None), Some(Effective::Named(100)));
        assert_eq!(weight(None, Some(50), None), Some(Effective::Named(50)));
        assert_eq!(weight(None, Some(500), Some(200)), Some(Effective::Named(200)));
        assert_eq!(weight(None, None, Some(200)), Some(Effective::Default(200)));
        assert_eq!(weight(Some(7), Some(500), Some(200)), Some(Effective::Named(7)));
    }
}
