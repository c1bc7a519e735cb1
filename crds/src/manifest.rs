//! Manifests: strict reading and canonical writing, the same for files, the command line and REST bodies.
//!
//! ```text
//! text ─► tree (values with line and column) ─► check against the kind's shape ─► serde ─► metadata ─► Object
//!          aliases followed, duplicates refused   unknown fields, types, bounds              names
//! ```
//!
//! Everything that is wrong with a text is reported at once, each with its place. What a schema cannot say, such
//! as exactly one of two fields, is checked by the controller's core; [`Document::locate`] gives those errors
//! their place too. The `status` of a manifest is accepted and ignored.

mod check;
mod error;
#[cfg(test)]
mod examples;
mod metadata;
mod patch;
mod path;
#[cfg(test)]
mod tests;
mod tree;
mod write;

use kube::Resource as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use check::Finding;
pub use error::{Code, Error};
pub use metadata::{DEFAULT_NAMESPACE, check_labels, check_metadata};
pub use patch::{merge, parse_patch};
use path::Path;
pub use path::push_key;
use tree::{Data, Mark, Node};
pub use tree::{MAX_DEPTH, MAX_DOCUMENT, MAX_EXPANDED, MAX_VALUES};
pub use write::{WriteError, to_yaml};

use crate::protocol::FieldError;
use crate::schema::{Kind, shape_of};
use crate::{API_VERSION, GROUP, JobTemplate, NodeConfig, SandboxJob};

/// The most errors that are reported for one text.
pub const MAX_ERRORS: usize = 100;

/// A manifest.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// The desired configuration of a node.
    Node(Box<NodeConfig>),
    /// A piece of work.
    Job(Box<SandboxJob>),
    /// A named, parameterised job.
    Template(Box<JobTemplate>),
}

/// A manifest and where it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The manifest.
    pub object: Object,
    /// What was read: a file's name, or a word such as `stdin`.
    pub source: String,
    /// The path of the manifest inside its document, where that is a list.
    prefix: String,
    tree: Node,
}

/// A type that is declared by manifests.
pub trait Manifest: Sized {
    /// The kind of its manifests.
    const KIND: Kind;

    /// The object, if it is of this type.
    fn from_object(object: Object) -> Option<Self>;
}

impl Object {
    /// The kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Node(_) => Kind::NodeConfig,
            Self::Job(_) => Kind::SandboxJob,
            Self::Template(_) => Kind::JobTemplate,
        }
    }

    /// The name; `None` where a job asks for one by `generateName`.
    pub fn name(&self) -> Option<&str> {
        self.metadata().name.as_deref()
    }

    /// The namespace; `None` for kinds without one.
    pub fn namespace(&self) -> Option<&str> {
        self.metadata().namespace.as_deref()
    }

    /// The metadata.
    pub fn metadata(&self) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
        match self {
            Self::Node(node) => node.meta(),
            Self::Job(job) => job.meta(),
            Self::Template(template) => template.meta(),
        }
    }

    /// The object as JSON, as it goes over REST.
    pub fn to_json(&self) -> Result<Value, serde_json::Error> {
        match self {
            Self::Node(node) => serde_json::to_value(node),
            Self::Job(job) => serde_json::to_value(job),
            Self::Template(template) => serde_json::to_value(template),
        }
    }
}

impl Document {
    /// The line at which the manifest begins, from 1.
    pub const fn line(&self) -> usize {
        self.tree.mark.line
    }

    /// Gives an error of a field the place at which the field is written.
    pub fn locate(&self, error: &FieldError) -> Error {
        let Mark { line, column } = path::locate(&self.tree, &error.field);
        Error {
            source: self.source.clone(),
            line,
            column,
            field: join(&self.prefix, &error.field),
            code: Code::BadValue,
            message: error.message.clone(),
            hint: None,
        }
    }
}

impl Manifest for NodeConfig {
    const KIND: Kind = Kind::NodeConfig;

    fn from_object(object: Object) -> Option<Self> {
        match object {
            Object::Node(node) => Some(*node),
            Object::Job(_) | Object::Template(_) => None,
        }
    }
}

impl Manifest for SandboxJob {
    const KIND: Kind = Kind::SandboxJob;

    fn from_object(object: Object) -> Option<Self> {
        match object {
            Object::Job(job) => Some(*job),
            Object::Node(_) | Object::Template(_) => None,
        }
    }
}

impl Manifest for JobTemplate {
    const KIND: Kind = Kind::JobTemplate;

    fn from_object(object: Object) -> Option<Self> {
        match object {
            Object::Template(template) => Some(*template),
            Object::Node(_) | Object::Job(_) => None,
        }
    }
}

/// Reads every manifest of a text: YAML documents or JSON, lists of `kind: List` and JSON arrays included.
///
/// `source` names the text in errors. Documents without content are left out, so that an empty text has no
/// manifests and no errors.
///
/// # Errors
/// Everything that is wrong, in the order of the text, at most [`MAX_ERRORS`]. Documents that are right are not
/// returned beside documents that are wrong.
pub fn parse(text: &str, source: &str) -> Result<Vec<Document>, Vec<Error>> {
    if let Some(error) = unreadable(text, source) {
        return Err(vec![error]);
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (roots, mut errors) = tree::read(text, source);
    let mut documents = Vec::new();
    for root in roots {
        read_root(root, source, &mut documents, &mut errors);
    }
    if errors.is_empty() {
        return Ok(documents);
    }
    errors.sort_by_key(|error| (error.line, error.column));
    errors.truncate(MAX_ERRORS);
    Err(errors)
}

/// Reads every manifest of a file's bytes, as [`parse`] does.
///
/// # Errors
/// Those of [`parse`], and one for bytes that are not UTF-8.
pub fn parse_bytes(bytes: &[u8], source: &str) -> Result<Vec<Document>, Vec<Error>> {
    match std::str::from_utf8(bytes) {
        Ok(text) => parse(text, source),
        Err(error) => Err(vec![not_utf8(bytes, error.valid_up_to(), source)]),
    }
}

/// Reads the one manifest of a body, which must be of the kind `K`; JSON and YAML are both accepted.
///
/// # Errors
/// Those of [`parse_bytes`], and one where there is not exactly one manifest or it is of another kind.
pub fn parse_one<K: Manifest>(bytes: &[u8], source: &str) -> Result<K, Vec<Error>> {
    let documents = parse_bytes(bytes, source)?;
    let refuse = |code, line, field: &str, message: String| {
        let field = field.to_owned();
        Err(vec![Error {
            source: source.to_owned(),
            line,
            column: line.min(1),
            field,
            code,
            message,
            hint: None,
        }])
    };
    let count = documents.len();
    let Ok([document]) = <[Document; 1]>::try_from(documents) else {
        let message = format!("found {count} manifests where one {} is expected", K::KIND);
        return refuse(Code::WrongCount, 0, "", message);
    };
    let (found, line) = (document.object.kind(), document.line());
    match K::from_object(document.object) {
        Some(object) => Ok(object),
        None => {
            let message = format!("found `{found}` where `{}` is expected", K::KIND);
            refuse(Code::WrongKind, line, "kind", message)
        }
    }
}

/// Checks a spec that was not read from a text against the bounds of its schema: the same rules as in [`parse`].
/// The errors are in the order of the fields, which is not that of their paths.
pub fn check_spec<Spec: Serialize>(kind: Kind, spec: &Spec) -> Vec<FieldError> {
    let value = match serde_json::to_value(spec) {
        Ok(value) => value,
        Err(error) => {
            return vec![FieldError {
                field: "spec".to_owned(),
                message: format!("cannot be written: {error}"),
            }];
        }
    };
    let field = shape_of(kind).field("spec").expect("every manifest has a spec");
    let path = Path::Key(&Path::Root, "spec");
    let findings = check::check(&field.shape, &Node::from_json(&value), &path);
    findings.into_iter().map(|finding| finding.into_error("", "").to_field_error()).collect()
}

/// Reads what a document holds: a manifest, or a list of them.
fn read_root(root: Node, source: &str, documents: &mut Vec<Document>, errors: &mut Vec<Error>) {
    let is_list = root.get("kind").and_then(Node::text).is_some_and(is_list_kind);
    let (items, prefix) = match root.data {
        Data::List(items) => (items, ""),
        Data::Map(entries) if is_list => {
            let list = Node { mark: root.mark, data: Data::Map(entries) };
            let findings = check_list(&list);
            if !findings.is_empty() {
                errors.extend(findings.into_iter().map(|finding| finding.into_error(source, "")));
                return;
            }
            let Data::Map(entries) = list.data else { return };
            let items = entries.into_iter().find(|entry| entry.key == "items").map(|entry| entry.value.data);
            let Some(Data::List(items)) = items else { return };
            (items, "items")
        }
        Data::Null | Data::Boolean(_) | Data::Number(_) | Data::Text(_) | Data::Map(_) => {
            read_item(root, String::new(), source, documents, errors);
            return;
        }
    };
    for (index, item) in items.into_iter().enumerate() {
        let mut prefix = prefix.to_owned();
        path::push_index(&mut prefix, index);
        read_item(item, prefix, source, documents, errors);
    }
}

fn read_item(
    tree: Node,
    prefix: String,
    source: &str,
    documents: &mut Vec<Document>,
    errors: &mut Vec<Error>,
) {
    match read_object(&tree) {
        Ok(object) => documents.push(Document { object, source: source.to_owned(), prefix, tree }),
        Err(findings) => {
            errors.extend(findings.into_iter().map(|finding| finding.into_error(source, &prefix)));
        }
    }
}

fn is_list_kind(kind: &str) -> bool {
    kind == "List" || kind.strip_suffix("List").is_some_and(|kind| Kind::from_name(kind).is_some())
}

/// What is wrong with the wrapper of a list.
fn check_list(list: &Node) -> Vec<Finding> {
    let Data::Map(entries) = &list.data else { return Vec::new() };
    let mut findings = Vec::new();
    let mut report = |field: &str, mark, code, message: &str, hint: Option<&str>| {
        findings.push(Finding {
            field: field.to_owned(),
            mark,
            code,
            message: message.to_owned(),
            hint: hint.map(str::to_owned),
        });
    };
    for entry in entries {
        match entry.key.as_str() {
            "kind" | "metadata" => {}
            "apiVersion" => {
                if !matches!(entry.value.text(), Some("v1" | API_VERSION)) {
                    let message = format!("found {} in a list", entry.value);
                    let hint = format!("write \"v1\" or \"{API_VERSION}\"");
                    report("apiVersion", entry.value.mark, Code::WrongKind, &message, Some(&hint));
                }
            }
            "items" => {
                if !matches!(entry.value.data, Data::List(_)) {
                    let message = format!("found {} instead of a list", entry.value);
                    report("items", entry.value.mark, Code::WrongType, &message, None);
                }
            }
            other => {
                let hint = "known here: apiVersion, kind, metadata, items";
                report(other, entry.mark, Code::UnknownField, "unknown field", Some(hint));
            }
        }
    }
    if list.get("items").is_none() {
        report("items", list.mark, Code::MissingField, "is missing", Some("write a list of manifests"));
    }
    findings
}

fn read_object(tree: &Node) -> Result<Object, Vec<Finding>> {
    let kind = read_kind(tree)?;
    let declared = without_status(tree);
    let findings = check::check(shape_of(kind), &declared, &Path::Root);
    if !findings.is_empty() {
        return Err(findings);
    }
    let json = declared.to_json();
    let mut object = match kind {
        Kind::NodeConfig => Object::Node(Box::new(deserialize(json, tree)?)),
        Kind::SandboxJob => Object::Job(Box::new(deserialize(json, tree)?)),
        Kind::JobTemplate => Object::Template(Box::new(deserialize(json, tree)?)),
    };
    let metadata = match &mut object {
        Object::Node(node) => node.meta_mut(),
        Object::Job(job) => job.meta_mut(),
        Object::Template(template) => template.meta_mut(),
    };
    if kind.is_namespaced() && metadata.namespace.as_deref().is_none_or(str::is_empty) {
        metadata.namespace = Some(DEFAULT_NAMESPACE.to_owned());
    }
    let findings: Vec<Finding> = check_metadata(kind, metadata)
        .into_iter()
        .map(|FieldError { field, message }| Finding {
            mark: path::locate(tree, &field),
            field,
            code: Code::BadValue,
            message,
            hint: None,
        })
        .collect();
    if findings.is_empty() { Ok(object) } else { Err(findings) }
}

/// The kind of a manifest, by its `apiVersion` and `kind`.
fn read_kind(tree: &Node) -> Result<Kind, Vec<Finding>> {
    let finding = |field: &str, code, message: String, hint: String| Finding {
        field: field.to_owned(),
        mark: path::locate(tree, field),
        code,
        message,
        hint: Some(hint),
    };
    let example = format!("write a map with `apiVersion: {API_VERSION}`, `kind`, `metadata` and `spec`");
    if !matches!(tree.data, Data::Map(_)) {
        return Err(vec![finding(
            "",
            Code::WrongType,
            format!("found {tree} instead of a manifest"),
            example,
        )]);
    }
    let known: Vec<&str> = Kind::all().map(Kind::name).collect();
    let known_kinds = format!("known kinds: {}", known.join(", "));
    let mut findings = Vec::new();
    match tree.get("apiVersion") {
        None => {
            let hint = format!("write `apiVersion: {API_VERSION}`");
            findings.push(finding("apiVersion", Code::MissingField, "is missing".to_owned(), hint));
        }
        Some(node) if node.text() != Some(API_VERSION) => {
            let what = match node.text().and_then(|text| text.split_once('/')) {
                Some((GROUP, _)) => format!("{node} is not a known version"),
                Some(_) | None => format!("{node} is not a known group and version"),
            };
            let hint = format!("write \"{API_VERSION}\"");
            findings.push(finding("apiVersion", Code::WrongKind, what, hint));
        }
        Some(_) => {}
    }
    let kind = match tree.get("kind") {
        None => {
            findings.push(finding("kind", Code::MissingField, "is missing".to_owned(), known_kinds));
            None
        }
        Some(node) => {
            let kind = node.text().and_then(Kind::from_name);
            if kind.is_none() {
                let near = node.text().and_then(|text| {
                    Kind::from_alias(text)
                        .map(Kind::name)
                        .or_else(|| check::nearest(text, known.iter().copied()))
                });
                let hint = match near {
                    Some(near) => format!("did you mean \"{near}\"? {known_kinds}"),
                    None => known_kinds,
                };
                findings.push(finding("kind", Code::WrongKind, format!("{node} is not a known kind"), hint));
            }
            kind
        }
    };
    match kind {
        Some(kind) if findings.is_empty() => Ok(kind),
        Some(_) | None => Err(findings),
    }
}

/// The manifest without what it says about its status.
fn without_status(tree: &Node) -> Node {
    match &tree.data {
        Data::Map(entries) => {
            let entries = entries.iter().filter(|entry| entry.key != "status").cloned().collect();
            Node { mark: tree.mark, data: Data::Map(entries) }
        }
        Data::Null | Data::Boolean(_) | Data::Number(_) | Data::Text(_) | Data::List(_) => tree.clone(),
    }
}

/// Makes the object of a checked manifest. The check leaves serde little to find; what it does find has its place.
fn deserialize<T: DeserializeOwned>(json: Value, tree: &Node) -> Result<T, Vec<Finding>> {
    serde_path_to_error::deserialize(json).map_err(|error| {
        let field = match error.path().to_string() {
            path if path == "." => String::new(),
            path => path,
        };
        let mark = path::locate(tree, &field);
        vec![Finding {
            field,
            mark,
            code: Code::BadValue,
            message: error.into_inner().to_string(),
            hint: None,
        }]
    })
}

impl Finding {
    fn into_error(self, source: &str, prefix: &str) -> Error {
        let Self { field, mark: Mark { line, column }, code, message, hint } = self;
        Error { source: source.to_owned(), line, column, field: join(prefix, &field), code, message, hint }
    }
}

fn join(prefix: &str, field: &str) -> String {
    match (prefix, field) {
        ("", _) => field.to_owned(),
        (_, "") => prefix.to_owned(),
        (_, field) if field.starts_with('[') => format!("{prefix}{field}"),
        _ => format!("{prefix}.{field}"),
    }
}

/// Finds the first character that no manifest may have.
fn unreadable(text: &str, source: &str) -> Option<Error> {
    let is_refused = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{7f}' | '\u{85}');
    let (at, found) = text.char_indices().find(|(_, c)| is_refused(*c))?;
    let name = match found {
        '\0' => "a NUL".to_owned(),
        other => format!("the control character U+{:04X}", u32::from(other)),
    };
    let (line, column) = place(&text.as_bytes()[..at]);
    Some(Error {
        source: source.to_owned(),
        line,
        column,
        field: String::new(),
        code: Code::Syntax,
        message: format!("the text holds {name}"),
        hint: Some("remove it, or write it as an escape in double quotes".to_owned()),
    })
}

fn not_utf8(bytes: &[u8], at: usize, source: &str) -> Error {
    let (line, column) = place(&bytes[..at]);
    let utf16 = matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..]);
    Error {
        source: source.to_owned(),
        line,
        column,
        field: String::new(),
        code: Code::Syntax,
        message: if utf16 { "the text is UTF-16, not UTF-8" } else { "the text is not UTF-8" }.to_owned(),
        hint: Some("save it as UTF-8".to_owned()),
    }
}

/// The place after these bytes, which are UTF-8.
fn place(before: &[u8]) -> (usize, usize) {
    let text = String::from_utf8_lossy(before);
    let line_start = text.rfind('\n').map_or(0, |at| at + 1);
    (text.matches('\n').count() + 1, text[line_start..].chars().count() + 1)
}
