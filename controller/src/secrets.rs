//! Secrets: sealed before they reach the store, and opened for the one attempt that names them.
//!
//! ```text
//!  value ─► sealed by a key of its own ─► row            key file ─► Keyring
//!           that key ─► wrapped by the keyring's first ─► row
//!
//!  claim ─► the attempt's steps name (Secret, key) ─► rows ─► unwrap, open ─► SecretValue of the assignment
//!                          none of that name, job of a cluster ─► `get` there ──┘
//! ```
//!
//! *Guarantees*: the database, its backups and every answer but that of a claim hold no value. A sealed value opens only in the
//! row that it was sealed for. Rotation wraps the values' keys anew and never opens a value.

mod gather;
mod keys;
mod seal;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use windlass_crds::SandboxJobSpec;
use windlass_crds::protocol::{SecretBytes, SecretValue};
use windlass_crds::secret::MAX_KEYS;
use windlass_store::{PutSecret, SealedValue, SecretValueRow, Store};

use self::gather::{Gathering, Obstacle, Whence};
use self::seal::Key;
use crate::clock::{Clock, IdSource};
use crate::error::{ApiError, Code};
use crate::kube::values::{ClusterValues, Lacking, Reading};
use crate::metrics::{Metrics, SecretDelivery};

pub(crate) use self::keys::{CREDENTIAL, FILE};
pub use self::keys::{Error as KeyError, KeyPlace, Keyring, add as add_key};

/// How many values are wrapped anew in one step of a rotation.
const ROTATION_BATCH: u32 = 200;

/// Why a controller cannot use its secrets.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The keys cannot be used.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// Secrets are sealed under keys that are not there.
    #[error(
        "the database has {values} secret values under the key {key}, and {place}; put that key back, or give the values up with \
         --discard-unreadable-secrets"
    )]
    MissingKey {
        /// The key's id.
        key: String,
        /// How many values it wraps.
        values: u64,
        /// Where it was looked for, as a clause.
        place: String,
    },
    /// The store could not be used.
    #[error("could not use the database")]
    Store(#[from] windlass_store::Error),
}

/// What became of a rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotated {
    /// The key that wraps all values now.
    pub key: String,
    /// How many values were wrapped anew.
    pub values: u64,
}

/// What came of asking for the values of an attempt.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// It is given these.
    Given {
        /// The values of secrets.
        secrets: Vec<SecretValue>,
        /// The spec, in which the values of ConfigMaps stand.
        spec: Box<SandboxJobSpec>,
    },
    /// Something of the cluster cannot be had just now: the attempt is not begun, and the job waits.
    Postponed {
        /// Why, as one word.
        reason: &'static str,
        /// Why, as a sentence.
        message: String,
    },
}

/// Sets and delivers secrets; cheap to clone.
#[derive(Clone)]
pub struct Secrets {
    store: Store,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    metrics: Metrics,
    keys: Keyring,
    cluster: Option<Arc<ClusterValues>>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl Secrets {
    /// With these keys.
    pub fn new(
        store: Store,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
        metrics: Metrics,
        keys: Keyring,
    ) -> Self {
        Self { store, clock, ids, metrics, keys, cluster: None }
    }

    /// Reads the keys, makes one in the state folder where none is needed, and checks that every value can be opened. With
    /// `discard` those that cannot are removed.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub(crate) async fn open(
        store: Store,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
        metrics: Metrics,
        (place, discard): (KeyPlace, bool),
    ) -> Result<Self, Error> {
        let mut used = store.secret_keys().await?;
        let fresh = used.is_empty() || discard;
        let keys = Keyring::open(place, fresh.then_some(&*ids))?;
        used.retain(|(key, _)| keys.find(key).is_none());
        for (key, values) in used {
            if !discard {
                let place = match keys.place() {
                    KeyPlace::Given(path) => format!("{} does not have it", path.display()),
                    KeyPlace::StateFolder(path) if path.exists() => {
                        format!("{} does not have it", path.display())
                    }
                    KeyPlace::StateFolder(path) => {
                        format!("the file that had it, {}, is missing", path.display())
                    }
                    KeyPlace::Nowhere => {
                        "this controller has no --secrets-key-file and no credential `windlass-secrets-key`"
                            .to_owned()
                    }
                };
                return Err(Error::MissingKey { key, values, place });
            }
            let removed = store.discard_secrets(&key).await?;
            tracing::warn!(key, values = removed, "secret values were removed that no key opens");
        }
        Ok(Self::new(store, clock, ids, metrics, keys))
    }

    /// Sets values of a Secret.
    pub(crate) async fn set(
        &self,
        (namespace, name): (&str, &str),
        values: &BTreeMap<String, SecretBytes>,
    ) -> Result<PutSecret, ApiError> {
        let sealing = self.sealing()?;
        let seal = |(entry, value): (&String, &SecretBytes)| {
            let place = Place { namespace, name, entry };
            let own = self.ids.secret();
            SealedValue {
                entry: entry.clone(),
                key_id: sealing.id().to_owned(),
                wrapped_key: sealing.seal(self.nonce(), &place.of_key(), &own),
                sealed: Key::new(&own).seal(self.nonce(), &place.of_value(), value.expose()),
                size: value.expose().len() as u64,
            }
        };
        let sealed = values.iter().map(seal).collect();
        Ok(self.store.put_secret(self.clock.now(), (namespace, name), sealed, MAX_KEYS).await?)
    }

    /// Wraps the keys of all values by the first key of the file, which is read again.
    pub(crate) async fn rotate(&self) -> Result<Rotated, ApiError> {
        self.keys
            .reload()
            .map_err(|error| ApiError::internal("the keys of secrets cannot be read", error))?;
        let sealing = self.sealing()?;
        let mut values = 0;
        loop {
            let mut rows = self.store.secrets_under_other_keys(sealing.id(), ROTATION_BATCH).await?;
            if rows.is_empty() {
                break;
            }
            for row in &mut rows {
                let wrapped =
                    self.unwrap(row).map(|key| sealing.seal(self.nonce(), &Place::of(row).of_key(), &key));
                row.value.wrapped_key = wrapped.map_err(|problem| ApiError::new(Code::Conflict, problem))?;
                row.value.key_id = sealing.id().to_owned();
            }
            let changed = self.store.rewrap_secrets(rows).await?;
            values += changed;
            if changed == 0 {
                // Every row was set meanwhile by a controller that has not read the new file.
                let detail = "another controller seals with another key; give all controllers the same key file, and \
                              rotate again";
                return Err(ApiError::new(Code::Conflict, detail));
            }
        }
        tracing::info!(key = sealing.id(), values, "secrets are under the first key of the file");
        Ok(Rotated { key: sealing.id().to_owned(), values })
    }

    /// With the Secrets and ConfigMaps of a cluster, for the jobs that come from it.
    #[must_use]
    pub fn with_cluster(self, values: ClusterValues) -> Self {
        Self { cluster: Some(Arc::new(values)), ..self }
    }

    /// What an attempt is given: the values that the job's steps name, each once. What is missing of Windlass's own secrets is told in its
    /// place.
    ///
    /// # Errors
    /// What the store reports.
    pub async fn deliver(
        &self,
        uid: &str,
        namespace: &str,
        spec: &SandboxJobSpec,
        reading: &Reading<'_>,
    ) -> Result<Delivery, ApiError> {
        let gathering = Gathering { secrets: self, namespace, whence: Whence::Job(uid), reading };
        let delivery = match gathering.gather(spec).await {
            Ok(delivery) => delivery,
            Err(Obstacle::Api(error)) => return Err(error),
            Err(Obstacle::Lacking(Lacking { lack, message })) => {
                self.metrics.secret(SecretDelivery::Postponed);
                return Ok(Delivery::Postponed { reason: lack.into(), message });
            }
        };
        for outcome in delivery.outcomes {
            self.metrics.secret(outcome);
        }
        Ok(Delivery::Given { secrets: delivery.secrets, spec: Box::new(delivery.spec) })
    }

    /// What a job of the bridged cluster would have to wait for.
    pub(crate) async fn lacking(
        &self,
        namespace: &str,
        spec: &SandboxJobSpec,
    ) -> Result<Option<Lacking>, ApiError> {
        // The bridge itself is stopped.
        let stopping = CancellationToken::new();
        let reading = &Reading::new(&stopping);
        let gathering = Gathering { secrets: self, namespace, whence: Whence::Cluster, reading };
        match gathering.gather(spec).await {
            Ok(_) => Ok(None),
            Err(Obstacle::Lacking(lacking)) => Ok(Some(lacking)),
            Err(Obstacle::Api(error)) => Err(error),
        }
    }

    fn open_value(&self, row: &SecretValueRow) -> Result<Vec<u8>, String> {
        let own = self.unwrap(row)?;
        let opened = Key::new(&own).open(&Place::of(row).of_value(), &row.value.sealed);
        opened.ok_or_else(|| damaged(row))
    }

    /// The key of a value.
    fn unwrap(&self, row: &SecretValueRow) -> Result<[u8; seal::KEY_BYTES], String> {
        let Some(key) = self.keys.find(&row.value.key_id) else {
            return Err(format!(
                "the value `{}` of Secret `{}/{}` is under the key {}, which this controller does not have; put the key back, or \
                 set the value again",
                row.value.entry, row.namespace, row.name, row.value.key_id
            ));
        };
        let own = key.open(&Place::of(row).of_key(), &row.value.wrapped_key);
        own.and_then(|own| own.try_into().ok()).ok_or_else(|| damaged(row))
    }

    /// The key that seals. The file is read anew: another controller may have begun to seal under a newer one, and have brought
    /// everything under it.
    fn sealing(&self) -> Result<Arc<Key>, ApiError> {
        if let Err(error) = self.keys.reload() {
            tracing::warn!(error = %crate::error::chain(&error), "the keys of secrets cannot be read again");
        }
        self.keys.sealing().ok_or_else(|| {
            ApiError::new(
                Code::Conflict,
                "this controller has no key for secrets; start it with --secrets-key-file FILE, which `windlass secret new-key FILE` \
                 makes",
            )
        })
    }

    fn nonce(&self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce.copy_from_slice(&self.ids.secret()[..12]);
        nonce
    }
}

fn damaged(row: &SecretValueRow) -> String {
    format!(
        "the value `{}` of Secret `{}/{}` is damaged in the database; set it again",
        row.value.entry, row.namespace, row.name
    )
}

/// The row that something is sealed for.
struct Place<'a> {
    namespace: &'a str,
    name: &'a str,
    entry: &'a str,
}

impl<'a> Place<'a> {
    fn of(row: &'a SecretValueRow) -> Self {
        Self { namespace: &row.namespace, name: &row.name, entry: &row.value.entry }
    }

    fn of_key(&self) -> Vec<u8> {
        self.tagged("windlass secret key")
    }

    fn of_value(&self) -> Vec<u8> {
        self.tagged("windlass secret value")
    }

    /// No part can hold a NUL.
    fn tagged(&self, what: &str) -> Vec<u8> {
        [what, self.namespace, self.name, self.entry].join("\0").into_bytes()
    }
}

/// Where a controller's keys are: a file that is named, one that systemd gives, or the state folder of a controller that has its
/// database alone.
pub(crate) fn key_place(
    file: Option<PathBuf>,
    credentials: Option<PathBuf>,
    own_folder: Option<PathBuf>,
) -> KeyPlace {
    let credential = credentials.map(|folder| folder.join(CREDENTIAL)).filter(|file| file.exists());
    match (file.or(credential), own_folder) {
        (Some(file), _) => KeyPlace::Given(file),
        (None, Some(folder)) => KeyPlace::StateFolder(folder.join(FILE)),
        (None, None) => KeyPlace::Nowhere,
    }
}
