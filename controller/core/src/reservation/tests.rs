//! Tables, properties of single plans, and whole little fleets in which small jobs never cease to come.

use super::*;
use proptest::prelude::*;

const AFTER: Duration = Duration::from_secs(60);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn cpu(cores: u64) -> Room {
    Room { cpu_millis: cores * 1000, ..Room::default() }
}

fn job(uid: &str, rank: i64, cores: u64) -> Waiting {
    Waiting {
        uid: uid.to_owned(),
        // Jobs of one size are alike.
        lane: i64::try_from(cores).unwrap(),
        class: 1,
        queue: "default".to_owned(),
        permitted: true,
        rank,
        room: cpu(cores),
        since: at(0),
    }
}

fn node(name: &str, cores: u64, used: u64) -> Node<'_> {
    Node {
        name,
        open: true,
        classes: &[1],
        queues: &[],
        slots: 100,
        capacity: cpu(cores),
        used: Used { slots: u32::try_from(used).unwrap(), room: cpu(used) },
    }
}

fn kept(node: &str, job: Waiting, since: i64) -> Kept {
    Kept { node: node.to_owned(), uid: job.uid.clone(), job: Some(job), since: at(since), moves: 0 }
}

fn short_since(lanes: &[(i64, i64)]) -> Shortages {
    Shortages(lanes.iter().map(|(lane, since)| (*lane, at(*since))).collect())
}

fn keep(node: &str, uid: &str, moves: u32) -> Keep {
    Keep { node: node.to_owned(), uid: uid.to_owned(), moves }
}

fn give_back(node: &str, uid: &str) -> GiveBack {
    GiveBack { node: node.to_owned(), uid: uid.to_owned() }
}

#[test]
fn room_is_kept_where_least_is_missing_once_a_job_was_passed_over_long_enough() {
    let snapshot = Snapshot {
        nodes: vec![node("a", 4, 4), node("b", 4, 2), node("c", 2, 0)],
        waiting: vec![job("large", 1, 3)],
        kept: vec![],
    };
    let first = plan(&snapshot, &Shortages::default(), AFTER, at(100));
    assert_eq!((first.keep.len(), &first.shortages), (0, &short_since(&[(3, 100)])));
    assert_eq!(plan(&snapshot, &first.shortages, AFTER, at(159)).keep, []);
    assert_eq!(plan(&snapshot, &first.shortages, AFTER, at(160)).keep, [keep("b", "large", 0)]);
}

#[test]
fn a_job_that_has_not_waited_that_long_itself_waits_on() {
    let late = Waiting { since: at(130), ..job("late", 1, 3) };
    let snapshot = Snapshot { nodes: vec![node("a", 4, 2)], waiting: vec![late], kept: vec![] };
    let shortages = short_since(&[(3, 0)]);
    assert_eq!(plan(&snapshot, &shortages, AFTER, at(189)).keep, []);
    assert_eq!(plan(&snapshot, &shortages, AFTER, at(190)).keep, [keep("a", "late", 0)]);
}

#[test]
fn a_job_that_can_be_taken_now_or_fits_nowhere_is_not_short() {
    let shortages = short_since(&[(3, 0), (9, 0)]);
    let nodes = vec![node("a", 4, 4), node("b", 4, 1)];
    let snapshot = Snapshot { nodes, waiting: vec![job("fits", 1, 3), job("huge", 2, 9)], kept: vec![] };
    assert_eq!(plan(&snapshot, &shortages, AFTER, at(1000)), Plan::default());
    let limited = Waiting { permitted: false, ..job("limited", 1, 4) };
    let snapshot = Snapshot { waiting: vec![limited], ..snapshot };
    assert_eq!(plan(&snapshot, &short_since(&[(4, 0)]), AFTER, at(1000)), Plan::default());
}

#[test]
fn what_is_kept_is_given_back_when_it_serves_nobody() {
    let large = || job("large", 1, 3);
    let held = |job: Option<Waiting>| Kept { job, ..kept("a", large(), 0) };
    let closed = Node { open: false, ..node("a", 4, 2) };
    let other_queue = ["night".to_owned()];
    let cases = [
        ("the job waits no more", node("a", 4, 2), held(None)),
        ("its queue is at its limit", node("a", 4, 2), held(Some(Waiting { permitted: false, ..large() }))),
        ("the node is closed", closed, held(Some(large()))),
        ("the node has shrunk", node("a", 2, 0), held(Some(large()))),
        ("the node has changed", Node { classes: &[2], ..node("a", 4, 2) }, held(Some(large()))),
        (
            "the node serves other queues",
            Node { queues: &other_queue, ..node("a", 4, 2) },
            held(Some(large())),
        ),
    ];
    for (what, node, kept) in cases {
        let snapshot = Snapshot { nodes: vec![node], waiting: vec![], kept: vec![kept] };
        let plan = plan(&snapshot, &Shortages::default(), AFTER, at(100));
        assert_eq!(plan.give_back, [give_back("a", "large")], "{what}");
        assert_eq!(plan.keep, [], "{what}");
    }
    // The node is gone altogether; another one keeps room in its stead, at once.
    let snapshot =
        Snapshot { nodes: vec![node("b", 4, 2)], waiting: vec![], kept: vec![kept("a", large(), 0)] };
    let plan = plan(&snapshot, &Shortages::default(), AFTER, at(100));
    assert_eq!((plan.give_back, plan.keep), (vec![give_back("a", "large")], vec![keep("b", "large", 0)]));
}

#[test]
fn the_first_in_line_takes_the_only_node_from_one_that_comes_later() {
    let snapshot = Snapshot {
        nodes: vec![node("a", 4, 4)],
        waiting: vec![job("first", 1, 4), job("second", 2, 3)],
        kept: vec![kept("a", job("second", 2, 3), 0)],
    };
    let plan = plan(&snapshot, &short_since(&[(4, 0), (3, 0)]), AFTER, at(60));
    assert_eq!((plan.give_back, plan.keep), (vec![give_back("a", "second")], vec![keep("a", "first", 0)]));
}

#[test]
fn a_job_that_waits_for_a_node_in_vain_goes_to_every_other_and_gets_more_patient() {
    let nodes = || vec![node("a", 4, 4), node("b", 4, 4), node("c", 4, 4)];
    let mut place = Kept { moves: 0, ..kept("b", job("large", 1, 3), 0) };
    let mut seen = vec![];
    for minutes in [10, 20, 40, 80] {
        let snapshot = |place: &Kept| Snapshot { nodes: nodes(), waiting: vec![], kept: vec![place.clone()] };
        let now = place.since.as_second() + minutes * 60;
        let plan_at = |now| plan(&snapshot(&place), &Shortages::default(), AFTER, at(now));
        assert_eq!(plan_at(now - 1).keep, [], "{minutes} minutes");
        let Some(Keep { node, uid: _, moves }) = plan_at(now).keep.pop() else { panic!("it moves on") };
        seen.push(node.clone());
        place = Kept { node, moves, since: at(now), ..place };
    }
    assert_eq!(seen, ["c", "a", "b", "c"]);
    let alone = Snapshot { nodes: vec![node("c", 4, 4)], waiting: vec![], kept: vec![place] };
    assert_eq!(plan(&alone, &Shortages::default(), AFTER, at(1_000_000)).keep, [], "there is no other node");
}

/// A fleet as a property makes it: cores and use of nodes, sizes of waiting jobs, and who keeps what.
#[derive(Clone, Debug)]
struct Fleet {
    nodes: Vec<(String, u64, u64, bool)>,
    waiting: Vec<u64>,
    kept: Vec<(usize, usize, i64, u32)>,
}

fn fleet() -> impl Strategy<Value = Fleet> {
    let nodes = proptest::collection::vec((1..9u64, 0..9u64, prop::bool::weighted(0.9)), 1..6);
    let waiting = proptest::collection::btree_set(1..9u64, 0..6);
    let kept = proptest::collection::vec((0..6usize, 0..6usize, 0..3000i64, 0..3u32), 0..4);
    (nodes, waiting, kept).prop_map(|(nodes, waiting, kept)| Fleet {
        nodes: nodes
            .into_iter()
            .enumerate()
            .map(|(n, (cores, used, open))| (format!("n{n}"), cores, used.min(cores), open))
            .collect(),
        waiting: waiting.into_iter().collect(),
        kept,
    })
}

impl Fleet {
    fn snapshot(&self, order: &[i64]) -> Snapshot<'_> {
        let nodes = self
            .nodes
            .iter()
            .map(|(name, cores, used, open)| Node { open: *open, ..node(name, *cores, *used) });
        let waiting: Vec<_> = self
            .waiting
            .iter()
            .zip(order.iter().chain(std::iter::repeat(&0)))
            .enumerate()
            .map(|(n, (cores, rank))| job(&format!("j{n}"), rank * 10 + i64::try_from(n).unwrap(), *cores))
            .collect();
        let mut taken = (BTreeSet::new(), BTreeSet::new());
        let kept = self.kept.iter().filter_map(|(at_node, of_job, since, moves)| {
            let (name, ..) = self.nodes.get(*at_node)?;
            let job = waiting.get(*of_job)?;
            (taken.0.insert(*at_node) && taken.1.insert(*of_job))
                .then(|| Kept { moves: *moves, ..kept(name, job.clone(), *since) })
        });
        let kept = kept.collect();
        Snapshot { nodes: nodes.collect(), waiting, kept }
    }
}

fn carry_out(snapshot: &mut Snapshot<'_>, plan: &Plan, now: Timestamp) {
    snapshot.kept.retain(|kept| {
        !plan.give_back.contains(&GiveBack { node: kept.node.clone(), uid: kept.uid.clone() })
    });
    for Keep { node, uid, moves } in &plan.keep {
        let job = snapshot.waiting.iter().find(|job| job.uid == *uid).cloned();
        snapshot.kept.push(Kept { node: node.clone(), uid: uid.clone(), job, since: now, moves: *moves });
    }
}

proptest! {
    #[test]
    fn a_plan_leaves_nothing_to_plan_and_keeps_one_room_for_one_job(
        fleet in fleet(), order in proptest::collection::vec(0..5i64, 6), now in 3000..9000i64,
    ) {
        let mut snapshot = fleet.snapshot(&order);
        let shortages = Shortages(snapshot.waiting.iter().map(|job| (job.lane, at(0))).collect());
        let first = plan(&snapshot, &shortages, AFTER, at(now));
        carry_out(&mut snapshot, &first, at(now));
        let nodes: BTreeSet<_> = snapshot.kept.iter().map(|kept| &kept.node).collect();
        let jobs: BTreeSet<_> = snapshot.kept.iter().map(|kept| &kept.uid).collect();
        prop_assert_eq!((nodes.len(), jobs.len()), (snapshot.kept.len(), snapshot.kept.len()));
        for kept in &snapshot.kept {
            let node = snapshot.nodes.iter().find(|node| node.name == kept.node).unwrap();
            prop_assert!(fits(kept.job.as_ref().unwrap(), node), "{:?}", kept);
        }
        let again = plan(&snapshot, &first.shortages, AFTER, at(now));
        prop_assert_eq!((again.give_back, again.keep), (vec![], vec![]), "{:?}", snapshot);
        // The first in line that is short has a node, unless those before it have all that it fits.
        let room = |job: &Waiting, node: &Node<'_>| fits(job, node) && job.room.fits(free(node).1);
        let mut line: Vec<_> = snapshot.waiting.iter().filter(|job| {
            snapshot.nodes.iter().any(|node| fits(job, node)) && !snapshot.nodes.iter().any(|node| room(job, node))
        }).collect();
        line.sort_by_key(|job| job.rank);
        if let Some(first) = line.first() {
            let before = |kept: &&Kept| kept.job.as_ref().is_some_and(|job| job.rank < first.rank);
            let taken: BTreeSet<_> = snapshot.kept.iter().filter(before).map(|kept| kept.node.as_str()).collect();
            let left = snapshot.nodes.iter().any(|node| fits(first, node) && !taken.contains(node.name));
            let has = snapshot.kept.iter().any(|kept| kept.uid == first.uid);
            prop_assert!(has || !left, "{:?}", snapshot);
        }
    }

    /// Small jobs fill every gap for ever; large ones must start all the same, however many there are, and nothing is
    /// given twice. A job runs for at most `LONGEST` seconds.
    #[test]
    fn no_large_job_starves_behind_small_ones(
        nodes in proptest::collection::vec(2..6u64, 1..4),
        large in proptest::collection::vec((0..40i64, 2..6u64), 1..5),
        durations in proptest::collection::vec(1..=LONGEST, 20),
    ) {
        let biggest = *nodes.iter().max().unwrap();
        let mut world = World::new(&nodes, &durations);
        for (n, (second, cores)) in large.iter().enumerate() {
            world.submit.push((*second, format!("large-{n}"), (*cores).min(biggest)));
        }
        // Each waits at worst for those before it: the small ones that came earlier, the minute, and what runs on its node.
        let earlier = SMALL as i64 * LONGEST;
        let bound = 40 + earlier + (60 + LONGEST + 2 * ROUND) * i64::try_from(large.len()).unwrap() * 2;
        for second in 0..bound {
            world.step(second)?;
        }
        prop_assert!(world.large_waiting().is_empty(), "{:?} still wait", world.large_waiting());
        prop_assert!(world.started > 0, "small jobs run too");
        for second in bound..bound + LONGEST + 2 * ROUND {
            world.step(second)?;
        }
        let small = |kept: &Kept| kept.uid.starts_with("small");
        prop_assert!(world.kept.iter().all(small), "nothing is kept for who has ended: {:?}", world.kept);
    }
}

/// How long a job runs at most, in seconds.
const LONGEST: i64 = 30;
/// How many small jobs wait at any time.
const SMALL: usize = 20;
/// Seconds between two plans.
const ROUND: i64 = 5;

/// A fleet in time, with the rule by which a claim honours what is kept.
struct World {
    nodes: Vec<(String, u64)>,
    durations: Vec<i64>,
    submit: Vec<(i64, String, u64)>,
    waiting: Vec<Waiting>,
    /// Node, cores and end.
    running: Vec<(usize, u64, i64)>,
    kept: Vec<Kept>,
    shortages: Shortages,
    rank: i64,
    started: usize,
}

impl World {
    fn new(nodes: &[u64], durations: &[i64]) -> Self {
        Self {
            nodes: nodes.iter().enumerate().map(|(n, cores)| (format!("n{n}"), *cores)).collect(),
            durations: durations.to_vec(),
            submit: vec![],
            waiting: vec![],
            running: vec![],
            kept: vec![],
            shortages: Shortages::default(),
            rank: 0,
            started: 0,
        }
    }

    fn large_waiting(&self) -> Vec<&str> {
        let large = self.waiting.iter().filter(|job| job.uid.starts_with("large"));
        large.map(|job| job.uid.as_str()).collect()
    }

    fn enqueue(&mut self, second: i64, uid: &str, cores: u64) {
        self.rank += 1;
        self.waiting.push(Waiting { since: at(second), ..job(uid, self.rank, cores) });
    }

    fn used(&self, node: usize) -> u64 {
        self.running.iter().filter(|(on, ..)| *on == node).map(|(_, cores, _)| cores).sum()
    }

    fn step(&mut self, second: i64) -> Result<(), TestCaseError> {
        self.running.retain(|(_, _, end)| *end > second);
        let due: Vec<_> = self.submit.extract_if(.., |(at, ..)| *at <= second).collect();
        for (_, uid, cores) in due {
            self.enqueue(second, &uid, cores);
        }
        while self.waiting.iter().filter(|job| job.uid.starts_with("small")).count() < SMALL {
            self.enqueue(second, &format!("small-{}", self.rank), 1);
        }
        self.waiting.sort_by_key(|job| job.rank);
        for node in 0..self.nodes.len() {
            self.claim(node, second);
            let (name, cores) = &self.nodes[node];
            prop_assert!(self.used(node) <= *cores, "{} has {} of {}", name, self.used(node), cores);
        }
        if second % ROUND == 0 {
            self.plan(second);
        }
        Ok(())
    }

    fn claim(&mut self, node: usize, second: i64) {
        for job in self.waiting.clone() {
            let (name, cores) = &self.nodes[node];
            let kept = self.kept.iter().find(|kept| kept.node == *name);
            let rank = kept.and_then(|kept| self.waiting.iter().find(|job| job.uid == kept.uid));
            let free = cores - self.used(node);
            let left = match rank {
                Some(kept) if job.rank > kept.rank => beside(cpu(free), kept.room),
                Some(_) | None => cpu(free),
            };
            if job.room.fits(left) {
                let run = self.durations[self.started % self.durations.len()];
                self.started += usize::from(job.uid.starts_with("small"));
                self.running.push((node, job.room.cpu_millis / 1000, second + run));
                self.waiting.retain(|waiting| waiting.uid != job.uid);
            }
        }
    }

    fn plan(&mut self, second: i64) {
        for kept in &mut self.kept {
            kept.job = self.waiting.iter().find(|job| job.uid == kept.uid).cloned();
        }
        let used: Vec<u64> = (0..self.nodes.len()).map(|node| self.used(node)).collect();
        let nodes = self.nodes.iter().zip(used).map(|((name, cores), used)| node(name, *cores, used));
        let mut lanes = BTreeSet::new();
        let waiting = self.waiting.iter().filter(|job| lanes.insert(job.lane)).cloned().collect();
        let mut snapshot = Snapshot { nodes: nodes.collect(), waiting, kept: std::mem::take(&mut self.kept) };
        let plan = plan(&snapshot, &self.shortages, AFTER, at(second));
        carry_out(&mut snapshot, &plan, at(second));
        self.kept = snapshot.kept;
        self.shortages = plan.shortages;
    }
}
