//! Why the node cannot take jobs just now. Each part of the agent sets and clears its own cause.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::watch;

/// A part of the agent that can keep the node from taking jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// No runtime works on this host.
    Sandbox,
    /// No configuration is in force.
    Configuration,
    /// Records cannot be written.
    Outbox,
    /// Free space is below the limit.
    Disk,
    /// The server of models is required and not there.
    Inference,
}

/// Why the node cannot take jobs. Cheap to share.
#[derive(Clone, Debug)]
pub(crate) struct Readiness {
    causes: Arc<watch::Sender<BTreeMap<Part, String>>>,
}

impl Readiness {
    pub(crate) fn new() -> Self {
        Self { causes: Arc::new(watch::Sender::new(BTreeMap::new())) }
    }

    /// Sets or clears the cause of one part.
    pub(crate) fn set(&self, part: Part, cause: Option<String>) {
        self.causes.send_if_modified(|causes| match cause {
            Some(cause) => causes.insert(part, cause.clone()).as_ref() != Some(&cause),
            None => causes.remove(&part).is_some(),
        });
    }

    /// The causes as one sentence; `None` when the node is ready.
    pub(crate) fn not_ready(&self) -> Option<String> {
        let causes = self.causes.borrow();
        let all: Vec<&str> = causes.values().map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Follows changes.
    pub(crate) fn changes(&self) -> watch::Receiver<BTreeMap<Part, String>> {
        self.causes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_when_no_part_objects() {
        let readiness = Readiness::new();
        assert_eq!(readiness.not_ready(), None);
        readiness.set(Part::Disk, Some("disk".to_owned()));
        readiness.set(Part::Outbox, Some("outbox".to_owned()));
        assert_eq!(readiness.not_ready().as_deref(), Some("outbox; disk"));
        readiness.set(Part::Outbox, None);
        readiness.set(Part::Disk, None);
        assert_eq!(readiness.not_ready(), None);
    }
}
