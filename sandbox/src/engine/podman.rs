//! Podman, over its own API (libpod).

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use podman_api::conn::TtyChunk;
use podman_api::opts::{
    ContainerAttachOpts, ContainerDeleteOpts, ContainerListFilter, ContainerListOpts, ContainerLogsOpts,
    ContainerStopOpts, PullOpts, RegistryAuth,
};
use serde_json::{Value, json};

use super::images::{Credentials, Image, Reference};
use super::named::{Health, Named, NamedAction, NamedState, time};
use super::{
    ALL_GPUS, ContainerPlan, ContainerState, Engine, EngineInfo, EngineKind, LABEL_MADE_FROM, LABEL_OWNER,
    LABEL_PREFIX, LABEL_UNIT, Labelled, Listed, Output, PlannedNetwork, Users, refused, unreachable,
};
use crate::driver::Stream;
use crate::error::Error;
use crate::image::working_dir;

const ENGINE: EngineKind = EngineKind::Podman;
/// The version of the interface that is spoken; later versions of Podman know it.
const API: &str = "v4.0.0";
/// The period that a share of the processor is counted in, in microseconds: the kernel's own default.
const CPU_PERIOD: u64 = 100_000;

/// Podman behind a socket.
pub(crate) struct Podman {
    socket: PathBuf,
    /// Where the seccomp profile is: Podman reads it from a file.
    profile: PathBuf,
    api: podman_api::Podman,
}

impl Podman {
    pub(crate) fn new(socket: &Path, profile: &Path) -> Self {
        Self { socket: socket.to_owned(), profile: profile.to_owned(), api: podman_api::Podman::unix(socket) }
    }

    /// What an error of the API means.
    fn failed(&self, operation: &'static str) -> impl Fn(podman_api::Error) -> Error + '_ {
        move |error| match message_of(&error) {
            Some(message) => refused(ENGINE, operation, message),
            None => unreachable(ENGINE, &self.socket, error.to_string()),
        }
    }

    /// A request that the client has no words for; gives the status and the text of the answer.
    async fn post(&self, path: &str, body: String) -> Result<(hyper::StatusCode, Bytes), Error> {
        let failed =
            |error: Box<dyn std::error::Error + Send + Sync>| unreachable(ENGINE, &self.socket, error);
        let socket =
            tokio::net::UnixStream::connect(&self.socket).await.map_err(|error| failed(error.into()))?;
        let io = hyper_util::rt::TokioIo::new(socket);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(io).await.map_err(|error| failed(error.into()))?;
        let request = hyper::Request::post(format!("/{API}/libpod/{path}"))
            .header(hyper::header::HOST, "podman")
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("the parts of the request are constants, and ids of containers");
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            Ok::<_, hyper::Error>((status, body))
        };
        // Cancel-safe: the connection only carries the exchange on, and ends when that is dropped.
        tokio::select! {
            done = exchange => done.map_err(|error| failed(error.into())),
            ended = connection => {
                let error = ended.err().map_or_else(|| "it closed the connection".into(), Into::into);
                Err(failed(error))
            }
        }
    }

    /// Makes a container. The client has no way to choose what becomes of the output beside the stream that is read here,
    /// and Podman's own default keeps all of it on disk without a limit.
    async fn post_create(&self, spec: &Value) -> Result<String, Error> {
        let (status, body) = self.post("containers/create", spec.to_string()).await?;
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        match answer["Id"].as_str() {
            Some(id) if status.is_success() => Ok(id.to_owned()),
            _ => Err(refused(ENGINE, "make a container", sentence(&body))),
        }
    }

    /// Restarts a container. The client names the time as Docker does, which Podman does not read here: it then kills at once.
    async fn post_restart(&self, id: &str, seconds: u32) -> Result<(), Error> {
        let path = format!("containers/{id}/restart?timeout={seconds}");
        let (status, body) = self.post(&path, String::new()).await?;
        match status.is_success() {
            true => Ok(()),
            false => Err(refused(ENGINE, NamedAction::Restart.operation(), sentence(&body))),
        }
    }
}

/// What Podman itself says, where it has answered.
fn message_of(error: &podman_api::Error) -> Option<String> {
    use podman_api::conn;
    match error {
        podman_api::Error::Fault { message, .. }
        | podman_api::Error::Error(conn::Error::Fault { message, .. }) => Some(said(message)),
        podman_api::Error::InvalidResponse(message) | podman_api::Error::StringError(message) => {
            Some(message.clone())
        }
        podman_api::Error::SerdeJsonError(error) => Some(format!("its answer cannot be read: {error}")),
        _ => None,
    }
}

/// What an answer says that is no success.
fn sentence(body: &[u8]) -> String {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let said = answer["message"].as_str().or(answer["cause"].as_str());
    said.map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned)
}

/// The sentence in an answer that may be JSON.
fn said(message: &str) -> String {
    let parsed: Option<Value> = serde_json::from_str(message).ok();
    let sentence = parsed.as_ref().and_then(|parsed| parsed["message"].as_str());
    sentence.unwrap_or(message).to_owned()
}

/// The status and the text of an answer that says no.
fn fault(error: &podman_api::Error) -> Option<(u16, &str)> {
    match error {
        podman_api::Error::Fault { code, message }
        | podman_api::Error::Error(podman_api::conn::Error::Fault { code, message }) => {
            Some((code.as_u16(), message))
        }
        _ => None,
    }
}

fn is_missing(error: &podman_api::Error) -> bool {
    // One that is removed while it is looked at answers with an error of the service.
    fault(error).is_some_and(|(status, message)| status == 404 || message.contains("no such container"))
}

/// What `podman create` is asked for, in the words of libpod.
fn specification(plan: &ContainerPlan, profile: &Path) -> Value {
    let namespace = |mode: &str| json!({"nsmode": mode});
    let of = |id: &str| json!({"nsmode": "container", "value": id});
    let options = |read_only: bool| {
        let access = if read_only { "ro" } else { "rw" };
        json!(["rbind", access, "nosuid", "nodev", "rprivate"])
    };
    let mut mounts: Vec<Value> = plan
        .binds
        .iter()
        .map(|bind| {
            json!({"type": "bind", "source": bind.source, "destination": bind.target, "options": options(bind.read_only)})
        })
        .collect();
    mounts.extend(plan.scratch.iter().map(|(path, bytes)| {
        let options = [
            "rw".to_owned(),
            "nosuid".to_owned(),
            "nodev".to_owned(),
            "exec".to_owned(),
            "mode=1777".to_owned(),
            format!("size={bytes}"),
            "notmpcopyup".to_owned(),
            // The program's own: a runtime gives the place the mode that it has in the image.
            "U".to_owned(),
        ];
        json!({"type": "tmpfs", "source": "tmpfs", "destination": path, "options": options})
    }));
    let limit = |name: &str, (soft, hard): (u64, u64)| json!({"type": name, "soft": soft, "hard": hard});
    let mut resources = json!({});
    if plan.cpu_millis.is_some() || plan.cpu_shares.is_some() {
        resources["cpu"] = json!({});
        if let Some(millis) = plan.cpu_millis {
            resources["cpu"]["period"] = json!(CPU_PERIOD);
            resources["cpu"]["quota"] = json!(millis * CPU_PERIOD / 1000);
        }
        if let Some(shares) = plan.cpu_shares {
            resources["cpu"]["shares"] = json!(shares);
        }
    }
    if let Some(bytes) = plan.memory_bytes {
        // The second figure is memory and swap together, so that there is no swap.
        resources["memory"] = json!({"limit": bytes, "swap": bytes});
    }
    // Podman has a default of its own, which is not ours.
    resources["pids"] =
        json!({"limit": plan.pids.map_or(-1, |pids| i64::try_from(pids).unwrap_or(i64::MAX))});
    let mut spec = json!({
        "name": plan.name,
        "image": plan.image,
        "command": plan.command,
        "env": plan.env,
        "work_dir": plan.cwd,
        "user": format!("{}:{}", plan.user.0, plan.user.1),
        "hostname": plan.hostname,
        "labels": plan.labels,
        "mounts": mounts,
        "read_only_filesystem": plan.read_only_root,
        "cap_drop": ["all"],
        "no_new_privileges": true,
        "seccomp_profile_path": profile,
        "privileged": false,
        "terminal": false,
        "stdin": false,
        "init": false,
        "systemd": "false",
        "image_volume_mode": "tmpfs",
        "restart_policy": "no",
        "httpproxy": false,
        "log_configuration": match plan.kept_output {
            0 => json!({"driver": "none"}),
            bytes => json!({"driver": "k8s-file", "size": bytes}),
        },
        "pidns": namespace("private"),
        "ipcns": namespace("private"),
        "utsns": namespace("private"),
        "cgroupns": namespace("private"),
        "netns": match &plan.network {
            PlannedNetwork::None => namespace("none"),
            PlannedNetwork::Open => namespace(""),
            PlannedNetwork::Of(id) => of(id),
            PlannedNetwork::Host => namespace("host"),
        },
        "userns": match &plan.users {
            Users::Engine => namespace(""),
            Users::Keep => namespace("keep-id"),
            Users::Of(id) => of(id),
        },
        "r_limits": [limit("nofile", plan.open_files), limit("nproc", plan.processes)],
        "resource_limits": resources,
        "oom_score_adj": plan.oom_score_adj,
    });
    if let Some(entrypoint) = &plan.entrypoint {
        spec["entrypoint"] = json!(entrypoint);
    }
    if matches!(plan.network, PlannedNetwork::Of(_) | PlannedNetwork::Host) {
        // The name is that of the network's owner; the engine refuses another one.
        spec["hostname"] = Value::Null;
    }
    // By the container device interface, whose devices of this vendor are numbered from zero.
    let gpus: Vec<String> = match plan.gpus {
        ALL_GPUS => vec!["nvidia.com/gpu=all".to_owned()],
        count => (0..count).map(|number| format!("nvidia.com/gpu={number}")).collect(),
    };
    let devices: Vec<Value> = gpus.iter().chain(&plan.devices).map(|path| json!({"path": path})).collect();
    if !devices.is_empty() {
        spec["devices"] = json!(devices);
    }
    spec
}

#[async_trait]
impl Engine for Podman {
    async fn info(&self) -> Result<EngineInfo, Error> {
        let info = self.api.info().await.map_err(self.failed("tell about itself"))?;
        let Some(host) = info.host else {
            return Err(refused(ENGINE, "tell about itself", "it says nothing of its host"));
        };
        let runtime = host.oci_runtime.and_then(|runtime| runtime.name);
        Ok(EngineInfo {
            version: info.version.and_then(|version| version.version).unwrap_or_default(),
            rootless: host.security.and_then(|security| security.rootless).unwrap_or(false),
            storage: info.store.and_then(|store| store.graph_driver_name).unwrap_or_default(),
            runtimes: runtime.into_iter().collect(),
            cgroup: host.cgroup_version.unwrap_or_default(),
            controllers: host.cgroup_controllers.unwrap_or_default(),
        })
    }

    async fn image(&self, name: &str) -> Result<Option<Image>, Error> {
        let found = match self.api.images().get(name).inspect().await {
            Ok(found) => found,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(self.failed("look at an image")(error)),
        };
        let mut digests = found.repo_digests.unwrap_or_default();
        digests.extend(found.digest.map(|digest| format!("@{digest}")));
        Ok(Some(Image {
            id: found.id.unwrap_or_default(),
            digests,
            working_dir: working_dir(found.config.as_ref().and_then(|config| config.working_dir.as_deref())),
            env: found.config.and_then(|config| config.env).unwrap_or_default(),
        }))
    }

    async fn pull(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        progress: &mut (dyn FnMut(String) + Send),
    ) -> Result<(), Error> {
        let mut options = PullOpts::builder().reference(reference.to_string());
        if let Some(Credentials { user, password }) = credentials {
            let auth = RegistryAuth::builder().username(user).password(password).build();
            options.auth(auth);
        }
        let options = options.build();
        let images = self.api.images();
        let mut reports = images.pull(&options);
        loop {
            let report = match reports.next().await {
                None => return Ok(()),
                Some(Ok(report)) => report,
                Some(Err(error)) => {
                    // An answer that is no stream comes wrapped in an error of reading.
                    let message = message_of(&error).unwrap_or_else(|| error.to_string());
                    let message = match message.split_once(" - ") {
                        Some((before, after)) if before.starts_with("error ") => said(after),
                        _ => message,
                    };
                    return Err(refused(ENGINE, "fetch an image", message));
                }
            };
            if let Some(error) = report.error {
                return Err(refused(ENGINE, "fetch an image", error));
            }
            if let Some(line) = report.stream {
                progress(line.trim_end().to_owned());
            }
        }
    }

    async fn create(&self, plan: &ContainerPlan) -> Result<String, Error> {
        self.post_create(&specification(plan, &self.profile)).await
    }

    async fn attach(&self, id: &str) -> Result<Output, Error> {
        let container = self.api.containers().get(id);
        let failed = self.failed("attach to a container");
        // There is nothing to attach to before the container's first process waits to be started.
        container.init().await.map_err(self.failed("make a container ready"))?;
        let options = ContainerAttachOpts::builder().stdout(true).stderr(true).stdin(false).build();
        let chunks = container.attach(&options).await.map_err(failed)?;
        let socket = self.socket.clone();
        let output = chunks
            .try_filter_map(|chunk| async move {
                Ok(match chunk {
                    TtyChunk::StdOut(bytes) => Some((Stream::Stdout, bytes)),
                    TtyChunk::StdErr(bytes) => Some((Stream::Stderr, bytes)),
                    TtyChunk::StdIn(_) => None,
                })
            })
            .map_err(move |error| unreachable(ENGINE, &socket, error.to_string()));
        Ok(output.boxed())
    }

    async fn start(&self, id: &str) -> Result<(), Error> {
        self.api.containers().get(id).start(None).await.map_err(self.failed("start a container"))
    }

    async fn inspect(&self, id: &str) -> Result<Option<ContainerState>, Error> {
        let found = match self.api.containers().get(id).inspect().await {
            Ok(found) => found,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(self.failed("look at a container")(error)),
        };
        let labels = found.config.and_then(|config| config.labels);
        let Some(state) = found.state else { return Ok(Some(ContainerState::default())) };
        Ok(Some(ContainerState {
            running: state.running.unwrap_or(false),
            pid: state.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0),
            exit_code: state.exit_code,
            oom_killed: state.oom_killed.unwrap_or(false),
            error: state.error.filter(|error| !error.is_empty()),
            made_from: labels.and_then(|mut labels| labels.remove(LABEL_MADE_FROM)),
        }))
    }

    async fn last_output(&self, id: &str, lines: u32) -> Result<String, Error> {
        let options = ContainerLogsOpts::builder().stdout(true).stderr(true).tail(lines.to_string()).build();
        let container = self.api.containers().get(id);
        let mut chunks = container.logs(&options);
        let mut text = String::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(self.failed("show the output of a container"))?;
            text.push_str(&String::from_utf8_lossy(&chunk));
        }
        Ok(text)
    }

    async fn remove(&self, id: &str) -> Result<(), Error> {
        let options = ContainerDeleteOpts::builder().force(true).volumes(true).timeout(0).build();
        match self.api.containers().get(id).delete(&options).await {
            Ok(()) => Ok(()),
            Err(error) if is_missing(&error) => Ok(()),
            Err(error) => Err(self.failed("remove a container")(error)),
        }
    }

    async fn containers(&self) -> Result<Vec<Listed>, Error> {
        let options = ContainerListOpts::builder().all(true).build();
        let found = self.api.containers().list(&options).await.map_err(self.failed("list containers"))?;
        let listed = |found: podman_api::models::ListContainer| Listed {
            id: found.id.unwrap_or_default(),
            name: found.names.unwrap_or_default().into_iter().next().unwrap_or_default(),
            image: found.image.unwrap_or_default(),
            state: found.state.unwrap_or_default(),
            status: found.status.unwrap_or_default(),
            created_at: found.created.map(|at| at.timestamp()),
        };
        Ok(found.into_iter().map(listed).collect())
    }

    async fn named(&self, name: &str) -> Result<Option<Named>, Error> {
        let found = match self.api.containers().get(name).inspect().await {
            Ok(found) => found,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(self.failed("look at a container")(error)),
        };
        let state = found.state.ok_or_else(|| {
            refused(ENGINE, "look at a container", "it says nothing of the container's state")
        })?;
        let (labels, check) =
            found.config.map(|config| (config.labels, config.healthcheck)).unwrap_or_default();
        let labels = labels.unwrap_or_default();
        let times =
            check.map(|check| [check.interval, check.start_period, check.timeout]).unwrap_or_default();
        let checks =
            state.health.filter(|health| health.status.as_deref().is_some_and(|word| !word.is_empty()));
        let health = checks.map(|health| {
            let last_check = health.log.unwrap_or_default().pop().and_then(|check| time(check.end));
            Health::new(health.status.unwrap_or_default(), last_check, times)
        });
        Ok(Some(Named {
            id: found.id.unwrap_or_default(),
            name: found.name.unwrap_or_default(),
            state: NamedState::of(state.status.as_deref().unwrap_or_default()),
            started_at: time(state.started_at.map(|at| at.to_rfc3339())),
            exit_code: state.exit_code,
            health,
            is_ours: labels.keys().any(|label| label.starts_with(LABEL_PREFIX)),
            auto_remove: found.host_config.and_then(|host| host.auto_remove).unwrap_or_default(),
        }))
    }

    async fn act(&self, id: &str, action: NamedAction, seconds: u32) -> Result<(), Error> {
        let container = self.api.containers().get(id);
        let done = match action {
            NamedAction::Start => container.start(None).await,
            NamedAction::Stop => {
                container.stop(&ContainerStopOpts::builder().timeout(seconds as usize).build()).await
            }
            NamedAction::Restart => return self.post_restart(id, seconds).await,
        };
        match done {
            // It is so already.
            Err(error) if fault(&error).is_some_and(|(status, _)| status == 304) => Ok(()),
            done => done.map_err(self.failed(action.operation())),
        }
    }

    async fn owned(&self, owner: &str) -> Result<Vec<Labelled>, Error> {
        let filter = ContainerListFilter::LabelKeyVal(LABEL_OWNER.to_owned(), owner.to_owned());
        let options = ContainerListOpts::builder().all(true).filter([filter]).build();
        let found = self.api.containers().list(&options).await.map_err(self.failed("list containers"))?;
        let labelled = |found: podman_api::models::ListContainer| {
            let unit = found.labels.and_then(|mut labels| labels.remove(LABEL_UNIT));
            Some(Labelled { id: found.id?, unit })
        };
        Ok(found.into_iter().filter_map(labelled).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::sample;
    use super::*;

    #[test]
    fn nothing_of_the_host_is_asked_for() {
        let spec = specification(&sample(|_| {}), Path::new("/state/seccomp.json"));
        assert_eq!(spec["privileged"], false);
        assert_eq!(spec["no_new_privileges"], true);
        assert_eq!(spec["cap_drop"], json!(["all"]));
        assert_eq!(spec["seccomp_profile_path"], "/state/seccomp.json");
        assert_eq!(spec["user"], "7000:7001");
        for namespace in ["pidns", "ipcns", "utsns", "cgroupns"] {
            assert_eq!(spec[namespace]["nsmode"], "private", "{namespace}");
        }
        assert_eq!(spec["resource_limits"]["memory"], json!({"limit": 64 << 20, "swap": 64 << 20}));
        assert_eq!(spec["resource_limits"]["cpu"], json!({"period": 100_000, "quota": 150_000}));
        assert_eq!(spec["log_configuration"]["driver"], "none");
        assert!(!spec.to_string().contains("host\""), "{spec}");
    }

    #[test]
    fn the_network_words_and_devices_are_podmans() {
        let spec = |change: fn(&mut ContainerPlan)| specification(&sample(change), Path::new("/p"));
        assert_eq!(spec(|_| {})["netns"], json!({"nsmode": "none"}));
        assert_eq!(spec(|plan| plan.network = PlannedNetwork::Open)["netns"], json!({"nsmode": ""}));
        let joined = spec(|plan| {
            plan.network = PlannedNetwork::Of("h".to_owned());
            plan.users = Users::Of("h".to_owned());
            plan.gpus = 2;
        });
        assert_eq!(joined["netns"], json!({"nsmode": "container", "value": "h"}));
        assert_eq!(joined["userns"], joined["netns"]);
        assert!(joined["hostname"].is_null());
        assert_eq!(joined["devices"], json!([{"path": "nvidia.com/gpu=0"}, {"path": "nvidia.com/gpu=1"}]));
        let all = spec(|plan| {
            plan.network = PlannedNetwork::Host;
            plan.gpus = ALL_GPUS;
            plan.devices = vec!["/dev/kfd".to_owned()];
            plan.kept_output = 1 << 20;
        });
        assert_eq!(all["netns"], json!({"nsmode": "host"}));
        assert_eq!(all["devices"], json!([{"path": "nvidia.com/gpu=all"}, {"path": "/dev/kfd"}]));
        assert_eq!(all["log_configuration"], json!({"driver": "k8s-file", "size": 1 << 20}));
        assert_eq!(spec(|plan| plan.users = Users::Keep)["userns"]["nsmode"], "keep-id");
        assert_eq!(spec(|plan| plan.pids = None)["resource_limits"]["pids"]["limit"], -1);
    }
}
