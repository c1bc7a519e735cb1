//! Where the server is and how to speak to it: each value from the first of flag, environment, configuration file and
//! running `windlass dev` that names it.
//!
//! Secrets never pass through here: a token is named by the file that holds it.

pub(crate) mod dev_file;
pub(crate) mod folders;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use url::{Host, Url};

use crate::exit::Exit;
use crate::failure::{Failure, Report};
use dev_file::DevFile;
use folders::Folders;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A flag of the command line.
    Flag(&'static str),
    /// A variable of the environment.
    Environment(&'static str),
    /// The configuration file.
    File(PathBuf),
    /// The file that a running `windlass dev` has written.
    Dev(PathBuf),
    /// Nobody said anything else.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "the flag {flag}"),
            Self::Environment(variable) => write!(f, "the environment variable {variable}"),
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Dev(path) => write!(f, "the running `windlass dev` ({})", path.display()),
            Self::Default => f.write_str("the default"),
        }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolved<T> {
    /// The value.
    pub(crate) value: T,
    /// Where it came from.
    pub(crate) origin: Origin,
}

impl<T> Resolved<T> {
    /// A value from somewhere.
    pub(crate) const fn new(value: T, origin: Origin) -> Self {
        Self { value, origin }
    }
}

/// What the command line and the environment say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    /// The configuration file.
    pub(crate) config_file: Option<Resolved<PathBuf>>,
    /// The server's URL.
    pub(crate) server: Option<Resolved<String>>,
    /// The file with the certificate authority.
    pub(crate) ca_file: Option<Resolved<PathBuf>>,
    /// The file with the token.
    pub(crate) token_file: Option<Resolved<PathBuf>>,
    /// The namespace.
    pub(crate) namespace: Option<Resolved<String>>,
    /// Where files are looked for.
    pub(crate) folders: Folders,
}

/// Everything that verbs need to know to speak to a server.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The server's URL; `None` when nobody named one and no `windlass dev` runs.
    pub(crate) server: Option<Resolved<Url>>,
    /// The file with the certificate authority; without it the system's authorities are trusted.
    pub(crate) ca_file: Option<Resolved<PathBuf>>,
    /// The file with the token; without it requests carry none.
    pub(crate) token_file: Option<Resolved<PathBuf>>,
    /// The namespace of everything that lives in one.
    pub(crate) namespace: Resolved<String>,
    /// The configuration file, whether it exists or not.
    pub(crate) config_file: Option<Resolved<PathBuf>>,
}

/// The configuration file.
#[derive(Deserialize, Default, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConfigFile {
    server: Option<String>,
    ca_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
    namespace: Option<String>,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file with settings cannot be read.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file with settings holds something else.
    #[error("{} is not a valid configuration file", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Why, with the line but without the text of the file, which might hold a secret in the wrong place.
        reason: String,
    },
    /// The server's address cannot be used.
    #[error("`{text}`, from {origin}, is not the URL of a server")]
    Server {
        /// What was written.
        text: String,
        /// Where.
        origin: Box<Origin>,
        /// What is wrong with it.
        reason: String,
    },
    /// The namespace's name cannot be used.
    #[error("`{text}`, from {origin}, is not the name of a namespace")]
    Namespace {
        /// What was written.
        text: String,
        /// Where.
        origin: Box<Origin>,
    },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let report = Report::new(Exit::Usage, error.to_string()).causes(&error);
        match error {
            Error::Unreadable { .. } => report,
            Error::Syntax { reason, .. } => report
                .detail(reason)
                .hint("the fields are server, caFile, tokenFile and namespace; every one may be left out"),
            Error::Server { reason, .. } => {
                report.detail(reason).hint("write it as `https://HOST:PORT`, such as `https://127.0.0.1:12082`")
            }
            Error::Namespace { .. } => {
                report.hint("a namespace has up to 63 lower-case letters, digits and `-`, with none of the last at its ends")
            }
        }
        .into()
    }
}

impl Settings {
    /// Resolves every value.
    pub(crate) fn resolve(given: Given) -> Result<Self, Error> {
        let Given { config_file, server, ca_file, token_file, namespace, folders } = given;
        let must_exist = config_file.is_some();
        let config_file = config_file.or_else(|| {
            folders
                .config
                .as_ref()
                .map(|folder| Resolved::new(folder.join("windlass/config.yaml"), Origin::Default))
        });
        let (file, origin) = match &config_file {
            Some(path) => (read_config(&path.value, must_exist)?, Origin::File(path.value.clone())),
            None => (ConfigFile::default(), Origin::Default),
        };
        let base = match &origin {
            Origin::File(path) => path.parent().map(Path::to_path_buf),
            Origin::Flag(_) | Origin::Environment(_) | Origin::Dev(_) | Origin::Default => None,
        };
        // A path in the file is relative to the file, so that it means the same from every working directory.
        let beside = |path: PathBuf| match &base {
            Some(base) => base.join(path),
            None => path,
        };
        let from_file = |path: PathBuf| Resolved::new(beside(path), origin.clone());
        let mut server = server.or_else(|| file.server.map(|text| Resolved::new(text, origin.clone())));
        let mut ca_file = ca_file.or_else(|| file.ca_file.map(from_file));
        let mut token_file = token_file.or_else(|| file.token_file.map(from_file));
        let namespace = namespace
            .or_else(|| file.namespace.map(|text| Resolved::new(text, origin.clone())))
            .unwrap_or_else(|| Resolved::new("default".to_owned(), Origin::Default));

        // What a running `windlass dev` has written belongs together: its token goes to no server but its own.
        if server.is_none()
            && let Some((path, dev)) = DevFile::find(&folders)?
        {
            server = Some(Resolved::new(dev.server, Origin::Dev(path.clone())));
            ca_file = ca_file.or_else(|| Some(Resolved::new(dev.ca_file, Origin::Dev(path.clone()))));
            token_file = token_file.or_else(|| Some(Resolved::new(dev.token_file, Origin::Dev(path))));
        }
        Ok(Self {
            server: server.map(parse_server).transpose()?,
            ca_file,
            token_file,
            namespace: check_namespace(namespace)?,
            config_file,
        })
    }
}

/// Reads the configuration file; one that nobody named may be missing.
fn read_config(path: &Path, must_exist: bool) -> Result<ConfigFile, Error> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => {
            return Ok(ConfigFile::default());
        }
        Err(source) => return Err(Error::Unreadable { path: path.to_owned(), source }),
    };
    parse_yaml(&text, path)
}

/// Reads a small YAML document; an empty one is its type's default.
fn parse_yaml<T: serde::de::DeserializeOwned + Default>(text: &str, path: &Path) -> Result<T, Error> {
    let parsed: Result<Option<T>, _> = serde_saphyr::from_str(text);
    parsed.map(Option::unwrap_or_default).map_err(|error| Error::syntax(path, &error))
}

impl Error {
    fn syntax(path: &Path, error: &serde_saphyr::DeserializeError) -> Self {
        Self::Syntax { path: path.to_owned(), reason: error.without_snippet().to_string() }
    }
}

/// Reads the server's URL. A token goes over plain HTTP only when it does not leave this machine.
fn parse_server(server: Resolved<String>) -> Result<Resolved<Url>, Error> {
    let Resolved { value: text, origin } = server;
    let refused = |reason: &str| Error::Server {
        text: text.clone(),
        origin: Box::new(origin.clone()),
        reason: reason.to_owned(),
    };
    let url = Url::parse(&text).map_err(|error| refused(&error.to_string()))?;
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(&url) => {}
        "http" => {
            return Err(refused(
                "plain http would show the token to the network, so it is only for this machine",
            ));
        }
        _ => return Err(refused("its scheme is not https")),
    }
    if url.cannot_be_a_base() || url.host().is_none() {
        return Err(refused("it names no host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::Server {
            text: url.host_str().unwrap_or_default().to_owned(),
            origin: Box::new(origin),
            reason: "it holds a user name or a password".to_owned(),
        });
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refused("it holds a query or a fragment"));
    }
    Ok(Resolved::new(url, origin))
}

/// Whether a URL points at this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// Checks a namespace's name by the rule of DNS labels.
fn check_namespace(namespace: Resolved<String>) -> Result<Resolved<String>, Error> {
    let text = namespace.value.as_bytes();
    let fits = (1..=63).contains(&text.len())
        && text.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
        && !text.starts_with(b"-")
        && !text.ends_with(b"-");
    if fits {
        Ok(namespace)
    } else {
        Err(Error::Namespace { text: namespace.value, origin: Box::new(namespace.origin) })
    }
}

#[cfg(test)]
mod tests;
