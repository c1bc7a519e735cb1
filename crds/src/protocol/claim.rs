//! Claims and heartbeats: how work reaches a node and how its lease is kept.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SecretValue, read_lenient};
use crate::sandbox_job::{OfflinePolicy, SandboxJobSpec};

/// One execution of a job. Every report names it, and a report of an older epoch is refused.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
pub struct AttemptId {
    /// The job's uid.
    pub job: String,
    /// The fencing number.
    pub epoch: u64,
}

impl AttemptId {
    /// Whether the run belongs to a caller of the node's Worker API and no controller knows of it.
    pub const fn is_bare(&self) -> bool {
        self.epoch == super::worker_api::BARE_EPOCH
    }
}

impl std::fmt::Display for AttemptId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.job, self.epoch)
    }
}

/// Asks for work and orders. The answer may take up to `wait_seconds`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct ClaimRequest {
    /// [`super::VERSION`].
    pub version: u32,
    /// Names the request: the same id yields the same assignments again while they are held.
    pub request_id: String,
    /// This run of the agent.
    pub boot_id: String,
    /// The most assignments to give; 0 asks for orders only.
    pub max: u32,
    /// How long to wait for something to say.
    pub wait_seconds: u32,
    /// Attempts that the node holds, so that an order is given for those that it should not.
    #[serde(default)]
    pub held: Vec<AttemptId>,
}

/// Work and orders.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
pub struct ClaimResponse {
    /// [`super::VERSION`].
    pub version: u32,
    /// Attempts that are now this node's.
    #[serde(default)]
    pub assignments: Vec<Assignment>,
    /// What to do with attempts that the node holds.
    #[serde(default)]
    pub orders: Vec<Order>,
    /// The controller is about to stop. A heartbeat that is sent at once is answered with leases that outlast its
    /// absence.
    #[serde(default)]
    pub stopping: bool,
    /// Assignments that the one who read this could not read; never on the wire.
    #[serde(skip)]
    pub unreadable: Vec<Unreadable>,
}

/// An assignment that this program cannot read: its job asks for what only a newer agent knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The attempt.
    pub attempt: AttemptId,
    /// What cannot be read.
    pub problem: String,
}

impl ClaimResponse {
    /// Reads an answer, assignment by assignment: one that cannot be read does not keep the others from being carried
    /// out. Orders of a kind that is not known are left out.
    ///
    /// # Errors
    /// Where it is no answer at all, or does not say which attempt it is that cannot be read.
    pub fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        if let Ok(answer) = serde_json::from_slice::<Self>(json) {
            return Ok(answer);
        }
        #[derive(Deserialize)]
        struct Answer {
            version: u32,
            #[serde(default)]
            assignments: Vec<serde_json::Value>,
            #[serde(default)]
            orders: Vec<serde_json::Value>,
            #[serde(default)]
            stopping: bool,
        }
        #[derive(Deserialize)]
        struct Named {
            attempt: AttemptId,
        }
        let Answer { version, assignments: items, orders, stopping } = serde_json::from_slice(json)?;
        let (mut assignments, mut unreadable) = (Vec::new(), Vec::new());
        for item in items {
            match read_lenient::<Assignment, Named>(item)? {
                Ok(assignment) => assignments.push(assignment),
                Err((Named { attempt }, problem)) => unreadable.push(Unreadable { attempt, problem }),
            }
        }
        let orders = orders.into_iter().filter_map(|order| serde_json::from_value(order).ok()).collect();
        Ok(Self { version, assignments, orders, stopping, unreadable })
    }
}

/// An attempt that is now this node's.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
pub struct Assignment {
    /// The attempt.
    pub attempt: AttemptId,
    /// The job's namespace.
    pub namespace: String,
    /// The job's name.
    pub name: String,
    /// The number of this attempt, from 1.
    pub number: u32,
    /// What to do.
    pub spec: SandboxJobSpec,
    /// The policy in force for times without the controller.
    pub offline: OfflinePolicy,
    /// The lease in seconds, counted from when the request was sent.
    pub lease_seconds: u64,
    /// When the attempt was made.
    pub claimed_at: Timestamp,
    /// The task that the job belongs to, where that is not the job itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    /// The values of the secrets that its steps name. They are in no other answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretValue>,
}

/// What to do with an attempt that the node holds.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Order {
    /// Somebody cancelled the job: stop it and report.
    Cancel {
        /// The attempt.
        attempt: AttemptId,
    },
    /// The attempt is not this node's any more: stop it; its records will be stored as superseded.
    Fenced {
        /// The attempt.
        attempt: AttemptId,
    },
}

impl Order {
    /// The attempt that the order is about.
    pub const fn attempt(&self) -> &AttemptId {
        match self {
            Self::Cancel { attempt } | Self::Fenced { attempt } => attempt,
        }
    }
}

/// Shows that the node lives and renews the leases of the listed attempts, and of no others.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct HeartbeatRequest {
    /// [`super::VERSION`].
    pub version: u32,
    /// This run of the agent.
    pub boot_id: String,
    /// The attempts to renew.
    #[serde(default)]
    pub held: Vec<AttemptId>,
    /// For each of `held`, in order, the seconds for which the node lets it go on by itself, rounded up. A lease is cut
    /// short only as far as a node says so: until then it may not have heard of the shorter one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_seconds: Vec<u64>,
    /// How many attempts can run at once.
    pub slots: u32,
    /// The hash of the last capability report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability_hash: Option<String>,
    /// Why the node cannot take jobs just now, such as a runtime that has stopped working or a full disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<String>,
}

/// What the controller says to a heartbeat.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct HeartbeatResponse {
    /// [`super::VERSION`].
    pub version: u32,
    /// The lease of each renewed attempt in seconds, counted from when the heartbeat was sent.
    #[serde(default)]
    pub renewed: Vec<Renewal>,
    /// What to do with attempts that were listed.
    #[serde(default)]
    pub orders: Vec<Order>,
    /// When to send the next heartbeat, in seconds.
    pub interval_seconds: u64,
    /// The newest version of the node's configuration.
    pub config_version: String,
    /// Whether the controller lacks the capability report with the given hash.
    #[serde(default)]
    pub send_capability: bool,
}

/// A renewed lease.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct Renewal {
    /// The attempt.
    pub attempt: AttemptId,
    /// The lease in seconds.
    pub lease_seconds: u64,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_assignment_that_cannot_be_read_is_named_and_hides_no_other() {
        let assignment = |job: &str, spec: serde_json::Value| {
            json!({
                "attempt": {"job": job, "epoch": 2}, "namespace": "default", "name": job, "number": 1, "spec": spec,
                "offline": "stop", "lease_seconds": 25, "claimed_at": "2026-01-01T00:00:00Z", "later": 1,
            })
        };
        let answer = |items: Vec<serde_json::Value>| {
            let order = json!({"kind": "cancel", "attempt": {"job": "held", "epoch": 1}});
            let newer = json!({"kind": "dance", "attempt": {"job": "held", "epoch": 1}});
            json!({"version": 1, "assignments": items, "orders": [order, newer], "stopping": true})
                .to_string()
        };
        let plain = assignment("plain", json!({"command": ["true"]}));
        let newer = assignment("newer", json!({"command": ["true"], "teleport": {"to": "mars"}}));
        let read = ClaimResponse::read(answer(vec![newer, plain]).as_bytes()).unwrap();
        assert_eq!(read.assignments.iter().map(|a| a.name.as_str()).collect::<Vec<_>>(), ["plain"]);
        assert_eq!((read.orders.len(), read.stopping), (1, true));
        let [Unreadable { attempt, problem }] = read.unreadable.as_slice() else { panic!("{read:?}") };
        assert_eq!(attempt, &AttemptId { job: "newer".into(), epoch: 2 });
        assert!(problem.contains("teleport"), "{problem}");
        assert!(ClaimResponse::read(answer(vec![json!({"spec": {}})]).as_bytes()).is_err());
        assert!(ClaimResponse::read(b"[]").is_err());
    }
}
