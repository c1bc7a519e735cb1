//! What images are made of where there is no registry: programs of this host, and a stand-in for the compiler.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::chart::engine::root;
use super::system::fleet::windlass;

/// Builds nothing: the program is there. Anything but what the images' script asks for is refused.
const CARGO: &str = r#"#!/bin/sh
test "$1 $2 $3 $4 $5 $6 $#" = "build --release --locked --package windlass --target 7" || exit 1
mkdir -p "target/$7/release" && cp program "target/$7/release/windlass"
"#;

/// The root of an image.
pub(crate) struct Tree(PathBuf);

impl Tree {
    /// An empty one, in this folder.
    pub(crate) fn new(folder: PathBuf) -> Self {
        let temporary = folder.join("tmp");
        fs::create_dir_all(&temporary).expect("the folder can be written");
        fs::set_permissions(temporary, fs::Permissions::from_mode(0o1777)).expect("it is ours");
        Self(folder)
    }

    /// What the first stage of the images is built on.
    pub(crate) fn builder(folder: PathBuf) -> Self {
        let programs = ["/bin/sh", "/bin/cp", "/bin/mkdir", "/bin/uname"];
        Self::new(folder).programs(&programs).script("usr/bin/cargo", CARGO)
    }

    /// What the program under test needs, and these programs.
    pub(crate) fn base(folder: PathBuf, programs: &[&str]) -> Self {
        let tree = Self::new(folder);
        tree.libraries(&windlass());
        tree.programs(programs)
    }

    /// Programs or libraries of this host, with the libraries that they need.
    pub(crate) fn programs(self, paths: &[&str]) -> Self {
        for path in paths.iter().copied().map(Path::new) {
            self.libraries(path);
            self.file(path);
        }
        self
    }

    /// A file of this host.
    pub(crate) fn file(&self, path: &Path) {
        let target = self.below(path.strip_prefix("/").expect("paths are whole"));
        fs::copy(path, target).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// A folder of this host.
    pub(crate) fn folder(self, path: &str) -> Self {
        let target = self.below(Path::new(path.trim_start_matches('/')));
        let copied = Command::new("cp").arg("-rL").arg(path).arg(target).status();
        assert!(copied.expect("cp is installed").success(), "{path}");
        self
    }

    /// A program that is written here.
    pub(crate) fn script(self, path: &str, text: &str) -> Self {
        let tree = self.text(path, text);
        fs::set_permissions(tree.0.join(path), fs::Permissions::from_mode(0o755)).expect("it is ours");
        tree
    }

    /// A file that is written here.
    pub(crate) fn text(self, path: &str, text: &str) -> Self {
        fs::write(self.below(Path::new(path)), text).expect("the folder can be written");
        self
    }

    /// An archive of it.
    pub(crate) fn pack(&self) -> PathBuf {
        let archive = self.0.with_extension("tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&self.0).args(["--owner=0", "--group=0", "-cf"]).arg(&archive).arg(".");
        assert!(tar.status().expect("tar is installed").success());
        archive
    }

    fn libraries(&self, program: &Path) {
        let needs = Command::new("ldd").arg(program).output().expect("ldd is installed");
        for word in String::from_utf8_lossy(&needs.stdout).split_whitespace() {
            if word.starts_with('/') {
                self.file(Path::new(word));
            }
        }
    }

    /// Where a path of the image is, in a folder that is there.
    fn below(&self, path: &Path) -> PathBuf {
        let target = self.0.join(path);
        fs::create_dir_all(target.parent().expect("it is in a folder")).expect("the folder can be written");
        target
    }
}

/// Makes what an image is built from: these files of the repository, and the program under test.
pub(crate) fn context(folder: &Path, files: &[&str]) {
    for file in files {
        let target = folder.join(file);
        fs::create_dir_all(target.parent().expect("it is in a folder")).expect("the folder can be written");
        fs::copy(root().join(file), target).expect("it can be copied");
    }
    // What is only for debuggers would be copied by each layer.
    let stripped = Command::new("strip").arg("-o").arg(folder.join("program")).arg(windlass()).status();
    assert!(stripped.expect("binutils are installed").success());
}
