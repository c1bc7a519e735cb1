//! The names and labels in a manifest's metadata.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::names::{self, Quoted};
use crate::protocol::{FieldError, RESERVED_NODE_NAMES};
use crate::schema::Kind;

/// The namespace of a manifest that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The most bytes of a manifest's annotations, keys and values together: the limit of Kubernetes.
const MAX_ANNOTATIONS: usize = 256 * 1024;
/// The most labels; Kubernetes has no limit of its own, and a node's selector cannot name more.
const MAX_LABELS: usize = 64;

/// Checks the metadata of an object: its name, namespace, labels and annotations.
pub fn check_metadata(kind: Kind, metadata: &ObjectMeta) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut refuse = |field: String, message: String| errors.push(FieldError { field, message });
    let field = |name: &str| format!("metadata.{name}");
    let quoted = |text: &str, error: names::Error| format!("{} {error}", Quoted(text));

    match (metadata.name.as_deref(), metadata.generate_name.as_deref()) {
        (Some(name), _) => {
            if let Err(error) = names::check_subdomain(name) {
                refuse(field("name"), quoted(name, error));
            } else if kind == Kind::NodeConfig && RESERVED_NODE_NAMES.contains(&name) {
                let reserved = RESERVED_NODE_NAMES.join(", ");
                refuse(field("name"), format!("`{name}` cannot name a node: reserved are {reserved}"));
            }
        }
        (None, None) if kind == Kind::SandboxJob => {
            refuse(field("name"), "is missing; write a name, or `generateName` to have one made".to_owned());
        }
        (None, None) => refuse(field("name"), "is missing; write a name".to_owned()),
        (None, Some(_)) if kind != Kind::SandboxJob => {
            refuse(field("name"), format!("is missing; {kind} takes no `generateName`"));
        }
        (None, Some(prefix)) => {
            // What is generated is added behind it: `-` or `.` may be its last character.
            if let Err(error) = names::check_subdomain(&format!("{prefix}00000")) {
                refuse(field("generateName"), quoted(prefix, error));
            }
        }
    }
    if let Some(namespace) = &metadata.namespace {
        if !kind.is_namespaced() {
            refuse(field("namespace"), format!("{kind} has no namespace; remove the field"));
        } else if let Err(error) = names::check_label(namespace) {
            refuse(field("namespace"), quoted(namespace, error));
        }
    }
    if let Some(labels) = &metadata.labels {
        if labels.len() > MAX_LABELS {
            refuse(
                field("labels"),
                format!("has {} entries, at most {MAX_LABELS} are accepted", labels.len()),
            );
        }
        errors.extend(check_labels(labels, "metadata.labels"));
    }
    if let Some(annotations) = &metadata.annotations {
        errors.extend(annotations.keys().filter_map(|key| check_key(key, "metadata.annotations")));
        let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > MAX_ANNOTATIONS {
            let message = format!("holds {bytes} bytes, at most {MAX_ANNOTATIONS} are accepted");
            errors.push(FieldError { field: field("annotations"), message });
        }
    }
    errors
}

/// Checks the keys and values of labels at a path.
pub fn check_labels(labels: &BTreeMap<String, String>, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels {
        errors.extend(check_key(key, at));
        if let Err(error) = names::check_label_value(value) {
            let mut field = at.to_owned();
            super::path::push_key(&mut field, key);
            errors.push(FieldError { field, message: format!("{} {error}", Quoted(value)) });
        }
    }
    errors
}

fn check_key(key: &str, at: &str) -> Option<FieldError> {
    let error = names::check_label_key(key).err()?;
    let mut field = at.to_owned();
    super::path::push_key(&mut field, key);
    Some(FieldError { field, message: format!("the key {} {error}", Quoted(key)) })
}
