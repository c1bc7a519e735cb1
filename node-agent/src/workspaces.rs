//! Where attempts live on the host: workspace, user and lease, as a seam, so that a simulation needs no disk.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use windlass_sandbox::{
    Archive, ArchiveLimits, Deadline, DiskQuota, Error as SandboxError, Handed, Identities, Identity, Lease,
    Visited, Workspace,
};

use crate::artifacts::collect::WALK;

/// Writes a lease's new end, on `CLOCK_BOOTTIME`, to where the sandbox's supervisors read it.
pub type LeaseWriter = Arc<dyn Fn(Duration) -> std::io::Result<()> + Send + Sync>;

/// What was found in an attempt's folder of artifacts, one after the other. Looking for the next one blocks.
pub type Left = Box<dyn Iterator<Item = Visited> + Send>;

/// Folder of Windlass's own inside a workspace.
const OWN: &str = ".windlass";

/// What an entry of a workspace counts at least against the disk limit, as the sandbox counts it.
const ENTRY_BYTES: u64 = 4096;

/// Where an attempt lives.
#[derive(Clone)]
pub struct Home {
    /// The attempt's name.
    pub name: String,
    /// The workspace on the host.
    pub workspace: PathBuf,
    /// The user that the steps run as.
    pub identity: Identity,
    /// The file in which the sandbox's supervisors read the lease.
    pub lease_file: PathBuf,
    /// When the lease ended, on `CLOCK_BOOTTIME`, when this was made or opened.
    pub lease_until: Duration,
    /// Writes the lease.
    pub lease: LeaseWriter,
}

impl std::fmt::Debug for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Home")
            .field("name", &self.name)
            .field("workspace", &self.workspace)
            .finish_non_exhaustive()
    }
}

/// Something to place in a workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Where, relative to the workspace.
    pub path: String,
    /// What.
    pub content: Content,
    /// Whether a file is executable.
    pub executable: bool,
    /// The most that the workspace may hold once this is placed, in bytes: the job's disk limit.
    pub disk_bytes: Option<u64>,
}

/// What to place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A text.
    Text(String),
    /// A copy of a file of the host.
    File(PathBuf),
    /// The members of an archive of the host.
    Archive(PathBuf),
}

/// The secrets of one step.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct StepSecrets {
    /// Environment variables, in UTF-8 and without NUL.
    pub environment: Vec<(String, Vec<u8>)>,
    /// Files, by paths that lead to nowhere else.
    pub files: Vec<(String, Vec<u8>)>,
}

impl std::fmt::Debug for StepSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names =
            |pairs: &[(String, Vec<u8>)]| pairs.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        f.debug_struct("StepSecrets")
            .field("environment", &names(&self.environment))
            .field("files", &names(&self.files))
            .finish()
    }
}

/// Makes and removes the places where attempts live.
#[async_trait]
pub trait Workspaces: Send + Sync + 'static {
    /// Makes a home anew, with what is to be placed in it, and writes its lease. What an earlier try left is removed
    /// first; nothing may run in it. Where the host has the means, the workspace is kept within `quota`.
    ///
    /// # Errors
    /// What the sandbox says. A half-made home may be left, for [`Workspaces::remove`].
    async fn create(
        &self,
        name: &str,
        placements: Vec<Placement>,
        quota: Option<DiskQuota>,
        lease_until: Duration,
    ) -> Result<Home, SandboxError>;

    /// The home that was made before a restart; `None` where it is gone.
    ///
    /// # Errors
    /// What the sandbox says.
    async fn open(&self, name: &str) -> Result<Option<Home>, SandboxError>;

    /// Writes the script of a step, so that the step finds it under `/workspace/.windlass/steps/` and its number.
    ///
    /// # Errors
    /// What the sandbox says.
    async fn write_script(&self, home: &Home, step: u32, source: &str) -> Result<(), SandboxError>;

    /// Puts the secrets of a step where only its unit finds them, and never on a disk. What an earlier try left is replaced.
    ///
    /// # Errors
    /// [`SandboxError::Unsupported`] where the host has no place in memory, and what the sandbox says.
    async fn hand_over(&self, home: &Home, step: u32, secrets: StepSecrets) -> Result<Handed, SandboxError>;

    /// Removes the secrets of a step, whose unit has ended; none are fine.
    ///
    /// # Errors
    /// What the sandbox says.
    async fn take_back(&self, home: &Home, step: u32) -> Result<(), SandboxError>;

    /// What is in the folder of artifacts of a home; `None` where there is no such folder, or nothing in it.
    ///
    /// # Errors
    /// What the sandbox says.
    async fn artifacts(&self, home: &Home) -> Result<Option<Left>, SandboxError>;

    /// Removes a home; one that is gone is fine. Nothing may run in it.
    ///
    /// # Errors
    /// What the sandbox says.
    async fn remove(&self, name: &str) -> Result<(), SandboxError>;

    /// The names of all homes, whole or half made.
    ///
    /// # Errors
    /// What the sandbox says.
    async fn list(&self) -> Result<Vec<String>, SandboxError>;
}

/// Where the script of a step is inside the sandbox.
pub(crate) fn script_path(step: u32) -> String {
    format!("/workspace/{OWN}/steps/{step}")
}

/// Homes on this host.
#[derive(Clone, Debug)]
pub struct HostWorkspaces {
    inner: Arc<Folders>,
}

#[derive(Debug)]
struct Folders {
    workspaces: PathBuf,
    leases: PathBuf,
    identities: Identities,
    /// The folder in memory for secrets, or why there is none.
    secrets: Result<PathBuf, String>,
}

impl HostWorkspaces {
    /// Keeps homes under `state`, which exists, with users from `identities`, and secrets in the folder in memory of `secrets`; where
    /// there is none, that says why. No other user of the host can look into
    /// them, whatever modes a job gives to its files.
    ///
    /// # Errors
    /// When folders cannot be made.
    pub fn open_state(
        state: &Path,
        identities: Identities,
        secrets: Result<PathBuf, String>,
    ) -> Result<Self, SandboxError> {
        let (workspaces, leases) = (state.join("workspaces"), state.join("leases"));
        for folder in [&workspaces, &leases] {
            std::fs::create_dir_all(folder).map_err(io("make", folder))?;
            // One of an earlier version may be open to all.
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
                .map_err(io("set mode of", folder))?;
        }
        Ok(Self { inner: Arc::new(Folders { workspaces, leases, identities, secrets }) })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folders) -> Result<T, SandboxError> + Send + 'static,
    ) -> Result<T, SandboxError> {
        let inner = Arc::clone(&self.inner);
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(result) => result,
            // The runtime is going down, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Folders {
    fn lease_file(&self, name: &str) -> PathBuf {
        self.leases.join(name)
    }

    fn home(name: &str, workspace: &Workspace, lease: Lease) -> Result<Home, SandboxError> {
        let lease_file = lease.path().to_owned();
        let lease_until = Duration::from_nanos(lease.read()?.boottime_ns());
        let lease: LeaseWriter =
            Arc::new(move |until| lease.renew(deadline(until)).map_err(std::io::Error::other));
        Ok(Home {
            name: name.to_owned(),
            workspace: workspace.path().to_owned(),
            identity: workspace.identity(),
            lease_file,
            lease_until,
            lease,
        })
    }

    fn create(
        &self,
        name: &str,
        placements: &[Placement],
        quota: Option<DiskQuota>,
        lease_until: Duration,
    ) -> Result<Home, SandboxError> {
        Workspace::remove(&self.workspaces, name)?;
        let identity = self.identities.acquire(name)?;
        let workspace = Workspace::create_limited(&self.workspaces, name, identity, quota)?;
        let mut placed = 0;
        for placement in placements {
            placed += self.place(&workspace, placement, placed)?;
        }
        workspace.make_dir(&format!("{OWN}/artifacts"))?;
        let lease = Lease::create(self.lease_file(name), deadline(lease_until))?;
        Self::home(name, &workspace, lease)
    }

    /// Places one thing beside the `placed` bytes that are there; gives its size as the disk limit counts it.
    fn place(&self, workspace: &Workspace, placement: &Placement, placed: u64) -> Result<u64, SandboxError> {
        let Placement { path, content, executable, disk_bytes } = placement;
        let mode = if *executable { 0o755 } else { 0o644 };
        let left = disk_bytes.map_or(u64::MAX, |limit| limit.saturating_sub(placed));
        let too_large = || SandboxError::UnsafePath {
            path: path.clone(),
            problem: format!(
                "with it the inputs need more than the disk limit of {} bytes",
                disk_bytes.unwrap_or(u64::MAX)
            ),
        };
        let fits = |bytes: u64| if bytes.max(ENTRY_BYTES) > left { Err(too_large()) } else { Ok(()) };
        match content {
            Content::Text(text) => {
                fits(text.len() as u64)?;
                workspace.write_file(path, text.as_bytes(), mode)?;
                Ok((text.len() as u64).max(ENTRY_BYTES))
            }
            Content::File(source) => {
                fits(std::fs::metadata(source).map_err(io("inspect", source))?.len())?;
                Ok(workspace.copy_file(source, path, mode)?.max(ENTRY_BYTES))
            }
            Content::Archive(source) => {
                let mut file = std::fs::File::open(source).map_err(io("open", source))?;
                let kind = archive_kind(&mut file).map_err(io("read", source))?;
                let usual = ArchiveLimits::default();
                let limits = ArchiveLimits {
                    entries: usual.entries.min(left / ENTRY_BYTES),
                    bytes: usual.bytes.min(left),
                };
                let unpacked = workspace.folder(path)?.unpack(file, kind, limits);
                let unpacked = unpacked.map_err(|error| match error {
                    SandboxError::ArchiveTooLarge { .. } if limits != usual => too_large(),
                    error => error,
                })?;
                Ok(unpacked.bytes.max(unpacked.entries.saturating_mul(ENTRY_BYTES)))
            }
        }
    }
}

impl Folders {
    /// See [`Workspaces::hand_over`]. The unit's user reads the files; the environment is for its supervisor alone.
    fn hand_over(
        &self,
        name: &str,
        identity: Identity,
        step: u32,
        secrets: &StepSecrets,
    ) -> Result<Handed, SandboxError> {
        let root = self.secrets.as_ref().map_err(|why| SandboxError::Unsupported {
            feature: "secrets".to_owned(),
            needed: why.clone(),
        })?;
        for folder in root.parent().into_iter().chain([root.as_path()]) {
            crate::memory::claim(folder).map_err(io("make", folder))?;
        }
        let own = root.join(name).join(step.to_string());
        remove_folder(&own)?;
        make_folder(&own, 0o700)?;
        let mut handed = Handed::default();
        if !secrets.environment.is_empty() {
            let path = own.join("environment");
            let mut content = Vec::new();
            for (variable, value) in &secrets.environment {
                content.extend_from_slice(variable.as_bytes());
                content.push(b'=');
                content.extend_from_slice(value);
                content.push(0);
            }
            write_new(&path, &content)?;
            handed.environment = Some(path);
        }
        if !secrets.files.is_empty() {
            let folder = own.join("files");
            make_folder(&folder, 0o700)?;
            for (path, content) in &secrets.files {
                let path = folder.join(path);
                make_folder(path.parent().unwrap_or(&folder), 0o700)?;
                write_new(&path, content)?;
            }
            give_away(&folder, identity)?;
            handed.folder = Some(folder);
        }
        Ok(handed)
    }
}

fn make_folder(path: &Path, mode: u32) -> Result<(), SandboxError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(io("make", path))
}

fn write_new(path: &Path, content: &[u8]) -> Result<(), SandboxError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o400).open(path);
    made.and_then(|mut file| file.write_all(content)).map_err(io("write", path))
}

/// Makes everything in a folder somebody's own to read, deepest first.
fn give_away(path: &Path, identity: Identity) -> Result<(), SandboxError> {
    let is_folder = path.is_dir();
    if is_folder {
        for entry in std::fs::read_dir(path).map_err(io("list", path))? {
            give_away(&entry.map_err(io("list", path))?.path(), identity)?;
        }
    }
    let mode = if is_folder { 0o500 } else { 0o400 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(io("set mode of", path))?;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(identity.uid), Some(identity.gid))
            .map_err(io("give away", path))?;
    }
    Ok(())
}

/// Removes a folder of our own with all that is in it; one that is gone is fine.
fn remove_folder(path: &Path) -> Result<(), SandboxError> {
    // An ordinary user cannot remove what is in a folder that is closed to writing.
    let unlock = |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700));
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        match unlock(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            result => result.map_err(io("set mode of", &folder))?,
        }
        for entry in std::fs::read_dir(&folder).map_err(io("list", &folder))? {
            let entry = entry.map_err(io("list", &folder))?;
            if entry.file_type().map_err(io("inspect", &folder))?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether an archive is compressed, by its first two bytes.
fn archive_kind(file: &mut std::fs::File) -> std::io::Result<Archive> {
    use std::io::{Read as _, Seek as _};
    let mut magic = Vec::new();
    file.by_ref().take(2).read_to_end(&mut magic)?;
    file.rewind()?;
    Ok(if magic == [0x1f, 0x8b] { Archive::TarGz } else { Archive::Tar })
}

fn deadline(until: Duration) -> Deadline {
    Deadline::from_boottime_ns(u64::try_from(until.as_nanos()).unwrap_or(u64::MAX))
}

fn io<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> SandboxError + 'a {
    move |source| SandboxError::Io { operation, path: path.to_owned(), source }
}

#[async_trait]
impl Workspaces for HostWorkspaces {
    async fn create(
        &self,
        name: &str,
        placements: Vec<Placement>,
        quota: Option<DiskQuota>,
        lease_until: Duration,
    ) -> Result<Home, SandboxError> {
        let name = name.to_owned();
        self.blocking(move |folders| folders.create(&name, &placements, quota, lease_until)).await
    }

    async fn open(&self, name: &str) -> Result<Option<Home>, SandboxError> {
        let name = name.to_owned();
        self.blocking(move |folders| {
            if !folders.workspaces.join(&name).is_dir() {
                return Ok(None);
            }
            let identity = folders.identities.acquire(&name)?;
            let workspace = Workspace::open(&folders.workspaces, &name, identity)?;
            let lease = Lease::open(folders.lease_file(&name))?;
            Folders::home(&name, &workspace, lease).map(Some)
        })
        .await
    }

    async fn write_script(&self, home: &Home, step: u32, source: &str) -> Result<(), SandboxError> {
        let (name, identity, source) = (home.name.clone(), home.identity, source.to_owned());
        self.blocking(move |folders| {
            let workspace = Workspace::open(&folders.workspaces, &name, identity)?;
            workspace.write_file(&format!("{OWN}/steps/{step}"), source.as_bytes(), 0o500)
        })
        .await
    }

    async fn hand_over(&self, home: &Home, step: u32, secrets: StepSecrets) -> Result<Handed, SandboxError> {
        let (name, identity) = (home.name.clone(), home.identity);
        self.blocking(move |folders| folders.hand_over(&name, identity, step, &secrets)).await
    }

    async fn take_back(&self, home: &Home, step: u32) -> Result<(), SandboxError> {
        let name = home.name.clone();
        self.blocking(move |folders| match &folders.secrets {
            Ok(secrets) => remove_folder(&secrets.join(name).join(step.to_string())),
            Err(_) => Ok(()),
        })
        .await
    }

    async fn artifacts(&self, home: &Home) -> Result<Option<Left>, SandboxError> {
        let (name, identity) = (home.name.clone(), home.identity);
        self.blocking(move |folders| {
            let workspace = Workspace::open(&folders.workspaces, &name, identity)?;
            let found = workspace.files(&format!("{OWN}/artifacts"), WALK)?;
            let mut found = found.into_iter().flatten().peekable();
            Ok(found.peek().is_some().then(|| Box::new(found) as Left))
        })
        .await
    }

    async fn remove(&self, name: &str) -> Result<(), SandboxError> {
        let name = name.to_owned();
        self.blocking(move |folders| {
            Workspace::remove(&folders.workspaces, &name)?;
            let lease_file = folders.lease_file(&name);
            match std::fs::remove_file(&lease_file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io("remove", &lease_file)(error));
                }
                Ok(()) | Err(_) => {}
            }
            if let Ok(secrets) = &folders.secrets {
                remove_folder(&secrets.join(&name))?;
            }
            folders.identities.release(&name)
        })
        .await
    }

    async fn list(&self) -> Result<Vec<String>, SandboxError> {
        self.blocking(|folders| {
            let mut names = Workspace::names(&folders.workspaces)?;
            for folder in std::iter::once(&folders.leases).chain(&folders.secrets) {
                let entries = match std::fs::read_dir(folder) {
                    // The one for secrets is made when there are any.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    entries => entries.map_err(io("list", folder))?,
                };
                for entry in entries {
                    let entry = entry.map_err(io("list", folder))?;
                    names.extend(entry.file_name().into_string().ok());
                }
            }
            Ok(names.into_iter().collect())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_memory() -> Result<PathBuf, String> {
        Err("this test has no folder in memory".to_owned())
    }

    fn archive() -> Vec<u8> {
        // A tar archive by hand: one member, `dir/file`, of five bytes.
        let mut header = [0; 512];
        header[..8].copy_from_slice(b"dir/file");
        header[100..107].copy_from_slice(b"0000644");
        header[124..135].copy_from_slice(b"00000000005");
        header[136..147].copy_from_slice(b"00000000000");
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..263].copy_from_slice(b"ustar\0");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
        header[154] = 0;
        let mut archive = header.to_vec();
        archive.extend_from_slice(b"hello");
        archive.resize(512 + 512 + 1024, 0);
        archive
    }

    #[tokio::test]
    async fn a_home_is_made_found_again_and_removed() {
        let state = tempfile::tempdir().unwrap();
        let identities =
            Identities::open(state.path().join("identities"), windlass_sandbox::DEFAULT_UIDS).unwrap();
        let homes = HostWorkspaces::open_state(state.path(), identities, no_memory()).unwrap();
        let source = state.path().join("archive.tar");
        std::fs::write(&source, archive()).unwrap();
        let place = |path: &str, content, executable| Placement {
            path: path.to_owned(),
            content,
            executable,
            disk_bytes: None,
        };
        let placements = vec![
            place("a/inline", Content::Text("text".to_owned()), true),
            place("copy", Content::File(source.clone()), false),
            place("deep/er", Content::Archive(source.clone()), false),
            place(".hid", Content::Archive(source.clone()), false),
            place(".", Content::Archive(source), false),
        ];
        let until = Duration::from_secs(1000);
        let home = homes.create("job-1", placements, None, until).await.unwrap();
        let read = |path: &str| std::fs::read_to_string(home.workspace.join(path)).unwrap();
        assert_eq!((read("a/inline"), read("deep/er/dir/file")), ("text".to_owned(), "hello".to_owned()));
        assert_eq!((read("dir/file"), read(".hid/dir/file")), ("hello".to_owned(), "hello".to_owned()));
        assert!(home.workspace.join(".windlass/artifacts").is_dir());
        homes.write_script(&home, 3, "echo").await.unwrap();
        let mode =
            |path: &str| std::fs::metadata(home.workspace.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("a/inline"), mode(".windlass/steps/3")), (0o755, 0o500));

        (home.lease)(Duration::from_secs(2000)).unwrap();
        let found = homes.open("job-1").await.unwrap().unwrap();
        assert_eq!((found.lease_until, found.identity), (Duration::from_secs(2000), home.identity));
        assert!(homes.open("other-1").await.unwrap().is_none());
        assert_eq!(homes.list().await.unwrap(), ["job-1"]);

        let again = homes.create("job-1", Vec::new(), None, until).await.unwrap();
        assert!(!again.workspace.join("copy").exists(), "what an earlier try left is gone");
        homes.remove("job-1").await.unwrap();
        homes.remove("job-1").await.unwrap();
        assert!(homes.list().await.unwrap().is_empty());
        assert_eq!(std::fs::read_dir(state.path().join("identities")).unwrap().count(), 0);
    }

    #[test]
    fn homes_are_closed_to_other_users_also_where_they_were_open_before() {
        let state = tempfile::tempdir().unwrap();
        let workspaces = state.path().join("workspaces");
        std::fs::create_dir(&workspaces).unwrap();
        std::fs::set_permissions(&workspaces, std::fs::Permissions::from_mode(0o755)).unwrap();
        let identities =
            Identities::open(state.path().join("identities"), windlass_sandbox::DEFAULT_UIDS).unwrap();
        HostWorkspaces::open_state(state.path(), identities, no_memory()).unwrap();
        for folder in ["workspaces", "leases"] {
            let mode = std::fs::metadata(state.path().join(folder)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{folder}");
        }
    }

    #[tokio::test]
    async fn all_inputs_together_obey_the_disk_limit() {
        let state = tempfile::tempdir().unwrap();
        let identities =
            Identities::open(state.path().join("identities"), windlass_sandbox::DEFAULT_UIDS).unwrap();
        let homes = HostWorkspaces::open_state(state.path(), identities, no_memory()).unwrap();
        let source = state.path().join("archive.tar");
        std::fs::write(&source, archive()).unwrap();
        let contents =
            [Content::Text("text".to_owned()), Content::File(source.clone()), Content::Archive(source)];
        let all = |last: usize, limit| {
            let place = |(index, content): (usize, &Content)| Placement {
                path: format!("{index}"),
                content: content.clone(),
                executable: false,
                disk_bytes: Some(limit),
            };
            contents.iter().cycle().enumerate().skip(last).take(3).map(place).collect::<Vec<_>>()
        };
        // In every order, three entries fit into three blocks and not into less.
        for first in 0..3 {
            let until = Duration::from_secs(1000);
            homes.create("job-1", all(first, 3 * ENTRY_BYTES), None, until).await.unwrap();
            let error =
                homes.create("job-1", all(first, 3 * ENTRY_BYTES - 1), None, until).await.unwrap_err();
            assert_eq!(error.kind(), "unsafe_path", "{error}");
            assert!(error.to_string().contains("disk limit of 12287 bytes"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_path_out_of_the_workspace_is_refused() {
        let state = tempfile::tempdir().unwrap();
        let identities =
            Identities::open(state.path().join("identities"), windlass_sandbox::DEFAULT_UIDS).unwrap();
        let homes = HostWorkspaces::open_state(state.path(), identities, no_memory()).unwrap();
        for path in ["../x", "/etc/x", "a/../../x"] {
            let content = Content::Text(String::new());
            let placement = Placement { path: path.to_owned(), content, executable: false, disk_bytes: None };
            let error = homes.create("job-1", vec![placement], None, Duration::ZERO).await.unwrap_err();
            assert_eq!(error.kind(), "unsafe_path", "{path}");
        }
    }

    #[tokio::test]
    async fn secrets_of_a_step_are_its_users_to_read_and_go_with_it() {
        let state = tempfile::tempdir().unwrap();
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let identities = Identities::open(state.path().join("ids"), windlass_sandbox::DEFAULT_UIDS).unwrap();
        let place = memory.path().join("agent/secrets");
        let homes = HostWorkspaces::open_state(state.path(), identities, Ok(place.clone())).unwrap();
        let home = homes.create("a-1", Vec::new(), None, Duration::from_secs(60)).await.unwrap();
        let pair = |name: &str, value: &[u8]| (name.to_owned(), value.to_vec());
        let secrets = StepSecrets {
            environment: vec![pair("A", b"swordfish"), pair("B", b"x=y")],
            files: vec![pair("tls/key.pem", b"key\0"), pair("token", b"t")],
        };
        assert!(!format!("{secrets:?}").contains("swordfish"));
        for _ in 0..2 {
            let handed = homes.hand_over(&home, 0, secrets.clone()).await.unwrap();
            let environment = std::fs::read(handed.environment.unwrap()).unwrap();
            assert_eq!(environment, b"A=swordfish\0B=x=y\0");
            let folder = handed.folder.unwrap();
            let key = folder.join("tls/key.pem");
            assert_eq!(std::fs::read(&key).unwrap(), b"key\0");
            use std::os::unix::fs::MetadataExt as _;
            for (path, mode) in [(&folder, 0o500), (&folder.join("tls"), 0o500), (&key, 0o400)] {
                let found = std::fs::metadata(path).unwrap();
                assert_eq!(
                    (found.mode() & 0o777, found.uid()),
                    (mode, home.identity.uid),
                    "{}",
                    path.display()
                );
            }
        }
        homes.take_back(&home, 0).await.unwrap();
        homes.take_back(&home, 0).await.unwrap();
        assert!(!place.join("a-1/0").exists());
        homes.hand_over(&home, 1, secrets).await.unwrap();
        assert_eq!(homes.list().await.unwrap(), ["a-1"]);
        homes.remove("a-1").await.unwrap();
        assert!(!place.join("a-1").exists() && homes.list().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn without_a_folder_in_memory_there_are_no_secrets() {
        let state = tempfile::tempdir().unwrap();
        let identities = Identities::open(state.path().join("ids"), windlass_sandbox::DEFAULT_UIDS).unwrap();
        let homes = HostWorkspaces::open_state(state.path(), identities, no_memory()).unwrap();
        let home = homes.create("a-1", Vec::new(), None, Duration::from_secs(60)).await.unwrap();
        let error = homes.hand_over(&home, 0, StepSecrets::default()).await.unwrap_err();
        assert_eq!(error.kind(), "unsupported");
        assert!(error.to_string().contains("this test has no folder in memory"), "{error}");
        homes.remove("a-1").await.unwrap();
    }
}
