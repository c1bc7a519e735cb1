//! What one artifact is written to: a file, as a whole or not at all, or whatever else there is under its name.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// What is written to.
pub(super) enum Target {
    /// A file that takes the place of `path`, once it is kept.
    Beside { file: NamedTempFile, path: PathBuf },
    /// A device, a pipe, or what a link leads to that leads nowhere yet.
    There(File),
}

impl Target {
    /// Opens what `path` names. Of a link that is what it leads to: the link stays.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        match std::fs::metadata(path) {
            Ok(found) if found.is_file() => {
                let target = Self::beside(path.canonicalize()?)?;
                if let Self::Beside { file, .. } = &target {
                    file.as_file().set_permissions(found.permissions())?;
                }
                Ok(target)
            }
            Ok(_) => OpenOptions::new().write(true).open(path).map(Self::There),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Err(_) if path.symlink_metadata().is_ok() => File::create(path).map(Self::There),
            Err(_) => Self::beside(path.to_owned()),
        }
    }

    fn beside(path: PathBuf) -> io::Result<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        // The umask takes from this what it takes from every file.
        let file = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder.unwrap_or(Path::new(".")))?;
        Ok(Self::Beside { file, path })
    }

    /// Gives a file its name. One that is not kept leaves nothing.
    pub(super) fn keep(self) -> io::Result<()> {
        match self {
            Self::Beside { file, path } => file.persist(path).map(drop).map_err(|error| error.error),
            Self::There(mut file) => file.flush(),
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Beside { file, .. } => file.write(bytes),
            Self::There(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Beside { file, .. } => file.flush(),
            Self::There(file) => file.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::FileTypeExt as _;

    use super::*;

    fn save(path: &Path, content: &str) -> io::Result<()> {
        let mut target = Target::open(path)?;
        target.write_all(content.as_bytes())?;
        target.keep()
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_is_made_like_every_other() {
        let root = tempfile::tempdir().unwrap();
        let (path, other) = (root.path().join("a"), root.path().join("b"));
        save(&path, "one").unwrap();
        File::create(&other).unwrap();
        assert_eq!(mode(&path), mode(&other), "the umask decides, and nothing else");
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        save(&path, "two").unwrap();
        assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), mode(&path)), ("two", 0o600));
        Target::open(&path).unwrap().write_all(b"half").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two", "what is not kept changes nothing");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 2, "and leaves nothing");
        assert!(save(root.path(), "x").is_err(), "a folder is no file");
    }

    #[test]
    fn a_link_stays_and_what_it_leads_to_is_written() {
        let root = tempfile::tempdir().unwrap();
        let (file, link) = (root.path().join("file"), root.path().join("link"));
        std::os::unix::fs::symlink("file", &link).unwrap();
        for content in ["it was not there", "it was there"] {
            save(&link, content).unwrap();
            assert!(link.symlink_metadata().unwrap().is_symlink());
            assert_eq!(std::fs::read_to_string(&file).unwrap(), content);
        }
    }

    #[test]
    fn a_pipe_and_a_device_are_written_to_and_stay_what_they_are() {
        let root = tempfile::tempdir().unwrap();
        let pipe = root.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let mut got = String::new();
        std::thread::scope(|scope| {
            let saved = scope.spawn(|| save(&pipe, "through it"));
            File::open(&pipe).unwrap().read_to_string(&mut got).unwrap();
            saved.join().unwrap().unwrap();
        });
        assert_eq!(got, "through it");
        assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo());
        let null = root.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &null).unwrap();
        save(&null, "away").unwrap();
        assert!(std::fs::metadata(&null).unwrap().file_type().is_char_device());
    }
}
