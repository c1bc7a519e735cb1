//! Objects as the API server gives them, read leniently: what one of them says must not keep the others from being seen.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, DynamicObject};
use serde::de::DeserializeOwned;
use serde_json::Value;
use windlass_core::validate::{self, ValidJob, ValidNode, ValidTemplate};
use windlass_crds::protocol::FieldError;
use windlass_crds::schema::Kind;
use windlass_crds::{GROUP, JobTemplate, NodeConfig, SandboxJob};
use windlass_store::OriginKind;

/// What keeps an object until its job is stopped on the node.
pub(super) const FINALIZER: &str = "windlass.dev/stop-on-node";
/// Names the job of the store that an object was exported from.
pub(super) const JOB_ANNOTATION: &str = "windlass.dev/job";
/// The most characters of a message in a status or an Event.
pub(super) const MESSAGE_MAX: usize = 512;

/// Names an object, whichever one has the name just now.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) kind: ObjectKind,
    /// `None` for nodes.
    pub(super) namespace: Option<String>,
    pub(super) name: String,
}

/// A kind of object, in the order in which they are looked at: a node is there before its jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum ObjectKind {
    Node,
    Template,
    Job,
}

impl ObjectKind {
    pub(super) const ALL: [Self; 3] = [Self::Node, Self::Template, Self::Job];

    pub(super) const fn manifest(self) -> Kind {
        match self {
            Self::Node => Kind::NodeConfig,
            Self::Template => Kind::JobTemplate,
            Self::Job => Kind::SandboxJob,
        }
    }

    pub(super) const fn origin(self) -> OriginKind {
        match self {
            Self::Node => OriginKind::Node,
            Self::Template => OriginKind::Template,
            Self::Job => OriginKind::Job,
        }
    }

    /// The resource as kube's client names it.
    pub(super) fn resource(self) -> ApiResource {
        let kind = self.manifest();
        ApiResource {
            group: GROUP.to_owned(),
            version: "v1alpha1".to_owned(),
            api_version: windlass_crds::API_VERSION.to_owned(),
            kind: kind.name().to_owned(),
            plural: kind.plural().to_owned(),
        }
    }
}

/// An object that was seen.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) uid: String,
    pub(super) version: String,
    pub(super) generation: i64,
    /// Whether its deletion was asked for.
    pub(super) is_deleted: bool,
    pub(super) finalizers: Vec<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) declared: Declared,
    /// The status as it is there, whoever wrote it.
    pub(super) status: Value,
}

/// What an object declares, or everything that is wrong with it.
#[derive(Clone, Debug)]
pub(super) enum Declared {
    Job(Result<Arc<ValidJob>, String>),
    Node(Result<Arc<ValidNode>, String>),
    Template(Result<Arc<ValidTemplate>, String>),
}

impl Seen {
    /// Reads an object; `None` for one without a name or uid, which no API server gives.
    pub(super) fn read(kind: ObjectKind, object: DynamicObject) -> Option<(Name, Self)> {
        let DynamicObject { metadata, mut data, types: _ } = object;
        let name = Name { kind, namespace: metadata.namespace.clone(), name: metadata.name.clone()? };
        let spec = data.get_mut("spec").map(Value::take).unwrap_or_default();
        let status = data.get_mut("status").map(Value::take).unwrap_or_default();
        let labels = metadata.labels.unwrap_or_default();
        let mut annotations = metadata.annotations.unwrap_or_default();
        // What kubectl remembers there repeats the whole object.
        annotations.retain(|key, _| !key.starts_with("kubectl.kubernetes.io/"));
        let declared = declared(&name, &labels, &annotations, spec);
        let seen = Self {
            uid: metadata.uid?,
            version: metadata.resource_version.unwrap_or_default(),
            generation: metadata.generation.unwrap_or(0),
            is_deleted: metadata.deletion_timestamp.is_some(),
            finalizers: metadata.finalizers.unwrap_or_default(),
            labels,
            annotations,
            declared,
            status,
        };
        Some((name, seen))
    }

    pub(super) fn has_finalizer(&self) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == FINALIZER)
    }
}

fn declared(
    name: &Name,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
    spec: Value,
) -> Declared {
    let metadata = ObjectMeta {
        name: Some(name.name.clone()),
        namespace: name.namespace.clone(),
        labels: Some(labels.clone()).filter(|labels| !labels.is_empty()),
        annotations: Some(annotations.clone()).filter(|annotations| !annotations.is_empty()),
        ..ObjectMeta::default()
    };
    match name.kind {
        ObjectKind::Job => Declared::Job(read(spec, |spec| {
            validate::validate_job(&SandboxJob { metadata, spec, status: None })
        })),
        ObjectKind::Node => Declared::Node(read(spec, |spec| {
            validate::validate_node(&NodeConfig { metadata, spec, status: None })
        })),
        ObjectKind::Template => Declared::Template(read(spec, |spec| {
            validate::validate_template(&JobTemplate { metadata, spec, status: None })
        })),
    }
}

fn read<S: DeserializeOwned, V>(
    spec: Value,
    validate: impl FnOnce(S) -> Result<V, Vec<FieldError>>,
) -> Result<Arc<V>, String> {
    let spec: S = serde_json::from_value(spec).map_err(|error| short(&format!("spec: {error}")))?;
    validate(spec).map(Arc::new).map_err(|errors| sentence(&errors))
}

/// What is wrong, in one line.
pub(super) fn sentence(errors: &[FieldError]) -> String {
    let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
    short(&all.join("; "))
}

/// A text that is no longer than a message may be, and without characters that take six bytes in JSON.
pub(super) fn short(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    if text.chars().nth(MESSAGE_MAX).is_none() {
        return plain.collect();
    }
    plain.take(MESSAGE_MAX - 1).chain(['…']).collect()
}
