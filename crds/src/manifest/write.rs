//! Canonical YAML: fields in the order of the types, nothing that says only the default.

use super::Object;

/// Why a manifest could not be written.
#[derive(Debug, thiserror::Error)]
#[error("write the manifest as YAML")]
pub struct WriteError {
    #[source]
    source: Box<serde_saphyr::ser::Error>,
}

impl WriteError {
    /// The kind of error as a stable word.
    pub const fn kind(&self) -> &'static str {
        "yaml"
    }
}

/// Writes a manifest as one YAML document that ends with a line break. Reading it gives the same object, without
/// its status; texts that other readers of YAML would take for something else are quoted.
///
/// # Errors
/// Where a value has no YAML, which no object that was read has.
pub fn to_yaml(object: &Object) -> Result<String, WriteError> {
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    let written = match object {
        Object::Node(node) => serde_saphyr::to_string_with_options(node, options),
        Object::Job(job) => serde_saphyr::to_string_with_options(job, options),
        Object::Template(template) => serde_saphyr::to_string_with_options(template, options),
    };
    written.map_err(|source| WriteError { source: Box::new(source) })
}
