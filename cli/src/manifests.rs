//! Reading manifests from files, folders and standard input, with everything that is wrong told at once.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use windlass_crds::manifest::{self, Document, Object};
use windlass_crds::protocol::FieldError;

use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::kind::Kind;

/// Files of a folder that are manifests.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];
/// The most bytes that are read of one file: far more than the documents that the server accepts.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// Where manifests are read from.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct ManifestArgs {
    /// Read manifests from this file, from every manifest of this folder, or from standard input where it is `-`. The
    /// flag may be given more than once.
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR|-", required = true)]
    pub(crate) files: Vec<PathBuf>,

    /// Descend into the folders below a folder that is given by `--filename`.
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
}

/// Why manifests cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file or folder cannot be read.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is larger than any manifest.
    #[error("{} is larger than 64 MiB and so is no manifest", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A folder holds no manifests.
    #[error("the folder {} holds no manifests", path.display())]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
        /// Whether the folders below were looked into.
        recursive: bool,
    },
    /// Standard input is named twice.
    #[error("standard input can be read only once, so that `-f -` can be given only once")]
    StdinTwice,
    /// Nothing at all was found.
    #[error("there is no manifest in {sources}")]
    Nothing {
        /// What was read.
        sources: String,
    },
    /// Manifests are invalid.
    #[error("{} in {files}", count(errors.len()))]
    Invalid {
        /// Everything that is wrong.
        errors: Vec<manifest::Error>,
        /// What was read.
        files: String,
    },
}

fn count(errors: usize) -> String {
    if errors == 1 { "1 error".to_owned() } else { format!("{errors} errors") }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let report = Report::new(Exit::Invalid, error.to_string()).causes(&error);
        match error {
            Error::Invalid { errors, .. } => report
                .details(errors.iter().map(|error| crate::output::human::printable(&error.to_string())))
                .hint("`windlass explain KIND.FIELD` describes every field"),
            Error::EmptyFolder { recursive: false, .. } => {
                report.hint("manifests end in .yaml, .yml or .json; `-R` looks into the folders below too")
            }
            Error::EmptyFolder { recursive: true, .. } => {
                report.hint("manifests end in .yaml, .yml or .json")
            }
            Error::StdinTwice => Report { exit: Exit::Usage, ..report },
            Error::Unreadable { .. } | Error::TooLarge { .. } | Error::Nothing { .. } => report,
        }
        .into()
    }
}

/// Reads every manifest; there is at least one.
pub(crate) fn load(args: &ManifestArgs) -> Result<Vec<Document>, Error> {
    let ManifestArgs { files, recursive } = args;
    if files.iter().filter(|path| is_stdin(path)).count() > 1 {
        return Err(Error::StdinTwice);
    }
    let mut paths = Vec::new();
    for path in files {
        if !is_stdin(path) && path.is_dir() {
            let before = paths.len();
            find(path, *recursive, &mut paths)?;
            if paths.len() == before {
                return Err(Error::EmptyFolder { path: path.clone(), recursive: *recursive });
            }
        } else {
            paths.push(path.clone());
        }
    }
    let mut documents = Vec::new();
    let mut errors = Vec::new();
    for path in &paths {
        match manifest::parse_bytes(&read(path)?, &source_name(path)) {
            Ok(found) => {
                errors.extend(found.iter().flat_map(check));
                documents.extend(found);
            }
            Err(found) => errors.extend(found),
        }
    }
    let names = || paths.iter().map(|path| source_name(path)).collect::<Vec<_>>().join(", ");
    if !errors.is_empty() {
        return Err(Error::Invalid { errors, files: names() });
    }
    if documents.is_empty() { Err(Error::Nothing { sources: names() }) } else { Ok(documents) }
}

/// Reads the part of a node's configuration that is to be laid over others, as it goes over REST.
pub(crate) fn load_node_patch(path: &Path) -> Result<serde_json::Value, Error> {
    let (bytes, source) = (read(path)?, source_name(path));
    let text = String::from_utf8(bytes).map_err(|error| {
        // Says what is wrong with the bytes, and where.
        let errors = manifest::parse_bytes(error.as_bytes(), &source).err().unwrap_or_default();
        Error::Invalid { errors, files: source.clone() }
    })?;
    manifest::parse_patch(&text, &source, windlass_crds::schema::Kind::NodeConfig)
        .map(|spec| serde_json::json!({ "spec": spec }))
        .map_err(|errors| Error::Invalid { errors, files: source })
}

/// What is wrong with a manifest that its schema cannot say.
fn check(document: &Document) -> Vec<manifest::Error> {
    let errors = windlass_core::validate::validate_object(&document.object).err().unwrap_or_default();
    errors.iter().map(|error| document.locate(error)).collect()
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn source_name(path: &Path) -> String {
    if is_stdin(path) { "stdin".to_owned() } else { path.display().to_string() }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let unreadable = |source| Error::Unreadable { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    if is_stdin(path) {
        std::io::stdin().lock().take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    } else {
        let file = fs::File::open(path).map_err(unreadable)?;
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    }
    if bytes.len() as u64 > MAX_FILE { Err(Error::TooLarge { path: path.to_owned() }) } else { Ok(bytes) }
}

/// Finds the manifests of a folder, in the order of their names. Symbolic links to folders are not followed, because
/// they may lead back.
fn find(folder: &Path, recursive: bool, found: &mut Vec<PathBuf>) -> Result<(), Error> {
    let unreadable = |source| Error::Unreadable { path: folder.to_owned(), source };
    let mut entries: Vec<(PathBuf, fs::FileType)> = fs::read_dir(folder)
        .and_then(|entries| {
            entries.map(|entry| entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))).collect()
        })
        .map_err(unreadable)?;
    entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    for (path, file_type) in entries {
        if file_type.is_dir() {
            if recursive {
                find(&path, recursive, found)?;
            }
        } else if path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known)) {
            found.push(path);
        }
    }
    Ok(())
}

/// The kind of an object.
pub(crate) const fn kind_of(object: &Object) -> Kind {
    match object {
        Object::Node(_) => Kind::Node,
        Object::Job(_) => Kind::Job,
        Object::Template(_) => Kind::Template,
    }
}

/// The namespace that a manifest is meant for: its own, which a namespace given by flag must not contradict, or that of
/// the settings. A kind without a namespace yields the settings' one, which nobody then looks at.
pub(crate) fn namespace_of(
    document: &Document,
    settings: &crate::settings::Settings,
) -> Result<String, manifest::Error> {
    let given = &settings.namespace;
    match document.object.namespace() {
        Some(own) if names_namespace(document) => match given.origin {
            crate::settings::Origin::Flag(flag) if given.value != own => {
                let message =
                    format!("the manifest is for the namespace `{own}`, but {flag} names `{}`", given.value);
                Err(document.locate(&FieldError { field: "metadata.namespace".to_owned(), message }))
            }
            _ => Ok(own.to_owned()),
        },
        Some(_) | None => Ok(given.value.clone()),
    }
}

/// Whether a manifest says which namespace it is for. Reading fills in the default, but what is not written has no
/// place of its own: it is located at the field around it.
fn names_namespace(document: &Document) -> bool {
    let place = |field: &str| {
        let error = document.locate(&FieldError { field: field.to_owned(), message: String::new() });
        (error.line, error.column)
    };
    place("metadata.namespace") != place("metadata")
}

/// An error about manifests that were read well.
pub(crate) fn refuse(errors: Vec<manifest::Error>) -> Failure {
    let mut files: Vec<String> = errors.iter().map(|error| error.source.clone()).collect();
    files.dedup();
    Error::Invalid { errors, files: files.join(", ") }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata:\n  name: NAME\nspec:\n  command: [ls]\n";

    fn args(files: &[&Path], recursive: bool) -> ManifestArgs {
        ManifestArgs { files: files.iter().map(|path| path.to_path_buf()).collect(), recursive }
    }

    fn names(documents: &[Document]) -> Vec<&str> {
        documents.iter().filter_map(|document| document.object.name()).collect()
    }

    #[test]
    fn a_folder_is_read_in_the_order_of_names_and_only_deeper_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("deep")).unwrap();
        for (path, name) in [("b.yaml", "b"), ("a.yml", "a"), ("deep/c.json", "c"), ("notes.txt", "never")] {
            fs::write(folder.path().join(path), JOB.replace("NAME", name)).unwrap();
        }
        assert_eq!(names(&load(&args(&[folder.path()], false)).unwrap()), ["a", "b"]);
        assert_eq!(names(&load(&args(&[folder.path()], true)).unwrap()), ["a", "b", "c"]);
        fs::remove_file(folder.path().join("a.yml")).unwrap();
        fs::remove_file(folder.path().join("b.yaml")).unwrap();
        assert!(matches!(load(&args(&[folder.path()], false)), Err(Error::EmptyFolder { .. })));
    }

    #[test]
    fn every_error_of_every_file_is_told_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one.yaml"), folder.path().join("two.yaml"));
        fs::write(&one, JOB.replace("command: [ls]", "comand: [ls]\n  timeout: soon")).unwrap();
        fs::write(&two, JOB.replace("SandboxJob", "SandboxJb")).unwrap();
        let Failure::Report(report) = Failure::from(load(&args(&[&one, &two], false)).unwrap_err()) else {
            panic!("it is a report");
        };
        assert_eq!(report.exit, Exit::Invalid);
        assert!(report.details.len() >= 3, "{report:?}");
        let at = |path: &Path, place: &str| format!("{}:{place}", path.display());
        assert!(
            report.details.iter().any(|line| line.starts_with(&at(&one, "6:3: spec.comand"))),
            "{report:?}"
        );
        assert!(report.details.iter().any(|line| line.starts_with(&at(&two, "2:7: kind"))), "{report:?}");
    }

    #[test]
    fn a_manifest_without_a_namespace_is_told_from_one_that_names_the_default() {
        let parse = |text: &str| manifest::parse(text, "test").unwrap().remove(0);
        let named = JOB.replace("  name: NAME", "  namespace: default\n  name: a");
        assert!(!names_namespace(&parse(&JOB.replace("NAME", "a"))));
        assert!(names_namespace(&parse(&named)));
        let json = r#"{"apiVersion":"windlass.dev/v1alpha1","kind":"SandboxJob","metadata":{"name":"a"},"spec":{"command":["ls"]}}"#;
        assert!(!names_namespace(&parse(json)));
        assert!(names_namespace(&parse(
            &json.replace(r#""name":"a""#, r#""namespace":"default","name":"a""#)
        )));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.yaml");
        assert!(
            matches!(load(&args(&[&missing], false)), Err(Error::Unreadable { path, .. }) if path == missing)
        );
        let empty = folder.path().join("empty.yaml");
        fs::write(&empty, "# nothing\n").unwrap();
        assert!(matches!(load(&args(&[&empty], false)), Err(Error::Nothing { .. })));
        assert!(matches!(load(&args(&[Path::new("-"), Path::new("-")], false)), Err(Error::StdinTwice)));
    }
}
