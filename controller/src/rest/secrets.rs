//! Secrets: set, listed and deleted. No answer holds a value.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use windlass_crds::names::{self, Quoted};
use windlass_crds::protocol::{FieldError, SecretBytes};
use windlass_crds::secret::{MAX_KEYS, MAX_VALUE_BYTES, MIN_VALUE_BYTES};
use windlass_store::{PutSecret, SecretEntryRow};

use super::App;
use super::extract::{self, Operator, Path};
use crate::error::{ApiError, Code};

/// Values to set. Keys that are not named stay as they are.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SecretRequest {
    /// Each value in base64, by its key: 4 bytes to 64 KiB.
    #[serde(deserialize_with = "unseen")]
    values: BTreeMap<String, SecretBytes>,
}

/// Reads the values; an error does not repeat what stands there.
fn unseen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, SecretBytes>, D::Error> {
    BTreeMap::deserialize(deserializer)
        .map_err(|_| serde::de::Error::custom("`values` must be an object of texts in base64, by their keys"))
}

/// A Secret, without its values.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Secret {
    /// The namespace.
    namespace: String,
    /// The name.
    name: String,
    /// Its keys.
    keys: Vec<SecretKey>,
}

/// A key of a Secret.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SecretKey {
    /// The key.
    key: String,
    /// How many bytes the value has.
    bytes: u64,
    /// When the key was first set.
    created_at: Timestamp,
    /// When the value was last set.
    updated_at: Timestamp,
    /// Names the key of the controller under which the value is sealed.
    sealed_under: String,
}

pub(super) async fn list_all(State(app): State<App>, _: Operator) -> Result<Json<Value>, ApiError> {
    answer(&app, None).await
}

pub(super) async fn list(
    State(app): State<App>,
    _: Operator,
    Path(namespace): Path<String>,
) -> Result<Json<Value>, ApiError> {
    answer(&app, Some(&namespace)).await
}

async fn answer(app: &App, namespace: Option<&str>) -> Result<Json<Value>, ApiError> {
    let secrets = present(app.store.list_secrets(namespace, None).await?);
    Ok(Json(json!({"kind": "SecretList", "items": secrets})))
}

pub(super) async fn get(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Secret>, ApiError> {
    read(&app, &namespace, &name).await.map(Json)
}

pub(super) async fn set(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name)): Path<(String, String)>,
    extract::Json(SecretRequest { values }): extract::Json<SecretRequest>,
) -> Result<(StatusCode, Json<Secret>), ApiError> {
    let errors = check(&namespace, &name, &values);
    if !errors.is_empty() {
        return Err(ApiError::invalid("Secret", errors));
    }
    let status = match app.secrets.set((&namespace, &name), &values).await? {
        PutSecret::Created => StatusCode::CREATED,
        PutSecret::Updated => StatusCode::OK,
        PutSecret::TooManyKeys(keys) => {
            let detail = format!(
                "values: Secret `{namespace}/{name}` would have {keys} keys, at most {MAX_KEYS} are kept"
            );
            return Err(ApiError::new(Code::Invalid, detail));
        }
    };
    tracing::info!(secret.namespace = namespace, secret.name = name, keys = values.len(), "secret set");
    read(&app, &namespace, &name).await.map(|secret| (status, Json(secret)))
}

pub(super) async fn remove(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    delete(&app, &namespace, &name, None).await
}

pub(super) async fn remove_key(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name, key)): Path<(String, String, String)>,
) -> Result<StatusCode, ApiError> {
    delete(&app, &namespace, &name, Some(&key)).await
}

pub(super) async fn rotate(State(app): State<App>, _: Operator) -> Result<Json<Value>, ApiError> {
    let rotated = app.secrets.rotate().await?;
    Ok(Json(json!({"key": rotated.key, "values": rotated.values})))
}

async fn delete(app: &App, namespace: &str, name: &str, key: Option<&str>) -> Result<StatusCode, ApiError> {
    if app.store.delete_secret(namespace, name, key).await? == 0 {
        let of_key = key.map(|key| format!("/{key}")).unwrap_or_default();
        return Err(ApiError::not_found("Secret", &format!("{namespace}/{name}{of_key}")));
    }
    tracing::info!(secret.namespace = namespace, secret.name = name, key, "secret deleted");
    Ok(StatusCode::NO_CONTENT)
}

async fn read(app: &App, namespace: &str, name: &str) -> Result<Secret, ApiError> {
    let found = present(app.store.list_secrets(Some(namespace), Some(name)).await?).pop();
    found.ok_or_else(|| ApiError::not_found("Secret", &format!("{namespace}/{name}")))
}

fn present(rows: Vec<SecretEntryRow>) -> Vec<Secret> {
    let mut secrets: Vec<Secret> = Vec::new();
    for SecretEntryRow { namespace, name, entry, size, key_id, created_at, updated_at } in rows {
        let key = SecretKey { key: entry, bytes: size, created_at, updated_at, sealed_under: key_id };
        match secrets.last_mut() {
            Some(last) if last.namespace == namespace && last.name == name => last.keys.push(key),
            Some(_) | None => secrets.push(Secret { namespace, name, keys: vec![key] }),
        }
    }
    secrets
}

/// What is wrong with what is to be set; no value is in it.
fn check(namespace: &str, name: &str, values: &BTreeMap<String, SecretBytes>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut refuse = |field: String, message: String| errors.push(FieldError { field, message });
    if let Err(error) = names::check_label(namespace) {
        refuse("namespace".into(), format!("{} {error}", Quoted(namespace)));
    }
    if let Err(error) = names::check_subdomain(name) {
        refuse("name".into(), format!("{} {error}", Quoted(name)));
    }
    if values.is_empty() {
        refuse("values".into(), "names no key; write one or more".into());
    }
    if values.len() > MAX_KEYS {
        refuse("values".into(), format!("names {} keys, at most {MAX_KEYS} are kept", values.len()));
    }
    for (key, value) in values {
        if let Err(error) = names::check_secret_key(key) {
            refuse("values".into(), format!("the key {} {error}", Quoted(key)));
        }
        let bytes = value.expose().len();
        if bytes < MIN_VALUE_BYTES {
            let message = format!(
                "has {bytes} bytes; a secret needs at least {MIN_VALUE_BYTES}, for a shorter one cannot be masked in logs"
            );
            refuse(format!("values.{key}"), message);
        }
        if bytes > MAX_VALUE_BYTES {
            let message = format!(
                "has {bytes} bytes, at most {MAX_VALUE_BYTES} are kept; put large content into an upload that is encrypted, \
                 and its key into the Secret"
            );
            refuse(format!("values.{key}"), message);
        }
    }
    errors
}
