//! Events: one for each transition of an object, however often it is looked at.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use sha2::{Digest as _, Sha256};

use super::object::{Name, Seen, short};

/// What has happened to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Happening {
    pub(super) warning: bool,
    /// One word in CamelCase.
    pub(super) reason: String,
    /// What was done, as one word.
    pub(super) action: &'static str,
    pub(super) note: String,
    /// Tells this transition from others of the same reason.
    pub(super) occurrence: String,
}

/// The namespace in which Events about an object lie: those about nodes have none of their own.
pub(super) fn namespace(name: &Name) -> &str {
    name.namespace.as_deref().unwrap_or("default")
}

/// The Event of a happening. The same happening makes an Event of the same name, which is refused the second time.
pub(super) fn event(
    name: &Name,
    seen: &Seen,
    happening: &Happening,
    now: Timestamp,
    instance: &str,
) -> Event {
    let Happening { warning, reason, action, note, occurrence } = happening;
    let digest = hex::encode(Sha256::digest(format!("{} {reason} {occurrence}", seen.uid)));
    // A name of at most 253 characters.
    let prefix: String = name.name.chars().take(200).collect();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{}", prefix.trim_end_matches(['.', '-']), &digest[..16])),
            namespace: Some(namespace(name).to_owned()),
            ..ObjectMeta::default()
        },
        action: Some((*action).to_owned()),
        event_time: Some(MicroTime(now)),
        note: Some(fitting(&short(note)).to_owned()),
        reason: Some(reason.clone()),
        regarding: Some(ObjectReference {
            api_version: Some(windlass_crds::API_VERSION.to_owned()),
            kind: Some(name.kind.manifest().name().to_owned()),
            name: Some(name.name.clone()),
            namespace: name.namespace.clone(),
            resource_version: Some(seen.version.clone()),
            uid: Some(seen.uid.clone()),
            field_path: None,
        }),
        reporting_controller: Some("windlass.dev/controller".to_owned()),
        reporting_instance: Some(instance.to_owned()),
        type_: Some(if *warning { "Warning" } else { "Normal" }.to_owned()),
        ..Event::default()
    }
}

/// The most bytes of a note, as the API server counts them.
const NOTE_MAX: usize = 1024;

/// As much of a text as fits into a note.
fn fitting(text: &str) -> &str {
    &text[..text.floor_char_boundary(NOTE_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_cut_between_characters() {
        assert_eq!(fitting("short"), "short");
        let long = format!("a{}", "é".repeat(1000));
        assert_eq!(fitting(&long).len(), 1023);
    }
}
