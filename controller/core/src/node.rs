//! The conditions of a node.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use windlass_crds::conditions::{self, Condition, ConditionStatus};
use windlass_crds::protocol::AckStatus;

/// What the conditions are drawn from.
#[derive(Clone, Debug)]
pub struct NodeView<'a> {
    /// The conditions as they stand.
    pub conditions: &'a [Condition],
    /// The generation of the spec.
    pub generation: i64,
    /// When the node registered.
    pub registered_at: Option<Timestamp>,
    /// When it last sent a heartbeat.
    pub last_seen_at: Option<Timestamp>,
    /// When it last asked for work.
    pub last_claim_at: Option<Timestamp>,
    /// Why the agent says that it cannot take jobs.
    pub not_ready: Option<&'a str>,
    /// Why the sandbox does not work there at all.
    pub sandbox_lack: Option<&'a str>,
    /// Whether an operator keeps jobs away.
    pub unschedulable: bool,
    /// The configuration that it should run.
    pub config_version: u64,
    /// The configuration that it last acknowledged, how, and the error.
    pub acknowledged: Option<(u64, AckStatus, Option<&'a str>)>,
}

/// How old a sign of life may be.
#[derive(Clone, Copy, Debug)]
pub struct Staleness {
    /// Of a heartbeat.
    pub heartbeat: Duration,
    /// Of a claim; the channel is idle for as long as one long poll.
    pub claim: Duration,
}

/// The conditions as they should stand now, in the order `Registered`, `ConfigApplied`, `Ready`, `Schedulable`.
pub fn conditions(node: &NodeView<'_>, now: Timestamp, staleness: Staleness) -> Vec<Condition> {
    let registered = match node.registered_at {
        Some(_) => (ConditionStatus::True, "Registered", String::new()),
        None => (
            ConditionStatus::False,
            "NeverRegistered",
            "no agent has registered under this name; `windlass join-token create` prints a token for it"
                .to_owned(),
        ),
    };
    let config_applied = config_applied(node);
    let ready = ready(node, now, staleness);
    let schedulable = if node.unschedulable {
        (ConditionStatus::False, "Cordoned", "spec.unschedulable is true".to_owned())
    } else if ready.0 != ConditionStatus::True {
        (ConditionStatus::False, "NotReady", "the node is not Ready".to_owned())
    } else {
        (ConditionStatus::True, "Schedulable", String::new())
    };
    let mut all = node.conditions.to_vec();
    for (condition_type, (status, reason, message)) in [
        ("Registered", registered),
        ("ConfigApplied", config_applied),
        ("Ready", ready),
        ("Schedulable", schedulable),
    ] {
        let new = Condition {
            condition_type: condition_type.to_owned(),
            status,
            reason: reason.to_owned(),
            message,
            last_transition_time: now,
            observed_generation: Some(node.generation),
        };
        conditions::set(&mut all, new);
    }
    all
}

fn config_applied(node: &NodeView<'_>) -> (ConditionStatus, &'static str, String) {
    let wanted = node.config_version;
    match node.acknowledged {
        Some((version, AckStatus::Applied, _)) if version >= wanted => {
            (ConditionStatus::True, "Applied", format!("version {version} is in force"))
        }
        Some((version, AckStatus::Failed, error)) if version >= wanted => (
            ConditionStatus::False,
            "Failed",
            format!("version {version} could not be applied: {}", error.unwrap_or("the node gave no reason")),
        ),
        Some((version, AckStatus::Applied | AckStatus::Failed, _)) => (
            ConditionStatus::Unknown,
            "Pending",
            format!("version {wanted} waits for the node, which last acknowledged version {version}"),
        ),
        None => (ConditionStatus::Unknown, "Pending", format!("version {wanted} waits for the node")),
    }
}

fn ready(
    node: &NodeView<'_>,
    now: Timestamp,
    staleness: Staleness,
) -> (ConditionStatus, &'static str, String) {
    let age = |at: Option<Timestamp>| at.map(|at| now.duration_since(at).max(SignedDuration::ZERO));
    let stale =
        |age: Option<SignedDuration>, limit: Duration| age.is_none_or(|age| age.unsigned_abs() > limit);
    if node.registered_at.is_none() {
        return (
            ConditionStatus::False,
            "NeverRegistered",
            "no agent has registered under this name".to_owned(),
        );
    }
    let heartbeat = age(node.last_seen_at);
    if stale(heartbeat, staleness.heartbeat) {
        let message = heartbeat.map_or("no heartbeat yet".to_owned(), |age| {
            format!("the last heartbeat came {} s ago", age.as_secs())
        });
        return (ConditionStatus::Unknown, "HeartbeatStale", message);
    }
    if let Some(lack) = node.sandbox_lack {
        return (ConditionStatus::False, "SandboxUnavailable", lack.to_owned());
    }
    if let Some(reason) = node.not_ready {
        return (ConditionStatus::False, "AgentNotReady", reason.to_owned());
    }
    let claim = age(node.last_claim_at);
    if stale(claim, staleness.claim) {
        let message = "heartbeats arrive but the agent does not ask for work; see the agent's log";
        return (ConditionStatus::False, "ClaimChannelSilent", message.to_owned());
    }
    (ConditionStatus::True, "Healthy", String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALENESS: Staleness =
        Staleness { heartbeat: Duration::from_secs(25), claim: Duration::from_secs(65) };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn healthy() -> NodeView<'static> {
        NodeView {
            conditions: &[],
            generation: 3,
            registered_at: Some(at(10)),
            last_seen_at: Some(at(100)),
            last_claim_at: Some(at(90)),
            not_ready: None,
            sandbox_lack: None,
            unschedulable: false,
            config_version: 10,
            acknowledged: Some((10, AckStatus::Applied, None)),
        }
    }

    fn state(node: &NodeView<'_>, name: &str) -> String {
        let conditions = conditions(node, at(101), STALENESS);
        let found = conditions.iter().find(|condition| condition.condition_type == name).unwrap();
        format!("{} {}", found.status, found.reason)
    }

    #[test]
    fn a_node_is_ready_only_when_every_sign_of_life_is_there() {
        assert_eq!(state(&healthy(), "Ready"), "True Healthy");
        assert_eq!(
            state(&NodeView { last_seen_at: Some(at(70)), ..healthy() }, "Ready"),
            "Unknown HeartbeatStale"
        );
        assert_eq!(
            state(&NodeView { last_claim_at: Some(at(30)), ..healthy() }, "Ready"),
            "False ClaimChannelSilent"
        );
        assert_eq!(
            state(&NodeView { not_ready: Some("disk full"), ..healthy() }, "Ready"),
            "False AgentNotReady"
        );
        assert_eq!(state(&NodeView { registered_at: None, ..healthy() }, "Ready"), "False NeverRegistered");
        // A clock that was set back is no reason to give a node up.
        assert_eq!(state(&NodeView { last_seen_at: Some(at(500)), ..healthy() }, "Ready"), "True Healthy");
    }

    #[test]
    fn a_node_is_schedulable_when_it_is_ready_and_not_cordoned() {
        assert_eq!(state(&healthy(), "Schedulable"), "True Schedulable");
        assert_eq!(state(&NodeView { unschedulable: true, ..healthy() }, "Schedulable"), "False Cordoned");
        assert_eq!(state(&NodeView { last_seen_at: None, ..healthy() }, "Schedulable"), "False NotReady");
    }

    #[test]
    fn configuration_versions_compare_as_numbers() {
        let acknowledged = |version, status| NodeView {
            acknowledged: Some((version, status, Some("no podman"))),
            ..healthy()
        };
        assert_eq!(state(&acknowledged(9, AckStatus::Applied), "ConfigApplied"), "Unknown Pending");
        assert_eq!(state(&acknowledged(10, AckStatus::Failed), "ConfigApplied"), "False Failed");
        assert_eq!(state(&acknowledged(10, AckStatus::Applied), "ConfigApplied"), "True Applied");
    }
}
