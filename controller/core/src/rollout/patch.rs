//! Which nodes a roll-out is for, and what it makes of their configurations.

use std::collections::BTreeMap;

use serde_json::Value;
use windlass_crds::manifest;
use windlass_crds::names::{self, Quoted};
use windlass_crds::protocol::FieldError;
use windlass_crds::schema::Kind;
use windlass_crds::{NodeConfig, NodeConfigSpec};

use crate::validate::validate_node;

/// Labels that nodes must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(BTreeMap<String, String>);

impl Selector {
    /// Reads `key=value` terms, separated by commas.
    ///
    /// # Errors
    /// Everything that is wrong with it, as errors of the field `selector`: terms of another form, keys and values that no
    /// label has, and terms that contradict each other.
    pub fn parse(text: &str) -> Result<Self, Vec<FieldError>> {
        let mut labels: BTreeMap<String, String> = BTreeMap::new();
        let mut errors = Vec::new();
        let mut refuse = |message| errors.push(FieldError { field: "selector".to_owned(), message });
        for term in text.split(',').map(str::trim).filter(|term| !term.is_empty()) {
            let Some((key, value)) = term.split_once('=') else {
                refuse(format!("{} is not `key=value`", Quoted(term)));
                continue;
            };
            let (key, value) = (key.trim(), value.trim());
            if let Err(error) = names::check_label_key(key) {
                refuse(format!("{} {error}", Quoted(key)));
            } else if let Err(error) = names::check_label_value(value) {
                refuse(format!("{} {error}", Quoted(value)));
            } else if let Some(other) = labels.get(key).filter(|other| *other != value) {
                refuse(format!(
                    "`{key}={other}` and `{key}={value}` contradict each other: no node has both"
                ));
            } else {
                labels.insert(key.to_owned(), value.to_owned());
            }
        }
        if labels.is_empty() && errors.is_empty() {
            errors.push(FieldError {
                field: "selector".to_owned(),
                message: "is empty: name labels as `key=value`; `windlass.dev/os=linux` is every node"
                    .to_owned(),
            });
        }
        if errors.is_empty() { Ok(Self(labels)) } else { Err(errors) }
    }

    /// Whether a node with these labels is meant.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// What is laid over nodes' configurations.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch(Value);

impl Patch {
    /// Checks a patch: a map with `spec`.
    ///
    /// # Errors
    /// Everything that is wrong with it, by paths such as `patch.spec.concurrency`: what no NodeConfig has, and what a
    /// roll-out must not change.
    pub fn check(patch: &Value, selector: &Selector) -> Result<Self, Vec<FieldError>> {
        let spec =
            manifest::parse_patch(&patch.to_string(), "patch", Kind::NodeConfig).map_err(|errors| {
                errors.iter().map(|error| under_patch(error.to_field_error())).collect::<Vec<_>>()
            })?;
        let mut errors = Vec::new();
        let mut refuse = |field: &str, message: String| {
            errors.push(FieldError { field: field.to_owned(), message });
        };
        if spec.get("unschedulable").is_some() {
            let message = "keeps jobs away, so that no node would be available again; use `windlass cordon`";
            refuse("patch.spec.unschedulable", message.to_owned());
        }
        for key in
            selector.0.keys().filter(|key| spec.get("labels").is_some_and(|labels| labels.get(key).is_some()))
        {
            let message =
                "is named by the selector: a node that is changed would not be meant any more".to_owned();
            refuse(&format!("patch.spec.labels.{key}"), message);
        }
        if spec.get("labels").is_some_and(Value::is_null) {
            let message =
                "cannot be taken away as a whole; name each label, such as `{tier: null}`".to_owned();
            refuse("patch.spec.labels", message);
        }
        let patch = Self(spec);
        // What breaks a rule on a node that says nothing breaks it everywhere.
        errors.extend(patch.apply("node", &NodeConfigSpec::default()).err().unwrap_or_default());
        errors.sort_by(|a, b| (&a.field, &a.message).cmp(&(&b.field, &b.message)));
        errors.dedup();
        if errors.is_empty() { Ok(patch) } else { Err(errors) }
    }

    /// A patch that was checked before.
    pub const fn checked(spec: Value) -> Self {
        Self(spec)
    }

    /// What is below `spec`.
    pub const fn spec(&self) -> &Value {
        &self.0
    }

    /// A node's configuration with the patch over it.
    ///
    /// # Errors
    /// Every rule that the result would break, by paths such as `patch.spec.sandbox.max.cpu`.
    pub fn apply(&self, name: &str, spec: &NodeConfigSpec) -> Result<NodeConfigSpec, Vec<FieldError>> {
        let unreadable = |error: serde_json::Error| {
            vec![FieldError { field: "patch.spec".to_owned(), message: error.to_string() }]
        };
        let mut value = serde_json::to_value(spec).map_err(unreadable)?;
        manifest::merge(&mut value, &self.0);
        let spec: NodeConfigSpec = serde_json::from_value(value).map_err(unreadable)?;
        let node = NodeConfig::new(name, spec);
        match validate_node(&node) {
            Ok(_) => Ok(node.spec),
            Err(errors) => Err(errors.into_iter().map(under_patch).collect()),
        }
    }
}

fn under_patch(error: FieldError) -> FieldError {
    let FieldError { field, message } = error;
    let field = if field.is_empty() { "patch".to_owned() } else { format!("patch.{field}") };
    FieldError { field, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn selector() -> Selector {
        Selector::parse("zone=a").unwrap()
    }

    #[test]
    fn a_selector_names_labels() {
        let selector = Selector::parse("zone=a, tier = web ,").unwrap();
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        assert!(selector.matches(&labels(&[("zone", "a"), ("tier", "web"), ("more", "x")])));
        assert!(!selector.matches(&labels(&[("zone", "a")])));
        for (text, expected) in [
            ("", "is empty"),
            ("zone", "`zone` is not `key=value`"),
            ("zone=a,zone=b", "contradict each other"),
            ("zo ne=a", "`zo ne`"),
            ("zone=a b", "`a b`"),
        ] {
            let errors = Selector::parse(text).expect_err(text);
            assert_eq!((errors.len(), errors[0].field.as_str()), (1, "selector"), "{text}");
            assert!(errors[0].message.contains(expected), "{text}: {}", errors[0].message);
        }
    }

    #[test]
    fn what_a_roll_out_must_not_change_is_refused_by_its_path() {
        for (patch, field, message) in [
            (json!({"spec": {"concurency": 4}}), "patch.spec.concurency", "unknown field"),
            (json!({"spec": {"unschedulable": true}}), "patch.spec.unschedulable", "windlass cordon"),
            (json!({"spec": {"labels": {"zone": "b"}}}), "patch.spec.labels.zone", "named by the selector"),
            (json!({"spec": {"labels": {"zone": null}}}), "patch.spec.labels.zone", "named by the selector"),
            (json!({"spec": {"labels": null}}), "patch.spec.labels", "name each label"),
            (json!({"spec": {"labels": {"b": "not a value"}}}), "patch.spec.labels.b", "not a value"),
            (
                json!({"spec": {"sandbox": {"maxTimeout": "1ms"}}}),
                "patch.spec.sandbox.maxTimeout",
                "out of range",
            ),
            (
                json!({"metadata": {"name": "n"}, "spec": {"concurrency": 1}}),
                "patch.metadata",
                "cannot be patched",
            ),
            (json!({"spec": {}}), "patch.spec", "says nothing"),
            (json!(4), "patch", "instead of a patch"),
        ] {
            let errors = Patch::check(&patch, &selector()).expect_err(&patch.to_string());
            assert_eq!(errors.len(), 1, "{patch}: {errors:?}");
            assert_eq!(errors[0].field, field, "{patch}: {errors:?}");
            assert!(errors[0].message.contains(message), "{patch}: {errors:?}");
        }
    }

    #[test]
    fn a_patch_changes_what_it_names_and_what_it_makes_wrong_is_told() {
        let patch = json!({"spec": {"concurrency": 4, "labels": {"tier": null, "disk": "ssd"}, "sandbox": {"defaults": {"cpu": 4}}}});
        let patch = Patch::check(&patch, &selector()).unwrap();
        let spec: NodeConfigSpec = serde_json::from_value(json!({
            "labels": {"zone": "a", "tier": "web"}, "queues": ["night"], "sandbox": {"max": {"cpu": 8}},
        }))
        .unwrap();
        let expected = json!({
            "labels": {"zone": "a", "disk": "ssd"}, "concurrency": 4, "queues": ["night"],
            "sandbox": {"defaults": {"cpu": "4"}, "max": {"cpu": "8"}},
        });
        let expected: NodeConfigSpec = serde_json::from_value(expected).unwrap();
        assert_eq!(patch.apply("n1", &spec).unwrap(), expected);
        let mut small = spec;
        small.sandbox.max.cpu = Some(windlass_crds::Cpu::from_millis(2000));
        let errors = patch.apply("n1", &small).unwrap_err();
        assert_eq!(errors[0].field, "patch.spec.sandbox.defaults.cpu", "{errors:?}");
        let again = Patch::checked(patch.spec().clone());
        assert_eq!(again, patch);
    }
}
