//! Every write to the API server but that of the Lease. Each passes the fence, and names the object's uid and version.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::cluster::Error;
use super::lead::Lead;
use super::object::{FINALIZER, Name, Seen};

/// Who writes, in the objects' managed fields.
pub(super) const MANAGER: &str = "windlass-controller";

/// Writes objects; cheap to clone.
#[derive(Clone)]
pub(super) struct Writer {
    client: Client,
    lead: Lead,
}

impl Writer {
    pub(super) fn new(client: Client, lead: Lead) -> Self {
        Self { client, lead }
    }

    fn api(&self, name: &Name) -> Api<DynamicObject> {
        let resource = name.kind.resource();
        match &name.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// Makes the status be this; yields how many writes that took.
    ///
    /// Fields that others have added, and that an apply would leave to them, are taken away by a second write.
    pub(super) async fn status(&self, name: &Name, seen: &Seen, status: &Value) -> Result<u32, Error> {
        let api = self.api(name);
        let object = |version: &str, status: &Value| {
            let mut metadata = json!({"name": name.name, "uid": seen.uid, "resourceVersion": version});
            if let Some(namespace) = &name.namespace {
                metadata["namespace"] = namespace.as_str().into();
            }
            json!({
                "apiVersion": windlass_crds::API_VERSION,
                "kind": name.kind.manifest().name(),
                "metadata": metadata,
                "status": status,
            })
        };
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(object(&seen.version, status));
        let written =
            self.lead.write("apply a status", api.patch_status(&name.name, &params, &patch)).await?;
        if written.data.get("status").unwrap_or(&Value::Null) == status {
            return Ok(1);
        }
        let version = written.metadata.resource_version.as_deref().unwrap_or(&seen.version);
        let strangers = strangers(written.data.get("status").unwrap_or(&Value::Null), status);
        let patch = Patch::Merge(object(version, &strangers));
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        self.lead.write("mend a status", api.patch_status(&name.name, &params, &patch)).await?;
        Ok(2)
    }

    /// Adds or removes the finalizer; others stay.
    pub(super) async fn finalizer(
        &self,
        name: &Name,
        seen: &Seen,
        wanted: bool,
    ) -> Result<DynamicObject, Error> {
        let mut finalizers = seen.finalizers.clone();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        if wanted {
            finalizers.push(FINALIZER.to_owned());
        }
        let patch = Patch::Merge(
            json!({"metadata": {"uid": seen.uid, "resourceVersion": seen.version, "finalizers": finalizers}}),
        );
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        self.lead.write("patch finalizers", self.api(name).patch(&name.name, &params, &patch)).await
    }

    /// Deletes this very object.
    pub(super) async fn delete(&self, name: &Name, seen: &Seen) -> Result<(), Error> {
        let preconditions = Preconditions { uid: Some(seen.uid.clone()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match self.lead.write("delete an object", self.api(name).delete(&name.name, &params)).await {
            Err(error) if error.is_object_missing(&name.name) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Creates an object; yields whether it is new.
    pub(super) async fn create(&self, name: &Name, object: &DynamicObject) -> Result<bool, Error> {
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        match self.lead.write("create an object", self.api(name).create(&params, object)).await {
            Err(error) if error.status() == Some(409) => Ok(false),
            result => result.map(|_| true),
        }
    }

    /// Writes an Event, unless it was written before.
    pub(super) async fn event(&self, namespace: &str, event: &Event) -> Result<(), Error> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let mut written = self.lead.write("create an Event", api.create(&params, event)).await;
        if let Some(regarding) = event.regarding.as_ref().filter(|regarding| regarding.namespace.is_none())
            && written.as_ref().is_err_and(|error| error.status() == Some(422))
        {
            // Some API servers take every kind that they do not know for one with a namespace.
            let regarding = ObjectReference { namespace: Some(namespace.to_owned()), ..regarding.clone() };
            let event = Event { regarding: Some(regarding), ..event.clone() };
            written = self.lead.write("create an Event", api.create(&params, &event)).await;
        }
        match written {
            Err(error) if error.status() == Some(409) => Ok(()),
            result => result.map(drop),
        }
    }
}

/// A merge patch that makes `found` be `wanted`.
fn strangers(found: &Value, wanted: &Value) -> Value {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            let mut patch = serde_json::Map::new();
            for key in found.keys().filter(|key| !wanted.contains_key(*key)) {
                patch.insert(key.clone(), Value::Null);
            }
            for (key, wanted) in wanted {
                match found.get(key) {
                    Some(found) if found == wanted => {}
                    Some(found) => {
                        patch.insert(key.clone(), strangers(found, wanted));
                    }
                    None => {
                        patch.insert(key.clone(), wanted.clone());
                    }
                }
            }
            Value::Object(patch)
        }
        (_, wanted) => wanted.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_patch_takes_away_what_others_have_added() {
        let found = json!({"a": 1, "b": {"c": 1, "d": 2}, "e": [1], "f": 1});
        let wanted = json!({"a": 1, "b": {"c": 1}, "e": [1, 2], "g": 3});
        assert_eq!(strangers(&found, &wanted), json!({"b": {"d": null}, "e": [1, 2], "f": null, "g": 3}));
    }
}
