//! Starts a real agent on this host: from settings to running, in the order that the log shows.

pub(crate) mod engines;

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use sha2::Digest as _;
use strum::IntoEnumIterator as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::Instrument as _;
use url::Url;
use windlass_crds::protocol::{Bootstrap, SandboxCapability};
use windlass_sandbox::doctor::{self, Outcome};
use windlass_sandbox::engine::EngineKind;
use windlass_sandbox::{Drivers, Features, LimitName, Native, SandboxConfig};

use crate::agent::{self, Agent, AgentParts, KeeperHost, Settings, Stop};
use crate::args::AgentArgs;
use crate::capabilities::SystemHost;
use crate::client::{Authority, BuildError, ControllerClient, HttpClient, TlsError};
use crate::clock::{Clock, SystemClock};
use crate::executor::egress::Egress;
use crate::fs::DiskFs;
use crate::identity::{self, Enrolment, Identity};
use crate::ids::{IdSource, SystemIds};
use crate::memory::MemoryFolder;
use crate::plugins::Registry;
use crate::registration::{self, JoinSecret, OnRegistered};
use crate::status::AgentStatus;
use crate::token::{self, JoinToken};
use crate::vault::{self, NodeKey};
use crate::worker_api::TlsHost;
use crate::workspaces::HostWorkspaces;

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no folder to keep the state in.
    #[error("there is no home folder for the agent's state; give one with --state-dir")]
    NoStateDir,
    /// The state folder cannot be used.
    #[error("cannot {operation} {}; give another folder with --state-dir", path.display())]
    State {
        /// What was tried.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another agent has the state folder.
    #[error("another agent uses the state folder {}; stop it, or give this one its own with --state-dir", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The file with the join token cannot be read.
    #[error("cannot read the join token in {}", path.display())]
    JoinFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The join token is none.
    #[error(transparent)]
    Token(#[from] token::Error),
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The node has never joined, and there is no token.
    #[error(
        "this node has not joined yet: start it once with --join and a token of `windlass join-token create`"
    )]
    NotJoined,
    /// The client of the controller cannot be made.
    #[error(transparent)]
    Client(#[from] BuildError),
    /// What is known of the controller is broken.
    #[error(
        "what is known of the controller in {} is broken; join again with a token of `windlass join-token create`",
        path.display()
    )]
    BrokenEnrolment {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The sandbox cannot be opened.
    #[error("the sandbox cannot be opened")]
    Sandbox(#[source] windlass_sandbox::Error),
    /// The node's key cannot be used.
    #[error(transparent)]
    NodeKey(#[from] vault::Error),
    /// The host does not tell which run of it this is.
    #[error("cannot read /proc/sys/kernel/random/boot_id")]
    Clock(#[source] io::Error),
}

impl Error {
    /// Whether the command line or the environment is wrong, and nothing else.
    pub const fn is_usage(&self) -> bool {
        match self {
            Self::NoStateDir | Self::JoinFile { .. } | Self::Token(_) | Self::NotJoined => true,
            Self::State { .. }
            | Self::InUse { .. }
            | Self::Identity(_)
            | Self::Client(_)
            | Self::BrokenEnrolment { .. }
            | Self::Sandbox(_)
            | Self::NodeKey(_)
            | Self::Clock(_) => false,
        }
    }

    /// A stable word for the kind of error.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::NoStateDir => "no_state_dir",
            Self::State { .. } => "state_dir",
            Self::InUse { .. } => "state_dir_in_use",
            Self::JoinFile { .. } => "join_file",
            Self::Token(error) => error.kind(),
            Self::Identity(error) => error.kind(),
            Self::NotJoined => "not_joined",
            Self::Client(_) => "client",
            Self::BrokenEnrolment { .. } => "broken_enrolment",
            Self::Sandbox(_) => "sandbox",
            Self::NodeKey(_) => "node_key",
            Self::Clock(_) => "clock",
        }
    }
}

/// An agent that runs.
pub struct RunningAgent {
    status: watch::Receiver<AgentStatus>,
    task: JoinHandle<Result<(), agent::Error>>,
}

impl RunningAgent {
    /// Follows what the agent says of itself.
    pub fn status(&self) -> watch::Receiver<AgentStatus> {
        self.status.clone()
    }

    /// Waits until the agent has ended, because it was told to or because it cannot go on. Dropping the future stops
    /// the agent as a crash would.
    ///
    /// # Errors
    /// Why it cannot go on.
    pub async fn stopped(mut self) -> Result<(), agent::Error> {
        match (&mut self.task).await {
            Ok(result) => result,
            Err(error) => Err(agent::Error::Panicked(error)),
        }
    }
}

impl Drop for RunningAgent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agent {
    /// Starts an agent on this host. It runs when this returns, whether the controller can be reached or not.
    ///
    /// The program's `main` must begin with [`crate::run_if_requested`].
    ///
    /// # Errors
    /// When the state folder, the identity, the join token or the sandbox cannot be used.
    pub async fn start(args: AgentArgs, stop: watch::Receiver<Stop>) -> Result<RunningAgent, Error> {
        let state = state_dir(args.state_dir.as_deref())?;
        let lock = lock(&state)?;
        tracing::info!(path = %state.display(), "state folder ready");

        let token = join_token(&args)?;
        let identity_dir = state.join("identity");
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let identity = Identity::load_or_create(&identity_dir, args.name.as_deref(), &hostname)?;
        let contact = Contact::choose(token, Enrolment::load(&identity_dir)?, &identity_dir)?;
        let client = Arc::new(HttpClient::new(&contact.url, &contact.authority)?);
        let lease_client = Arc::new(HttpClient::new(&contact.url, &contact.authority)?);

        let mut config = SandboxConfig::new(state.join("sandbox"));
        config.cgroup_parent.clone_from(&args.cgroup_parent);
        let native = Native::open(config).await.map_err(Error::Sandbox)?;
        let mut sandbox = sandbox_capability(&native).await;
        let sockets = [
            (EngineKind::Podman, args.podman_socket.clone()),
            (EngineKind::Docker, args.docker_socket.clone()),
        ];
        let engines = engines::open(&state, &native.config().launcher, sockets, &mut sandbox).await;
        let images = native.images().clone();
        let ids: Arc<dyn IdSource> = Arc::new(SystemIds);
        let memory = MemoryFolder::choose(&args.memory_places(), &state);
        let node_key = node_key(&args, &memory, &ids)?;
        let secrets = memory.map(|memory| memory.secrets());
        if let Err(why) = &secrets {
            tracing::warn!(reason = why, "jobs with secrets cannot run here");
        }
        let workspaces = HostWorkspaces::open_state(&state, native.identities().clone(), secrets)
            .map_err(Error::Sandbox)?;

        let Contact { url, authority: _, join } = contact;
        let egress = Egress::system(url.host_str().map(str::to_owned));
        let worker_api =
            TlsHost::new(state.join("worker-api"), identity.name().to_owned(), hostname, url.clone());
        let on_registered = keep_enrolment(identity_dir, url, join.as_ref(), Arc::clone(&client));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new().map_err(Error::Clock)?);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let settings = Settings {
            labels: args.label_map(),
            concurrency: args.concurrency.unwrap_or_else(|| u32::try_from(cores).unwrap_or(1)),
            least_free_bytes: args.min_free_mib << 20,
            inputs: state.join("inputs"),
            artifacts: state.join("artifacts"),
            artifact_bytes: args.artifacts_mib << 20,
            input_cache_bytes: args.input_cache_mib << 20,
            models: state.join("inference/models"),
            keeper: KeeperHost::OwnThread,
        };
        let agent = Self::build(AgentParts {
            identity,
            join,
            on_registered: Some(on_registered),
            client: client as Arc<dyn ControllerClient>,
            lease_client,
            clock,
            ids,
            fs: Arc::new(DiskFs::new(&state)),
            host: Arc::new(SystemHost::new(&state)),
            driver: Arc::new(Drivers::new(Arc::new(native), engines.clone())),
            sandbox,
            node_key,
            workspaces: Arc::new(workspaces),
            plugins: Registry::built_in(),
            egress,
            engines,
            worker_api: Some(Arc::new(worker_api)),
            images: Some(images),
            settings,
        });
        let status = agent.status();
        let span = tracing::info_span!("agent", node.name = status.borrow().node);
        let run = async move {
            let result = agent.run(stop).await;
            // The folder is free for another agent only when this one has ended.
            drop(lock);
            result
        };
        Ok(RunningAgent { status, task: tokio::spawn(run.instrument(span)) })
    }
}

/// The state folder, made if it is missing. Others may pass through it, as the users of the sandbox must, but what is
/// private in it is closed to them.
fn state_dir(given: Option<&Path>) -> Result<PathBuf, Error> {
    let path = match given {
        Some(path) => path.to_owned(),
        None if rustix::process::geteuid().is_root() => PathBuf::from("/var/lib/windlass/agent"),
        None => std::env::home_dir().ok_or(Error::NoStateDir)?.join(".local/state/windlass/agent"),
    };
    let failed = |operation| {
        let path = path.clone();
        move |source| Error::State { operation, path, source }
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&path).map_err(failed("make folder"))?;
    let path = path.canonicalize().map_err(failed("resolve folder"))?;
    let mode = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(&path, mode).map_err(failed("set permissions of folder"))?;
    for private in ["ledger", "outbox", "config", "inputs", "artifacts", "leases", "results"] {
        identity::make_private_folder(&path.join(private))?;
    }
    Ok(path)
}

/// Takes the state folder for this process.
fn lock(state: &Path) -> Result<File, Error> {
    let path = state.join("lock");
    let failed = |operation| {
        let path = path.clone();
        move |source| Error::State { operation, path, source }
    };
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed("make lock file"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: state.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed("lock")(source)),
    }
}

/// The key that seals what durable files keep of secrets.
fn node_key(
    args: &AgentArgs,
    memory: &Result<MemoryFolder, String>,
    ids: &Arc<dyn IdSource>,
) -> Result<NodeKey, Error> {
    match args.key_file() {
        Some(file) => Ok(NodeKey::read(&file, Arc::clone(ids))?),
        None => {
            let file = memory.as_ref().ok().map(MemoryFolder::key_file);
            Ok(NodeKey::until_reboot(file, Arc::clone(ids)))
        }
    }
}

fn join_token(args: &AgentArgs) -> Result<Option<JoinToken>, Error> {
    let text = match (&args.join, &args.join_file) {
        (Some(token), _) => token.clone(),
        (None, Some(path)) => {
            std::fs::read_to_string(path).map_err(|source| Error::JoinFile { path: path.clone(), source })?
        }
        (None, None) => return Ok(None),
    };
    Ok(Some(text.parse()?))
}

/// How to reach the controller and be let in.
struct Contact {
    url: Url,
    authority: Authority,
    join: Option<JoinSecret>,
}

impl Contact {
    /// By what the node knows of its controller, or by a token: one that names another controller, or another authority,
    /// replaces what is known.
    fn choose(token: Option<JoinToken>, enrolment: Option<Enrolment>, folder: &Path) -> Result<Self, Error> {
        let known = enrolment.map(|enrolment| {
            let broken = |source| Error::BrokenEnrolment { path: folder.to_owned(), source };
            let url = Url::parse(&enrolment.url).map_err(|error| broken(Box::new(error)))?;
            let authority = Authority::from_pem(&enrolment.authorities_pem)
                .map_err(|error: TlsError| broken(Box::new(error)))?;
            Ok::<_, Error>((url, authority, enrolment.joined_with))
        });
        let Some(token) = token else {
            let (url, authority, _) = known.ok_or(Error::NotJoined)??;
            return Ok(Self { url, authority, join: None });
        };
        let secret = token.secret;
        // Broken knowledge of the controller is no hindrance when there is a token.
        if let Some(Ok((url, authority, joined_with))) = known
            && url == token.url
            && authority.holds(&token.authority)
        {
            let used = joined_with.as_deref() == Some(secret_hash(&secret).as_str());
            return Ok(Self { url, authority, join: Some(JoinSecret { secret, used }) });
        }
        let join = Some(JoinSecret { secret, used: false });
        Ok(Self { url: token.url, authority: Authority::Pinned(token.authority), join })
    }
}

fn secret_hash(secret: &str) -> String {
    hex::encode(sha2::Sha256::digest(secret.as_bytes()))
}

/// Keeps what a registration says of the controller, for starts without a token.
fn keep_enrolment(
    folder: PathBuf,
    url: Url,
    join: Option<&JoinSecret>,
    client: Arc<HttpClient>,
) -> OnRegistered {
    let joined_with = join.map(|join| secret_hash(&join.secret));
    Box::new(move |bootstrap: &Bootstrap| {
        let known = Enrolment::load(&folder).map_err(registration::Error::Keep)?;
        let bundle = bootstrap.trust.as_ref().and_then(|trust| trust.ca_bundle_pem.clone());
        if let Some(pem) = &bundle {
            Authority::from_pem(pem).map_err(registration::Error::Authorities)?;
        }
        // Without a bundle the authority that the first handshake found, or what is known already.
        let found = || client.found_authority().map(|der| certificate_pem(&der));
        let before = || known.as_ref().map(|known| known.authorities_pem.clone());
        let Some(authorities_pem) = bundle.or_else(found).or_else(before) else { return Ok(()) };
        let joined_with =
            joined_with.clone().or_else(|| known.as_ref().and_then(|known| known.joined_with.clone()));
        let enrolment = Enrolment { url: url.to_string(), authorities_pem, joined_with };
        if known.as_ref() == Some(&enrolment) {
            return Ok(());
        }
        enrolment.save(&folder).map_err(registration::Error::Keep)
    })
}

fn certificate_pem(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// What the sandbox can do here, in the words of the protocol. Where something is missing, what and why.
async fn sandbox_capability(native: &Native) -> SandboxCapability {
    let features = native.features();
    let mut capability = in_words(&features);
    // Trying everything takes a while, which a host where jobs run need not spend at every start.
    let complete = features.limits.len() == LimitName::iter().count();
    let checks = match (features.supported, complete) {
        (true, true) => Vec::new(),
        (true, false) => doctor::known(native),
        (false, _) => doctor::run(native).await,
    };
    capability.lacks = checks
        .into_iter()
        .filter_map(|check| match check.outcome {
            Outcome::Ok => None,
            Outcome::Degraded { why, fix } | Outcome::Missing { why, fix } => {
                Some(format!("{}: {why}; {fix}", check.title))
            }
        })
        .collect();
    capability
}

fn in_words(features: &Features) -> SandboxCapability {
    let mut words: Vec<String> = features.namespaces.iter().map(|name| format!("{name}ns")).collect();
    if features.seccomp {
        words.push("seccomp".to_owned());
    }
    if features.landlock.is_some() {
        words.push("landlock".to_owned());
    }
    match features.cgroup {
        windlass_sandbox::CgroupVersion::V1 => words.push("cgroup_v1".to_owned()),
        windlass_sandbox::CgroupVersion::V2 => words.push("cgroup_v2".to_owned()),
        windlass_sandbox::CgroupVersion::None => {}
    }
    SandboxCapability {
        supported: features.supported,
        features: words,
        max_concurrency: None,
        runtimes: if features.supported { vec!["native".to_owned()] } else { Vec::new() },
        networks: features.networks.iter().map(ToString::to_string).collect(),
        limits: features.limits.iter().map(ToString::to_string).collect(),
        engines: Vec::new(),
        lacks: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_folder_belongs_to_one_agent_and_its_private_parts_to_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let state = state_dir(Some(&folder.path().join("a/b"))).unwrap();
        let first = lock(&state).unwrap();
        let error = lock(&state).unwrap_err();
        assert_eq!(error.kind(), "state_dir_in_use");
        assert!(error.to_string().contains("--state-dir"), "{error}");
        drop(first);
        lock(&state).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&state), 0o711);
        assert_eq!(mode(&state.join("outbox")), 0o700);
    }

    #[test]
    fn a_state_folder_that_is_a_file_is_refused_with_its_path() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = state_dir(Some(file.path())).unwrap_err();
        assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
    }

    fn authority_pem(name: &str) -> (String, [u8; 32]) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), sha2::Sha256::digest(certificate.der()).into())
    }

    #[test]
    fn a_token_is_used_once_and_one_of_another_controller_replaces_what_is_known() {
        let (pem, hash) = authority_pem("one");
        let token = |url: &str, authority| JoinToken {
            url: url.parse().unwrap(),
            authority,
            secret: "secret".to_owned(),
        };
        let enrolment = |joined_with: Option<String>| Enrolment {
            url: "https://one:1/".to_owned(),
            authorities_pem: pem.clone(),
            joined_with,
        };
        let folder = Path::new("/state/identity");
        let choose = |token, enrolment| Contact::choose(token, enrolment, folder);

        let error = choose(None, None).err().unwrap();
        assert!(matches!(error, Error::NotJoined), "{error}");
        let first = choose(Some(token("https://one:1", hash)), None).unwrap();
        assert_eq!(first.authority, Authority::Pinned(hash));
        assert!(!first.join.unwrap().used);
        let again =
            choose(Some(token("https://one:1", hash)), Some(enrolment(Some(secret_hash("secret"))))).unwrap();
        assert!(again.join.unwrap().used);
        assert!(matches!(again.authority, Authority::Known(_)));
        let newer =
            choose(Some(token("https://one:1", hash)), Some(enrolment(Some("x".to_owned())))).unwrap();
        assert!(!newer.join.unwrap().used);
        let moved = choose(Some(token("https://two:1", [1; 32])), Some(enrolment(None))).unwrap();
        assert_eq!(moved.authority, Authority::Pinned([1; 32]));
        let known = choose(None, Some(enrolment(None))).unwrap();
        assert_eq!(known.url.as_str(), "https://one:1/");
        let broken = Enrolment { authorities_pem: "x".to_owned(), ..enrolment(None) };
        assert_eq!(choose(None, Some(broken.clone())).err().unwrap().kind(), "broken_enrolment");
        choose(Some(token("https://one:1", hash)), Some(broken)).unwrap();
    }

    #[test]
    fn a_certificate_becomes_pem_that_reads_back() {
        let (pem, hash) = authority_pem("one");
        let Authority::Known(certificates) = Authority::from_pem(&pem).unwrap() else { panic!() };
        let again = Authority::from_pem(&certificate_pem(&certificates[0])).unwrap();
        assert!(again.holds(&hash));
        assert!(!again.holds(&[0; 32]));
    }
}
