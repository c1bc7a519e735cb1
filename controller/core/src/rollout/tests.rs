//! Tables of single plans, and whole roll-outs over fleets in which nodes fail, vanish and come back.

use super::*;
use RolloutNodeState::{Changing, Done, Failed, Pending, Skipped};
use proptest::prelude::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn spec(concurrency: u32) -> Box<NodeConfigSpec> {
    Box::new(NodeConfigSpec { concurrency: Some(concurrency), ..NodeConfigSpec::default() })
}

fn node(name: &str, state: RolloutNodeState) -> Node {
    Node {
        name: name.to_owned(),
        state,
        declared: matches!(state, Changing | Done | Failed).then_some((2, at(0))),
        config_version: if matches!(state, Changing | Done | Failed) { 2 } else { 1 },
        acknowledged: Some((1, AckStatus::Applied, None)),
        health: Health::Ready,
        target: Target::Other(spec(4)),
    }
}

fn applied(name: &str) -> Node {
    Node { acknowledged: Some((2, AckStatus::Applied, None)), ..node(name, Changing) }
}

fn rollout(nodes: Vec<Node>) -> Snapshot {
    Snapshot {
        direction: RolloutDirection::Forward,
        phase: RolloutPhase::Rolling,
        max_unavailable: 2,
        pause_after: None,
        timeout: SignedDuration::from_secs(300),
        heard_since: at(0),
        nodes,
        newcomers: vec![],
    }
}

fn change(name: &str) -> Action {
    Action::Change { node: name.to_owned(), spec: spec(4) }
}

fn words(actions: &[Action]) -> Vec<String> {
    let word = |action: &Action| match action {
        Action::Join { node } => format!("join {node}"),
        Action::Change { node, .. } => format!("change {node}"),
        Action::Watch { node } => format!("watch {node}"),
        Action::Retry { node } => format!("retry {node}"),
        Action::Settle { node, state, message } => format!("{node} {state}: {message}"),
        Action::Turn { phase, reason, message } => format!("{phase} {reason}: {message}"),
    };
    actions.iter().map(word).collect()
}

#[test]
fn a_batch_is_as_large_as_may_be_unavailable_and_the_next_waits_for_all_of_it() {
    let pending = |name| node(name, Pending);
    let start = rollout(vec![pending("a"), pending("b"), pending("c")]);
    assert_eq!(plan(&start, at(1)), [change("a"), change("b")]);
    let half = rollout(vec![applied("a"), node("b", Changing), pending("c")]);
    assert_eq!(words(&plan(&half, at(1))), ["a Done: version 2 is in force"]);
    let whole = rollout(vec![node("a", Done), applied("b"), pending("c")]);
    assert_eq!(words(&plan(&whole, at(1))), ["b Done: version 2 is in force", "change c"]);
    let last = rollout(vec![node("a", Done), node("b", Done), applied("c")]);
    assert_eq!(
        words(&plan(&last, at(1))),
        ["c Done: version 2 is in force", "Complete Finished: 3 nodes changed"]
    );
    let applied_and_unready = Node { health: Health::Unready("no sandbox".into()), ..applied("a") };
    assert_eq!(plan(&rollout(vec![applied_and_unready, pending("b")]), at(1)), []);
}

#[test]
fn what_goes_wrong_stops_it_and_is_told() {
    let refused = Some((2, AckStatus::Failed, Some("no podman".to_owned())));
    let stops = |node: Node, second| words(&plan(&rollout(vec![node, self::node("z", Pending)]), at(second)));
    assert_eq!(
        stops(Node { acknowledged: refused, ..node("a", Changing) }, 1),
        [
            "a Failed: version 2 could not be applied: no podman",
            "Stopped AcknowledgementFailed: node `a`: version 2 could not be applied: no podman"
        ]
    );
    assert_eq!(stops(node("a", Changing), 299), Vec::<String>::new());
    assert_eq!(
        stops(node("a", Changing), 300)[1],
        "Stopped Timeout: node `a`: version 2 was not acknowledged in time"
    );
    let sick = Node { health: Health::Offline("silent for 40 s".into()), ..applied("a") };
    assert_eq!(stops(sick.clone(), 299), Vec::<String>::new());
    assert_eq!(
        stops(sick, 300)[0],
        "a Failed: version 2 is in force and the node was not ready in time: silent for 40 s"
    );
    let broken = Node { target: Target::Invalid("patch.spec.x: no".into()), ..node("a", Pending) };
    assert_eq!(
        stops(broken, 1),
        ["a Failed: patch.spec.x: no", "Stopped Invalid: node `a`: patch.spec.x: no"]
    );
    let taken = Node { config_version: 3, ..node("a", Changing) };
    assert_eq!(stops(taken, 1), ["a Skipped: somebody has declared version 3 since", "change z"]);
}

#[test]
fn what_a_node_could_not_apply_is_declared_again_when_its_turn_comes_again() {
    let refused = Some((2, AckStatus::Failed, Some("no such path".to_owned())));
    let again = Node {
        declared: Some((2, at(0))),
        config_version: 2,
        acknowledged: refused.clone(),
        target: Target::Same,
        ..node("a", Pending)
    };
    assert_eq!(words(&plan(&rollout(vec![again.clone()]), at(1))), ["retry a"]);
    let mended = Node { declared: Some((3, at(1))), config_version: 3, state: Changing, ..again.clone() };
    assert_eq!(
        plan(&rollout(vec![mended]), at(2)),
        [],
        "what it has said of the version before is no answer"
    );
    // Of one that was only late there is nothing to declare.
    let late = Node { acknowledged: Some((2, AckStatus::Applied, None)), ..again };
    assert_eq!(words(&plan(&rollout(vec![late]), at(1))), ["watch a"]);
}

#[test]
fn it_does_not_stay_stopped_over_a_node_that_is_gone() {
    let stopped = |nodes| Snapshot { phase: RolloutPhase::Stopped, ..rollout(nodes) };
    assert_eq!(plan(&stopped(vec![node("a", Failed), node("b", Pending)]), at(1)), []);
    assert_eq!(
        words(&plan(&stopped(vec![applied("c"), node("b", Pending)]), at(1))),
        [
            "c Done: version 2 is in force",
            "Rolling Deregistered: the node that it had stopped at was deregistered"
        ]
    );
    let refused = Some((2, AckStatus::Failed, None));
    let next = Node { acknowledged: refused, ..node("c", Changing) };
    let told = words(&plan(&stopped(vec![next, node("b", Pending)]), at(1)));
    assert_eq!(told, ["c Failed: version 2 could not be applied: it gives no reason"]);
    assert_eq!(words(&plan(&stopped(vec![]), at(1))).len(), 1);
}

#[test]
fn no_node_is_late_for_the_time_in_which_nobody_could_hear_it() {
    let back = Snapshot { heard_since: at(1000), ..rollout(vec![node("a", Changing)]) };
    assert_eq!(plan(&back, at(900)), []);
    assert_eq!(plan(&back, at(1299)), []);
    assert_eq!(
        words(&plan(&back, at(1300)))[1],
        "Stopped Timeout: node `a`: version 2 was not acknowledged in time"
    );
}

#[test]
fn nodes_that_are_not_available_count_and_offline_ones_wait() {
    let offline = |name| Node { health: Health::Offline("gone".into()), ..node(name, Pending) };
    let unready = |name| Node { health: Health::Unready("full".into()), ..node(name, Pending) };
    let with = |nodes| words(&plan(&rollout(nodes), at(1)));
    assert_eq!(with(vec![offline("a"), node("b", Pending), node("c", Pending)]), ["change b"]);
    let blocked = rollout(vec![offline("a"), offline("b"), node("c", Pending)]);
    assert_eq!(plan(&blocked, at(1)), []);
    assert_eq!(waits_for(&blocked).as_deref(), Some("`a`, `b`: 2 not available, and at most 2 may be"));
    assert_eq!(with(vec![node("a", Pending), unready("b"), node("c", Pending)]), ["change b", "change a"]);
    assert_eq!(
        with(vec![unready("a"), unready("b"), unready("c"), node("d", Pending)]),
        ["change a", "change b"]
    );
    let last = rollout(vec![node("a", Done), offline("b")]);
    assert_eq!(plan(&last, at(1)), []);
    assert_eq!(waits_for(&last).as_deref(), Some("`b`, which are offline"));
}

#[test]
fn it_pauses_where_it_was_asked_to_and_does_not_begin_more_before() {
    let start = Snapshot { pause_after: Some(1), ..rollout(vec![node("a", Pending), node("b", Pending)]) };
    assert_eq!(words(&plan(&start, at(1))), ["change a"]);
    let one = Snapshot { nodes: vec![applied("a"), node("b", Pending)], ..start };
    assert_eq!(
        words(&plan(&one, at(1))),
        ["a Done: version 2 is in force", "Paused PauseAfter: 1 done, 1 to come"]
    );
    let paused =
        Snapshot { phase: RolloutPhase::Paused, nodes: vec![node("a", Done), node("b", Pending)], ..one };
    assert_eq!(plan(&paused, at(1)), []);
    let resumed = turn(&paused, Command::Resume).unwrap();
    assert_eq!((resumed.phase, resumed.pause_after), (RolloutPhase::Rolling, None));
    let going = Snapshot { phase: resumed.phase, pause_after: resumed.pause_after, ..paused };
    assert_eq!(words(&plan(&going, at(1))), ["change b"]);
}

#[test]
fn nodes_that_come_later_are_taken_in_and_those_that_are_right_already_are_only_watched() {
    let joined = Snapshot { newcomers: vec!["c".to_owned()], ..rollout(vec![node("a", Done)]) };
    assert_eq!(words(&plan(&joined, at(1))), ["join c"]);
    let same = Node { target: Target::Same, ..node("a", Pending) };
    assert_eq!(words(&plan(&rollout(vec![same]), at(1))), ["watch a"]);
    let gone = Node { target: Target::LeaveAlone("it does not match any more".into()), ..node("a", Pending) };
    assert_eq!(
        words(&plan(&rollout(vec![gone]), at(1))),
        ["a Skipped: it does not match any more", "Complete Finished: 0 nodes changed, 1 left out"]
    );
}

#[test]
fn a_node_without_an_agent_is_declared_and_not_waited_for() {
    let absent = |state| Node { health: Health::Absent, acknowledged: None, ..node("a", state) };
    let one = Snapshot { max_unavailable: 1, ..rollout(vec![absent(Pending), node("b", Pending)]) };
    assert_eq!(words(&plan(&one, at(1))), ["change a"]);
    let next = Snapshot { nodes: vec![absent(Changing), node("b", Pending)], ..one };
    assert_eq!(
        words(&plan(&next, at(1))),
        ["a Done: version 2 is declared; no agent has registered yet", "change b"]
    );
}

#[test]
fn commands_mean_something_only_where_they_do() {
    use Command::{Abort, Pause, Resume, Undo};
    let in_phase =
        |phase| Snapshot { phase, ..rollout(vec![node("a", Done), node("b", Failed), node("c", Pending)]) };
    for (phase, accepted) in [
        (RolloutPhase::Rolling, vec![Pause, Abort, Undo]),
        (RolloutPhase::Paused, vec![Resume, Abort, Undo]),
        (RolloutPhase::Stopped, vec![Resume, Abort, Undo]),
        (RolloutPhase::Complete, vec![Undo]),
        (RolloutPhase::Aborted, vec![Undo]),
    ] {
        for command in [Pause, Resume, Abort, Undo] {
            let turned = turn(&in_phase(phase), command);
            assert_eq!(turned.is_ok(), accepted.contains(&command), "{phase} {command}: {turned:?}");
        }
    }
    let resumed = turn(&in_phase(RolloutPhase::Stopped), Resume).unwrap();
    assert_eq!(resumed.nodes, [("b".to_owned(), Pending)]);
    let undone = turn(&in_phase(RolloutPhase::Stopped), Undo).unwrap();
    assert_eq!(undone.direction, RolloutDirection::Back);
    let states: Vec<_> = undone.nodes.iter().map(|(_, state)| *state).collect();
    assert_eq!(states, [Pending, Pending, Skipped]);
    let back = Snapshot { direction: RolloutDirection::Back, ..in_phase(RolloutPhase::Rolling) };
    assert_eq!(turn(&back, Undo), Err(Refusal::Undone));
    assert_eq!(turn(&rollout(vec![node("a", Pending)]), Undo), Err(Refusal::NothingToUndo));
}

/// What a node of a property's fleet does with a configuration, and when it is away.
#[derive(Clone, Debug)]
struct Behaviour {
    /// Seconds from a declaration to the acknowledgement.
    takes: i64,
    /// It cannot apply the new configuration.
    refuses: bool,
    /// Nothing is heard from it from the first second to the second.
    away: (i64, i64),
}

fn behaviour() -> impl Strategy<Value = Behaviour> {
    (1..40i64, prop::bool::weighted(0.1), 0..300i64, prop_oneof![4 => Just(0i64), 1 => 1..100i64])
        .prop_map(|(takes, refuses, from, length)| Behaviour { takes, refuses, away: (from, from + length) })
}

/// Carries a plan out, as the store does.
fn carry_out(rollout: &mut Snapshot, actions: &[Action], now: i64) {
    for action in actions {
        match action {
            Action::Join { node } => rollout.nodes.push(self::node(node, Pending)),
            Action::Change { node, .. } | Action::Watch { node } | Action::Retry { node } => {
                let node = find(rollout, node);
                if matches!(action, Action::Change { .. } | Action::Retry { .. }) {
                    node.config_version += 1;
                    node.target = Target::Same;
                }
                node.declared = Some((node.config_version, at(now)));
                node.state = Changing;
            }
            Action::Settle { node, state, .. } => find(rollout, node).state = *state,
            Action::Turn { phase, .. } => rollout.phase = *phase,
        }
    }
}

fn find<'r>(rollout: &'r mut Snapshot, name: &str) -> &'r mut Node {
    rollout.nodes.iter_mut().find(|node| node.name == name).expect("it is one of the roll-out's")
}

proptest! {
    #[test]
    fn a_roll_out_ends_and_never_takes_more_than_it_may(
        fleet in proptest::collection::vec(behaviour(), 1..8),
        max_unavailable in 1..4u32, pause_after in proptest::option::of(1..4u32),
    ) {
        let nodes = (0..fleet.len()).map(|n| node(&format!("n{n}"), Pending)).collect();
        let mut rollout = Snapshot { max_unavailable, pause_after, ..rollout(nodes) };
        for second in 0..1000 {
            for (node, does) in rollout.nodes.iter_mut().zip(&fleet) {
                let away = (does.away.0..does.away.1).contains(&second);
                node.health = if away { Health::Offline("away".into()) } else { Health::Ready };
                if let Some((version, since)) = node.declared
                    && !away && second >= since.as_second() + does.takes
                {
                    let status = if does.refuses { AckStatus::Failed } else { AckStatus::Applied };
                    node.acknowledged = Some((version, status, None));
                }
            }
            let before = rollout.clone();
            let actions = plan(&rollout, at(second));
            carry_out(&mut rollout, &actions, second);
            prop_assert_eq!(plan(&rollout, at(second)), vec![], "{:?}", actions);
            let changes = actions.iter().filter(|action| matches!(action, Action::Change { .. } | Action::Watch { .. })).count();
            let most = usize::try_from(max_unavailable).unwrap();
            let changing = rollout.nodes.iter().filter(|node| node.state == Changing).count();
            prop_assert!(changing <= most);
            if changes > 0 {
                let away = rollout.nodes.iter().filter(|node| node.health != Health::Ready).count();
                prop_assert!(changing + away <= most, "{changing} and {away} of {most}");
                prop_assert_eq!(before.phase, RolloutPhase::Rolling);
                prop_assert!(before.nodes.iter().all(|node| node.state != Failed), "nothing after a failure");
            }
            if rollout.phase == RolloutPhase::Paused {
                let turned = turn(&rollout, Command::Resume).unwrap();
                (rollout.phase, rollout.pause_after) = (turned.phase, turned.pause_after);
            }
        }
        let refused = rollout.nodes.iter().zip(&fleet).any(|(node, does)| does.refuses && node.declared.is_some());
        if refused {
            prop_assert_eq!(rollout.phase, RolloutPhase::Stopped);
        } else {
            prop_assert_eq!(rollout.phase, RolloutPhase::Complete, "{:?}", rollout);
            prop_assert!(rollout.nodes.iter().all(|node| node.state == Done));
        }
    }
}
