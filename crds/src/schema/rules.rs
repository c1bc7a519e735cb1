//! What a custom resource says beyond types and bounds: which lists are sets and maps, and rules between fields.
//!
//! Rules are written in CEL (`x-kubernetes-validations`), which API servers know from 1.25 on; older ones refuse it, so it can be
//! left out. They use only what 1.25 knows: no `quantity()`, no `messageExpression`. The controller checks the same and more
//! (`windlass-core`), for objects that came another way.
//!
//! Inside a list every rule is charged for as many items as the list may have, so rules there stay short.

use serde_json::{Map, Value, json};

use super::Kind;

/// The fields of a job's spec that may change after it was created.
const MUTABLE: [&str; 4] = ["suspend", "cancel", "priority", "ttlAfterFinished"];

/// A list whose items differ.
enum Unique {
    /// As a whole.
    Whole,
    /// In this field.
    By(&'static str),
}

/// A rule between fields.
struct Rule {
    /// Where the value lies that the rule calls `self`: fields, `[]` for the items of a list.
    at: &'static str,
    /// In CEL.
    rule: &'static str,
    /// What is wrong where it does not hold.
    message: &'static str,
}

/// Lists below a job's spec.
const JOB_LISTS: &[(&str, Unique)] = &[("steps", Unique::By("name")), ("sandbox.unenforced", Unique::Whole)];

/// Rules below a job's spec.
const JOB_RULES: &[Rule] = &[
    Rule {
        at: "",
        rule: "(has(self.steps) && size(self.steps) > 0 ? 1 : 0) + (has(self.command) ? 1 : 0) + \
               (has(self.script) ? 1 : 0) == 1",
        message: "write either `steps`, or one `command`, or one `script`",
    },
    Rule {
        at: "",
        rule: "!has(self.requires) || !has(self.requires.runtime) || \
               self.requires.runtime == (has(self.sandbox) ? self.sandbox.runtime : 'native')",
        message: "requires.runtime contradicts sandbox.runtime; write the same in both, or leave the first out",
    },
    Rule {
        at: "sandbox",
        rule: "self.runtime == 'native' || has(self.image)",
        message: "the runtimes `podman` and `docker` need an `image`",
    },
    Rule {
        at: "sandbox.env",
        rule: "self.all(name, !name.startsWith('WINDLASS_'))",
        message: "names that begin with WINDLASS_ are reserved",
    },
    Rule {
        at: "requires.labels[]",
        rule: "self.operator in ['Exists', 'DoesNotExist'] ? !has(self.values) || size(self.values) == 0 : \
               has(self.values) && (self.operator in ['Gt', 'Lt'] ? size(self.values) == 1 : size(self.values) > 0)",
        message: "`In` and `NotIn` take one or more values, `Gt` and `Lt` one, `Exists` and `DoesNotExist` none",
    },
    Rule {
        at: "retry.backoff",
        rule: "self.initial.contains('d') || self.max.contains('d') || duration(self.initial) <= duration(self.max)",
        message: "`initial` is longer than `max`",
    },
    Rule {
        at: "workspace.inputs[]",
        rule: "(has(self.inline) ? 1 : 0) + (has(self.upload) ? 1 : 0) + (has(self.hostPath) ? 1 : 0) == 1",
        message: "write exactly one of `inline`, `upload` and `hostPath`",
    },
    Rule {
        at: "steps[]",
        rule: "(has(self.command) ? 1 : 0) + (has(self.script) ? 1 : 0) + (has(self.container) ? 1 : 0) + \
               (has(self.facts) ? 1 : 0) + (has(self.service) ? 1 : 0) == 1",
        message: "write exactly one of `command`, `script`, `container`, `facts` and `service`",
    },
    Rule {
        at: "steps[]",
        rule: "!(has(self.facts) || has(self.service)) || \
               !(has(self.env) && size(self.env) > 0 || has(self.secrets) && size(self.secrets) > 0 || \
               has(self.configMaps) && size(self.configMaps) > 0 || has(self.workingDir))",
        message: "`env`, `secrets`, `configMaps` and `workingDir` mean nothing in steps of kind `facts` and `service`, of which \
                  nothing runs in the sandbox; remove them, or write them in the step that needs them",
    },
    Rule {
        at: "steps[].env",
        rule: "self.all(name, !name.startsWith('WINDLASS_'))",
        message: "names that begin with WINDLASS_ are reserved",
    },
    Rule {
        at: "",
        rule: "!has(self.secrets) || size(self.secrets) == 0 || !has(self.steps) || size(self.steps) == 0",
        message: "`secrets` stands beside `steps`; write it in the steps that need them",
    },
    Rule {
        at: "",
        rule: "!has(self.configMaps) || size(self.configMaps) == 0 || !has(self.steps) || size(self.steps) == 0",
        message: "`configMaps` stands beside `steps`; write it in the steps that need them",
    },
    Rule {
        at: "configMaps[]",
        rule: "has(self.env) != has(self.file)",
        message: "write exactly one of `env` and `file`",
    },
    Rule {
        at: "steps[].configMaps[]",
        rule: "has(self.env) != has(self.file)",
        message: "write exactly one of `env` and `file`",
    },
    Rule {
        at: "secrets[]",
        rule: "has(self.env) != has(self.file)",
        message: "write exactly one of `env` and `file`",
    },
    Rule {
        at: "steps[].secrets[]",
        rule: "has(self.env) != has(self.file)",
        message: "write exactly one of `env` and `file`",
    },
];

const NODE_LISTS: &[(&str, Unique)] = &[
    ("queues", Unique::Whole),
    ("sandbox.runtimes", Unique::Whole),
    ("sandbox.networks", Unique::Whole),
    ("sandbox.hostPaths", Unique::By("path")),
    ("sandbox.services", Unique::Whole),
];

const NODE_RULES: &[Rule] = &[Rule {
    at: "sandbox",
    rule: "!has(self.defaults) || !has(self.defaults.pids) || !has(self.max) || !has(self.max.pids) || \
           self.defaults.pids <= self.max.pids",
    message: "defaults.pids is more than max.pids",
}];

const TEMPLATE_LISTS: &[(&str, Unique)] = &[("parameters", Unique::By("name"))];

const TEMPLATE_RULES: &[Rule] = &[Rule {
    at: "",
    rule: "self.version != oldSelf.version || self.job == oldSelf.job",
    message: "the same version exists with another job; raise `version`",
}];

/// Adds to the schema of a whole object which lists are sets and maps.
pub(super) fn add_list_types(kind: Kind, schema: &mut Value) {
    let (lists, of_jobs) = match kind {
        Kind::SandboxJob => (JOB_LISTS, None),
        Kind::NodeConfig => (NODE_LISTS, None),
        Kind::JobTemplate => (TEMPLATE_LISTS, Some("job")),
    };
    let spec = lists.iter().map(|(at, unique)| (under("spec", at), unique));
    let jobs = of_jobs.iter().flat_map(|job| {
        let job = under("spec", job);
        JOB_LISTS.iter().map(move |(at, unique)| (under(&job, at), unique))
    });
    for (path, unique) in spec.chain(jobs) {
        mark(schema, &path, unique);
    }
    mark(schema, "status.conditions", &Unique::By("type"));
    if kind == Kind::SandboxJob {
        mark(schema, "status.steps", &Unique::By("name"));
    }
}

/// Adds the rules to the schema of a whole object.
pub(super) fn add_rules(kind: Kind, schema: &mut Value) {
    match kind {
        Kind::SandboxJob => {
            add(schema, "spec", JOB_RULES);
            add_immutability(schema);
        }
        Kind::NodeConfig => add(schema, "spec", NODE_RULES),
        Kind::JobTemplate => {
            add(schema, "spec", TEMPLATE_RULES);
            add(schema, "spec.job", JOB_RULES);
        }
    }
}

fn add(schema: &mut Value, below: &str, rules: &[Rule]) {
    for Rule { at, rule, message } in rules {
        push(schema, &under(below, at), rule, message);
    }
}

/// Nothing of a job changes but what may: a new field is as much a change as another value.
fn add_immutability(schema: &mut Value) {
    let spec = object(schema, "spec");
    let fields = spec["properties"].as_object().expect("a spec has fields");
    let fixed: Vec<(String, bool)> = fields
        .iter()
        .filter(|(name, _)| !MUTABLE.contains(&name.as_str()))
        .map(|(name, field)| (name.clone(), field.get("default").is_some()))
        .collect();
    let kept: Vec<String> = fixed
        .iter()
        .filter(|(_, has_default)| !has_default)
        .map(|(name, _)| format!("has(self.{name}) == has(oldSelf.{name})"))
        .collect();
    let message = "cannot change; submit a new job instead";
    push(
        schema,
        "spec",
        &kept.join(" && "),
        "only `suspend`, `cancel`, `priority` and `ttlAfterFinished` can change; submit a new job instead",
    );
    push(
        schema,
        "spec",
        "!has(oldSelf.cancel) || !oldSelf.cancel || (has(self.cancel) && self.cancel)",
        "`cancel` cannot be taken back; submit the job again under a new name",
    );
    for (name, _) in fixed {
        push(schema, &under("spec", &name), "self == oldSelf", message);
    }
}

fn push(schema: &mut Value, path: &str, rule: &str, message: &str) {
    let rules = object(schema, path).entry("x-kubernetes-validations").or_insert_with(|| json!([]));
    let rules = rules.as_array_mut().expect("nobody else writes it");
    rules.push(json!({"rule": rule, "message": message}));
}

fn mark(schema: &mut Value, path: &str, unique: &Unique) {
    let list = object(schema, path);
    match unique {
        Unique::Whole => {
            list.insert("x-kubernetes-list-type".into(), "set".into());
        }
        Unique::By(key) => {
            list.insert("x-kubernetes-list-type".into(), "map".into());
            list.insert("x-kubernetes-list-map-keys".into(), json!([key]));
        }
    }
}

/// The schema at a path, which must be there: a field that was renamed fails every test here, and nothing on a cluster.
fn object<'s>(schema: &'s mut Value, path: &str) -> &'s mut Map<String, Value> {
    let mut schema = schema;
    for segment in path.split('.') {
        let (name, item) = match segment.strip_suffix("[]") {
            Some(name) => (name, true),
            None => (segment, false),
        };
        schema = &mut schema["properties"][name];
        if item {
            schema = &mut schema["items"];
        }
    }
    schema.as_object_mut().unwrap_or_else(|| panic!("the schema has {path}"))
}

fn under(path: &str, name: &str) -> String {
    if name.is_empty() { path.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests;
