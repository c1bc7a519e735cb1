//! Who this node is: its key, its name, and the controller that it belongs to. Kept in `<state>/identity/`, which
//! nobody else may enter.

use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use jiff::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde::{Deserialize, Serialize};
use windlass_crds::protocol::{NodeProof, RESERVED_NODE_NAMES, registration_message};

/// The file with the controller that the node belongs to.
const ENROLMENT: &str = "controller.json";

/// A node's key and name.
pub struct Identity {
    key: Ed25519KeyPair,
    name: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why the identity cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be read or written.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The key is damaged.
    #[error("the node's key in {} is damaged; remove the folder `identity` and join again with a token made by `windlass join-token create --replace NODE`", path.display())]
    DamagedKey {
        /// The file.
        path: PathBuf,
    },
    /// The name in the folder cannot be a node's.
    #[error("{} is damaged: `{known}` cannot be a node's name; write the node's name into it", path.display())]
    DamagedName {
        /// The file.
        path: PathBuf,
        /// What is in it.
        known: String,
    },
    /// A part of the identity of a node that has joined is gone.
    #[error("{} is missing, though this node has joined a controller; put it back from a backup, or remove the folder `identity` and join again with a token made by `windlass join-token create --replace NODE`", path.display())]
    Incomplete {
        /// The missing file.
        path: PathBuf,
    },
    /// The operating system yields no random numbers.
    #[error("no key can be made: the system yields no random numbers")]
    NoRandom,
    /// The name of the controller's file is damaged.
    #[error("{} is damaged; join again with a token made by `windlass join-token create --replace NODE`", path.display())]
    DamagedEnrolment {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The name cannot be a node's.
    #[error("`{name}` cannot be a node's name: {rule}; choose one with --name")]
    BadName {
        /// The name.
        name: String,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// The folder belongs to a node of another name.
    #[error(
        "this state folder is that of node `{known}`, not `{wanted}`; leave out --name or give the new node its own --state-dir"
    )]
    OtherName {
        /// The name in the folder.
        known: String,
        /// The name that was asked for.
        wanted: String,
    },
}

impl Error {
    /// A stable word for the kind of error.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::File { .. } => "identity_file",
            Self::DamagedKey { .. } => "identity_damaged_key",
            Self::DamagedName { .. } => "identity_damaged_name",
            Self::Incomplete { .. } => "identity_incomplete",
            Self::NoRandom => "identity_no_random",
            Self::DamagedEnrolment { .. } => "identity_damaged_enrolment",
            Self::BadName { .. } => "bad_node_name",
            Self::OtherName { .. } => "other_node_name",
        }
    }
}

impl Identity {
    /// Reads the identity in `folder`, or makes it. `wanted` is the name that was asked for; a new node without one
    /// takes `hostname`, made into a valid name.
    ///
    /// # Errors
    /// When files cannot be read or written, when one is missing of a node that has joined, or the name cannot be a node's or
    /// is not that of the folder.
    pub fn load_or_create(folder: &Path, wanted: Option<&str>, hostname: &str) -> Result<Self, Error> {
        if let Some(name) = wanted {
            check_name(name)?;
        }
        make_private_folder(folder)?;
        let key_path = folder.join("key.p8");
        let name_path = folder.join("name");
        // The enrolment is written last, so what is missing beside it was there once: a new key would make this another
        // node, which the controller would have to refuse.
        if folder.join(ENROLMENT).exists()
            && let Some(path) = [&key_path, &name_path].into_iter().find(|path| !path.exists())
        {
            return Err(Error::Incomplete { path: path.clone() });
        }
        let key = match read_optional(&key_path)? {
            Some(der) => {
                Ed25519KeyPair::from_pkcs8(&der).map_err(|_| Error::DamagedKey { path: key_path })?
            }
            None => {
                let der =
                    Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| Error::NoRandom)?;
                write_private(&key_path, der.as_ref())?;
                Ed25519KeyPair::from_pkcs8(der.as_ref()).map_err(|_| Error::DamagedKey { path: key_path })?
            }
        };
        let known = read_optional(&name_path)?.map(|name| String::from_utf8_lossy(&name).trim().to_owned());
        let name = match (known, wanted) {
            (Some(known), Some(wanted)) if known != wanted => {
                return Err(Error::OtherName { known, wanted: wanted.to_owned() });
            }
            (Some(known), _) => {
                if check_name(&known).is_err() {
                    return Err(Error::DamagedName { path: name_path, known });
                }
                known
            }
            (None, wanted) => {
                let name = wanted.map_or_else(|| name_from_hostname(hostname), str::to_owned);
                check_name(&name)?;
                write_private(&name_path, name.as_bytes())?;
                name
            }
        };
        Ok(Self { key, name })
    }

    /// An identity that is kept nowhere, with the key that grows from `seed`.
    ///
    /// # Errors
    /// When the name cannot be a node's.
    pub fn ephemeral(name: &str, seed: &[u8; 32]) -> Result<Self, Error> {
        check_name(name)?;
        let key = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| Error::NoRandom)?;
        Ok(Self { key, name: name.to_owned() })
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Proof that this node holds its key.
    pub fn prove(&self, boot_id: &str, now: Timestamp) -> NodeProof {
        let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        // The controller rebuilds the message from the field below, which carries no more than what is printed.
        let message = registration_message(&self.name, boot_id, now);
        NodeProof {
            public_key: encode(self.key.public_key().as_ref()),
            signed_at: now,
            signature: encode(self.key.sign(message.as_bytes()).as_ref()),
        }
    }
}

/// The controller that this node belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// Where it is.
    pub url: String,
    /// The authorities that sign its certificate, in PEM.
    pub authorities_pem: String,
    /// SHA-256 of the secret that the node joined with, so that the same token is not used twice.
    #[serde(default)]
    pub joined_with: Option<String>,
}

impl Enrolment {
    /// Reads the enrolment in the identity's folder; `None` for a node that has not joined yet.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn load(folder: &Path) -> Result<Option<Self>, Error> {
        let path = folder.join(ENROLMENT);
        let Some(content) = read_optional(&path)? else { return Ok(None) };
        serde_json::from_slice(&content).map(Some).map_err(|source| Error::DamagedEnrolment { path, source })
    }

    /// Writes the enrolment.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        let content = serde_json::to_vec_pretty(self).expect("an enrolment becomes JSON");
        write_private(&folder.join(ENROLMENT), &content)
    }
}

/// Makes a folder that only its owner may enter.
pub(crate) fn make_private_folder(path: &Path) -> Result<(), Error> {
    let failed = |operation| move |source| Error::File { operation, path: path.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make folder"))?;
    // It may have been there with other permissions.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(failed("protect folder"))
}

fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { operation: "read", path: path.to_owned(), source }),
    }
}

/// Writes a file that only its owner may read, whole or not at all.
fn write_private(path: &Path, content: &[u8]) -> Result<(), Error> {
    let beside = path.with_extension("tmp");
    let write = || {
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|source| Error::File { operation: "write", path: path.to_owned(), source })
}

/// Whether a name can be a node's: a DNS label of RFC 1123 that is not a word of the protocol.
fn check_name(name: &str) -> Result<(), Error> {
    let bad = |rule| Err(Error::BadName { name: name.to_owned(), rule });
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    if bytes.len() > 63 {
        return bad("it is longer than 63 letters");
    }
    if !edge(bytes.first()) || !edge(bytes.last()) {
        return bad("it must begin and end with a lower-case letter or a digit");
    }
    if !bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-') {
        return bad("only lower-case letters, digits and dashes are allowed");
    }
    if RESERVED_NODE_NAMES.contains(&name) {
        return bad("it is a word of the agent protocol");
    }
    Ok(())
}

/// A valid name that is as close to the host's as can be.
fn name_from_hostname(hostname: &str) -> String {
    let label = hostname.split('.').next().unwrap_or_default();
    let mut name: String =
        label.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    name.truncate(63);
    let name = name.trim_matches('-');
    match name {
        "" => "node".to_owned(),
        name if RESERVED_NODE_NAMES.contains(&name) => format!("node-{name}"),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_is_private() {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().join("identity");
        let first = Identity::load_or_create(&folder, None, "Build_Host.example.org").unwrap();
        assert_eq!(first.name(), "build-host");
        let again = Identity::load_or_create(&folder, None, "renamed").unwrap();
        assert_eq!(again.name(), "build-host");
        assert_eq!(first.key.public_key().as_ref(), again.key.public_key().as_ref());
        for (path, mode) in [(folder.clone(), 0o700), (folder.join("key.p8"), 0o600)] {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
        }
        let other = Identity::load_or_create(&folder, Some("other"), "x").unwrap_err();
        assert_eq!(other.kind(), "other_node_name");
    }

    #[test]
    fn a_proof_verifies_with_the_public_key_in_it() {
        let identity = Identity::ephemeral("node-1", &[7; 32]).unwrap();
        let now: Timestamp = "2026-01-02T03:04:05.678901234Z".parse().unwrap();
        let proof = identity.prove("boot", now);
        let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).unwrap();
        let json = serde_json::to_string(&proof).unwrap();
        let received: NodeProof = serde_json::from_str(&json).unwrap();
        let message = registration_message("node-1", "boot", received.signed_at);
        let key =
            ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, decode(&proof.public_key));
        key.verify(message.as_bytes(), &decode(&proof.signature)).unwrap();
    }

    #[test]
    fn names_that_are_no_labels_are_refused_with_the_rule() {
        for name in ["", "A", "-a", "a-", "a_b", "claim", &"a".repeat(64)] {
            assert_eq!(check_name(name).unwrap_err().kind(), "bad_node_name", "{name}");
        }
        for (hostname, name) in [("", "node"), ("claim", "node-claim"), ("--x--", "x"), ("Žofie", "ofie")] {
            assert_eq!(name_from_hostname(hostname), name);
            check_name(&name_from_hostname(hostname)).unwrap();
        }
    }

    #[test]
    fn what_is_missing_of_a_node_that_has_joined_is_named_and_not_made_anew() {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path();
        Identity::load_or_create(folder, Some("one"), "x").unwrap();
        // A first start that ended before the node joined goes on.
        std::fs::remove_file(folder.join("name")).unwrap();
        Identity::load_or_create(folder, Some("one"), "x").unwrap();
        let enrolment =
            Enrolment { url: "https://c".to_owned(), authorities_pem: String::new(), joined_with: None };
        enrolment.save(folder).unwrap();
        for part in ["key.p8", "name"] {
            let content = std::fs::read(folder.join(part)).unwrap();
            std::fs::remove_file(folder.join(part)).unwrap();
            let error = Identity::load_or_create(folder, Some("one"), "x").unwrap_err();
            assert!(error.kind() == "identity_incomplete" && error.to_string().contains(part), "{error}");
            assert!(!folder.join(part).exists());
            std::fs::write(folder.join(part), content).unwrap();
        }
        std::fs::write(folder.join("name"), "").unwrap();
        let error = Identity::load_or_create(folder, None, "x").unwrap_err();
        assert_eq!(error.kind(), "identity_damaged_name");
    }

    #[test]
    fn a_damaged_key_is_not_replaced_silently() {
        let state = tempfile::tempdir().unwrap();
        std::fs::write(state.path().join("key.p8"), b"junk").unwrap();
        let error = Identity::load_or_create(state.path(), None, "x").unwrap_err();
        assert_eq!(error.kind(), "identity_damaged_key");
    }
}
