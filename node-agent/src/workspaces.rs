//! Where attempts live on the host: workspace, user and lease, as a seam, so that a simulation needs no disk.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use windlass_sandbox::{
    Archive, ArchiveLimits, Deadline, DiskQuota, Error as SandboxError, Identities, Identity, Lease,
    Workspace,
};

/// Writes a lease's new end, on `CLOCK_BOOTTIME`, to where the sandbox's supervisors read it.
pub type LeaseWriter = Arc<dyn Fn(Duration) -> std::io::Result<()> + Send + Sync>;

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
}

impl HostWorkspaces {
    /// Keeps homes under `state`, which exists, with users from `identities`. No other user of the host can look into
    /// them, whatever modes a job gives to its files.
    ///
    /// # Errors
    /// When folders cannot be made.
    pub fn open_state(state: &Path, identities: Identities) -> Result<Self, SandboxError> {
        let (workspaces, leases) = (state.join("workspaces"), state.join("leases"));
        for folder in [&workspaces, &leases] {
            std::fs::create_dir_all(folder).map_err(io("make", folder))?;
            // One of an earlier version may be open to all.
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
                .map_err(io("set mode of", folder))?;
        }
        Ok(Self { inner: Arc::new(Folders { workspaces, leases, identities }) })
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
            folders.identities.release(&name)
        })
        .await
    }

    async fn list(&self) -> Result<Vec<String>, SandboxError> {
        self.blocking(|folders| {
            let mut names = Workspace::names(&folders.workspaces)?;
            let leases = &folders.leases;
            for entry in std::fs::read_dir(leases).map_err(io("list", leases))? {
                let entry = entry.map_err(io("list", leases))?;
                names.extend(entry.file_name().into_string().ok());
            }
            Ok(names.into_iter().collect())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let homes = HostWorkspaces::open_state(state.path(), identities).unwrap();
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
        HostWorkspaces::open_state(state.path(), identities).unwrap();
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
        let homes = HostWorkspaces::open_state(state.path(), identities).unwrap();
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
        let homes = HostWorkspaces::open_state(state.path(), identities).unwrap();
        for path in ["../x", "/etc/x", "a/../../x"] {
            let content = Content::Text(String::new());
            let placement = Placement { path: path.to_owned(), content, executable: false, disk_bytes: None };
            let error = homes.create("job-1", vec![placement], None, Duration::ZERO).await.unwrap_err();
            assert_eq!(error.kind(), "unsafe_path", "{path}");
        }
    }
}
