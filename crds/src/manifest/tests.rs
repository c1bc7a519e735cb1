//! What is read, what is refused, and where the reader says it is.

use proptest::prelude::*;

use super::*;
use crate::protocol::RESERVED_NODE_NAMES;
use crate::sandbox_job::{Network, Runtime, Script, Step};

const JOB: &str = "\
apiVersion: windlass.dev/v1alpha1
kind: SandboxJob
metadata:
  name: hello
spec:
  command: [echo, hello]
";

fn job(spec: &str) -> String {
    format!("apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata:\n  name: a\nspec:\n{spec}")
}

fn read_job(text: &str) -> SandboxJob {
    let documents = parse(text, "job.yaml").unwrap_or_else(|errors| panic!("{text}\n{errors:#?}"));
    let [document] = <[Document; 1]>::try_from(documents).expect("one manifest");
    SandboxJob::from_object(document.object).expect("a job")
}

/// The errors of a text as the lines that people see.
fn errors(text: &str) -> Vec<String> {
    match parse(text, "f.yaml") {
        Ok(documents) => panic!("accepted: {documents:#?}"),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

#[track_caller]
fn assert_error(text: &str, expected: &str) {
    let found = errors(text);
    assert!(found.iter().any(|line| line == expected), "expected\n{expected}\nfound\n{}", found.join("\n"));
}

#[test]
fn a_manifest_is_read_and_its_namespace_filled_in() {
    let job = read_job(JOB);
    assert_eq!(job.metadata.name.as_deref(), Some("hello"));
    assert_eq!(job.metadata.namespace.as_deref(), Some("default"));
    assert_eq!(job.spec.command, Some(vec!["echo".to_owned(), "hello".to_owned()]));
    assert_eq!(job.spec.queue, "default");
}

#[test]
fn yaml_and_json_are_one_language() {
    let json = serde_json::to_vec_pretty(&read_job(JOB)).unwrap();
    assert_eq!(parse_one::<SandboxJob>(&json, "body").unwrap(), read_job(JOB));
    let tabs = String::from_utf8(json).unwrap().replace("  ", "\t");
    assert_eq!(parse_one::<SandboxJob>(tabs.as_bytes(), "body").unwrap(), read_job(JOB));
    let compact = serde_json::to_string(&read_job(JOB)).unwrap();
    assert_eq!(read_job(&compact), read_job(JOB));
    let escaped = compact.replace("\"hello\"]", r#""\ud83d\ude00\u0041\/\u007f"]"#);
    assert_eq!(read_job(&escaped).spec.command.unwrap()[1], "\u{1f600}A/\u{7f}");
}

#[test]
fn documents_lists_and_arrays_hold_several_manifests() {
    let indented: String = JOB.lines().map(|line| format!("    {line}\n")).collect();
    let item = format!("  - {}", &indented[4..]);
    for text in [
        format!("{JOB}---\n{JOB}---\n# nothing\n---\n{JOB}..."),
        format!(
            "apiVersion: v1\nkind: List\nmetadata: {{resourceVersion: \"\"}}\nitems:\n{item}{item}{item}"
        ),
        format!("apiVersion: windlass.dev/v1alpha1\nkind: SandboxJobList\nitems:\n{item}{item}{item}"),
        format!("{item}{item}{item}"),
    ] {
        let documents = parse(&text, "f.yaml").unwrap_or_else(|errors| panic!("{text}\n{errors:#?}"));
        assert_eq!(documents.len(), 3, "{text}");
    }
    for empty in ["", "\n", "---\n---\n", "# only a comment\n", "\u{feff}"] {
        assert_eq!(parse(empty, "f.yaml"), Ok(Vec::new()), "{empty:?}");
    }
}

#[test]
fn every_unknown_field_of_a_document_is_named_with_the_nearest_known_one() {
    let text = "\
apiVersion: windlass.dev/v1alpha1
kind: SandboxJob
metadata:
  name: a
  label: {}
spec:
  stepz:
    - name: one
      comand: [a]
  image: alpine
  sandbox: {net_work: None}
  zzzzzz: 1
extra: 1
";
    assert_eq!(
        errors(text),
        [
            "f.yaml:5:3: metadata.label: unknown field; did you mean \"labels\"?",
            "f.yaml:7:3: spec.stepz: unknown field; did you mean \"steps\"?",
            "f.yaml:10:3: spec.image: unknown field; did you mean \"spec.sandbox.image\"?",
            "f.yaml:11:13: spec.sandbox.net_work: unknown field; did you mean \"network\"?",
            "f.yaml:12:3: spec.zzzzzz: unknown field; known here: cancel, command, configMaps, description, \
             nodeSelector, offline, priority, queue, requires, retry, sandbox, script, secrets, steps, suspend, timeout, \
             title, ttlAfterFinished, type, workspace",
            "f.yaml:13:1: extra: unknown field; known here: apiVersion, kind, metadata, spec, status",
        ]
    );
    assert_error(
        &job("  steps:\n    - name: one\n      comand: [a]\n"),
        "f.yaml:8:7: spec.steps[0].comand: unknown field; did you mean \"command\"?",
    );
}

#[test]
fn places_are_those_of_the_whole_file_and_every_document_is_checked() {
    let text = format!("{JOB}---\n{JOB}\n---\n{}---\n{}", job("  titel: x\n"), job("  quue: x\n"));
    assert_eq!(
        errors(&text),
        [
            "f.yaml:21:3: spec.titel: unknown field; did you mean \"title\"?",
            "f.yaml:28:3: spec.quue: unknown field; did you mean \"queue\"?",
        ]
    );
}

#[test]
fn a_document_that_is_not_yaml_does_not_hide_the_others() {
    let text = format!("a: [1, 2\n---\n{}---\n{JOB}", job("  titel: x\n"));
    let found = errors(&text);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("f.yaml:1:4: not YAML: "), "{found:#?}");
    assert_eq!(found[1], "f.yaml:8:3: spec.titel: unknown field; did you mean \"title\"?");
}

#[test]
fn errors_in_lists_name_the_item() {
    let text = "kind: List\napiVersion: v1\nitems:\n- apiVersion: windlass.dev/v1alpha1\n  kind: NodeConfig\n  \
                metadata: {name: n}\n  spec: {label: {}}\n- 5\n";
    assert_eq!(
        errors(text),
        [
            "f.yaml:7:10: items[0].spec.label: unknown field; did you mean \"labels\"?",
            "f.yaml:8:3: items[1]: found the number `5` instead of a manifest; write a map with `apiVersion: \
             windlass.dev/v1alpha1`, `kind`, `metadata` and `spec`",
        ]
    );
    assert_eq!(
        errors("kind: List\napiVersion: v2\nitems: {}\nmore: 1\n"),
        [
            "f.yaml:2:13: apiVersion: found the text `v2` in a list; write \"v1\" or \"windlass.dev/v1alpha1\"",
            "f.yaml:3:8: items: found a map instead of a list",
            "f.yaml:4:1: more: unknown field; known here: apiVersion, kind, metadata, items",
        ]
    );
    assert_error("kind: List\napiVersion: v1\n", "f.yaml:1:1: items: is missing; write a list of manifests");
}

#[test]
fn an_unknown_kind_or_version_names_what_is_known() {
    let known = "known kinds: NodeConfig, SandboxJob, JobTemplate";
    for (kind, near) in [("SandboxJbo", "SandboxJob"), ("job", "SandboxJob"), ("Node", "NodeConfig")] {
        assert_error(
            &JOB.replace("SandboxJob", kind),
            &format!(
                "f.yaml:2:7: kind: the text `{kind}` is not a known kind; did you mean \"{near}\"? {known}"
            ),
        );
    }
    assert_error(
        &JOB.replace("SandboxJob", "Deployment"),
        &format!("f.yaml:2:7: kind: the text `Deployment` is not a known kind; {known}"),
    );
    assert_error(
        &JOB.replace("v1alpha1", "v2"),
        "f.yaml:1:13: apiVersion: the text `windlass.dev/v2` is not a known version; write \"windlass.dev/v1alpha1\"",
    );
    assert_error(
        &JOB.replace("windlass.dev/v1alpha1", "batch/v1"),
        "f.yaml:1:13: apiVersion: the text `batch/v1` is not a known group and version; write \
         \"windlass.dev/v1alpha1\"",
    );
    assert_eq!(
        errors("metadata: {}\n"),
        [
            "f.yaml:1:1: apiVersion: is missing; write `apiVersion: windlass.dev/v1alpha1`",
            format!("f.yaml:1:1: kind: is missing; {known}").as_str(),
        ]
    );
}

#[test]
fn wrong_values_name_the_field_the_value_and_what_is_accepted() {
    for (spec, expected) in [
        (
            "  sandbox:\n    resources: {memory: 12x}\n",
            "f.yaml:7:25: spec.sandbox.resources.memory: `12x` is not an amount of bytes: write `1073741824`, \
             `512Mi`, `2Gi` or `1G`",
        ),
        (
            "  timeout: 10\n",
            "f.yaml:6:12: spec.timeout: found the number `10` instead of a length of time such as `90s` or `10m`; \
             write \"10\" in quotes",
        ),
        (
            "  timeout: \"10\"\n",
            "f.yaml:6:12: spec.timeout: `10` is not a length of time: write `90s`, `10m`, `1h30m` or `500ms`",
        ),
        (
            "  priority: urgent\n",
            "f.yaml:6:13: spec.priority: `urgent` is not a priority: write `high`, `normal`, `low` or a number from \
             0 to 1000",
        ),
        (
            "  priority: 1001\n",
            "f.yaml:6:13: spec.priority: `1001` is not a priority: write `high`, `normal`, `low` or a number from 0 \
             to 1000",
        ),
        (
            "  sandbox: {network: Restricted, egress: ['a.example:443', 'https://b.example/']}\n",
            "f.yaml:6:60: spec.sandbox.egress[1]: `https://b.example/` is not a rule for egress: write `host:port` without \
             a scheme and a path",
        ),
        (
            "  sandbox: {network: restricted}\n",
            "f.yaml:6:22: spec.sandbox.network: `restricted` is not accepted: write `None`, `Restricted` or `Open`; \
             did you mean \"Restricted\"?",
        ),
        (
            "  sandbox: {env: {PORT: 8080}}\n",
            "f.yaml:6:25: spec.sandbox.env.PORT: found the number `8080` instead of a text; write \"8080\" in quotes",
        ),
        (
            "  sandbox: {env: {DEBUG: true}}\n",
            "f.yaml:6:26: spec.sandbox.env.DEBUG: found `true` instead of a text; write \"true\" in quotes",
        ),
        (
            "  suspend: yes\n",
            "f.yaml:6:12: spec.suspend: found the text `yes` instead of true or false; write true",
        ),
        (
            "  command: echo hello\n",
            "f.yaml:6:12: spec.command: found the text `echo hello` instead of a list; write [\"echo hello\"]",
        ),
        ("  command: []\n", "f.yaml:6:12: spec.command: is empty; remove the field or give it a value"),
        (
            "  steps: {name: a}\n",
            "f.yaml:6:10: spec.steps: found a map instead of a list; begin each item with `- `",
        ),
        (
            "  steps:\n",
            "f.yaml:6:8: spec.steps: found nothing instead of a list; remove the field or give it a value",
        ),
        (
            "  sandbox: {resources: {pids: 0}}\n",
            "f.yaml:6:31: spec.sandbox.resources.pids: `0` is out of range: write a whole number from 1 to 1000000",
        ),
        (
            "  sandbox: {resources: {pids: 1.5}}\n",
            "f.yaml:6:31: spec.sandbox.resources.pids: found the number `1.5` instead of a whole number",
        ),
        (
            "  sandbox: {resources: {pids: 010}}\n",
            "f.yaml:6:31: spec.sandbox.resources.pids: found the text `010` instead of a whole number; write it \
             without quotes and leading zeros",
        ),
        (
            "  queue: Big\n",
            "f.yaml:6:10: spec.queue: `Big` is not accepted: write lower-case letters, digits and `-`, starting and \
             ending with a letter or digit",
        ),
        ("  script: {}\n", "f.yaml:6:11: spec.script.source: is missing; write a text"),
        (
            "  workspace: {inputs: [{path: a, upload: {digest: sha256:12}}]}\n",
            "f.yaml:6:51: spec.workspace.inputs[0].upload.digest: `sha256:12` is not accepted: write `sha256:` and 64 \
             lower-case hexadecimal digits",
        ),
    ] {
        assert_error(&job(spec), expected);
    }
    let long = "x".repeat(256);
    assert_error(
        &job(&format!("  title: {long}\n")),
        "f.yaml:6:10: spec.title: has 256 characters, at most 255 are accepted",
    );
}

#[test]
fn an_optional_value_may_be_null_and_a_status_is_ignored() {
    let text = JOB.replace("  name: hello\n", "  name: hello\n  creationTimestamp: null\n")
        + "  timeout: null\nstatus: {phase: Whatever, unheard: [of]}\n";
    let job = read_job(&text);
    assert_eq!(job.status, None);
    assert_eq!(job.spec, read_job(JOB).spec);
}

#[test]
fn metadata_of_a_cluster_is_accepted() {
    let text = JOB.replace(
        "  name: hello\n",
        "  name: hello\n  uid: 0a\n  resourceVersion: \"5\"\n  generation: 2\n  creationTimestamp: \
         2026-01-31T12:00:00Z\n  managedFields: [{manager: kubectl, operation: Apply, fieldsType: FieldsV1, \
         fieldsV1: {\"f:spec\": {}}}]\n",
    );
    assert_eq!(read_job(&text).metadata.generation, Some(2));
    assert_error(
        &JOB.replace("  name: hello\n", "  name: hello\n  managedFields: [{manger: x}]\n"),
        "f.yaml:5:20: metadata.managedFields[0].manger: unknown field; did you mean \"manager\"?",
    );
}

#[test]
fn names_are_those_of_kubernetes() {
    let named = |metadata: &str| JOB.replace("  name: hello\n", metadata);
    assert_error(
        &named("  name: Hello\n"),
        "f.yaml:4:9: metadata.name: `Hello` must be lower-case letters, digits, `-` and `.`, each part starting and \
         ending with a letter or digit",
    );
    assert_error(
        &named("  labels: {}\n"),
        "f.yaml:3:1: metadata.name: is missing; write a name, or `generateName` to have one made",
    );
    assert_error(
        &named("  name: a\n  namespace: a.b\n"),
        "f.yaml:5:14: metadata.namespace: `a.b` must be lower-case letters, digits and `-`, starting and ending with \
         a letter or digit",
    );
    assert_error(
        &named("  name: a\n  labels: {\"a b\": c}\n"),
        "f.yaml:5:19: metadata.labels[a b]: the key `a b` must be a name of letters, digits, `-`, `_` and `.`, \
         optionally after a DNS name and `/`",
    );
    assert_eq!(read_job(&named("  generateName: build-\n")).metadata.name, None);
    assert!(errors(&named("  generateName: -build\n"))[0].contains("metadata.generateName"));

    let node = |metadata: &str| {
        format!("apiVersion: windlass.dev/v1alpha1\nkind: NodeConfig\nmetadata: {metadata}\nspec: {{}}\n")
    };
    assert_eq!(parse(&node("{name: rack-1.example}"), "f").unwrap()[0].object.namespace(), None);
    for reserved in RESERVED_NODE_NAMES {
        assert_error(
            &node(&format!("{{name: {reserved}}}")),
            &format!(
                "f.yaml:3:18: metadata.name: `{reserved}` cannot name a node: reserved are register, config, \
                 capability, claim, heartbeat, report, inputs, artifacts"
            ),
        );
    }
    assert_error(
        &node("{name: a, namespace: b}"),
        "f.yaml:3:32: metadata.namespace: NodeConfig has no namespace; remove the field",
    );
    assert_error(
        &node("{generateName: a}"),
        "f.yaml:3:1: metadata.name: is missing; NodeConfig takes no `generateName`",
    );
}

#[test]
fn duplicate_keys_are_refused_at_every_depth_and_all_reported() {
    let text =
        job("  title: a\n  title: b\n  steps:\n    - name: x\n      env: {A: b, A: c}\n      command: [a]\n");
    assert_eq!(
        errors(&text),
        [
            "f.yaml:7:3: spec.title: the key is given twice, first at line 6; remove one of them",
            "f.yaml:10:19: spec.steps[0].env.A: the key is given twice, first at line 10; remove one of them",
        ]
    );
    let body = br#"{"kind": "SandboxJob", "kind": "SandboxJob"}"#;
    assert!(
        parse_one::<SandboxJob>(body, "body")
            .unwrap_err()
            .iter()
            .any(|error| error.kind() == "duplicate_key")
    );
}

#[test]
fn anchors_aliases_and_merge_keys_are_followed() {
    let text = job(
        "  sandbox:\n    env: &base {A: one, B: two}\n  steps:\n    - name: x\n      command: &c [a, b]\n      env:\n        \
         <<: *base\n        B: three\n    - {name: y, command: *c}\n",
    );
    let steps = read_job(&text).spec.steps;
    assert_eq!(steps[0].command, steps[1].command);
    assert_eq!(steps[0].env["A"], "one");
    assert_eq!(steps[0].env["B"], "three");
    assert_error(
        &job("  title: *missing\n"),
        "f.yaml:6:10: not YAML: while parsing node, found unknown anchor; define the anchor with `&name` before its \
         first `*name`",
    );
    let cyclic = errors(&job("  steps: &s [*s]\n"));
    assert_eq!(cyclic, ["f.yaml:6:14: the alias contains itself; write the value out"]);
    assert!(errors(&job("  sandbox: {env: {<<: text}}\n"))[0].contains("`<<` merges maps only"));
}

#[test]
fn aliases_cannot_make_a_small_file_large() {
    let mut laughs = String::from("a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
    for level in 1..30 {
        let before = format!("*a{}", level - 1);
        laughs += &format!("a{level}: &a{level} [{}]\n", [before.as_str(); 10].join(", "));
    }
    let found = errors(&laughs);
    assert!(found[0].contains("more than 100000 values, with its aliases followed"), "{found:#?}");

    let wide = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(500_000), ["*a"; 100].join(", "));
    assert!(errors(&wide)[0].contains("bytes of text, with its aliases followed"));

    let mut deep = String::from("a0: &a0 [x]\n");
    for level in 1..100 {
        deep += &format!("a{level}: &a{level} [*a{}]\n", level - 1);
    }
    assert!(errors(&deep)[0].contains("nested more than 64 deep"));
}

#[test]
fn size_and_depth_are_limited() {
    let large = job(&format!("  description: \"{}\"\n", "x".repeat(MAX_DOCUMENT)));
    let found = parse(&large, "f.yaml").unwrap_err();
    assert_eq!((found[0].kind(), found.len()), ("too_large", 1));
    assert!(found[0].message.contains("larger than 1572864 bytes"));
    // The limit is one of a document, not of a file.
    let many = format!("{JOB}---\n").repeat(MAX_DOCUMENT / JOB.len() + 1);
    assert!(parse(&many, "f.yaml").unwrap().len() > 10_000);
    // Bytes count, not characters.
    let wide = job(&format!("  description: \"{}\"\n", "ä".repeat(MAX_DOCUMENT / 2 + 1)));
    assert_eq!(parse(&wide, "f.yaml").unwrap_err()[0].kind(), "too_large");

    for text in ["[".repeat(100_000), "- ".repeat(100_000), "{a: ".repeat(100_000)] {
        let found = parse(&text, "f.yaml").unwrap_err();
        assert!(found[0].is_syntax(), "{found:#?}");
    }
}

#[test]
fn a_text_that_is_wrong_everywhere_has_a_bounded_number_of_errors() {
    let unknown: String = (0..20_000).map(|index| format!("  unknown{index}: 1\n")).collect();
    assert_eq!(errors(&job(&unknown)).len(), MAX_ERRORS);
    let twice: String = (0..20_000).map(|_| "  title: 1\n").collect();
    assert_eq!(errors(&job(&twice)).len(), MAX_ERRORS);
    let documents = job("  titel: 1\n---\n").repeat(500);
    assert_eq!(errors(&documents).len(), MAX_ERRORS);
}

#[test]
fn a_fraction_of_a_core_needs_no_quotes() {
    let object =
        parse(&job("  command: [a]\n  sandbox: {resources: {cpu: 0.5}}\n"), "f").unwrap().remove(0).object;
    assert!(to_yaml(&object).unwrap().contains("cpu: 500m"));
}

#[test]
fn bytes_that_are_no_text_are_refused_with_their_place() {
    let mut bytes = JOB.as_bytes().to_vec();
    bytes.extend(b"  title: \xff\n");
    let found = parse_bytes(&bytes, "f.yaml").unwrap_err();
    assert_eq!(found[0].to_string(), "f.yaml:7:10: the text is not UTF-8; save it as UTF-8");
    let utf16: Vec<u8> =
        [0xff, 0xfe].into_iter().chain(JOB.encode_utf16().flat_map(u16::to_le_bytes)).collect();
    assert!(parse_bytes(&utf16, "f").unwrap_err()[0].message.contains("UTF-16"));
    assert_eq!(
        errors("kind: a\0b\n"),
        ["f.yaml:1:8: the text holds a NUL; remove it, or write it as an escape in double quotes"]
    );
    assert!(errors("a: \u{1b}[0m")[0].contains("U+001B"));
    let marked = format!("\u{feff}{JOB}");
    assert_eq!(read_job(&marked), read_job(JOB));
    assert_eq!(read_job(&JOB.replace('\n', "\r\n")), read_job(JOB));
}

#[test]
fn tabs_in_the_indentation_are_named() {
    let found = errors("kind: SandboxJob\nspec:\n\tcommand: [a]\n");
    assert!(found[0].contains(":3:") && found[0].contains("indent with spaces"), "{found:#?}");
}

#[test]
fn tags_and_keys_that_are_no_text_are_refused() {
    assert!(errors("a: !secret b\n")[0].contains("the tag `!secret` means nothing in a manifest; remove it"));
    assert!(errors("? [a, b]\n: c\n")[0].contains("a key must be a text"));
    assert!(errors("? \n: c\n")[0].contains("a key must be a text"));
    assert_eq!(read_job(&job("  sandbox: {env: {A: !!str 5}}\n")).spec.sandbox.env["A"], "5");
    assert_eq!(read_job(&job("  nodeSelector: {1: a}\n")).spec.node_selector["1"], "a");
}

#[test]
fn a_body_holds_one_manifest_of_its_kind() {
    let found = parse_one::<NodeConfig>(JOB.as_bytes(), "body").unwrap_err();
    assert_eq!(found[0].to_string(), "body:1:1: kind: found `SandboxJob` where `NodeConfig` is expected");
    let found = parse_one::<SandboxJob>(b"", "body").unwrap_err();
    assert_eq!(found[0].to_string(), "body: found 0 manifests where one SandboxJob is expected");
    let two = format!("{JOB}---\n{JOB}");
    assert_eq!(parse_one::<SandboxJob>(two.as_bytes(), "body").unwrap_err()[0].kind(), "wrong_count");
}

#[test]
fn errors_of_fields_find_their_place() {
    let text = job(
        "  nodeSelector:\n    windlass.dev/arch: x\n  steps:\n    - name: one\n      script:\n        source: |\n          \
         true\n",
    );
    let document = parse(&text, "f.yaml").unwrap().remove(0);
    for (field, place) in [
        ("spec.nodeSelector[windlass.dev/arch]", (7, 24)),
        ("spec.steps[0].script.source", (12, 11)),
        ("spec.steps[0].script", (10, 7)),
        ("spec.steps[0].command", (9, 7)),
        ("spec.steps[7].name", (8, 3)),
        ("spec", (5, 1)),
        ("nothing.at[all]", (1, 1)),
    ] {
        let error = document.locate(&FieldError { field: field.to_owned(), message: "m".to_owned() });
        assert_eq!((error.line, error.column), place, "{field}");
        assert_eq!(error.field, field);
    }
}

#[test]
fn a_spec_that_was_not_read_has_the_same_bounds() {
    let mut job = read_job(JOB);
    assert_eq!(check_spec(Kind::SandboxJob, &job.spec), []);
    job.spec.queue = "Big".to_owned();
    job.spec.command = Some(vec!["x".to_owned(); 2000]);
    let fields: Vec<String> =
        check_spec(Kind::SandboxJob, &job.spec).into_iter().map(|error| error.field).collect();
    assert_eq!(fields, ["spec.command", "spec.queue"]);
}

#[test]
fn canonical_yaml_keeps_the_order_of_the_fields_and_the_look_of_scripts() {
    let text = job(
        "  steps:\n  - script:\n      source: |\n        set -e\n        echo hello\n    name: one\n  priority: 500\n  \
         title: \"yes\"\n",
    );
    let object = parse(&text, "f.yaml").unwrap().remove(0).object;
    assert_eq!(
        to_yaml(&object).unwrap(),
        "\
apiVersion: windlass.dev/v1alpha1
kind: SandboxJob
metadata:
  name: a
  namespace: default
spec:
  title: \"yes\"
  queue: default
  priority: normal
  steps:
  - name: one
    script:
      interpreter: bash
      source: |
        set -e
        echo hello
"
    );
}

/// Texts that readers of YAML have stumbled over.
fn awkward_text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("yes".to_owned()),
        Just("null".to_owned()),
        Just("~".to_owned()),
        Just("0x10".to_owned()),
        Just("1e3".to_owned()),
        Just("010".to_owned()),
        Just("12:30:45".to_owned()),
        Just("- a".to_owned()),
        Just("a: b #c".to_owned()),
        Just("'\"".to_owned()),
        Just("--- \n...\n".to_owned()),
        Just("\u{feff}x".to_owned()),
        Just("\u{85}\u{2028}x".to_owned()),
        Just("%a".to_owned()),
        Just("@a`".to_owned()),
        "[ \\t\\r\\na-c:#'\"|>{}\\[\\],&*!%@`?=~.0-9-]{1,60}",
        "( {0,3}[a-z:#\\t-]{0,10} {0,2}\\r?\\n){1,6}",
        "\\PC{1,40}",
        any::<String>().prop_filter("not empty", |text| !text.is_empty()),
        "[a-z ]{100,200}",
    ]
}

prop_compose! {
    fn any_step()(
        name in "[a-z0-9]{1,10}",
        source in awkward_text(),
        args in proptest::collection::vec(awkward_text(), 0..3),
        env in proptest::collection::btree_map("[A-Z_]{1,5}", awkward_text(), 0..3),
        timeout in proptest::option::of(0u64..100_000_000),
    ) -> Step {
        Step {
            name,
            script: Some(Script { interpreter: "bash".to_owned(), source, args }),
            env,
            timeout: timeout.map(crate::Span::from_millis),
            ..Step::default()
        }
    }
}

prop_compose! {
    fn any_job()(
        name in "[a-z0-9]{1,20}",
        title in proptest::option::of(awkward_text()),
        annotations in proptest::collection::btree_map("[a-z]{1,5}", awkward_text(), 0..3),
        steps in proptest::collection::vec(any_step(), 0..3),
        priority in 0u16..=1000,
        cpu in proptest::option::of(0u64..1_000_000),
        memory in proptest::option::of(any::<u64>()),
        runtime in prop_oneof![Just(Runtime::Native), Just(Runtime::Podman)],
        network in prop_oneof![Just(Network::None), Just(Network::Open)],
        suspend in any::<bool>(),
    ) -> SandboxJob {
        let mut job = SandboxJob::new(&name, crate::SandboxJobSpec::default());
        job.metadata.namespace = Some("default".to_owned());
        job.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
        job.spec.queue = "default".to_owned();
        job.spec.title = title.map(|title| title.chars().take(255).collect());
        job.spec.steps = steps;
        job.spec.priority = crate::Priority::new(priority).expect("in range");
        job.spec.sandbox.resources.cpu = cpu.map(crate::Cpu::from_millis);
        job.spec.sandbox.resources.memory = memory.map(crate::Bytes::new);
        job.spec.sandbox.runtime = runtime;
        job.spec.sandbox.network = network;
        job.spec.suspend = suspend;
        job
    }
}

proptest! {
    #[test]
    fn written_yaml_reads_back_as_the_same_object(job in any_job()) {
        let object = Object::Job(Box::new(job));
        let text = to_yaml(&object).expect("an object has YAML");
        let read = parse(&text, "f.yaml");
        prop_assert!(read.is_ok(), "{text}\n{read:#?}");
        prop_assert_eq!(&read.expect("checked")[0].object, &object, "{}", text);
    }

    #[test]
    fn written_json_reads_back_as_the_same_object(job in any_job()) {
        let object = Object::Job(Box::new(job));
        let text = serde_json::to_string(&object.to_json().expect("an object has JSON")).expect("JSON is text");
        let read = parse(&text, "f.json");
        prop_assert!(read.is_ok(), "{text}\n{read:#?}");
        prop_assert_eq!(&read.expect("checked")[0].object, &object);
    }

    #[test]
    fn no_text_makes_the_reader_fail_in_another_way(text in any::<String>()) {
        drop(parse(&text, "f.yaml"));
    }

    #[test]
    fn no_change_of_a_manifest_makes_the_reader_fail_in_another_way(
        at in 0..JOB.len(),
        inserted in "[ \\t\\n:{}\\[\\]&*!|>'\"%@`#,?0-9a-z-]{1,4}",
    ) {
        let mut text = JOB.to_owned();
        text.insert_str(at, &inserted);
        drop(parse(&text, "f.yaml"));
    }
}
