//! Job templates and their versions.

use jiff::Timestamp;
use windlass_crds::JobTemplateSpec;

/// A template with its current version.
#[derive(Clone, Debug, PartialEq)]
pub struct TemplateRow {
    /// The namespace.
    pub namespace: String,
    /// The name, unique in the namespace.
    pub name: String,
    /// The uid.
    pub uid: String,
    /// The current content.
    pub spec: JobTemplateSpec,
    /// When it was first put.
    pub created_at: Timestamp,
    /// When another version became current.
    pub updated_at: Timestamp,
    /// Grows with every change of `spec`, from 1.
    pub generation: i64,
    /// Grows with every change.
    pub resource_version: i64,
}

/// What became of a template to put.
#[derive(Clone, Debug, PartialEq)]
pub enum PutTemplate {
    /// It is new.
    Created(TemplateRow),
    /// Another version is now current.
    Updated(TemplateRow),
    /// It was so before.
    Unchanged(TemplateRow),
    /// The same version exists with other content; nothing was changed.
    VersionConflict {
        /// What that version holds.
        existing: TemplateRow,
    },
}
