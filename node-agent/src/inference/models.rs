//! Which models a server lacks, and which it has in vain. Pure.

use windlass_crds::inference::{InferenceEngine, Model, is_same_model, split_model};
use windlass_crds::protocol::InferenceBackend;

use super::Trouble;

/// What is to be done about the models of a server.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// To be fetched, by name.
    pub(super) pull: Vec<String>,
    /// To be removed, by name.
    pub(super) delete: Vec<String>,
}

/// What is to be done about the models of a server that has `present`.
///
/// # Errors
/// A model that the server must have, lacks, and cannot be told to fetch, or that is another one than its digest says.
pub(super) fn plan(backend: &InferenceBackend, present: &[Model]) -> Result<Plan, Trouble> {
    let find = |name: &str| present.iter().find(|model| is_same_model(name, &model.name));
    let mut plan = Plan::default();
    for entry in &backend.models {
        let (name, digest) = split_model(entry);
        match (find(name), digest) {
            (Some(model), Some(digest)) if model.digest.as_deref() != Some(digest) => {
                let found = model.digest.as_deref().unwrap_or("no digest that the server tells");
                return Err(Trouble::new(
                    "ModelDigest",
                    format!(
                        "the model `{name}` on the node has {found}, and inference.models names {digest}; correct the one or remove the other"
                    ),
                ));
            }
            (Some(_), _) => {}
            (None, _) => match backend.engine {
                InferenceEngine::Ollama => plan.pull.push(name.to_owned()),
                InferenceEngine::OpenaiCompatible => {
                    let has: Vec<&str> = present.iter().map(|model| model.name.as_str()).collect();
                    return Err(Trouble::new(
                        "ModelUnknown",
                        format!(
                            "the server has no model `{name}`, only {}; correct inference.models, or give the server the model",
                            if has.is_empty() { "none".to_owned() } else { has.join(", ") }
                        ),
                    ));
                }
            },
        }
    }
    if prunes(backend) {
        let wanted = |model: &Model| {
            backend.models.iter().any(|entry| is_same_model(split_model(entry).0, &model.name))
        };
        plan.delete = present.iter().filter(|model| !wanted(model)).map(|model| model.name.clone()).collect();
    }
    Ok(plan)
}

/// Whether models that are not listed are removed: never from a server that is not ours, and never where none is listed.
fn prunes(backend: &InferenceBackend) -> bool {
    let own = backend.model_volume.is_none();
    backend.engine == InferenceEngine::Ollama
        && backend.url.is_none()
        && !backend.models.is_empty()
        && backend.prune_models.unwrap_or(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::tests::backend;

    fn model(name: &str) -> Model {
        Model { name: name.to_owned(), digest: Some("sha256:aa".to_owned()), size: None }
    }

    #[test]
    fn what_is_listed_is_fetched_and_what_is_not_goes() {
        let mut wanted = backend();
        wanted.models = vec!["a".to_owned(), "b:1".to_owned()];
        let present = [model("a:latest"), model("old:1")];
        let expected = Plan { pull: vec!["b:1".to_owned()], delete: vec!["old:1".to_owned()] };
        assert_eq!(plan(&wanted, &present), Ok(expected));
        // After it was done there is nothing left to do.
        assert_eq!(plan(&wanted, &[model("a:latest"), model("b:1")]), Ok(Plan::default()));
    }

    #[test]
    fn nothing_is_removed_from_folders_and_servers_of_others() {
        let mut wanted = backend();
        wanted.models = vec!["a".to_owned()];
        let present = [model("a:latest"), model("old:1")];
        let none = |wanted: &InferenceBackend| plan(wanted, &present).unwrap().delete.is_empty();
        assert!(!none(&wanted));
        wanted.model_volume = Some("/srv".to_owned());
        assert!(none(&wanted));
        wanted.prune_models = Some(true);
        assert!(!none(&wanted));
        wanted.url = Some("http://x".to_owned());
        assert!(none(&wanted));
        let of_none = InferenceBackend { models: Vec::new(), ..backend() };
        assert!(none(&of_none));
    }

    #[test]
    fn a_digest_is_held_to_and_a_server_without_downloads_must_have_its_models() {
        let mut wanted = backend();
        wanted.models = vec!["a@sha256:bb".to_owned()];
        assert_eq!(plan(&wanted, &[model("a:latest")]).unwrap_err().reason, "ModelDigest");
        wanted.models = vec!["a@sha256:aa".to_owned()];
        assert_eq!(plan(&wanted, &[model("a:latest")]), Ok(Plan::default()));
        wanted.engine = InferenceEngine::OpenaiCompatible;
        let trouble = plan(&wanted, &[model("b")]).unwrap_err();
        assert!(trouble.reason == "ModelUnknown" && trouble.message.contains("only b"), "{trouble:?}");
    }
}
