//! What is left of an earlier run of the agent, and what becomes of it. The decision is pure.

use std::collections::{BTreeMap, BTreeSet};

use windlass_crds::protocol::AttemptId;
use windlass_sandbox::UnitId;
use windlass_sandbox::driver::{UnitPhase, UnitState};

use crate::executor::steps;
use crate::ledger::Entry;
use crate::names::{attempt_name, unit_id};
use crate::outbox::Progress;

/// What was found.
pub(crate) struct Found {
    pub(crate) entries: BTreeMap<AttemptId, Entry>,
    pub(crate) progress: BTreeMap<AttemptId, Progress>,
    pub(crate) inventory: Vec<UnitState>,
    pub(crate) homes: Vec<String>,
    /// This run of the host.
    pub(crate) host_boot: String,
}

/// What becomes of it.
#[derive(Debug, PartialEq)]
pub(crate) struct Plan {
    /// Attempts to carry on or to end.
    pub(crate) attempts: Vec<Resumed>,
    /// Attempts that are not in the ledger any more: only their unsent records count.
    pub(crate) forget: Vec<AttemptId>,
    /// Units of no attempt in the ledger.
    pub(crate) orphans: Vec<UnitId>,
    /// Homes of no attempt in the ledger.
    pub(crate) abandoned: Vec<String>,
}

/// An attempt of an earlier run.
#[derive(Debug, PartialEq)]
pub(crate) struct Resumed {
    pub(crate) entry: Entry,
    pub(crate) progress: Progress,
    pub(crate) units: BTreeMap<UnitId, UnitPhase>,
    pub(crate) rebooted: bool,
}

/// Decides what becomes of what was found.
pub(crate) fn plan(found: Found) -> Plan {
    let Found { entries, mut progress, inventory, homes, host_boot } = found;
    let names: BTreeSet<String> = entries.keys().map(attempt_name).collect();
    let mut units: BTreeMap<UnitId, UnitPhase> =
        inventory.into_iter().map(|state| (state.id, state.phase)).collect();
    let attempts = entries
        .into_values()
        .map(|entry| {
            let attempt = entry.assignment.attempt.clone();
            let count = u32::try_from(steps(&entry.assignment).len()).unwrap_or(u32::MAX);
            let own = (0..count).map(|step| unit_id(&attempt, step));
            Resumed {
                units: own.filter_map(|unit| units.remove_entry(&unit)).collect(),
                progress: progress.remove(&attempt).unwrap_or_default(),
                rebooted: entry.host_boot != host_boot,
                entry,
            }
        })
        .collect();
    Plan {
        attempts,
        forget: progress.into_keys().collect(),
        orphans: units.into_keys().collect(),
        abandoned: homes.into_iter().filter(|name| !names.contains(name)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::assignment;

    fn id(job: &str) -> AttemptId {
        AttemptId { job: job.to_owned(), epoch: 1 }
    }

    fn entry(job: &str, host_boot: &str) -> (AttemptId, Entry) {
        let entry = Entry {
            assignment: assignment(job, 1, &["true"]),
            lease_until: Duration::ZERO,
            host_boot: host_boot.to_owned(),
            pushed: false,
            sealed: None,
        };
        (id(job), entry)
    }

    fn unit(job: &str, step: u32) -> UnitState {
        UnitState { id: unit_id(&id(job), step), phase: UnitPhase::Running, notes: Vec::new() }
    }

    #[test]
    fn nothing_found_is_nothing_to_do() {
        let found = Found {
            entries: BTreeMap::new(),
            progress: BTreeMap::new(),
            inventory: Vec::new(),
            homes: Vec::new(),
            host_boot: "now".to_owned(),
        };
        let nothing = Plan { attempts: vec![], forget: vec![], orphans: vec![], abandoned: vec![] };
        assert_eq!(plan(found), nothing);
    }

    #[test]
    fn the_ledger_decides_what_is_carried_on() {
        let progress = Progress { last_sequence: 2, ..Progress::default() };
        let plan = plan(Found {
            entries: [entry("a", "now"), entry("b", "before")].into(),
            progress: [(id("a"), progress.clone()), (id("gone"), progress.clone())].into(),
            inventory: vec![unit("a", 0), unit("gone", 0), unit("a", 7)],
            homes: vec!["a-1".to_owned(), "gone-1".to_owned()],
            host_boot: "now".to_owned(),
        });
        let [a, b] = plan.attempts.as_slice() else { panic!("{plan:?}") };
        assert_eq!((a.rebooted, b.rebooted), (false, true));
        assert_eq!(a.progress, progress);
        assert_eq!(a.units.keys().cloned().collect::<Vec<_>>(), [unit_id(&id("a"), 0)]);
        assert!(b.units.is_empty());
        assert_eq!(plan.forget, [id("gone")]);
        assert_eq!(plan.orphans, [unit_id(&id("a"), 7), unit_id(&id("gone"), 0)]);
        assert_eq!(plan.abandoned, ["gone-1"]);
    }
}
