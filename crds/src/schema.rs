//! Schemas of the manifests: JSON Schema for editors, custom resources for Kubernetes, both from the Rust types.
//!
//! Everything is made from one model, the shape of a kind, so that the reader of manifests, `windlass explain`,
//! editors and a cluster agree on fields, types and bounds. kube's derive makes names, scope and columns of the
//! custom resources; the schema inside them is rendered here, because structural form with bounds on
//! int-or-string values is more than the derive can say.

mod kind;
mod render;
mod rules;
pub(crate) mod shape;

#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceValidation, JSONSchemaProps,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

pub use kind::Kind;
use shape::{Field, Form, Shape};

use crate::protocol::worker_api::openapi;
use crate::{
    API_VERSION, JobTemplate, JobTemplateSpec, JobTemplateStatus, NodeConfig, NodeConfigSpec,
    NodeConfigStatus, SandboxJob, SandboxJobSpec, SandboxJobStatus,
};

/// The command that writes the generated files again.
pub const GENERATE_COMMAND: &str = "make generate";

/// The JSON Schema (draft 2020-12) of whole manifests of this kind, for editors and other tools.
pub fn schema_for(kind: Kind) -> Value {
    let mut schema = render::json_schema(shape_of(kind));
    let Value::Object(map) = &mut schema else {
        return schema;
    };
    map.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
    map.insert("$id".into(), format!("https://windlass.dev/schemas/{}.json", kind.plural()).into());
    map.insert("title".into(), kind.name().into());
    render::sorted(schema)
}

/// Whether custom resources carry rules between fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// With rules in CEL, for API servers from 1.25 on.
    Cel,
    /// Without them: older API servers refuse what they do not know.
    None,
}

/// The custom resource definitions of every kind, in the order of [`Kind::all`].
pub fn crds(rules: Rules) -> Vec<CustomResourceDefinition> {
    Kind::all().map(|kind| crd(kind, rules)).collect()
}

/// Custom resource definitions as YAML, a document each.
///
/// # Errors
/// [`Error::Yaml`].
pub fn crds_yaml(rules: Rules) -> Result<String, Error> {
    let documents = Kind::all().map(|kind| Ok(format!("---\n{}", crd_yaml(kind, rules)?)));
    documents.collect()
}

/// The generated files, each as its path relative to the `crds` folder and its content.
pub fn generated_files() -> Result<Vec<(String, String)>, Error> {
    let mut files = Vec::new();
    for kind in Kind::all() {
        let header = format!("# Made by `{GENERATE_COMMAND}` from crds/src. Do not edit.\n");
        files.push((format!("yaml/{}.yaml", kind.plural()), header + &crd_yaml(kind, Rules::Cel)?));
        let json =
            serde_json::to_string_pretty(&schema_for(kind)).map_err(|source| Error::Json { kind, source })?;
        files.push((format!("schemas/{}.json", kind.plural()), json + "\n"));
    }
    let worker_api = serde_json::to_string_pretty(&openapi()).map_err(Error::WorkerApi)?;
    files.push(("worker-api.json".to_owned(), worker_api + "\n"));
    Ok(files)
}

/// Why a generated file could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The custom resource cannot be written as YAML.
    #[error("write the custom resource of {kind} as YAML")]
    Yaml {
        /// The kind.
        kind: Kind,
        /// Why.
        #[source]
        source: Box<serde_saphyr::ser::Error>,
    },
    /// The schema cannot be written as JSON.
    #[error("write the schema of {kind} as JSON")]
    Json {
        /// The kind.
        kind: Kind,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The OpenAPI document of the Worker API cannot be written.
    #[error("write the OpenAPI document of the Worker API")]
    WorkerApi(#[source] serde_json::Error),
}

impl Error {
    /// The kind of error as a stable word.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Yaml { .. } => "yaml",
            Self::Json { .. } => "json",
            Self::WorkerApi(_) => "worker_api",
        }
    }
}

/// The shape of whole manifests of this kind.
pub(crate) fn shape_of(kind: Kind) -> &'static Shape {
    static NODE: LazyLock<Shape> = LazyLock::new(|| {
        manifest_shape::<NodeConfigSpec>(Kind::NodeConfig, read_shape::<NodeConfigStatus>())
    });
    static JOB: LazyLock<Shape> = LazyLock::new(|| {
        manifest_shape::<SandboxJobSpec>(Kind::SandboxJob, read_shape::<SandboxJobStatus>())
    });
    static TEMPLATE: LazyLock<Shape> = LazyLock::new(|| {
        manifest_shape::<JobTemplateSpec>(Kind::JobTemplate, read_shape::<JobTemplateStatus>())
    });
    match kind {
        Kind::NodeConfig => &NODE,
        Kind::SandboxJob => &JOB,
        Kind::JobTemplate => &TEMPLATE,
    }
}

fn crd_yaml(kind: Kind, rules: Rules) -> Result<String, Error> {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(&crd(kind, rules), options)
        .map_err(|source| Error::Yaml { kind, source: Box::new(source) })
}

fn crd(kind: Kind, rules: Rules) -> CustomResourceDefinition {
    let mut crd = match kind {
        Kind::NodeConfig => NodeConfig::crd(),
        Kind::SandboxJob => SandboxJob::crd(),
        Kind::JobTemplate => JobTemplate::crd(),
    };
    let mut schema = render::structural(shape_of(kind));
    // Kubernetes owns these three and refuses a schema that says more about them than their type.
    schema["properties"]["apiVersion"] = json!({"type": "string"});
    schema["properties"]["kind"] = json!({"type": "string"});
    schema["properties"]["metadata"] = json!({"type": "object"});
    schema["required"] = json!(["spec"]);
    rules::add_list_types(kind, &mut schema);
    match rules {
        Rules::Cel => rules::add_rules(kind, &mut schema),
        Rules::None => {}
    }
    let schema: JSONSchemaProps =
        serde_json::from_value(schema).expect("a structural schema is made of the fields of JSONSchemaProps");
    for version in &mut crd.spec.versions {
        version.schema = Some(CustomResourceValidation { open_api_v3_schema: Some(schema.clone()) });
    }
    crd
}

fn read_shape<T: schemars::JsonSchema>() -> Shape {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<T>();
    Shape::read(schema.as_value())
        .expect("the types of this crate have structural shapes, as the tests prove")
}

fn manifest_shape<Spec: schemars::JsonSchema>(kind: Kind, mut status: Shape) -> Shape {
    let word = |description: &str, word: &str| Shape {
        description: description.to_owned(),
        nullable: false,
        default: None,
        form: Form::Word(vec![(word.to_owned(), String::new())]),
    };
    let spec = read_shape::<Spec>();
    let description = spec.description.clone();
    // A manifest that was exported may carry `status: null`; what it says is never read.
    status.nullable = true;
    let fields = vec![
        ("apiVersion", true, word("The group and version of the manifest.", API_VERSION)),
        ("kind", true, word("The kind of the manifest.", kind.name())),
        ("metadata", true, metadata_shape()),
        ("spec", true, spec),
        ("status", false, status),
    ];
    let fields = fields
        .into_iter()
        .map(|(name, required, shape)| (name.to_owned(), Field { shape, required }))
        .collect();
    Shape { description, nullable: false, default: None, form: Form::Object { fields } }
}

/// The fields of `metadata`. Kubernetes' own schema says nothing about null, and its tools write it.
fn metadata_shape() -> Shape {
    let mut shape = read_shape::<ObjectMeta>();
    if let Form::Object { fields } = &mut shape.form {
        for field in fields.values_mut() {
            field.shape.nullable = !field.required;
        }
    }
    shape
}
