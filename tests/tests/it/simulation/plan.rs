//! What a seed decides beforehand: the fleet, its work, and what goes wrong when.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use windlass_agent::testing::Crash;

/// How long things go wrong.
pub(crate) const STORM: Duration = Duration::from_secs(120);

/// A simulation before it is run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) nodes: Vec<NodePlan>,
    pub(crate) jobs: Vec<JobPlan>,
    /// In order of time.
    pub(crate) troubles: Vec<(Duration, Trouble)>,
    pub(crate) weather: Weather,
    /// The controller is a version ahead of the agents: its answers have fields that nobody knows.
    pub(crate) newer_controller: bool,
}

/// How bad the network is in general. All are chances from 0 to 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// A request, or an answer, is lost.
    pub(crate) lost: f64,
    /// A message takes up to four seconds, and now and then up to twenty.
    pub(crate) slow: f64,
    /// A request arrives once more, later.
    pub(crate) again: f64,
}

/// A node.
#[derive(Clone, Debug)]
pub(crate) struct NodePlan {
    pub(crate) cores: u32,
    pub(crate) ram_mb: u64,
    pub(crate) slots: u32,
    /// The queues that it serves; empty for all.
    pub(crate) queues: Vec<&'static str>,
    pub(crate) continues_offline: bool,
    pub(crate) grace: Duration,
    pub(crate) peer: Peer,
}

/// Which version of the protocol an agent speaks, seen from the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Same,
    /// It leaves out what is optional and does not know of it in answers.
    Older,
    /// It says things that the controller has never heard of.
    Newer,
}

/// A job.
#[derive(Clone, Debug)]
pub(crate) struct JobPlan {
    pub(crate) number: usize,
    pub(crate) name: String,
    pub(crate) at: Duration,
    /// How long each step runs, in milliseconds.
    pub(crate) steps: Vec<u64>,
    pub(crate) code: i32,
    pub(crate) failures: u32,
    pub(crate) lost_attempts: u32,
    pub(crate) continues_offline: Option<bool>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) cpu_millis: u64,
    pub(crate) memory_mb: u64,
    pub(crate) queue: &'static str,
    pub(crate) priority: u16,
    /// Made with `POST` under an idempotency key, else with `PUT`.
    pub(crate) by_key: bool,
    pub(crate) suspended: Suspended,
    pub(crate) cancel_at: Option<Duration>,
    /// How long it may wait for its first attempt, where that is known.
    pub(crate) starts_within: Option<Duration>,
}

/// Whether a job is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suspended {
    No,
    /// Until then.
    Until(Duration),
    ForEver,
}

/// Something that goes wrong, or is done to the fleet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    /// kill -9 of an agent, at once or in the middle of a write; its supervisors and programs live on.
    Crash { node: usize, away: Duration, within: Option<(u64, Crash)> },
    /// The host loses power, at once or in the middle of a write.
    Reboot { node: usize, away: Duration, within: Option<(u64, Crash)> },
    /// The agent is told to stop, and to cancel what runs or to let it finish.
    Stop { node: usize, cancel: bool, away: Duration },
    /// kill -9 of the controller.
    Controller { away: Duration },
    /// The controller is stopped as an operator does it.
    PlannedStop { away: Duration },
    /// What a node sends, or what it is sent, or both, is lost.
    Cut { node: usize, requests: bool, answers: bool, away: Duration },
    /// The disk of an agent is full.
    DiskFull { node: usize, away: Duration },
    /// A node's wall clock is moved by so many seconds.
    Wall { node: usize, seconds: i64 },
    /// A host has slept: its clocks are ahead of its timers.
    Slept { node: usize, asleep: Duration },
    /// The controller's wall clock is moved by so many seconds.
    ControllerWall { seconds: i64 },
    /// The store takes its time.
    SlowStore { away: Duration },
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let rng = &mut rng;
        if seed % CROWDED == CROWDED - 1 {
            return Self::crowded(seed, rng);
        }
        let nodes: Vec<_> = (0..rng.random_range(2..=4)).map(|_| NodePlan::draw(rng)).collect();
        // Most fleets have little to do, so that what goes wrong meets every state of a job; some have a backlog.
        let count = if rng.random_bool(0.1) { rng.random_range(20..30) } else { rng.random_range(5..12) };
        let jobs = (0..count).map(|number| JobPlan::draw(rng, number)).collect();
        let mut troubles: Vec<_> = (0..rng.random_range(4..12))
            .map(|_| (millis(rng, 2_000..120_000), Trouble::draw(rng, nodes.len())))
            .collect();
        // One jump of a clock in each direction at most: more than ten minutes apart no node can register.
        let mut jumped = false;
        troubles.retain(|(_, trouble)| {
            let jumps = matches!(trouble, Trouble::ControllerWall { .. });
            let keep = !(jumps && jumped);
            jumped |= jumps;
            keep
        });
        troubles.sort_by_key(|(at, _)| *at);
        let weather = Weather {
            lost: [0.0, 0.03, 0.08][rng.random_range(0..3)],
            slow: [0.0, 0.1, 0.3][rng.random_range(0..3)],
            again: [0.0, 0.06, 0.15][rng.random_range(0..3)],
        };
        Self { seed, nodes, jobs, troubles, weather, newer_controller: rng.random_bool(0.3) }
    }

    /// A fleet in fair weather with more small jobs than it can take, and a few that need a whole node: they must start
    /// while small ones still come.
    fn crowded(seed: u64, rng: &mut StdRng) -> Self {
        const CORES: u32 = 4;
        let node = NodePlan {
            cores: CORES,
            ram_mb: 8192,
            slots: CORES + 2,
            queues: vec![],
            continues_offline: false,
            grace: Duration::from_secs(90),
            peer: Peer::Same,
        };
        let nodes = vec![node; rng.random_range(1..=2)];
        let job = |number: usize, at: Duration, seconds: u64, cores: u64| JobPlan {
            number,
            name: format!("job-{number}"),
            at,
            steps: vec![seconds * 1000],
            code: 0,
            failures: 0,
            lost_attempts: 100,
            continues_offline: None,
            timeout: None,
            cpu_millis: cores * 1000,
            memory_mb: 0,
            queue: "default",
            priority: 500,
            by_key: true,
            suspended: Suspended::No,
            cancel_at: None,
            starts_within: None,
        };
        let mut jobs = Vec::new();
        let large = rng.random_range(1..=2);
        for n in 0..large {
            let at = millis(rng, 15_000..25_000);
            let starts_within = Some(CROWD_WAIT + CROWD_TURN * n);
            jobs.push(JobPlan { starts_within, ..job(jobs.len(), at, 5, CORES.into()) });
        }
        // A second of each core's time is asked for more than once.
        let mut at = Duration::ZERO;
        while at < CROWD {
            let seconds = rng.random_range(3..=CROWD_SECONDS);
            jobs.push(job(jobs.len(), at, seconds, 1));
            let cores = nodes.len() as u64 * u64::from(CORES);
            at += Duration::from_millis(seconds * 1000 * 10 / (cores * 12));
        }
        let weather = Weather { lost: 0.0, slow: 0.0, again: 0.0 };
        Self { seed, nodes, jobs, troubles: Vec::new(), weather, newer_controller: false }
    }
}

/// One seed of so many is a crowd.
const CROWDED: u64 = 20;
/// How long small jobs come.
const CROWD: Duration = Duration::from_secs(300);
/// How many seconds a small job runs at most.
const CROWD_SECONDS: u64 = 12;
/// How long a large job may wait in a crowd: the time until room is kept for it, what came before it and what runs on its
/// node, and what a fleet needs to notice all that.
const CROWD_WAIT: Duration = Duration::from_secs(150);
/// How much longer for each large one before it.
const CROWD_TURN: Duration = Duration::from_secs(50);

fn millis(rng: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

impl NodePlan {
    fn draw(rng: &mut StdRng) -> Self {
        Self {
            cores: [2, 4, 8][rng.random_range(0..3)],
            ram_mb: [2048, 8192][rng.random_range(0..2)],
            slots: rng.random_range(1..=3),
            queues: [vec![], vec![], vec!["default"], vec!["default", "night"]][rng.random_range(0..4)]
                .clone(),
            continues_offline: rng.random_bool(0.2),
            grace: Duration::from_secs([40, 90][rng.random_range(0..2)]),
            peer: [Peer::Same, Peer::Same, Peer::Older, Peer::Newer][rng.random_range(0..4)],
        }
    }

    /// Whether it could ever run a job.
    pub(crate) fn could_run(&self, job: &JobPlan) -> bool {
        let served = self.queues.is_empty() || self.queues.contains(&job.queue);
        served && job.cpu_millis <= u64::from(self.cores) * 1000 && job.memory_mb <= self.ram_mb
    }

    /// Its manifest.
    pub(crate) fn manifest(&self, name: &str) -> Value {
        json!({
            "apiVersion": "windlass.dev/v1alpha1", "kind": "NodeConfig", "metadata": {"name": name},
            "spec": {
                "concurrency": self.slots,
                "queues": self.queues,
                "offline": if self.continues_offline { "continue" } else { "stop" },
                "offlineGrace": format!("{}s", self.grace.as_secs()),
            },
        })
    }
}

impl JobPlan {
    fn draw(rng: &mut StdRng, number: usize) -> Self {
        let at = millis(rng, 0..60_000);
        let steps = (0..if rng.random_bool(0.3) { 3 } else { 1 })
            // From at once to longer than a lease, and now and then to the end of the storm and beyond.
            .map(|_| match weighted(rng, &[0.6, 0.35, 0.05]) {
                0 => rng.random_range(0..3_000),
                1 => rng.random_range(0..60_000),
                _ => rng.random_range(100_000..200_000),
            })
            .collect();
        Self {
            number,
            name: format!("job-{number}"),
            at,
            steps,
            code: if rng.random_bool(0.2) { 3 } else { 0 },
            failures: rng.random_range(0..2),
            lost_attempts: if rng.random_bool(0.2) { 2 } else { 100 },
            continues_offline: [None, None, Some(true), Some(false)][rng.random_range(0..4)],
            timeout: rng.random_bool(0.1).then(|| Duration::from_secs(rng.random_range(5..20))),
            cpu_millis: [0, 500, 2_000, 64_000][weighted(rng, &[0.5, 0.3, 0.17, 0.03])],
            memory_mb: [0, 512, 1_500][weighted(rng, &[0.5, 0.3, 0.2])],
            queue: ["default", "night", "unserved"][weighted(rng, &[0.8, 0.18, 0.02])],
            priority: [500, 500, 100, 900][rng.random_range(0..4)],
            by_key: rng.random_bool(0.5),
            suspended: match weighted(rng, &[0.9, 0.08, 0.02]) {
                0 => Suspended::No,
                1 => Suspended::Until(at + millis(rng, 1_000..90_000)),
                _ => Suspended::ForEver,
            },
            cancel_at: rng.random_bool(0.2).then(|| at + millis(rng, 0..60_000)),
            starts_within: None,
        }
    }

    /// Its manifest.
    pub(crate) fn manifest(&self, suspended: bool) -> Value {
        let steps: Vec<_> = (0..self.steps.len()).map(|step| self.step(step)).collect();
        let mut spec = json!({
            "steps": steps,
            "queue": self.queue,
            "priority": self.priority,
            "suspend": suspended,
            "retry": {
                "lostAttempts": self.lost_attempts, "failures": self.failures,
                "backoff": {"initial": "2s", "max": "20s"},
            },
        });
        let mut set = |field: &str, value: Value| spec[field] = value;
        if let Some(continues) = self.continues_offline {
            set("offline", json!(if continues { "continue" } else { "stop" }));
        }
        if let Some(timeout) = self.timeout {
            set("timeout", json!(format!("{}s", timeout.as_secs())));
        }
        if self.cpu_millis > 0 || self.memory_mb > 0 {
            let mut requires = json!({});
            if self.cpu_millis > 0 {
                requires["cpu"] = json!(format!("{}m", self.cpu_millis));
            }
            if self.memory_mb > 0 {
                requires["memory"] = json!(format!("{}Mi", self.memory_mb));
            }
            set("requires", requires);
        }
        json!({
            "apiVersion": "windlass.dev/v1alpha1", "kind": "SandboxJob", "metadata": {"name": self.name},
            "spec": spec,
        })
    }

    fn step(&self, step: usize) -> Value {
        let last = step + 1 == self.steps.len();
        json!({
            "name": format!("step-{step}"),
            "command": [
                format!("out begin {}.{step};", self.number), format!("sleep {}", self.steps[step]),
                format!("out end {}.{step};", self.number), format!("exit {}", if last { self.code } else { 0 }),
            ],
        })
    }

    /// Everything that it writes when it runs to its end.
    pub(crate) fn output(&self) -> String {
        let number = self.number;
        (0..self.steps.len()).map(|step| format!("begin {number}.{step};end {number}.{step};")).collect()
    }
}

impl Trouble {
    fn draw(rng: &mut StdRng, nodes: usize) -> Self {
        let node = rng.random_range(0..nodes);
        let away = millis(rng, 100..50_000);
        let sign = if rng.random_bool(0.5) { 1 } else { -1 };
        let how = [Crash::Before, Crash::Within, Crash::After][rng.random_range(0..3)];
        let within = rng.random_bool(0.7).then(|| (rng.random_range(1..8), how));
        match weighted(rng, &[0.2, 0.13, 0.06, 0.12, 0.06, 0.22, 0.04, 0.05, 0.04, 0.04, 0.04]) {
            0 => Self::Crash { node, away, within },
            1 => Self::Reboot { node, away, within },
            2 => Self::Stop { node, cancel: rng.random_bool(0.5), away },
            3 => Self::Controller { away },
            4 => Self::PlannedStop { away: away * 3 },
            5 => {
                let (requests, answers) =
                    [(true, true), (true, false), (false, true)][rng.random_range(0..3)];
                Self::Cut { node, requests, answers, away }
            }
            6 => Self::DiskFull { node, away },
            7 => Self::Wall { node, seconds: sign * rng.random_range(1..240) },
            8 => Self::Slept { node, asleep: Duration::from_secs(rng.random_range(1..60)) },
            9 => Self::ControllerWall { seconds: sign * rng.random_range(5..120) },
            _ => Self::SlowStore { away },
        }
    }
}

/// The position of one of the weights, by chance; they add up to about 1.
fn weighted(rng: &mut StdRng, weights: &[f64]) -> usize {
    let mut left: f64 = rng.random();
    weights
        .iter()
        .position(|weight| {
            left -= weight;
            left < 0.0
        })
        .unwrap_or(weights.len() - 1)
}
