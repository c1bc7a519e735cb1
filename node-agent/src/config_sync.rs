//! The node's configuration: fetched, checked against the host, kept on disk, put in force, acknowledged.
//!
//! ```text
//! long poll ──► read ──► check against the host ──► open Worker API ──► keep on disk ──► swap ──► ack applied
//!                 └──────────────┴── ack failed with the reason; what was in force stays, over restarts too
//! ```
//!
//! What could not be applied is tried again after each poll: the disk may have room again, a missing path be there.
//!
//! Versions are numbers that only grow: an older one is ignored, `10` is newer than `9`. They grow within one object of the
//! node: one that was deleted and made again begins anew, and so does a controller that was taken back to a backup. Such a
//! version is applied in the first case, and in the second acknowledged as failed, so that somebody sees it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::watch;
use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use tokio::time::Instant;
use windlass_crds::node_config::DispatchMode;
use windlass_crds::protocol::{
    AckError, AckStatus, ConfigAck, Configuration, ResourceLimits, SandboxCapability, VERSION,
    parse_config_version,
};

use crate::backoff::Backoff;
use crate::capabilities::sha256_text;
use crate::client::ControllerClient;
use crate::clock::Clock;
use crate::fs::AgentFs;
use crate::ids::IdSource;
use crate::session::SessionHandle;
use crate::worker_api::WorkerApi;

const PATH: &str = "config/last-good.json";
/// How long the controller may hold a poll; below the 60 s after which middleboxes drop silent connections.
const POLL: Duration = Duration::from_secs(30);
/// An empty answer to a poll that comes sooner than this means that the controller is going down or confused; asking
/// again at once would be a storm.
const TOO_SOON: Duration = Duration::from_secs(1);

/// The configuration that is in force. Cheap to share.
#[derive(Clone, Default)]
pub(crate) struct InForce {
    current: Arc<ArcSwapOption<Applied>>,
}

/// A configuration that has passed the checks.
#[derive(Debug, PartialEq)]
pub(crate) struct Applied {
    pub(crate) number: u64,
    pub(crate) configuration: Configuration,
}

impl Applied {
    /// Whether a configuration is for the same object of the node, so that the versions can be compared.
    fn is_of(&self, payload: &serde_json::Value) -> bool {
        let uid = payload.get("node_uid").and_then(serde_json::Value::as_str);
        uid == self.configuration.node_uid.as_deref()
    }

    /// Whether a configuration is this one, but for the time at which it was issued.
    fn is(&self, payload: &serde_json::Value) -> bool {
        read(payload).is_ok_and(|other| configuration_hash(&other) == configuration_hash(&self.configuration))
    }
}

impl InForce {
    pub(crate) fn get(&self) -> Option<Arc<Applied>> {
        self.current.load_full()
    }

    pub(crate) fn set(&self, applied: Applied) {
        self.current.store(Some(Arc::new(applied)));
    }
}

/// Why the last good configuration cannot be read. A missing one is no error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the last good configuration")]
    Read(#[source] std::io::Error),
}

impl Error {
    /// A stable word for the kind of error.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Read(_) => "config_read",
        }
    }
}

/// What the outside may hear of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConfigState {
    /// The controller has been asked once and what it said has been dealt with.
    pub(crate) fetched: bool,
    /// The version in force.
    pub(crate) version: Option<u64>,
    /// How many attempts run at once, where it says.
    pub(crate) concurrency: Option<u32>,
    /// How jobs reach the node.
    pub(crate) dispatch: DispatchMode,
    /// Why nothing is in force, where that is so.
    pub(crate) failure: Option<String>,
}

/// The task that keeps the configuration current.
pub(crate) struct ConfigSync {
    pub(crate) node: String,
    pub(crate) client: Arc<dyn ControllerClient>,
    pub(crate) session: SessionHandle,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) fs: Arc<dyn AgentFs>,
    pub(crate) sandbox: SandboxCapability,
    pub(crate) in_force: InForce,
    pub(crate) worker_api: WorkerApi,
    pub(crate) state: watch::Sender<ConfigState>,
    /// The newest version by the last heartbeat, which ends a poll that has missed it.
    pub(crate) newest: watch::Receiver<u64>,
}

impl ConfigSync {
    /// Puts the last good configuration in force, if there is one that can be read.
    ///
    /// # Errors
    /// When the file is there and cannot be read. A damaged one is reported in the log and left alone; the controller
    /// has it.
    pub(crate) async fn load_last_good(&self) -> Result<(), Error> {
        let Some(content) = self.fs.read(PATH).await.map_err(Error::Read)? else { return Ok(()) };
        let read: Result<Configuration, _> = serde_json::from_slice(&content);
        match read.map(|configuration| (parse_config_version(&configuration.config_version), configuration)) {
            Ok((Some(number), configuration)) => {
                tracing::info!(config.version = number, "last good configuration in force");
                match self.worker_api.prepare(&configuration).await {
                    Ok(change) => self.worker_api.settle(change, &configuration).await,
                    // It is tried again with the first answer of the controller.
                    Err(error) => tracing::warn!(error = error.message, "the Worker API is not served"),
                }
                self.put_in_force(number, configuration);
            }
            Ok((None, _)) => tracing::warn!("the last good configuration has no version and is not used"),
            Err(error) => {
                tracing::warn!(error = %error, "the last good configuration is damaged and is not used");
            }
        }
        Ok(())
    }

    fn put_in_force(&self, number: u64, configuration: Configuration) {
        let (concurrency, dispatch) = (configuration.node.concurrency, configuration.node.dispatch);
        self.in_force.set(Applied { number, configuration });
        self.state.send_modify(|state| {
            state.version = Some(number);
            state.concurrency = concurrency;
            state.dispatch = dispatch;
            state.failure = None;
        });
    }

    /// Fetches, applies and acknowledges, for ever. The first fetch does not wait for anything newer.
    pub(crate) async fn run(mut self) -> std::convert::Infallible {
        let mut backoff = Backoff::for_controller();
        let mut trouble = None;
        // The newest version that was dealt with in this run, whether it could be applied or not.
        let mut seen = None;
        // The newest one, where it could not be applied. The host may change so that it can, as by making room.
        let mut refused: Option<serde_json::Value> = None;
        let mut node_uid = None;
        loop {
            let session = self.session.ready().await;
            if node_uid != session.node_uid {
                // Another object of the node, whose versions have nothing to do with those seen.
                node_uid.clone_from(&session.node_uid);
                (seen, refused) = (None, None);
            }
            let wait = if seen.is_some() { POLL } else { Duration::ZERO };
            let asked = Instant::now();
            let polled = {
                let newer = |newest: &u64| seen.is_some_and(|seen| *newest > seen);
                // Cancel-safe: a poll that is dropped is asked again. A hint that is wrong costs one more request,
                // since the version is taken as seen by the wait.
                tokio::select! {
                    biased;
                    answer = self.client.configuration(&session, seen, wait) => Some(answer),
                    // Its sender lives in the lease keeper.
                    hint = self.newest.wait_for(newer) => { drop(hint); None }
                }
            };
            let answer = match polled {
                Some(answer) => answer,
                None => self.client.configuration(&session, seen, Duration::ZERO).await,
            };
            match answer {
                Ok(Some(payload)) => {
                    if trouble.take().is_some() {
                        tracing::info!("configurations arrive again");
                    }
                    backoff.reset();
                    match self.take_over(&payload, seen).await {
                        Some((number, status)) => {
                            seen = Some(number);
                            refused = (status == AckStatus::Failed).then_some(payload);
                        }
                        // Ignored or without a version: asking again at once would bring the same.
                        None => tokio::time::sleep(backoff.next(&*self.ids)).await,
                    }
                    self.state.send_modify(|state| state.fetched = true);
                }
                Ok(None) => {
                    trouble = None;
                    self.state.send_modify(|state| state.fetched = true);
                    // Nothing newer than what was asked for: from now on wait for it.
                    seen = Some(seen.unwrap_or_default());
                    if let Some(payload) = &refused
                        && self.try_again(payload).await
                    {
                        refused = None;
                    }
                    if asked.elapsed() < TOO_SOON {
                        tokio::time::sleep(backoff.next(&*self.ids)).await;
                    } else {
                        backoff.reset();
                    }
                }
                Err(error) => {
                    if error.is_unauthorized() {
                        self.session.expired(&session);
                    }
                    if trouble != Some(error.kind()) {
                        trouble = Some(error.kind());
                        tracing::warn!(error = %crate::error_chain(&error), "cannot fetch the configuration; trying again");
                    }
                    tokio::time::sleep(backoff.next(&*self.ids)).await;
                }
            }
        }
    }

    /// Applies a configuration that could not be applied before. Returns whether it could now.
    async fn try_again(&self, payload: &serde_json::Value) -> bool {
        let version = payload.get("config_version").and_then(serde_json::Value::as_str);
        let Some(number) = version.and_then(parse_config_version) else { return true };
        if self.put_through(number, payload).await.is_err() {
            // It was said why when it failed at first.
            return false;
        }
        tracing::info!(config.version = number, "configuration applied after all");
        self.tell(number, AckStatus::Applied, None).await;
        true
    }

    /// Deals with a configuration. Returns its version and what became of it if it was one to deal with.
    async fn take_over(&self, payload: &serde_json::Value, seen: Option<u64>) -> Option<(u64, AckStatus)> {
        let version = payload.get("config_version").and_then(serde_json::Value::as_str);
        let Some(number) = version.and_then(parse_config_version) else {
            tracing::warn!("a configuration without a readable version was ignored");
            return None;
        };
        if seen.is_some_and(|seen| number <= seen) {
            tracing::debug!(config.version = number, "an old configuration was ignored");
            return None;
        }
        let (status, error) = match self.put_through(number, payload).await {
            Ok(()) => {
                tracing::info!(config.version = number, "configuration applied");
                (AckStatus::Applied, None)
            }
            Err(error) => {
                tracing::warn!(
                    config.version = number,
                    reason = error.error_type,
                    error = error.message,
                    "configuration not applied; what was in force stays"
                );
                self.state.send_modify(|state| {
                    if state.version.is_none() {
                        state.failure = Some(error.message.clone());
                    }
                });
                (AckStatus::Failed, Some(error))
            }
        };
        self.tell(number, status, error).await;
        Some((number, status))
    }

    /// Applies a configuration unless it is in force or out of date.
    async fn put_through(&self, number: u64, payload: &serde_json::Value) -> Result<(), AckError> {
        match self.in_force.get().as_deref() {
            Some(applied) if applied.is_of(payload) && number < applied.number => Err(AckError {
                error_type: "OlderVersion".to_owned(),
                message: format!(
                    "config_version: {number} is older than {}, which this node has in force; change the NodeConfig until \
                     its version is higher, or delete the node and let it join again",
                    applied.number
                ),
            }),
            Some(applied) if applied.is(payload) && self.worker_api.is_as(&applied.configuration).await => {
                Ok(())
            }
            Some(_) | None => self.apply(number, payload).await,
        }
    }

    /// Acknowledges a version.
    async fn tell(&self, number: u64, status: AckStatus, error: Option<AckError>) {
        let effective_config_hash =
            self.in_force.get().map(|applied| configuration_hash(&applied.configuration));
        self.acknowledge(ConfigAck {
            version: VERSION,
            node_slug: self.node.clone(),
            config_version: number.to_string(),
            ack_at: self.clock.now(),
            status,
            error,
            effective_config_hash,
        })
        .await;
    }

    async fn apply(&self, number: u64, payload: &serde_json::Value) -> Result<(), AckError> {
        let configuration = read(payload)?;
        check(&configuration, &self.node, &self.sandbox, &|path| path.exists())?;
        let change = self.worker_api.prepare(&configuration).await?;
        let content = serde_json::to_vec(&configuration)
            .expect("a configuration has only string keys and becomes JSON");
        if let Err(error) = self.fs.replace(PATH, content).await {
            self.worker_api.take_back(change).await;
            return Err(AckError {
                error_type: "NotKept".to_owned(),
                message: format!(
                    "the configuration cannot be written to the node's state folder ({error}); make room or repair it"
                ),
            });
        }
        // Before it can be acknowledged: who hears of it may call at once.
        self.worker_api.settle(change, &configuration).await;
        self.put_in_force(number, configuration);
        Ok(())
    }

    /// Tries until the acknowledgement arrives.
    async fn acknowledge(&self, ack: ConfigAck) {
        let mut backoff = Backoff::for_controller();
        let mut trouble = None;
        loop {
            let session = self.session.ready().await;
            let Err(error) = self.client.acknowledge(&session, &ack).await else {
                tracing::info!(config.version = ack.config_version, status = %ack.status, "configuration acknowledged");
                return;
            };
            if error.is_unauthorized() {
                self.session.expired(&session);
            } else if error.is_about_the_body() || error.is_not_found() {
                tracing::warn!(
                    config.version = ack.config_version,
                    error = %crate::error_chain(&error),
                    "the controller does not want the acknowledgement of a configuration"
                );
                return;
            }
            if trouble != Some(error.kind()) {
                trouble = Some(error.kind());
                tracing::warn!(error = %crate::error_chain(&error), "cannot acknowledge the configuration; trying again");
            }
            tokio::time::sleep(backoff.next(&*self.ids)).await;
        }
    }
}

/// Reads a configuration of the version that this agent knows.
fn read(payload: &serde_json::Value) -> Result<Configuration, AckError> {
    let version = payload.get("version").and_then(serde_json::Value::as_u64);
    if version != Some(VERSION.into()) {
        let found = version.map_or("none".to_owned(), |version| version.to_string());
        return Err(AckError {
            error_type: "UnsupportedVersion".to_owned(),
            message: format!(
                "version: {found} is not known to this agent, which knows {VERSION}; update the agent"
            ),
        });
    }
    serde_json::from_value(payload.clone()).map_err(|error| AckError {
        error_type: "Malformed".to_owned(),
        message: format!(
            "the configuration cannot be read ({error}); update the agent or correct the NodeConfig"
        ),
    })
}

/// Whether this host can do what a configuration asks of it. The first thing that it cannot is returned.
pub(crate) fn check(
    configuration: &Configuration,
    node: &str,
    host: &SandboxCapability,
    exists: &dyn Fn(&Path) -> bool,
) -> Result<(), AckError> {
    let fail =
        |error_type: &str, message: String| Err(AckError { error_type: error_type.to_owned(), message });
    if configuration.node_slug != node {
        return fail(
            "WrongNode",
            format!("node_slug: `{}` is not this node, which is `{node}`", configuration.node_slug),
        );
    }
    if configuration.node.concurrency == Some(0) {
        return fail("InvalidValue", "node.concurrency: 0 would run nothing; give 1 or more".to_owned());
    }
    let rules = &configuration.policy.sandbox;
    let or_none = |words: &[String]| if words.is_empty() { "none".to_owned() } else { words.join(", ") };
    let why = if host.lacks.is_empty() { String::new() } else { format!(" ({})", host.lacks.join("; ")) };
    for runtime in &rules.runtimes {
        let word: &str = runtime.into();
        if !host.runtimes.iter().any(|works| works == word) {
            return fail(
                "RuntimeUnavailable",
                format!(
                    "policy.sandbox.runtimes: `{word}` does not work on this host, which has {}{why}; \
                     take it out of the NodeConfig or see `windlass doctor` on the node",
                    or_none(&host.runtimes)
                ),
            );
        }
    }
    for network in &rules.networks {
        let word: &str = network.into();
        if !host.networks.iter().any(|works| works == word) {
            return fail(
                "NetworkUnavailable",
                format!(
                    "policy.sandbox.networks: `{word}` does not work on this host, which has {}{why}; \
                     take it out of the NodeConfig or see `windlass doctor` on the node",
                    or_none(&host.networks)
                ),
            );
        }
    }
    let ResourceLimits {
        cpu_millis,
        memory_bytes,
        pids,
        disk_bytes,
        cpu_weight,
        io_read_bps,
        io_write_bps,
        files,
    } = rules.max;
    let named = [
        ("cpu", "cpu", cpu_millis),
        ("memory", "memory", memory_bytes),
        ("pids", "pids", pids.map(u64::from)),
        ("disk", "disk", disk_bytes),
        ("cpuWeight", "cpu", cpu_weight.map(u64::from)),
        ("ioRead", "io", io_read_bps),
        ("ioWrite", "io", io_write_bps),
        ("files", "files", files.map(u64::from)),
    ];
    for (field, limit, value) in named {
        let Some(value) = value else { continue };
        if value == 0 {
            return fail("InvalidValue", format!("policy.sandbox.max.{field}: 0 would let nothing run"));
        }
        if !host.limits.iter().any(|works| works == limit) {
            return fail(
                "LimitUnenforceable",
                format!(
                    "policy.sandbox.max.{field}: {value} cannot be enforced on this host{why}; take it out of the \
                     NodeConfig or give the agent a writable cgroup, see `windlass doctor` on the node"
                ),
            );
        }
    }
    for host_path in &rules.host_paths {
        let path = Path::new(&host_path.path);
        if !path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
            return fail(
                "InvalidValue",
                format!("policy.sandbox.host_paths: `{}` must be absolute and without `..`", host_path.path),
            );
        }
        if !exists(path) {
            return fail(
                "HostPathMissing",
                format!(
                    "policy.sandbox.host_paths: `{}` does not exist on this host; make it or take it out of the \
                     NodeConfig",
                    host_path.path
                ),
            );
        }
    }
    for folder in &rules.images.folders {
        if !windlass_crds::host_image::is_plain_path(folder) {
            return fail(
                "InvalidValue",
                format!(
                    "policy.sandbox.images.folders: `{folder}` must be absolute and without `..` and `:`"
                ),
            );
        }
        if !exists(Path::new(folder)) {
            return fail(
                "ImageFolderMissing",
                format!(
                    "policy.sandbox.images.folders: `{folder}` does not exist on this host; make it or take it out of the \
                     NodeConfig"
                ),
            );
        }
    }
    if configuration.constraints.max_job_timeout_seconds == Some(0) {
        return fail(
            "InvalidValue",
            "constraints.max_job_timeout_seconds: 0 would end every job at once".to_owned(),
        );
    }
    Ok(())
}

/// `sha256:` and the hash of a configuration, but for the time at which it was issued.
fn configuration_hash(configuration: &Configuration) -> String {
    let steady = Configuration { issued_at: Timestamp::UNIX_EPOCH, ..configuration.clone() };
    sha256_text(&serde_json::to_vec(&steady).expect("a configuration has only string keys and becomes JSON"))
}

#[cfg(test)]
mod tests {
    use windlass_crds::sandbox_job::{HostPath, Network, Runtime};

    use super::*;
    use crate::testing::{capability, configuration};

    fn checked(change: impl FnOnce(&mut Configuration)) -> Result<(), AckError> {
        let mut configuration = configuration("node-1", 1);
        change(&mut configuration);
        check(&configuration, "node-1", &capability(), &|path| path == Path::new("/data"))
    }

    #[test]
    fn what_the_host_cannot_do_is_refused_with_field_value_and_fix() {
        type Change = fn(&mut Configuration);
        let cases: [(&str, &str, Change); 11] = [
            ("WrongNode", "node_slug", |c| c.node_slug = "other".to_owned()),
            ("InvalidValue", "node.concurrency: 0", |c| c.node.concurrency = Some(0)),
            ("RuntimeUnavailable", "policy.sandbox.runtimes: `podman`", |c| {
                c.policy.sandbox.runtimes = vec![Runtime::Native, Runtime::Podman];
            }),
            ("NetworkUnavailable", "policy.sandbox.networks: `Open`", |c| {
                c.policy.sandbox.networks = vec![Network::None, Network::Open];
            }),
            ("LimitUnenforceable", "policy.sandbox.max.disk: 5", |c| {
                c.policy.sandbox.max.disk_bytes = Some(5);
            }),
            ("InvalidValue", "policy.sandbox.max.pids: 0", |c| c.policy.sandbox.max.pids = Some(0)),
            ("ImageFolderMissing", "`/nowhere/images`", |c| {
                c.policy.sandbox.images.folders = vec!["/nowhere/images".to_owned()];
            }),
            ("InvalidValue", "policy.sandbox.images.folders: `images`", |c| {
                c.policy.sandbox.images.folders = vec!["images".to_owned()];
            }),
            ("HostPathMissing", "`/nowhere`", |c| {
                c.policy.sandbox.host_paths = vec![HostPath { path: "/nowhere".to_owned(), read_only: true }];
            }),
            ("InvalidValue", "`/data/../etc`", |c| {
                c.policy.sandbox.host_paths =
                    vec![HostPath { path: "/data/../etc".to_owned(), read_only: true }];
            }),
            ("InvalidValue", "max_job_timeout_seconds: 0", |c| {
                c.constraints.max_job_timeout_seconds = Some(0);
            }),
        ];
        for (error_type, names, change) in cases {
            let error = checked(change).unwrap_err();
            assert_eq!(error.error_type, error_type, "{error:?}");
            assert!(error.message.contains(names), "{error:?}");
        }
    }

    #[test]
    fn what_the_host_can_do_passes() {
        checked(|_| {}).unwrap();
        checked(|c| {
            c.node.concurrency = Some(8);
            c.policy.sandbox.runtimes = vec![Runtime::Native];
            c.policy.sandbox.networks = vec![Network::None];
            c.policy.sandbox.max = ResourceLimits {
                cpu_millis: Some(500),
                memory_bytes: Some(1 << 30),
                pids: Some(64),
                ..ResourceLimits::default()
            };
            c.policy.sandbox.host_paths = vec![HostPath { path: "/data".to_owned(), read_only: true }];
        })
        .unwrap();
    }

    #[test]
    fn a_payload_of_another_version_is_named() {
        let error = read(&serde_json::json!({"version": 2, "config_version": "3"})).unwrap_err();
        assert_eq!(error.error_type, "UnsupportedVersion");
        assert!(error.message.contains("version: 2"), "{error:?}");
        let error = read(&serde_json::json!({"version": 1, "config_version": "3"})).unwrap_err();
        assert_eq!(error.error_type, "Malformed");
    }

    #[test]
    fn the_hash_does_not_depend_on_when_a_configuration_was_issued() {
        let one = configuration("node-1", 1);
        let mut two = one.clone();
        two.issued_at = "2031-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(configuration_hash(&one), configuration_hash(&two));
        two.node.concurrency = Some(3);
        assert_ne!(configuration_hash(&one), configuration_hash(&two));
    }
}
