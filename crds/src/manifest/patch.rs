//! Patches: part of a manifest's spec, to be laid over the specs of objects that exist (RFC 7386): maps are merged, `null`
//! takes a field away, everything else takes the place of what was.

use serde_json::Value;

use super::check::{self, Finding};
use super::error::{Code, Error};
use super::path::{self, Path};
use super::tree::{self, Data, Mark, Node};
use super::unreadable;
use crate::API_VERSION;
use crate::schema::{Kind, shape_of};

/// Reads a patch of specs of a kind: a map with `spec`, and with `apiVersion` and `kind` where somebody likes to write them.
/// Yields what is below `spec`. JSON and YAML are both accepted.
///
/// # Errors
/// Everything that is wrong, in the order of the text: fields that the spec does not have, values of the wrong type or
/// out of range, and anything beside `spec`.
pub fn parse_patch(text: &str, source: &str, kind: Kind) -> Result<Value, Vec<Error>> {
    if let Some(error) = unreadable(text, source) {
        return Err(vec![error]);
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (roots, errors) = tree::read(text, source);
    if !errors.is_empty() {
        return Err(errors);
    }
    let count = roots.len();
    let findings = match <[Node; 1]>::try_from(roots) {
        Ok([root]) => match check_root(&root, kind) {
            (Some(patch), findings) if findings.is_empty() => return Ok(patch),
            (_, findings) => findings,
        },
        Err(_) => {
            let message = format!("found {count} documents where one patch is expected");
            vec![finding("", Mark { line: 1, column: 1 }, Code::WrongCount, message, None)]
        }
    };
    let mut errors: Vec<Error> = findings.into_iter().map(|finding| finding.into_error(source, "")).collect();
    errors.sort_by_key(|error| (error.line, error.column));
    Err(errors)
}

/// Lays a patch over a value.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        patch.clone_into(target);
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

fn check_root(root: &Node, kind: Kind) -> (Option<Value>, Vec<Finding>) {
    let Data::Map(entries) = &root.data else {
        let hint = "write a map with `spec`".to_owned();
        let message = format!("found {root} instead of a patch");
        return (None, vec![finding("", root.mark, Code::WrongType, message, Some(hint))]);
    };
    let mut findings = Vec::new();
    let mut patch = None;
    for entry in entries {
        let (key, value) = (entry.key.as_str(), &entry.value);
        let mut wrong = |expected: &str| {
            let hint = Some(format!("write \"{expected}\" or leave it out"));
            findings.push(finding(key, value.mark, Code::WrongKind, format!("found {value}"), hint));
        };
        match key {
            "apiVersion" if value.text() != Some(API_VERSION) => wrong(API_VERSION),
            "kind" if value.text() != Some(kind.name()) => wrong(kind.name()),
            "apiVersion" | "kind" => {}
            "spec" => {
                findings.extend(check_spec(value, kind));
                patch = Some(value.to_json());
            }
            other => {
                let message = "cannot be patched".to_owned();
                let hint = Some("a patch has `spec` alone".to_owned());
                findings.push(finding(other, entry.mark, Code::UnknownField, message, hint));
            }
        }
    }
    let empty = patch.as_ref().is_none_or(|patch| patch.as_object().is_some_and(serde_json::Map::is_empty));
    if empty && findings.is_empty() {
        let hint = Some("write what is to change, such as `spec: {concurrency: 4}`".to_owned());
        findings.push(finding("spec", root.mark, Code::MissingField, "says nothing".to_owned(), hint));
    }
    (patch, findings)
}

/// Holds the patch against the shape of the spec. A field may be `null`, whatever it is.
fn check_spec(spec: &Node, kind: Kind) -> Vec<Finding> {
    if !matches!(spec.data, Data::Map(_)) {
        let message = format!("found {spec} instead of a map");
        return vec![finding("spec", spec.mark, Code::WrongType, message, None)];
    }
    let mut removed = Vec::new();
    find_null(spec, "spec", &mut removed);
    let field = shape_of(kind).field("spec").expect("every manifest has a spec");
    let mut findings = check::check(&field.shape, spec, &Path::Key(&Path::Root, "spec"));
    findings.retain(|finding| !(finding.code == Code::WrongType && removed.contains(&finding.field)));
    findings
}

/// The paths of fields that are `null`. Inside lists it means nothing.
fn find_null(node: &Node, at: &str, found: &mut Vec<String>) {
    let Data::Map(entries) = &node.data else { return };
    for entry in entries {
        let mut path = at.to_owned();
        path::push_key(&mut path, &entry.key);
        match &entry.value.data {
            Data::Null => found.push(path),
            Data::Map(_) => find_null(&entry.value, &path, found),
            Data::Boolean(_) | Data::Number(_) | Data::Text(_) | Data::List(_) => {}
        }
    }
}

fn finding(field: &str, mark: Mark, code: Code, message: String, hint: Option<String>) -> Finding {
    Finding { field: field.to_owned(), mark, code, message, hint }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(text: &str) -> Result<Value, Vec<String>> {
        parse_patch(text, "patch.yaml", Kind::NodeConfig)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_is_below_spec_is_the_patch() {
        let text = "kind: NodeConfig\nspec:\n  concurrency: 4\n  labels: {old: null, new: a}\n  sandbox: {maxTimeout: 1h}\n";
        let expected = json!({
            "concurrency": 4, "labels": {"old": null, "new": "a"}, "sandbox": {"maxTimeout": "1h"},
        });
        assert_eq!(parse(text), Ok(expected));
        assert_eq!(parse(r#"{"spec": {"queues": null}}"#), Ok(json!({"queues": null})));
    }

    #[test]
    fn what_a_patch_may_not_say_is_named_with_its_place() {
        for (text, expected) in [
            ("spec: {concurency: 4}", "spec.concurency"),
            ("spec: {concurency: null}", "spec.concurency"),
            ("spec: {concurrency: 0}", "spec.concurrency"),
            ("spec: {sandbox: {maxTimeout: soon}}", "spec.sandbox.maxTimeout"),
            ("spec: {queues: [null]}", "spec.queues[0]"),
            ("metadata: {name: n1}\nspec: {concurrency: 4}", "metadata"),
            ("kind: SandboxJob\nspec: {concurrency: 4}", "kind"),
            ("spec: {}", "spec"),
            ("concurrency: 4", "concurrency"),
            ("spec: 4", "spec"),
            ("- spec", "instead of a patch"),
            ("spec: {concurrency: 4}\n---\nspec: {concurrency: 5}", "2 documents"),
        ] {
            let errors = parse(text).expect_err(text);
            assert_eq!(errors.len(), 1, "{text}: {errors:?}");
            assert!(errors[0].contains("patch.yaml:") && errors[0].contains(expected), "{text}: {errors:?}");
        }
    }

    #[test]
    fn a_patch_merges_maps_and_replaces_everything_else() {
        let mut target = json!({"a": {"b": 1, "c": 2}, "list": [1, 2], "gone": true});
        merge(
            &mut target,
            &json!({"a": {"b": null, "d": 3}, "list": [3], "gone": null, "new": {"x": {"y": 1, "z": null}}}),
        );
        assert_eq!(target, json!({"a": {"c": 2, "d": 3}, "list": [3], "new": {"x": {"y": 1}}}));
    }
}
