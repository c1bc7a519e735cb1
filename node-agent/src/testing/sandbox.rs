//! A sandbox that is a little state machine in virtual time: units that run for a while, write, obey stops, die at the
//! deadline of their lease, and live on when the agent crashes.
//!
//! A unit's program is its command. Each word is an instruction: `sleep MILLISECONDS`, `out TEXT`, `err TEXT`,
//! `exit CODE`, `deaf` (it does not obey TERM) or `broken` (the sandbox cannot be made). Any other word does nothing, so
//! `["true"]` succeeds at once. A script is read in the same way, one instruction a line.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::watch;
use async_trait::async_trait;
use windlass_sandbox::driver::{KillProof, StreamEnd, Unenforced, UnitPhase, UnitState, Usage};
use windlass_sandbox::spec::LimitSource;
use windlass_sandbox::{
    DiskQuota, Driver, EndReason, Error, Exit, Handed, Identity, LimitName, OutputChunk, OutputReader,
    OutputSource, Prepared, Stop, StopReason, Stream, UnitId, UnitSpec, Visited,
};

use crate::clock::Clock;
use crate::workspaces::{Home, LeaseWriter, Left, Placement, StepSecrets, Workspaces};

/// Units, homes and leases of one host. Clones are the same host.
#[derive(Clone)]
pub struct FakeSandbox {
    world: Arc<World>,
}

struct World {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Counts what happens, so that whoever waits looks again.
    changes: watch::Sender<u64>,
    /// Called when a program has begun to run.
    on_start: Mutex<Option<OnStart>>,
}

/// What a test does at the moment in which a program begins to run.
pub type OnStart = Arc<dyn Fn(&UnitId) + Send + Sync>;

#[derive(Default)]
struct State {
    units: BTreeMap<UnitId, Unit>,
    homes: BTreeMap<String, FakeHome>,
    leases: BTreeMap<PathBuf, Duration>,
    /// Every start of a program, for ever.
    starts: Vec<(UnitId, Duration)>,
    /// Limits that this host cannot enforce.
    cannot_enforce: BTreeSet<LimitName>,
    /// What attempts leave as artifacts, by the names of their homes.
    artifacts: BTreeMap<String, Vec<(String, Vec<u8>)>>,
    /// The names of the homes of those that leave named pipes without an end.
    endless: BTreeMap<String, Arc<AtomicBool>>,
}

#[derive(Default)]
struct FakeHome {
    placements: Vec<Placement>,
    scripts: BTreeMap<u32, String>,
    secrets: BTreeMap<u32, StepSecrets>,
}

struct Unit {
    spec: UnitSpec,
    phase: Phase,
    /// What it has written or will have, with the time after its start.
    output: Vec<(Duration, Stream, Vec<u8>)>,
    /// How long it runs by itself and how it exits then.
    plan: (Duration, i32),
    deaf: bool,
    broken: bool,
}

enum Phase {
    Prepared,
    Running { since: Duration, stop: Option<(Duration, Stop)> },
    Ended(Box<Exit>),
}

impl FakeSandbox {
    /// An empty host.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let (state, changes) = (Mutex::new(State::default()), watch::Sender::new(0));
        Self { world: Arc::new(World { clock, state, changes, on_start: Mutex::new(None) }) }
    }

    /// From now on `told` is called whenever a program has begun to run, before anything else happens.
    pub fn on_start(&self, told: OnStart) {
        *self.world.on_start.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(told);
    }

    /// Lets everything that waits here look at the clock again, after it was moved.
    pub fn clock_moved(&self) {
        self.world.changed();
    }

    /// Every start of a program: the unit and when it was, on the clock since boot.
    pub fn starts(&self) -> Vec<(UnitId, Duration)> {
        self.world.state().starts.clone()
    }

    /// From now on this host cannot enforce a limit.
    pub fn cannot_enforce(&self, limit: LimitName) {
        self.world.state().cannot_enforce.insert(limit);
    }

    /// The units whose programs run now.
    pub fn running(&self) -> Vec<UnitId> {
        let state = self.world.now_state();
        let running = state.units.iter().filter(|(_, unit)| matches!(unit.phase, Phase::Running { .. }));
        running.map(|(id, _)| id.clone()).collect()
    }

    /// The units that exist.
    pub fn units(&self) -> Vec<UnitId> {
        self.world.now_state().units.keys().cloned().collect()
    }

    /// The specification of a unit that exists.
    pub fn spec(&self, id: &UnitId) -> Option<UnitSpec> {
        self.world.state().units.get(id).map(|unit| unit.spec.clone())
    }

    /// The secrets of a step that runs.
    pub fn handed(&self, home: &str, step: u32) -> Option<StepSecrets> {
        self.world.state().homes.get(home)?.secrets.get(&step).cloned()
    }

    /// What an attempt leaves as artifacts, by the name of its home: names and contents. What has no content is refused.
    pub fn leave(&self, home: &str, artifacts: &[(&str, &[u8])]) {
        let artifacts = artifacts.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec()));
        self.world.state().artifacts.insert(home.to_owned(), artifacts.collect());
    }

    /// Lets an attempt leave named pipes without an end, by the name of its home. Tells when the first was found.
    pub fn leave_without_end(&self, home: &str) -> Arc<AtomicBool> {
        let begun = Arc::<AtomicBool>::default();
        self.world.state().endless.insert(home.to_owned(), Arc::clone(&begun));
        begun
    }

    /// The homes that exist, with what was placed in them.
    pub fn homes(&self) -> BTreeMap<String, Vec<Placement>> {
        let state = self.world.state();
        state.homes.iter().map(|(name, home)| (name.clone(), home.placements.clone())).collect()
    }

    /// The host is booted again: nothing runs, files stay.
    pub fn reboot(&self) {
        let mut state = self.world.now_state();
        let now = self.world.clock.boottime();
        for unit in state.units.values_mut() {
            if let Phase::Running { since, .. } = unit.phase {
                unit.end(since, now, EndReason::SupervisorLost, None, None);
            }
        }
        drop(state);
        self.world.changed();
    }
}

impl World {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The state as it is now: with everything ended that has ended since the last look.
    fn now_state(&self) -> MutexGuard<'_, State> {
        let now = self.clock.boottime();
        let mut state = self.state();
        let State { units, leases, .. } = &mut *state;
        for unit in units.values_mut() {
            unit.advance(now, leases);
        }
        state
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Waits until something has changed or the time `until` has come.
    async fn wait(&self, changes: &mut watch::Receiver<u64>, until: Option<Duration>) {
        let now = self.clock.boottime();
        let left = until.map(|until| until.saturating_sub(now));
        // Cancel-safe: both only look.
        tokio::select! {
            biased;
            changed = changes.changed() => drop(changed),
            () = tokio::time::sleep(left.unwrap_or_default()), if left.is_some() => {}
        }
    }
}

impl Unit {
    /// When it ends if nothing more happens, and how.
    fn next_end(&self, leases: &BTreeMap<PathBuf, Duration>) -> Option<(Duration, EndReason, Option<i32>)> {
        let Phase::Running { since, stop } = &self.phase else { return None };
        let by_itself = (*since + self.plan.0, EndReason::Exited, Some(self.plan.1));
        let lease = leases.get(&self.spec.lease_file).copied().unwrap_or_default();
        let by_lease = (lease, EndReason::LeaseExpired, None);
        let by_timeout = self.spec.timeout.map(|timeout| {
            let grace = if self.deaf { self.spec.grace } else { Duration::ZERO };
            (*since + timeout + grace, EndReason::Timeout, None)
        });
        let by_stop = stop.map(|(at, stop)| {
            let reason = match stop.reason {
                StopReason::Cancelled => EndReason::Cancelled,
                StopReason::Timeout => EndReason::Timeout,
                StopReason::LeaseExpired => EndReason::LeaseExpired,
            };
            (at + if self.deaf { stop.grace } else { Duration::ZERO }, reason, None)
        });
        [Some(by_itself), Some(by_lease), by_timeout, by_stop]
            .into_iter()
            .flatten()
            .min_by_key(|(at, ..)| *at)
    }

    fn advance(&mut self, now: Duration, leases: &BTreeMap<PathBuf, Duration>) {
        if let Phase::Running { since, .. } = self.phase
            && let Some((at, reason, code)) = self.next_end(leases).filter(|(at, ..)| *at <= now)
        {
            let signal = if code.is_none() { Some(if self.deaf { 9 } else { 15 }) } else { None };
            self.end(since, at, reason, code, signal);
        }
    }

    fn end(
        &mut self,
        since: Duration,
        at: Duration,
        reason: EndReason,
        code: Option<i32>,
        signal: Option<i32>,
    ) {
        self.output.retain(|(after, ..)| since + *after <= at);
        let written = |wanted| {
            let bytes = self.output.iter().filter(|(_, stream, _)| *stream == wanted);
            let bytes = bytes.map(|(_, _, bytes)| bytes.len() as u64).sum();
            StreamEnd { bytes, kept: bytes, truncated: false }
        };
        let milliseconds = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let started = reason != EndReason::SetupFailed;
        self.phase = Phase::Ended(Box::new(Exit {
            reason,
            code,
            signal,
            message: (!started).then(|| "mount /proc: refused".to_owned()),
            program_started: started,
            started_at_ms: started.then(|| milliseconds(since)),
            ended_at_ms: milliseconds(at),
            usage: Usage::default(),
            stdout: written(Stream::Stdout),
            stderr: written(Stream::Stderr),
            proof: Some(KillProof {
                term_sent_at_ms: signal.map(|_| milliseconds(at)),
                kill_sent_at_ms: None,
                namespace_empty: true,
                cgroup_empty: Some(true),
                confirmed_at_ms: milliseconds(at),
            }),
            teardown: Vec::new(),
        }));
    }

    /// Reads the program.
    fn load(&mut self, instructions: &[String]) {
        let (mut time, mut code) = (Duration::ZERO, 0);
        for instruction in instructions {
            let (word, rest) = instruction.split_once(' ').unwrap_or((instruction, ""));
            match word {
                "sleep" => time += Duration::from_millis(rest.parse().unwrap_or_default()),
                "out" => self.output.push((time, Stream::Stdout, rest.as_bytes().to_vec())),
                "err" => self.output.push((time, Stream::Stderr, rest.as_bytes().to_vec())),
                "exit" => code = rest.parse().unwrap_or(1),
                "deaf" => self.deaf = true,
                "broken" => self.broken = true,
                _ => {}
            }
        }
        self.plan = (time, code);
    }
}

#[async_trait]
impl Driver for FakeSandbox {
    async fn prepare(&self, spec: &UnitSpec) -> Result<Prepared, Error> {
        spec.validate()?;
        let mut state = self.world.now_state();
        let unenforced = unenforced(spec, &state.cannot_enforce)?;
        if let Some(unit) = state.units.get(&spec.id) {
            return if unit.spec == *spec {
                Ok(Prepared { unenforced, isolation: Vec::new() })
            } else {
                Err(Error::Exists { id: spec.id.clone() })
            };
        }
        let mut unit = Unit {
            spec: spec.clone(),
            phase: Phase::Prepared,
            output: Vec::new(),
            plan: (Duration::ZERO, 0),
            deaf: false,
            broken: false,
        };
        let script = spec.command.get(1).and_then(|path| {
            let step = path.strip_prefix("/workspace/.windlass/steps/")?.parse().ok()?;
            let home = spec.workspace.file_name()?.to_str()?;
            Some(state.homes.get(home)?.scripts.get(&step)?.lines().map(str::to_owned).collect::<Vec<_>>())
        });
        unit.load(script.as_deref().unwrap_or(&spec.command));
        state.units.insert(spec.id.clone(), unit);
        Ok(Prepared { unenforced, isolation: Vec::new() })
    }

    async fn start(&self, id: &UnitId) -> Result<(), Error> {
        let now = self.world.clock.boottime();
        let mut state = self.world.now_state();
        let unit = state.units.get_mut(id).ok_or_else(|| Error::NotFound { id: id.clone() })?;
        let Phase::Prepared = unit.phase else { return Ok(()) };
        if unit.broken {
            unit.end(now, now, EndReason::SetupFailed, None, None);
            return Err(Error::Setup { id: id.clone(), message: "mount /proc: refused".to_owned() });
        }
        unit.phase = Phase::Running { since: now, stop: None };
        state.starts.push((id.clone(), now));
        drop(state);
        self.world.changed();
        let told = self.world.on_start.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if let Some(told) = told {
            told(id);
        }
        Ok(())
    }

    async fn signal(&self, id: &UnitId, stop: Stop) -> Result<(), Error> {
        let now = self.world.clock.boottime();
        let mut state = self.world.now_state();
        let unit = state.units.get_mut(id).ok_or_else(|| Error::NotFound { id: id.clone() })?;
        match &mut unit.phase {
            Phase::Prepared => return Err(Error::NotStarted { id: id.clone() }),
            Phase::Ended(_) => {}
            Phase::Running { stop: told, .. } => match told {
                None => *told = Some((now, stop)),
                Some((at, earlier)) if now + stop.grace < *at + earlier.grace => {
                    (*at, earlier.grace) = (now, stop.grace);
                }
                Some(_) => {}
            },
        }
        drop(state);
        self.world.changed();
        Ok(())
    }

    async fn wait(&self, id: &UnitId) -> Result<Exit, Error> {
        let mut changes = self.world.changes.subscribe();
        loop {
            let until = {
                let state = self.world.now_state();
                let unit = state.units.get(id).ok_or_else(|| Error::NotFound { id: id.clone() })?;
                match &unit.phase {
                    Phase::Prepared => return Err(Error::NotStarted { id: id.clone() }),
                    Phase::Ended(exit) => return Ok((**exit).clone()),
                    Phase::Running { .. } => unit.next_end(&state.leases).map(|(at, ..)| at),
                }
            };
            self.world.wait(&mut changes, until).await;
        }
    }

    async fn inventory(&self) -> Result<Vec<UnitState>, Error> {
        let state = self.world.now_state();
        let phase = |unit: &Unit| match &unit.phase {
            Phase::Prepared => UnitPhase::Prepared,
            Phase::Running { .. } => UnitPhase::Running,
            Phase::Ended(exit) => UnitPhase::Ended(exit.clone()),
        };
        let unit = |(id, unit): (&UnitId, &Unit)| UnitState {
            id: id.clone(),
            phase: phase(unit),
            notes: Vec::new(),
        };
        Ok(state.units.iter().map(unit).collect())
    }

    async fn cleanup(&self, id: &UnitId) -> Result<(), Error> {
        let mut state = self.world.now_state();
        if let Some(Unit { phase: Phase::Running { .. }, .. }) = state.units.get(id) {
            return Err(Error::StillRunning { id: id.clone() });
        }
        state.units.remove(id);
        Ok(())
    }

    async fn egress(&self, _: &UnitId) -> Result<Option<std::net::TcpListener>, Error> {
        // Its programs reach nobody.
        Ok(None)
    }

    fn output(&self, id: &UnitId, cursor: u64) -> OutputReader {
        Box::new(FakeOutput { world: Arc::clone(&self.world), id: id.clone(), cursor })
    }
}

/// What of a unit's limits a host does not enforce, by the rules of the driver's contract.
fn unenforced(spec: &UnitSpec, cannot: &BTreeSet<LimitName>) -> Result<Vec<Unenforced>, Error> {
    let limits = [
        (LimitName::Cpu, spec.limits.cpu_millis),
        (LimitName::Memory, spec.limits.memory_bytes),
        (LimitName::Pids, spec.limits.pids),
        (LimitName::Disk, spec.limits.disk_bytes),
        (LimitName::Io, spec.limits.io_read_bps),
        (LimitName::Io, spec.limits.io_write_bps),
    ];
    let mut unenforced = Vec::new();
    for (name, limit) in limits {
        let Some(limit) = limit.filter(|_| cannot.contains(&name)) else { continue };
        let reason = "this host cannot".to_owned();
        if limit.source == LimitSource::Named && !spec.limits.accept_unenforced.contains(&name) {
            return Err(Error::Unenforceable { limit: name, reason, fix: "take another host".to_owned() });
        }
        unenforced.push(Unenforced { limit: name, reason });
    }
    Ok(unenforced)
}

struct FakeOutput {
    world: Arc<World>,
    id: UnitId,
    cursor: u64,
}

impl FakeOutput {
    /// The chunk at the cursor, or when to look again; `None` for never.
    fn look(&self) -> Result<Option<OutputChunk>, Option<Duration>> {
        let now = self.world.clock.boottime();
        let state = self.world.now_state();
        let Some(unit) = state.units.get(&self.id) else { return Ok(None) };
        let index = usize::try_from(self.cursor).unwrap_or(usize::MAX);
        let since = match &unit.phase {
            Phase::Prepared => return Err(None),
            Phase::Running { since, .. } => Some(*since),
            Phase::Ended(_) => None,
        };
        let Some((after, stream, bytes)) = unit.output.get(index) else {
            return if since.is_none() {
                Ok(None)
            } else {
                Err(unit.next_end(&state.leases).map(|(at, ..)| at))
            };
        };
        if let Some(since) = since
            && since + *after > now
        {
            return Err(Some(since + *after));
        }
        let before = unit.output[..index].iter().filter(|(_, of, _)| of == stream);
        Ok(Some(OutputChunk {
            stream: *stream,
            offset: before.map(|(_, _, bytes)| bytes.len() as u64).sum(),
            time_ms: i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
            bytes: bytes.clone(),
            next_cursor: self.cursor + 1,
        }))
    }
}

#[async_trait]
impl OutputSource for FakeOutput {
    async fn next(&mut self) -> Result<Option<OutputChunk>, Error> {
        let mut changes = self.world.changes.subscribe();
        loop {
            match self.look() {
                Ok(chunk) => {
                    if let Some(chunk) = &chunk {
                        self.cursor = chunk.next_cursor;
                    }
                    return Ok(chunk);
                }
                Err(until) => self.world.wait(&mut changes, until).await,
            }
        }
    }
}

impl FakeSandbox {
    fn home(&self, name: &str) -> Home {
        let lease_file = PathBuf::from(format!("/leases/{name}"));
        let (world, file) = (Arc::clone(&self.world), lease_file.clone());
        let lease: LeaseWriter = Arc::new(move |until| {
            // What has ended by the old deadline stays ended.
            world.now_state().leases.insert(file.clone(), until);
            world.changed();
            Ok(())
        });
        Home {
            name: name.to_owned(),
            workspace: PathBuf::from(format!("/workspaces/{name}")),
            identity: Identity { uid: 1_900_000_000, gid: 1_900_000_000 },
            lease_until: self.world.state().leases.get(&lease_file).copied().unwrap_or_default(),
            lease_file,
            lease,
        }
    }
}

#[async_trait]
impl Workspaces for FakeSandbox {
    async fn create(
        &self,
        name: &str,
        placements: Vec<Placement>,
        _quota: Option<DiskQuota>,
        lease_until: Duration,
    ) -> Result<Home, Error> {
        {
            let mut state = self.world.now_state();
            state.homes.insert(name.to_owned(), FakeHome { placements, ..FakeHome::default() });
            state.leases.insert(PathBuf::from(format!("/leases/{name}")), lease_until);
        }
        Ok(self.home(name))
    }

    async fn open(&self, name: &str) -> Result<Option<Home>, Error> {
        let exists = self.world.now_state().homes.contains_key(name);
        Ok(exists.then(|| self.home(name)))
    }

    async fn write_script(&self, home: &Home, step: u32, source: &str) -> Result<(), Error> {
        if let Some(home) = self.world.state().homes.get_mut(&home.name) {
            home.scripts.insert(step, source.to_owned());
        }
        Ok(())
    }

    async fn hand_over(&self, home: &Home, step: u32, secrets: StepSecrets) -> Result<Handed, Error> {
        let place = |what: &str| PathBuf::from(format!("/memory/{}/{step}/{what}", home.name));
        let handed = Handed {
            folder: (!secrets.files.is_empty()).then(|| place("files")),
            environment: (!secrets.environment.is_empty()).then(|| place("environment")),
        };
        if let Some(home) = self.world.state().homes.get_mut(&home.name) {
            home.secrets.insert(step, secrets);
        }
        Ok(handed)
    }

    async fn take_back(&self, home: &Home, step: u32) -> Result<(), Error> {
        if let Some(home) = self.world.state().homes.get_mut(&home.name) {
            home.secrets.remove(&step);
        }
        Ok(())
    }

    async fn artifacts(&self, home: &Home) -> Result<Option<Left>, Error> {
        let state = self.world.state();
        if let Some(begun) = state.endless.get(&home.name).map(Arc::clone) {
            return Ok(Some(Box::new(std::iter::repeat_with(move || {
                begun.store(true, Ordering::SeqCst);
                visited(("pipe".to_owned(), Vec::new()))
            }))));
        }
        // They go with the home.
        let left = state.artifacts.get(&home.name).filter(|_| state.homes.contains_key(&home.name));
        Ok(left.cloned().map(|left| Box::new(left.into_iter().map(visited)) as Left))
    }

    async fn remove(&self, name: &str) -> Result<(), Error> {
        let mut state = self.world.now_state();
        state.homes.remove(name);
        state.leases.remove(&PathBuf::from(format!("/leases/{name}")));
        Ok(())
    }

    async fn list(&self) -> Result<Vec<String>, Error> {
        Ok(self.world.state().homes.keys().cloned().collect())
    }
}

/// A file in memory, as one of a workspace is found.
fn visited((path, content): (String, Vec<u8>)) -> Visited {
    use std::io::{Seek as _, Write as _};
    if content.is_empty() {
        return Visited::Refused {
            path: path.into_bytes(),
            size: 0,
            problem: "it is a named pipe".to_owned(),
        };
    }
    let memory = rustix::fs::memfd_create("artifact", rustix::fs::MemfdFlags::CLOEXEC);
    let mut file = std::fs::File::from(memory.expect("the kernel has files in memory"));
    let written = file.write_all(&content).and_then(|()| file.rewind());
    written.expect("a file in memory takes what it is given");
    Visited::File { path, file, size: content.len() as u64 }
}
