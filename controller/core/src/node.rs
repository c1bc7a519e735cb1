//! The conditions of a node.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use windlass_crds::conditions::{self, Condition, ConditionStatus};
use windlass_crds::node_config::{HoldPhase, NodeState};
use windlass_crds::protocol::{AckStatus, InferenceCapability};

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
    /// Whether the manifest keeps jobs away.
    pub unschedulable: bool,
    /// What an operator has asked by a command.
    pub hold: Option<HoldPhase>,
    /// The configuration that it should run.
    pub config_version: u64,
    /// The configuration that it last acknowledged, how, and the error.
    pub acknowledged: Option<(u64, AckStatus, Option<&'a str>)>,
    /// The server of models, where one is configured.
    pub inference: Option<ModelServerView<'a>>,
}

/// What is known of a node's server of models.
#[derive(Clone, Copy, Debug)]
pub struct ModelServerView<'a> {
    /// What the agent has reported; `None` where it has not yet.
    pub reported: Option<&'a InferenceCapability>,
}

/// How old a sign of life may be.
#[derive(Clone, Copy, Debug)]
pub struct Staleness {
    /// Of a heartbeat.
    pub heartbeat: Duration,
    /// Of a claim; the channel is idle for as long as one long poll.
    pub claim: Duration,
}

/// The conditions as they should stand now, in the order `Registered`, `ConfigApplied`, `Ready`, `Schedulable`, and
/// `InferenceReady` where a server of models is configured.
pub fn conditions(node: &NodeView<'_>, now: Timestamp, staleness: Staleness) -> Vec<Condition> {
    let registered = match node.registered_at {
        Some(_) => (ConditionStatus::True, "Registered", String::new()),
        None => (
            ConditionStatus::False,
            NEVER_REGISTERED,
            "no agent has registered under this name; `windlass join-token create` prints a token for it"
                .to_owned(),
        ),
    };
    let config_applied = config_applied(node, now);
    let ready = ready(node, now, staleness);
    let schedulable = if let Some(hold) = node.hold {
        let message = match hold {
            HoldPhase::Cordoned => "an operator keeps new jobs away; `windlass uncordon` lifts that",
            HoldPhase::Draining => "the node is being drained",
            HoldPhase::Stopping => "the node is being drained, and the deadline has passed",
            HoldPhase::Drained => "the node was drained; `windlass uncordon` lifts that",
        };
        (ConditionStatus::False, hold.into(), message.to_owned())
    } else if node.unschedulable {
        (ConditionStatus::False, "Unschedulable", "spec.unschedulable is true".to_owned())
    } else if ready.0 != ConditionStatus::True {
        (ConditionStatus::False, "NotReady", "the node is not Ready".to_owned())
    } else {
        (ConditionStatus::True, "Schedulable", String::new())
    };
    let inference = inference_ready(node, ready.0);
    let mut all = node.conditions.to_vec();
    all.retain(|condition| inference.is_some() || condition.condition_type != INFERENCE_READY);
    let told = [
        ("Registered", registered),
        ("ConfigApplied", config_applied),
        ("Ready", ready),
        ("Schedulable", schedulable),
    ];
    let inference = inference.map(|inference| (INFERENCE_READY, inference));
    for (condition_type, (status, reason, message)) in told.into_iter().map(owned).chain(inference) {
        let new = Condition {
            condition_type: condition_type.to_owned(),
            status,
            reason,
            message,
            last_transition_time: now,
            observed_generation: Some(node.generation),
        };
        conditions::set(&mut all, new);
    }
    all
}

type Told<R> = (ConditionStatus, R, String);

fn owned<'a>((name, (status, reason, message)): (&'a str, Told<&'static str>)) -> (&'a str, Told<String>) {
    (name, (status, reason.to_owned(), message))
}

const INFERENCE_READY: &str = "InferenceReady";

/// Whether jobs can use the node's server of models; `None` where none is configured.
fn inference_ready(node: &NodeView<'_>, ready: ConditionStatus) -> Option<Told<String>> {
    let server = node.inference?;
    if ready == ConditionStatus::Unknown {
        let message = "the node is not heard from".to_owned();
        return Some((ConditionStatus::Unknown, "HeartbeatStale".to_owned(), message));
    }
    Some(match server.reported {
        None => {
            let message = "the node has not reported its server of models yet".to_owned();
            (ConditionStatus::Unknown, "NotReported".to_owned(), message)
        }
        Some(InferenceCapability { running, status, .. }) => {
            let otherwise = if *running { "Serving" } else { "NotServing" };
            let reason = if status.reason.is_empty() { otherwise } else { &status.reason };
            ((*running).into(), reason.to_owned(), status.message.clone())
        }
    })
}

/// How long a node that lives may take to acknowledge a configuration before something is wrong with it: far more than
/// a long poll and the start of a container.
const ACKNOWLEDGEMENT: SignedDuration = SignedDuration::from_secs(60);

/// How a node with these conditions is, in one word.
pub fn state(conditions: &[Condition]) -> NodeState {
    let find = |name: &str| conditions.iter().find(|condition| condition.condition_type == name);
    let Some(ready) = find("Ready") else { return NodeState::Pending };
    let config_is_wrong = find("ConfigApplied")
        .is_some_and(|config| config.status == ConditionStatus::False || config.reason == OVERDUE);
    match ready.status {
        ConditionStatus::Unknown => NodeState::Offline,
        ConditionStatus::False if ready.reason == NEVER_REGISTERED => NodeState::Pending,
        ConditionStatus::False => NodeState::Degraded,
        ConditionStatus::True if config_is_wrong => NodeState::Degraded,
        ConditionStatus::True => NodeState::Online,
    }
}

/// Why a node with these conditions is in its state, as a sentence without a period.
pub fn state_message(conditions: &[Condition]) -> String {
    let find = |name: &str| conditions.iter().find(|condition| condition.condition_type == name);
    let told = match find("Ready") {
        Some(ready) if ready.status != ConditionStatus::True => Some(ready),
        Some(_) => find("ConfigApplied").filter(|config| config.status != ConditionStatus::True),
        None => None,
    };
    told.map_or_else(
        || "it can take jobs".to_owned(),
        |condition| {
            if condition.message.is_empty() {
                condition.reason.clone()
            } else {
                format!("{}: {}", condition.reason, condition.message)
            }
        },
    )
}

const OVERDUE: &str = "Overdue";
const NEVER_REGISTERED: &str = "NeverRegistered";

fn config_applied(node: &NodeView<'_>, now: Timestamp) -> (ConditionStatus, &'static str, String) {
    let (status, reason, message) = acknowledged(node);
    let pending = node.conditions.iter().find(|condition| {
        condition.condition_type == "ConfigApplied" && condition.status == ConditionStatus::Unknown
    });
    let waits_since = pending.map(|pending| pending.last_transition_time).max(node.registered_at);
    let waits_too_long = |since: Timestamp| now.duration_since(since) >= ACKNOWLEDGEMENT;
    if status == ConditionStatus::Unknown
        && pending.is_some()
        && node.registered_at.is_some()
        && waits_since.is_some_and(waits_too_long)
    {
        return (status, OVERDUE, message);
    }
    (status, reason, message)
}

fn acknowledged(node: &NodeView<'_>) -> (ConditionStatus, &'static str, String) {
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
            NEVER_REGISTERED,
            "no agent has registered under this name".to_owned(),
        );
    }
    let heartbeat = age(node.last_seen_at);
    if stale(heartbeat, staleness.heartbeat) {
        // Not its age: a message that changed with each second would be written anew each second.
        let last = node.last_seen_at;
        let message =
            last.map_or("no heartbeat yet".to_owned(), |at| format!("the last heartbeat came at {at:.0}"));
        return (ConditionStatus::Unknown, "HeartbeatStale", message);
    }
    if let Some(lack) = node.sandbox_lack {
        return (ConditionStatus::False, "SandboxUnavailable", lack.to_owned());
    }
    if let Some(reason) = node.not_ready {
        return (ConditionStatus::False, "AgentNotReady", reason.to_owned());
    }
    // One that has just registered has not had the time to ask.
    let claim = age(node.last_claim_at.max(node.registered_at));
    if stale(claim, staleness.claim) {
        let message = "heartbeats arrive but the agent does not ask for work; see the agent's log";
        return (ConditionStatus::False, "ClaimChannelSilent", message.to_owned());
    }
    (ConditionStatus::True, "Healthy", String::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass_crds::inference::InferenceStatus;

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
            hold: None,
            config_version: 10,
            acknowledged: Some((10, AckStatus::Applied, None)),
            inference: None,
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
        let joined = NodeView { registered_at: Some(at(40)), last_claim_at: None, ..healthy() };
        assert_eq!(state(&joined, "Ready"), "True Healthy", "it has not had the time to ask for work");
        let back = NodeView { last_claim_at: Some(at(12)), ..joined.clone() };
        assert_eq!(state(&back, "Ready"), "True Healthy");
        let silent = NodeView { registered_at: Some(at(30)), ..joined };
        assert_eq!(state(&silent, "Ready"), "False ClaimChannelSilent");
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
        assert_eq!(
            state(&NodeView { unschedulable: true, ..healthy() }, "Schedulable"),
            "False Unschedulable"
        );
        let held = |hold| NodeView { hold: Some(hold), unschedulable: true, ..healthy() };
        assert_eq!(state(&held(HoldPhase::Cordoned), "Schedulable"), "False Cordoned");
        assert_eq!(state(&held(HoldPhase::Draining), "Schedulable"), "False Draining");
        assert_eq!(state(&held(HoldPhase::Cordoned), "Ready"), "True Healthy", "it could, if it were let");
        assert_eq!(state(&NodeView { last_seen_at: None, ..healthy() }, "Schedulable"), "False NotReady");
    }

    #[test]
    fn inference_has_a_condition_of_its_own_for_as_long_as_it_is_configured() {
        let reported = |running: bool, reason: &str| InferenceCapability {
            running,
            status: InferenceStatus { reason: reason.to_owned(), ..InferenceStatus::default() },
            ..InferenceCapability::default()
        };
        let (up, down) = (reported(true, "Serving"), reported(false, "PortTaken"));
        let with = |reported| NodeView { inference: Some(ModelServerView { reported }), ..healthy() };
        assert_eq!(state(&with(None), INFERENCE_READY), "Unknown NotReported");
        assert_eq!(state(&with(Some(&up)), INFERENCE_READY), "True Serving");
        assert_eq!(state(&with(Some(&down)), INFERENCE_READY), "False PortTaken");
        assert_eq!(state(&with(Some(&down)), "Ready"), "True Healthy", "it is not required");
        let stale = NodeView { last_seen_at: Some(at(10)), ..with(Some(&up)) };
        assert_eq!(state(&stale, INFERENCE_READY), "Unknown HeartbeatStale");
        let before = conditions(&with(Some(&up)), at(100), STALENESS);
        let after = conditions(&NodeView { conditions: &before, ..healthy() }, at(101), STALENESS);
        assert!(after.iter().all(|condition| condition.condition_type != INFERENCE_READY), "{after:?}");
    }

    #[test]
    fn an_offline_node_is_written_down_once() {
        let stale = NodeView { last_seen_at: Some(at(10)), ..healthy() };
        let first = conditions(&stale, at(101), STALENESS);
        let again = NodeView { conditions: &first, ..stale };
        assert_eq!(conditions(&again, at(500), STALENESS), first);
    }

    #[test]
    fn a_word_says_how_the_node_is() {
        let stale = NodeView { last_seen_at: Some(at(10)), ..healthy() };
        let silent = NodeView { last_claim_at: Some(at(10)), ..healthy() };
        let failed = NodeView { acknowledged: Some((10, AckStatus::Failed, Some("no podman"))), ..healthy() };
        let pending = NodeView { acknowledged: Some((9, AckStatus::Applied, None)), ..healthy() };
        for (node, expected, message) in [
            (NodeView { registered_at: None, ..healthy() }, NodeState::Pending, None),
            (healthy(), NodeState::Online, Some("it can take jobs")),
            (
                stale,
                NodeState::Offline,
                Some("HeartbeatStale: the last heartbeat came at 1970-01-01T00:00:10Z"),
            ),
            (
                silent,
                NodeState::Degraded,
                Some(
                    "ClaimChannelSilent: heartbeats arrive but the agent does not ask for work; see the agent's log",
                ),
            ),
            (failed, NodeState::Degraded, Some("Failed: version 10 could not be applied: no podman")),
            (pending, NodeState::Online, None),
        ] {
            let conditions = conditions(&node, at(101), STALENESS);
            assert_eq!(super::state(&conditions), expected, "{conditions:?}");
            if let Some(message) = message {
                assert_eq!(state_message(&conditions), message);
            }
        }
        assert_eq!(super::state(&[]), NodeState::Pending, "nobody has judged it yet");
    }

    #[test]
    fn a_configuration_that_is_not_acknowledged_in_a_minute_degrades_the_node() {
        let mut node = NodeView { acknowledged: Some((9, AckStatus::Applied, None)), ..healthy() };
        let since = conditions(&node, at(101), STALENESS);
        node.conditions = &since;
        node.last_seen_at = Some(at(159));
        node.last_claim_at = Some(at(159));
        let soon = conditions(&node, at(160), STALENESS);
        assert_eq!(super::state(&soon), NodeState::Online);
        let late = conditions(&node, at(161), STALENESS);
        assert_eq!(super::state(&late), NodeState::Degraded);
        assert!(state_message(&late).starts_with("Overdue: version 10 waits"), "{}", state_message(&late));
        // A node that was declared long ago and joins now has its minute too.
        let joined = NodeView { registered_at: Some(at(150)), ..node.clone() };
        assert_eq!(super::state(&conditions(&joined, at(161), STALENESS)), NodeState::Online);
        node.conditions = &late;
        node.acknowledged = Some((10, AckStatus::Applied, None));
        assert_eq!(super::state(&conditions(&node, at(162), STALENESS)), NodeState::Online);
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
