//! Docker, over its own API.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bollard::container::LogOutput;
use bollard::models::{
    ContainerCreateBody, DeviceMapping, DeviceRequest, HealthStatusEnum, HostConfig,
    HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount, MountBindOptions,
    MountBindOptionsPropagationEnum, MountType, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, CreateImageOptionsBuilder,
    ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    RestartContainerOptionsBuilder, StopContainerOptionsBuilder,
};
use futures::{StreamExt, TryStreamExt};

use super::images::{Credentials, Image, Reference};
use super::named::{Health, Named, NamedAction, NamedState, time};
use super::{
    ALL_GPUS, ContainerPlan, ContainerState, Engine, EngineInfo, EngineKind, LABEL_MADE_FROM, LABEL_OWNER,
    LABEL_PREFIX, LABEL_UNIT, Labelled, Listed, Output, PlannedNetwork, Users, refused, unreachable,
};
use crate::driver::Stream;
use crate::error::Error;
use crate::image::working_dir;

const ENGINE: EngineKind = EngineKind::Docker;
/// How long an answer that is no stream may take, in seconds; removing a large container is the slowest.
const PATIENCE: u64 = 120;
/// The period that a share of the processor is counted in, in microseconds: the kernel's own default.
const CPU_PERIOD: i64 = 100_000;

/// Docker behind a socket.
pub(crate) struct Docker {
    socket: PathBuf,
    /// Where the seccomp profile is: Docker takes its text.
    profile: PathBuf,
    api: bollard::Docker,
}

impl Docker {
    pub(crate) fn new(socket: &Path, profile: &Path) -> Result<Self, Error> {
        let path = socket.to_str().unwrap_or_default();
        let api = bollard::Docker::connect_with_unix(path, PATIENCE, bollard::API_DEFAULT_VERSION)
            .map_err(|error| unreachable(ENGINE, socket, error))?;
        Ok(Self { socket: socket.to_owned(), profile: profile.to_owned(), api })
    }

    /// Speaks the version of the interface that the daemon knows.
    async fn api(&self) -> Result<bollard::Docker, Error> {
        self.api.clone().negotiate_version().await.map_err(self.failed("agree on a version"))
    }

    /// What an error of the API means.
    fn failed(&self, operation: &'static str) -> impl Fn(bollard::errors::Error) -> Error + '_ {
        use bollard::errors::Error as Failure;
        move |error| match error {
            Failure::DockerResponseServerError { message, .. } => refused(ENGINE, operation, message),
            Failure::DockerStreamError { error } => refused(ENGINE, operation, error),
            Failure::JsonDataError { message, .. } => {
                refused(ENGINE, operation, format!("its answer cannot be read: {message}"))
            }
            error => unreachable(ENGINE, &self.socket, error),
        }
    }
}

/// The first name, without the slash that the API puts before it.
fn name_of(names: Option<Vec<String>>) -> String {
    let first = names.unwrap_or_default().into_iter().next().unwrap_or_default();
    first.trim_start_matches('/').to_owned()
}

fn is(error: &bollard::errors::Error, status: u16) -> bool {
    matches!(error, bollard::errors::Error::DockerResponseServerError { status_code, .. } if *status_code == status)
}

/// A figure as the API has it.
fn figure(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// What `docker create` is asked for.
fn specification(plan: &ContainerPlan, profile: &str) -> ContainerCreateBody {
    let mounts = plan.binds.iter().map(|bind| Mount {
        target: Some(bind.target.clone()),
        source: bind.source.to_str().map(str::to_owned),
        typ: Some(MountType::BIND),
        read_only: Some(bind.read_only),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            ..MountBindOptions::default()
        }),
        ..Mount::default()
    });
    let tmpfs: HashMap<String, String> = plan
        .scratch
        .iter()
        .map(|(path, bytes)| {
            // The program's own: a runtime gives the place the mode that it has in the image.
            let (uid, gid) = plan.user;
            (path.clone(), format!("rw,nosuid,nodev,exec,mode=1777,uid={uid},gid={gid},size={bytes}"))
        })
        .collect();
    let limit = |name: &str, (soft, hard): (u64, u64)| ResourcesUlimits {
        name: Some(name.to_owned()),
        // No limit is written as -1.
        soft: Some(i64::try_from(soft).unwrap_or(-1)),
        hard: Some(i64::try_from(hard).unwrap_or(-1)),
    };
    let joins = matches!(plan.network, PlannedNetwork::Of(_) | PlannedNetwork::Host);
    let (paths, names): (Vec<&String>, Vec<&String>) =
        plan.devices.iter().partition(|device| device.starts_with('/'));
    let device = |path: &String| DeviceMapping {
        path_on_host: Some(path.clone()),
        path_in_container: Some(path.clone()),
        cgroup_permissions: Some("rw".to_owned()),
    };
    let mut requests = Vec::new();
    if plan.gpus > 0 {
        requests.push(DeviceRequest {
            count: Some(if plan.gpus == ALL_GPUS { -1 } else { i64::from(plan.gpus) }),
            capabilities: Some(vec![vec!["gpu".to_owned()]]),
            ..DeviceRequest::default()
        });
    }
    if !names.is_empty() {
        requests.push(DeviceRequest {
            driver: Some("cdi".to_owned()),
            device_ids: Some(names.into_iter().cloned().collect()),
            ..DeviceRequest::default()
        });
    }
    let host = HostConfig {
        cpu_shares: plan.cpu_shares.map(figure),
        cpu_period: plan.cpu_millis.map(|_| CPU_PERIOD),
        cpu_quota: plan.cpu_millis.map(|millis| figure(millis) * CPU_PERIOD / 1000),
        memory: plan.memory_bytes.map(figure),
        // Memory and swap together, so that there is no swap.
        memory_swap: plan.memory_bytes.map(figure),
        pids_limit: Some(plan.pids.map_or(-1, figure)),
        ulimits: Some(vec![limit("nofile", plan.open_files), limit("nproc", plan.processes)]),
        mounts: Some(mounts.collect()),
        tmpfs: Some(tmpfs),
        readonly_rootfs: Some(plan.read_only_root),
        network_mode: Some(match &plan.network {
            PlannedNetwork::None => "none".to_owned(),
            PlannedNetwork::Open => "bridge".to_owned(),
            PlannedNetwork::Of(id) => format!("container:{id}"),
            PlannedNetwork::Host => "host".to_owned(),
        }),
        // A user namespace is the daemon's own affair; where it has one, it is for all containers.
        userns_mode: match &plan.users {
            Users::Engine | Users::Keep | Users::Of(_) => None,
        },
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned(), format!("seccomp={profile}")]),
        privileged: Some(false),
        ipc_mode: Some("private".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        init: Some(false),
        log_config: Some(match plan.kept_output {
            0 => HostConfigLogConfig { typ: Some("none".to_owned()), config: None },
            bytes => {
                let options = [("max-size", bytes.to_string()), ("max-file", "1".to_owned())];
                let options = options.map(|(name, value)| (name.to_owned(), value)).into();
                HostConfigLogConfig { typ: Some("json-file".to_owned()), config: Some(options) }
            }
        }),
        devices: (!paths.is_empty()).then(|| paths.into_iter().map(device).collect()),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        oom_score_adj: Some(i64::from(plan.oom_score_adj)),
        device_requests: (!requests.is_empty()).then_some(requests),
        ..HostConfig::default()
    };
    ContainerCreateBody {
        image: Some(plan.image.clone()),
        entrypoint: plan.entrypoint.clone(),
        cmd: (!plan.command.is_empty() || plan.entrypoint.is_some()).then(|| plan.command.clone()),
        env: Some(plan.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        working_dir: Some(plan.cwd.clone()),
        user: Some(format!("{}:{}", plan.user.0, plan.user.1)),
        // The name is that of the network's owner; the engine refuses another one.
        hostname: (!joins).then(|| plan.hostname.clone()),
        labels: Some(plan.labels.clone().into_iter().collect()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}

#[async_trait]
impl Engine for Docker {
    async fn info(&self) -> Result<EngineInfo, Error> {
        let api = self.api().await?;
        let info = api.info().await.map_err(self.failed("tell about itself"))?;
        let security = info.security_options.unwrap_or_default();
        let mut runtimes: Vec<String> = info.runtimes.unwrap_or_default().into_keys().collect();
        runtimes.sort();
        let can = [("cpu", info.cpu_cfs_quota), ("memory", info.memory_limit), ("pids", info.pids_limit)];
        Ok(EngineInfo {
            version: info.server_version.unwrap_or_default(),
            rootless: security.iter().any(|option| option.contains("name=rootless")),
            storage: info.driver.unwrap_or_default(),
            runtimes,
            cgroup: info.cgroup_version.map(|version| format!("v{version}")).unwrap_or_default(),
            controllers: can
                .into_iter()
                .filter(|(_, can)| *can == Some(true))
                .map(|(name, _)| name.to_owned())
                .collect(),
        })
    }

    async fn image(&self, name: &str) -> Result<Option<Image>, Error> {
        let found = match self.api().await?.inspect_image(name).await {
            Ok(found) => found,
            Err(error) if is(&error, 404) => return Ok(None),
            Err(error) => return Err(self.failed("look at an image")(error)),
        };
        Ok(Some(Image {
            id: found.id.unwrap_or_default(),
            digests: found.repo_digests.unwrap_or_default(),
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
        let options = CreateImageOptionsBuilder::default().from_image(&reference.to_string()).build();
        let credentials =
            credentials.map(|Credentials { user, password }| bollard::auth::DockerCredentials {
                username: Some(user.clone()),
                password: Some(password.clone()),
                serveraddress: Some(reference.registry().to_owned()),
                ..Default::default()
            });
        let api = self.api().await?;
        let mut reports = api.create_image(Some(options), None, credentials);
        while let Some(report) = reports.next().await {
            let report = report.map_err(self.failed("fetch an image"))?;
            if let Some(error) = report.error_detail.and_then(|detail| detail.message) {
                return Err(refused(ENGINE, "fetch an image", error));
            }
            if let Some(status) = report.status {
                let layer = report.id.map(|id| format!("{id}: ")).unwrap_or_default();
                progress(format!("{layer}{status}"));
            }
        }
        Ok(())
    }

    async fn create(&self, plan: &ContainerPlan) -> Result<String, Error> {
        let profile = std::fs::read_to_string(&self.profile).map_err(Error::io("read", &self.profile))?;
        let options = CreateContainerOptionsBuilder::default().name(&plan.name).build();
        let made = self.api().await?.create_container(Some(options), specification(plan, &profile)).await;
        made.map(|made| made.id).map_err(self.failed("make a container"))
    }

    async fn attach(&self, id: &str) -> Result<Output, Error> {
        let options = AttachContainerOptionsBuilder::default().stdout(true).stderr(true).stream(true).build();
        let attached = self.api().await?.attach_container(id, Some(options)).await;
        let attached = attached.map_err(self.failed("attach to a container"))?;
        let socket = self.socket.clone();
        let output = attached
            .output
            .try_filter_map(|chunk| async move {
                Ok(match chunk {
                    LogOutput::StdOut { message } => Some((Stream::Stdout, message.to_vec())),
                    LogOutput::StdErr { message } => Some((Stream::Stderr, message.to_vec())),
                    LogOutput::StdIn { .. } | LogOutput::Console { .. } => None,
                })
            })
            .map_err(move |error| unreachable(ENGINE, &socket, error));
        Ok(output.boxed())
    }

    async fn start(&self, id: &str) -> Result<(), Error> {
        let started = self.api().await?.start_container(id, None).await;
        started.map_err(self.failed("start a container"))
    }

    async fn inspect(&self, id: &str) -> Result<Option<ContainerState>, Error> {
        let found = match self.api().await?.inspect_container(id, None).await {
            Ok(found) => found,
            Err(error) if is(&error, 404) => return Ok(None),
            Err(error) => return Err(self.failed("look at a container")(error)),
        };
        let labels = found.config.and_then(|config| config.labels);
        let state = found.state.unwrap_or_default();
        Ok(Some(ContainerState {
            running: state.running.unwrap_or(false),
            pid: state.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0),
            exit_code: state.exit_code.and_then(|code| i32::try_from(code).ok()),
            oom_killed: state.oom_killed.unwrap_or(false),
            error: state.error.filter(|error| !error.is_empty()),
            made_from: labels.and_then(|mut labels| labels.remove(LABEL_MADE_FROM)),
        }))
    }

    async fn last_output(&self, id: &str, lines: u32) -> Result<String, Error> {
        let options =
            LogsOptionsBuilder::default().stdout(true).stderr(true).tail(&lines.to_string()).build();
        let api = self.api().await?;
        let mut chunks = api.logs(id, Some(options));
        let mut text = String::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(self.failed("show the output of a container"))?;
            text.push_str(&String::from_utf8_lossy(&chunk.into_bytes()));
        }
        Ok(text)
    }

    async fn remove(&self, id: &str) -> Result<(), Error> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.api().await?.remove_container(id, Some(options)).await {
            Ok(()) => Ok(()),
            // Gone, or being removed by somebody else.
            Err(error) if is(&error, 404) || is(&error, 409) => Ok(()),
            Err(error) => Err(self.failed("remove a container")(error)),
        }
    }

    async fn containers(&self) -> Result<Vec<Listed>, Error> {
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let found = self.api().await?.list_containers(Some(options)).await;
        let listed = |found: bollard::models::ContainerSummary| Listed {
            id: found.id.unwrap_or_default(),
            name: name_of(found.names),
            image: found.image.unwrap_or_default(),
            state: found.state.map(|state| state.to_string()).unwrap_or_default(),
            status: found.status.unwrap_or_default(),
            created_at: found.created,
        };
        Ok(found.map_err(self.failed("list containers"))?.into_iter().map(listed).collect())
    }

    async fn named(&self, name: &str) -> Result<Option<Named>, Error> {
        let found = match self.api().await?.inspect_container(name, None).await {
            Ok(found) => found,
            Err(error) if is(&error, 404) => return Ok(None),
            Err(error) => return Err(self.failed("look at a container")(error)),
        };
        let state = found.state.unwrap_or_default();
        let config = found.config.unwrap_or_default();
        let labels = config.labels.unwrap_or_default();
        let check = config.healthcheck.unwrap_or_default();
        let checks = state.health.filter(|health| {
            !matches!(health.status, None | Some(HealthStatusEnum::EMPTY | HealthStatusEnum::NONE))
        });
        let health = checks.map(|health| {
            let word = health.status.map(|word| word.to_string()).unwrap_or_default();
            let last_check = health.log.unwrap_or_default().pop().and_then(|check| time(check.end));
            Health::new(word, last_check, [check.interval, check.start_period, check.timeout])
        });
        Ok(Some(Named {
            id: found.id.unwrap_or_default(),
            name: found.name.unwrap_or_default().trim_start_matches('/').to_owned(),
            state: NamedState::of(&state.status.map(|word| word.to_string()).unwrap_or_default()),
            started_at: time(state.started_at),
            exit_code: state.exit_code.and_then(|code| i32::try_from(code).ok()),
            health,
            is_ours: labels.keys().any(|label| label.starts_with(LABEL_PREFIX)),
            auto_remove: found.host_config.and_then(|host| host.auto_remove).unwrap_or_default(),
        }))
    }

    async fn act(&self, id: &str, action: NamedAction, seconds: u32) -> Result<(), Error> {
        // The engine answers when it is done, which takes as long as the container takes to stop.
        let patience = Duration::from_secs(PATIENCE + u64::from(seconds));
        let mut api = self.api().await?;
        api.set_timeout(patience);
        let seconds = i32::try_from(seconds).unwrap_or(i32::MAX);
        let done = match action {
            NamedAction::Start => api.start_container(id, None).await,
            NamedAction::Stop => {
                api.stop_container(id, Some(StopContainerOptionsBuilder::new().t(seconds).build())).await
            }
            NamedAction::Restart => {
                api.restart_container(id, Some(RestartContainerOptionsBuilder::new().t(seconds).build()))
                    .await
            }
        };
        match done {
            // It is so already.
            Err(error) if is(&error, 304) => Ok(()),
            done => done.map_err(self.failed(action.operation())),
        }
    }

    async fn owned(&self, owner: &str) -> Result<Vec<Labelled>, Error> {
        let filters = HashMap::from([("label".to_owned(), vec![format!("{LABEL_OWNER}={owner}")])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = self.api().await?.list_containers(Some(options)).await;
        let found = found.map_err(self.failed("list containers"))?;
        let labelled = |found: bollard::models::ContainerSummary| {
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
        let body = specification(&sample(|_| {}), "{}");
        let host = body.host_config.unwrap();
        assert_eq!((host.privileged, host.readonly_rootfs), (Some(false), Some(true)));
        assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
        assert_eq!(host.security_opt.unwrap(), ["no-new-privileges", "seccomp={}"]);
        assert_eq!((host.pid_mode, host.uts_mode, host.userns_mode), (None, None, None));
        assert_eq!(host.ipc_mode.as_deref(), Some("private"));
        assert_eq!((host.memory, host.memory_swap), (Some(64 << 20), Some(64 << 20)));
        assert_eq!((host.cpu_period, host.cpu_quota), (Some(100_000), Some(150_000)));
        let limits: Vec<_> =
            host.ulimits.unwrap().into_iter().map(|limit| (limit.soft, limit.hard)).collect();
        assert_eq!(limits, [(Some(64), Some(64)), (Some(100), Some(-1))]);
        assert_eq!(host.log_config.unwrap().typ.as_deref(), Some("none"));
        assert_eq!((body.user.as_deref(), body.hostname.as_deref()), (Some("7000:7001"), Some("job")));
    }

    #[test]
    fn the_network_words_and_devices_are_dockers() {
        let host = |change: fn(&mut ContainerPlan)| specification(&sample(change), "{}").host_config.unwrap();
        assert_eq!(host(|_| {}).network_mode.as_deref(), Some("none"));
        let open = host(|plan| plan.network = PlannedNetwork::Open);
        assert_eq!(open.network_mode.as_deref(), Some("bridge"));
        let joined = host(|plan| {
            plan.network = PlannedNetwork::Of("h".to_owned());
            plan.gpus = 2;
        });
        assert_eq!(joined.network_mode.as_deref(), Some("container:h"));
        let all = host(|plan| {
            plan.network = PlannedNetwork::Host;
            plan.gpus = ALL_GPUS;
            plan.devices = vec!["/dev/kfd".to_owned()];
            plan.kept_output = 1 << 20;
        });
        assert_eq!(all.network_mode.as_deref(), Some("host"));
        assert_eq!(all.device_requests.unwrap()[0].count, Some(-1));
        assert_eq!(all.devices.unwrap()[0].path_on_host.as_deref(), Some("/dev/kfd"));
        assert_eq!(all.log_config.unwrap().config.unwrap()["max-size"], "1048576");
        let amd = host(|plan| plan.devices = vec!["amd.com/gpu=0".to_owned()]);
        let [request] = &amd.device_requests.unwrap()[..] else { panic!("one request") };
        assert_eq!(request.driver.as_deref(), Some("cdi"));
        assert_eq!(request.device_ids.as_deref(), Some(&["amd.com/gpu=0".to_owned()][..]));
        assert_eq!(amd.devices, None);
        let [gpus] = &joined.device_requests.unwrap()[..] else { panic!("one request") };
        assert_eq!(
            (gpus.count, gpus.capabilities.as_deref()),
            (Some(2), Some(&[vec!["gpu".to_owned()]][..]))
        );
    }

    #[test]
    fn the_images_own_command_stays_unless_something_takes_its_place() {
        let own = sample(|plan| {
            plan.entrypoint = None;
            plan.command.clear();
        });
        assert_eq!(specification(&own, "{}").cmd, None);
        let given = sample(|plan| plan.command.clear());
        assert_eq!(specification(&given, "{}").cmd, Some(Vec::new()));
    }
}
