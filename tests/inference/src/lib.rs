//! Servers of models for tests, as images of the shared container engines: llama.cpp's own server, whose folder of models has a
//! small real one, and a stand-in for Ollama that is strict about what it is asked.
//!
//! A machine without what it takes makes the tests fail, because everything here panics with what is missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use windlass_test_engines::{folder, program, run, socket};

/// The image of llama.cpp's server, whose entry point it is.
pub const LLAMA: &str = "localhost/windlass-test-llama:1";
/// The image of the stand-in for Ollama.
pub const OLLAMA: &str = "localhost/windlass-test-ollama:1";
/// The file of the small model in the folder of [`models`].
pub const MODEL_FILE: &str = "model.gguf";

/// The folder that `tests/inference/server` fills: the program and the model.
///
/// # Panics
/// Where it cannot be filled.
pub fn models() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("server");
    PathBuf::from(run(&mut Command::new(script)).trim())
}

/// Sees to it that the shared engine has [`LLAMA`].
///
/// # Panics
/// Where the machine lacks what it takes.
pub fn make_llama(engine: &str) {
    make_llama_in(engine, &socket(engine));
}

/// The same for the engine behind a socket.
///
/// # Panics
/// Where the machine lacks what it takes.
pub fn make_llama_in(engine: &str, socket: &Path) {
    let root = tempdir(engine, "llama");
    fs::copy(models().join("llama-server"), root.join("llama-server")).expect("the program can be copied");
    import(program(engine, socket), &root, LLAMA, "ENTRYPOINT [\"/llama-server\"]");
}

/// Sees to it that the shared engine has [`OLLAMA`].
///
/// # Panics
/// Where the machine lacks what it takes, or the stand-in is not built.
pub fn make_ollama(engine: &str) {
    make_ollama_in(engine, &socket(engine));
}

/// The same for the engine behind a socket.
///
/// # Panics
/// Where the machine lacks what it takes, or the stand-in is not built.
pub fn make_ollama_in(engine: &str, socket: &Path) {
    let test = std::env::current_exe().expect("a running program has a path");
    let programs = test.parent().and_then(Path::parent).expect("tests are built below the target folder");
    let ollama = programs.join("windlass-test-ollama");
    assert!(ollama.exists(), "{} is missing: build it first (`make test` does)", ollama.display());
    let root = tempdir(engine, "ollama");
    fs::copy(&ollama, root.join("ollama")).expect("the program can be copied");
    // It is no static program: what it is linked with goes along.
    for word in run(Command::new("ldd").arg(&ollama)).split_whitespace().filter(|word| word.starts_with('/'))
    {
        let inside = root.join(word.trim_start_matches('/'));
        fs::create_dir_all(inside.parent().expect("a library is in a folder")).expect("folders can be made");
        fs::copy(word, inside).expect("a library can be copied");
    }
    import(program(engine, socket), &root, OLLAMA, "ENTRYPOINT [\"/ollama\", \"serve\"]");
}

/// Names of the containers of a shared engine that run for nodes themselves.
///
/// # Panics
/// Where the engine does not answer.
pub fn services(engine: &str) -> Vec<String> {
    services_in(client(engine))
}

/// The same of the engine that a command line speaks to.
///
/// # Panics
/// Where the engine does not answer.
pub fn services_in(mut list: Command) -> Vec<String> {
    list.args(["ps", "-a", "--format", "{{.Names}}", "--filter", "label=dev.windlass.service"]);
    run(&mut list).lines().map(str::to_owned).collect()
}

/// The command line of a shared engine.
pub fn client(engine: &str) -> Command {
    program(engine, &socket(engine))
}

/// An empty folder of this process.
fn tempdir(engine: &str, name: &str) -> PathBuf {
    let root = folder().join(format!("made-{engine}-{name}-{}", std::process::id()));
    if root.exists() {
        fs::remove_dir_all(&root).expect("what an earlier call has left can be removed");
    }
    fs::create_dir_all(&root).expect("folders can be made");
    root
}

/// Makes an image of a folder, and removes the folder.
fn import(mut client: Command, root: &Path, name: &str, entry: &str) {
    let archive = root.with_extension("tar");
    run(Command::new("tar")
        .args(["--owner=0", "--group=0", "-cf"])
        .arg(&archive)
        .arg("-C")
        .arg(root)
        .arg("."));
    run(client.args(["import", "-c", entry]).arg(&archive).arg(name));
    fs::remove_file(&archive).expect("what was made can be removed");
    fs::remove_dir_all(root).expect("what was made can be removed");
}
