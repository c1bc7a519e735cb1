//! The generated files are current, and a cluster accepts them.

use std::path::Path;

use serde_json::{Map, Value};

use super::*;

#[test]
fn the_committed_files_are_what_the_types_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (path, content) in generated_files().unwrap() {
        let committed = std::fs::read_to_string(root.join(&path)).unwrap_or_default();
        assert!(
            committed == content,
            "crds/{path} is out of date: run `{GENERATE_COMMAND}` and commit the result"
        );
    }
}

#[test]
fn nothing_else_lies_among_the_generated_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let known: Vec<String> = generated_files().unwrap().into_iter().map(|(path, _)| path).collect();
    for folder in ["yaml", "schemas"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = format!("{folder}/{}", entry.unwrap().file_name().to_string_lossy());
            assert!(known.contains(&path), "crds/{path} is made by nothing: delete it");
        }
    }
}

/// Checks what the API server checks when a custom resource definition is created: the rules of
/// <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>.
fn check_structural(schema: &Map<String, Value>, at: &str, problems: &mut Vec<String>) {
    let mut refuse = |reason: &str| problems.push(format!("{at}: {reason}"));
    let keyword = |name: &str| schema.get(name);
    for forbidden in
        ["$ref", "oneOf", "allOf", "not", "definitions", "$defs", "patternProperties", "uniqueItems"]
    {
        if schema.contains_key(forbidden) {
            refuse(&format!("`{forbidden}` is not structural"));
        }
    }
    let int_or_string = keyword("x-kubernetes-int-or-string") == Some(&true.into());
    let preserve = keyword("x-kubernetes-preserve-unknown-fields") == Some(&true.into());
    let type_name = keyword("type").and_then(Value::as_str);
    match type_name {
        Some(_) if int_or_string => refuse("int-or-string has no type of its own"),
        None if !int_or_string && !preserve => refuse("no type"),
        Some("object" | "array" | "string" | "integer" | "number" | "boolean") | None => {}
        Some(other) => refuse(&format!("unknown type `{other}`")),
    }
    if let Some(any_of) = keyword("anyOf") {
        if !int_or_string || *any_of != serde_json::json!([{"type": "integer"}, {"type": "string"}]) {
            refuse("`anyOf` other than that of int-or-string");
        }
    } else if int_or_string {
        refuse("int-or-string without its `anyOf`");
    }
    if let Some(format) = keyword("format").and_then(Value::as_str)
        && !["int32", "int64", "date-time"].contains(&format)
    {
        refuse(&format!("the API server does not know the format `{format}`"));
    }
    if keyword("properties").is_some() && keyword("additionalProperties").is_some() {
        refuse("`properties` and `additionalProperties` exclude each other");
    }
    if keyword("nullable") == Some(&true.into()) && keyword("default") == Some(&Value::Null) {
        refuse("a default of null is pruned");
    }
    if let Some(Value::Object(properties)) = keyword("properties") {
        for (name, property) in properties {
            let property = property.as_object().expect("a property is a schema");
            check_structural(property, &format!("{at}.{name}"), problems);
        }
        for name in keyword("required").and_then(Value::as_array).into_iter().flatten() {
            if !properties.contains_key(name.as_str().unwrap()) {
                problems.push(format!("{at}: {name} is required and unknown"));
            }
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = keyword(key) {
            let inner = inner.as_object().expect("lists and maps have one schema for their values");
            check_structural(inner, &format!("{at}[]"), problems);
        }
    }
    if type_name == Some("array") && keyword("items").is_none() {
        problems.push(format!("{at}: a list without `items`"));
    }
}

/// Checks that everything in a spec has an upper bound, so that no object can fill the API server's store.
fn check_bounded(schema: &Map<String, Value>, at: &str, problems: &mut Vec<String>) {
    let bound = match schema.get("type").and_then(Value::as_str) {
        Some("array") => "maxItems",
        Some("string") if !schema.contains_key("enum") => "maxLength",
        Some("object") if schema.contains_key("additionalProperties") => "maxProperties",
        _ => "description",
    };
    if bound != "description" && !schema.contains_key(bound) {
        problems.push(format!("{at}: no {bound}"));
    }
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        check_bounded(property.as_object().unwrap(), &format!("{at}.{name}"), problems);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(Value::Object(inner)) = schema.get(key) {
            check_bounded(inner, &format!("{at}[]"), problems);
        }
    }
}

fn schemas_in_crds() -> Vec<(String, Map<String, Value>)> {
    let mut found = Vec::new();
    for crd in crds(Rules::Cel) {
        for version in &crd.spec.versions {
            let schema =
                version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref()).unwrap();
            let Value::Object(schema) = serde_json::to_value(schema).unwrap() else {
                unreachable!("a struct")
            };
            found.push((crd.spec.names.kind.clone(), schema));
        }
    }
    found
}

#[test]
fn every_custom_resource_is_structural() {
    let mut problems = Vec::new();
    for (kind, schema) in schemas_in_crds() {
        check_structural(&schema, &kind, &mut problems);
        let properties = schema["properties"].as_object().unwrap();
        assert_eq!(properties["metadata"], json!({"type": "object"}), "{kind}: Kubernetes owns metadata");
        assert!(properties.contains_key("spec"), "{kind}");
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn the_structural_rules_can_fail() {
    for (schema, expected) in [
        (json!({"properties": {}}), "no type"),
        (json!({"type": "object", "properties": {"a": {"$ref": "#/b", "type": "object"}}}), "`$ref`"),
        (json!({"type": "string", "x-kubernetes-int-or-string": true}), "no type of its own"),
        (json!({"anyOf": [{}, {}], "x-kubernetes-int-or-string": true}), "`anyOf` other"),
        (json!({"type": "integer", "format": "uint32"}), "format `uint32`"),
        (json!({"type": "array"}), "without `items`"),
        (json!({"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}), "exclude"),
    ] {
        let mut problems = Vec::new();
        check_structural(schema.as_object().unwrap(), "x", &mut problems);
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{schema}: {problems:?}");
    }
}

#[test]
fn everything_in_a_spec_is_bounded() {
    let mut problems = Vec::new();
    for (kind, schema) in schemas_in_crds() {
        check_bounded(
            schema["properties"]["spec"].as_object().unwrap(),
            &format!("{kind}.spec"),
            &mut problems,
        );
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn free_values_are_only_where_a_template_has_them() {
    fn find(value: &Value, at: &str, found: &mut Vec<String>) {
        let Some(map) = value.as_object() else { return };
        if map.contains_key("x-kubernetes-preserve-unknown-fields") {
            found.push(at.to_owned());
        }
        for (key, value) in map {
            find(value, &format!("{at}.{key}"), found);
        }
    }
    let mut found = Vec::new();
    for (kind, schema) in schemas_in_crds() {
        find(&Value::Object(schema), &kind, &mut found);
    }
    assert_eq!(found, ["JobTemplate.properties.spec.properties.parameters.items.properties.default"]);
}

#[test]
fn words_carry_their_meaning_into_the_cluster() {
    let (_, schema) = schemas_in_crds().into_iter().find(|(kind, _)| kind == "SandboxJob").unwrap();
    let network = &schema["properties"]["spec"]["properties"]["sandbox"]["properties"]["network"];
    assert_eq!(network["enum"], json!(["None", "Restricted", "Open"]));
    assert!(
        network["description"]
            .as_str()
            .unwrap()
            .contains("- `Restricted`: Only what the rules of `egress` name")
    );
}

#[test]
fn quantities_and_priorities_are_int_or_string_with_their_bounds() {
    let (_, schema) = schemas_in_crds().into_iter().find(|(kind, _)| kind == "SandboxJob").unwrap();
    let spec = &schema["properties"]["spec"]["properties"];
    let priority = &spec["priority"];
    assert_eq!(priority["x-kubernetes-int-or-string"], json!(true));
    assert_eq!((&priority["minimum"], &priority["maximum"]), (&json!(0.0), &json!(1000.0)));
    assert_eq!(priority["default"], json!("normal"));
    assert_eq!(priority["nullable"], Value::Null, "a priority cannot be null");
    let memory = &spec["sandbox"]["properties"]["resources"]["properties"]["memory"];
    assert!(memory["pattern"].as_str().unwrap().contains("Mi"));
    assert_eq!(memory["nullable"], json!(true));
}

#[test]
fn json_schemas_are_closed_and_name_their_kind() {
    for kind in Kind::all() {
        let schema = schema_for(kind);
        assert_eq!(schema["properties"]["kind"]["oneOf"], json!([{"const": kind.name()}]));
        assert_eq!(schema["additionalProperties"], json!(false));
        assert_eq!(schema["properties"]["spec"]["additionalProperties"], json!(false));
    }
}

#[test]
fn kinds_have_no_alias_in_common() {
    let mut seen = std::collections::BTreeSet::new();
    for kind in Kind::all() {
        for alias in kind.aliases() {
            assert!(seen.insert(alias), "{alias} names two kinds");
            assert_eq!(Kind::from_alias(&alias.to_uppercase()), Some(kind));
        }
        assert_eq!(Kind::from_name(kind.name()), Some(kind));
        assert_eq!(Kind::from_name(&kind.name().to_lowercase()), None);
    }
}
