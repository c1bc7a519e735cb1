//! Schemas of the manifests: JSON Schema for editors, custom resources for Kubernetes, both from the Rust types.
//!
//! Everything is made from one model, the shape of a kind, so that the reader of manifests, `windlass explain`,
//! editors and a cluster agree on fields, types and bounds. kube's derive makes names, scope and columns of the
//! custom resources; the schema inside them is rendered here, because structural form with bounds on
//! int-or-string values is more than the derive can say.

mod kind;
mod render;
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

use crate::{
    API_VERSION, JobTemplate, JobTemplateSpec, NodeConfig, NodeConfigSpec, NodeConfigStatus, SandboxJob,
    SandboxJobSpec, SandboxJobStatus,
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

/// The custom resource definitions of every kind, in the order of [`Kind::all`].
pub fn crds() -> Vec<CustomResourceDefinition> {
    Kind::all().map(crd).collect()
}

/// The generated files, each as its path relative to the `crds` folder and its content.
pub fn generated_files() -> Result<Vec<(String, String)>, Error> {
    let mut files = Vec::new();
    for kind in Kind::all() {
        let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
        let yaml = serde_saphyr::to_string_with_options(&crd(kind), options)
            .map_err(|source| Error::Yaml { kind, source: Box::new(source) })?;
        let header = format!("# Made by `{GENERATE_COMMAND}` from crds/src. Do not edit.\n");
        files.push((format!("yaml/{}.yaml", kind.plural()), header + &yaml));
        let json =
            serde_json::to_string_pretty(&schema_for(kind)).map_err(|source| Error::Json { kind, source })?;
        files.push((format!("schemas/{}.json", kind.plural()), json + "\n"));
    }
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
}

impl Error {
    /// The kind of error as a stable word.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Yaml { .. } => "yaml",
            Self::Json { .. } => "json",
        }
    }
}

/// The shape of whole manifests of this kind.
pub(crate) fn shape_of(kind: Kind) -> &'static Shape {
    static NODE: LazyLock<Shape> = LazyLock::new(|| {
        manifest_shape::<NodeConfigSpec>(Kind::NodeConfig, Some(read_shape::<NodeConfigStatus>()))
    });
    static JOB: LazyLock<Shape> = LazyLock::new(|| {
        manifest_shape::<SandboxJobSpec>(Kind::SandboxJob, Some(read_shape::<SandboxJobStatus>()))
    });
    static TEMPLATE: LazyLock<Shape> =
        LazyLock::new(|| manifest_shape::<JobTemplateSpec>(Kind::JobTemplate, None));
    match kind {
        Kind::NodeConfig => &NODE,
        Kind::SandboxJob => &JOB,
        Kind::JobTemplate => &TEMPLATE,
    }
}

fn crd(kind: Kind) -> CustomResourceDefinition {
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

fn manifest_shape<Spec: schemars::JsonSchema>(kind: Kind, status: Option<Shape>) -> Shape {
    let word = |description: &str, word: &str| Shape {
        description: description.to_owned(),
        nullable: false,
        default: None,
        form: Form::Word(vec![(word.to_owned(), String::new())]),
    };
    let spec = read_shape::<Spec>();
    let description = spec.description.clone();
    let mut fields = vec![
        ("apiVersion", true, word("The group and version of the manifest.", API_VERSION)),
        ("kind", true, word("The kind of the manifest.", kind.name())),
        ("metadata", true, metadata_shape()),
        ("spec", true, spec),
    ];
    if let Some(mut status) = status {
        // A manifest that was exported may carry `status: null`; what it says is never read.
        status.nullable = true;
        fields.push(("status", false, status));
    }
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
