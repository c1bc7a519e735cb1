//! One row a rule: what is wrong, the field that is named, and the words that say so.

use proptest::prelude::*;
use windlass_crds::manifest::{self, Manifest};
use windlass_crds::sandbox_job::{LabelOperator, LabelRequirement, Requirements};

use super::*;

fn read<T: Manifest>(kind: &str, spec: &str) -> T {
    let indented: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    let text =
        format!("apiVersion: windlass.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: a}}\nspec:\n{indented}");
    manifest::parse_one(text.as_bytes(), "test").unwrap_or_else(|errors| panic!("{text}\n{errors:#?}"))
}

fn job(spec: &str) -> SandboxJob {
    read("SandboxJob", spec)
}

fn node(spec: &str) -> NodeConfig {
    read("NodeConfig", if spec.is_empty() { "labels: {}" } else { spec })
}

fn template(spec: &str) -> JobTemplate {
    read("JobTemplate", spec)
}

/// Checks that exactly these errors are found, in this order.
#[track_caller]
fn assert_refused<T: std::fmt::Debug>(what: &str, outcome: Result<T, Vec<FieldError>>, expected: &[&str]) {
    let found = outcome.expect_err(what);
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found, expected, "{what}");
}

#[test]
fn a_job_in_shorthand_becomes_one_step() {
    let valid = validate_job(&job("command: [echo, hello]")).unwrap();
    assert_eq!(valid.steps().len(), 1);
    assert_eq!(valid.steps()[0].name, MAIN_STEP);
    assert_eq!(valid.steps()[0].command.as_deref(), Some(["echo".to_owned(), "hello".to_owned()].as_slice()));
    assert_eq!((&valid.spec().command, &valid.spec().script), (&None, &None));
    assert_eq!(validate_job(valid.get()).unwrap(), valid, "a valid job stays as it is");

    let valid = validate_job(&job("script: {source: echo hello}")).unwrap();
    assert_eq!(valid.steps()[0].script.as_ref().unwrap().source, "echo hello");
    assert_eq!(step_names(&job("command: [a]").spec), ["main"]);
    assert_eq!(
        step_names(&job("steps: [{name: a, command: [a]}, {name: b, command: [b]}]").spec),
        ["a", "b"]
    );
}

#[test]
fn jobs_that_break_no_rule_are_accepted() {
    for spec in [
        "steps: [{name: a, command: [a]}, {name: b, script: {interpreter: /bin/sh, source: b}}]",
        "command: [a, '']\nworkspace: {inputs: [{path: a/b, inline: x}, {path: a/c, inline: '', executable: true}]}",
        "command: [a]\nrequires: {labels: [{key: a, operator: Gt, values: ['1']}, {key: a, operator: Lt, values: ['3']}]}",
        "command: [a]\nnodeSelector: {zone: a}\nrequires: {labels: [{key: zone, operator: In, values: [a, b]}]}",
        "command: [a]\nsandbox: {runtime: podman, image: 'docker.io/library/alpine:3'}\nrequires: {runtime: podman}",
        "steps: [{name: a, container: {user: Root}}]\nsandbox: {image: 'oci-archive:/srv/a.tar:app:1'}",
        "steps: [{name: a, container: {image: 'rootfs:/srv/root'}}]",
        "command: [a]\nrequires: {cpu: 1, memory: 1Gi}\nsandbox: {resources: {cpu: 1, memory: 1Gi}}",
        "steps: [{name: a, command: [a], timeout: 1h, workingDir: ./sub/dir}]",
        "command: [a]\ntimeout: 30d\nttlAfterFinished: 0s\nretry: {backoff: {initial: 10s, max: 10s}}",
    ] {
        assert!(validate_job(&job(spec)).is_ok(), "{spec}\n{:#?}", validate_job(&job(spec)));
    }
}

#[test]
fn every_rule_of_jobs_names_the_field_and_the_fix() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let upload = format!("{{digest: '{digest}'}}");
    let unpacked = format!("{{digest: '{digest}', unpack: true}}");
    let long = "x".repeat(256);
    let rows: Vec<(String, Vec<String>)> = [
        // What is run.
        ("title: a", "spec: does nothing; write `steps`, or one `command` or `script`"),
        (
            "command: [a]\nscript: {source: b}",
            "spec.script: stands beside spec.command; write one, or use `steps`",
        ),
        (
            "command: [a]\nsteps: [{name: a, command: [a]}]",
            "spec.command: stands beside spec.steps; make it one of the steps",
        ),
        (
            "script: {source: a}\nsteps: [{name: a, command: [a]}]",
            "spec.script: stands beside spec.steps; make it one of the steps",
        ),
        ("steps: [{name: a}]", "spec.steps[0]: does nothing; write a `command`, a `script`, a `container`, `facts` or a `service`"),
        (
            "steps: [{name: a, command: [a], script: {source: b}}]",
            "spec.steps[0].script: stands beside spec.steps[0].command; write one of them, or make two steps",
        ),
        (
            "steps: [{name: a, command: [a]}, {name: b, command: [a]}, {name: a, command: [b]}]",
            "spec.steps[2].name: `a` is also the name of spec.steps[0]; choose another",
        ),
        ("command: ['', b]", "spec.command[0]: is empty; write the program to run"),
        (
            "script: {interpreter: bash -e, source: a}",
            "spec.script.interpreter: `bash -e` is not one program; use a `command` to give it arguments",
        ),
        (
            "script: {interpreter: bin/sh, source: a}",
            "spec.script.interpreter: `bin/sh` is a relative path; write a name or an absolute path",
        ),
        (
            "title: \"a\\nb\"\ncommand: [a]",
            "spec.title: `a\\nb` is more than one line of plain text; move the rest to `description`",
        ),
        ("command: [\"a\\0b\"]", "spec.command[0]: `a\\u{0}b` holds a NUL; remove it"),
        // Environment.
        (
            "command: [a]\nsandbox: {env: {1A: b}}",
            "spec.sandbox.env[1A]: the name `1A` must be letters, digits and `_`, not starting with a digit",
        ),
        (
            "steps: [{name: a, command: [a], env: {A-B: b}}]",
            "spec.steps[0].env.A-B: the name `A-B` must be letters, digits and `_`, not starting with a digit",
        ),
        (
            "command: [a]\nsandbox: {env: {WINDLASS_JOB_ID: b}}",
            "spec.sandbox.env.WINDLASS_JOB_ID: `WINDLASS_JOB_ID` is reserved: choose a name that does not begin with \
             `WINDLASS_`",
        ),
        (
            "command: [a]\nsandbox: {env: {A: \"b\\0\"}}",
            "spec.sandbox.env.A: `b\\u{0}` holds a NUL; remove it",
        ),
        // Paths.
        (
            "steps: [{name: a, command: [a], workingDir: /tmp}]",
            "spec.steps[0].workingDir: `/tmp` is absolute; write a path relative to the workspace",
        ),
        (
            "command: [a]\nworkspace: {inputs: [{path: a/../../b, inline: x}]}",
            "spec.workspace.inputs[0].path: `a/../../b` contains `..`; write a path inside the workspace",
        ),
        (
            "command: [a]\nworkspace: {inputs: [{path: \"a\\0\", inline: x}]}",
            "spec.workspace.inputs[0].path: `a\\u{0}` holds a NUL; remove it",
        ),
        (
            "command: [a]\nworkspace: {inputs: [{path: a}]}",
            "spec.workspace.inputs[0]: has no content; write exactly one of `inline`, `upload` and `hostPath`",
        ),
        (
            "command: [a]\nworkspace: {inputs: [{path: a, inline: x, hostPath: {path: /a}}]}",
            "spec.workspace.inputs[0]: has more than one content; write exactly one of `inline`, `upload` and \
             `hostPath`",
        ),
        (
            "command: [a]\nworkspace: {inputs: [{path: a/b, inline: x}, {path: ./a//b, inline: y}]}",
            "spec.workspace.inputs[1].path: `./a//b` is also the path of spec.workspace.inputs[0]; choose another",
        ),
        (
            "command: [a]\nworkspace: {inputs: [{path: a/b, inline: x}, {path: a, inline: y}]}",
            "spec.workspace.inputs[0].path: `a/b` lies below the file of spec.workspace.inputs[1]",
        ),
        (
            "command: [a]\nconfigMaps: [{name: c, key: k, file: a/b}]\nworkspace: {inputs: [{path: a, inline: x}]}",
            "spec.configMaps[0].file: `a/b` lies below the file of spec.workspace.inputs[0]",
        ),
        (
            "steps: [{name: s, command: [a], configMaps: [{name: c, key: k, file: a}]}, \
             {name: t, command: [a], configMaps: [{name: c, key: k, file: a}, {name: c, key: l, file: ./a}]}]",
            "spec.steps[1].configMaps[1].file: `./a` is also the path of spec.steps[0].configMaps[0]; choose another",
        ),
        (
            "command: [a]\nconfigMaps: [{name: c, key: k, file: ./.}]",
            "spec.configMaps[0].file: `.` is the workspace itself, which no file can be; choose a path in it",
        ),
        (
            "command: [a]\nworkspace: {inputs: [{path: ., inline: x}]}",
            "spec.workspace.inputs[0].path: `.` is the workspace itself, where only an unpacked upload can be placed; \
             choose a path in it",
        ),
        (
            "command: [a]\nworkspace: {inputs: [{path: a, hostPath: {path: /a}, executable: true}]}",
            "spec.workspace.inputs[0].executable: means nothing here: an unpacked upload and a host path keep their \
             own modes; remove the field",
        ),
        (
            "command: [a]\nworkspace: {inputs: [{path: a, hostPath: {path: /srv/../etc}}]}",
            "spec.workspace.inputs[0].hostPath.path: `/srv/../etc` contains `..`; write the path without it",
        ),
        // Labels.
        (
            "command: [a]\nnodeSelector: {zone: a b}",
            "spec.nodeSelector.zone: `a b` must be letters, digits, `-`, `_` and `.`, starting and ending with a letter \
             or digit",
        ),
        (
            "command: [a]\nnodeSelector: {-zone: a}",
            "spec.nodeSelector[-zone]: the key `-zone` must be a name of letters, digits, `-`, `_` and `.`, optionally \
             after a DNS name and `/`",
        ),
        (
            "command: [a]\nrequires: {labels: [{key: a b, operator: Exists}]}",
            "spec.requires.labels[0].key: `a b` must be a name of letters, digits, `-`, `_` and `.`, optionally after a \
             DNS name and `/`",
        ),
        (
            "command: [a]\nrequires: {labels: [{key: a, operator: In}]}",
            "spec.requires.labels[0].values: is empty: `In` compares with one value or more",
        ),
        (
            "command: [a]\nrequires: {labels: [{key: a, operator: In, values: [a b]}]}",
            "spec.requires.labels[0].values[0]: `a b` must be letters, digits, `-`, `_` and `.`, starting and ending \
             with a letter or digit",
        ),
        (
            "command: [a]\nrequires: {labels: [{key: a, operator: Exists, values: [b]}]}",
            "spec.requires.labels[0].values: has 1 values: `Exists` takes none; remove the field",
        ),
        (
            "command: [a]\nrequires: {labels: [{key: a, operator: Gt, values: ['1', '2']}]}",
            "spec.requires.labels[0].values: has 2 values: `Gt` compares with one whole number",
        ),
        (
            "command: [a]\nrequires: {labels: [{key: a, operator: Lt, values: [many]}]}",
            "spec.requires.labels[0].values[0]: `many` is not a whole number, and `Lt` compares with one",
        ),
        (
            "command: [a]\nnodeSelector: {zone: a}\nrequires: {labels: [{key: zone, operator: In, values: [b, c]}]}",
            "spec.requires.labels[0]: contradicts spec.nodeSelector.zone: no label `zone` meets both; remove one",
        ),
        (
            "command: [a]\nnodeSelector: {zone: a}\nrequires: {labels: [{key: zone, operator: DoesNotExist}]}",
            "spec.requires.labels[0]: contradicts spec.nodeSelector.zone: no label `zone` meets both; remove one",
        ),
        (
            "command: [a]\nnodeSelector: {cores: '4'}\nrequires: {labels: [{key: cores, operator: Gt, values: ['4']}]}",
            "spec.requires.labels[0]: contradicts spec.nodeSelector.cores: no label `cores` meets both; remove one",
        ),
        (
            "command: [a]\nrequires: {labels: [{key: a, operator: Exists}, {key: a, operator: DoesNotExist}]}",
            "spec.requires.labels[1]: contradicts spec.requires.labels[0]: no label `a` meets both; remove one",
        ),
        (
            "command: [a]\nrequires: {labels: [{key: a, operator: Gt, values: ['3']}, {key: a, operator: Lt, values: \
             ['4']}]}",
            "spec.requires.labels[1]: contradicts spec.requires.labels[0]: no label `a` meets both; remove one",
        ),
        (
            "command: [a]\nrequires: {labels: [{key: a, operator: In, values: [x]}, {key: a, operator: NotIn, values: \
             [x, y]}]}",
            "spec.requires.labels[1]: contradicts spec.requires.labels[0]: no label `a` meets both; remove one",
        ),
        // Sandbox and requirements.
        (
            "command: [a]\nrequires: {runtime: podman}",
            "spec.requires.runtime: `podman` contradicts spec.sandbox.runtime, which is `native`; write the same in \
             both, or remove this field",
        ),
        (
            "command: [a]\nsandbox: {image: alpine}",
            "spec.sandbox.image: `alpine` is not on the node; the runtime `native` takes `docker-archive:/path`, \
             `oci-archive:/path`, `oci:/folder` or `rootfs:/folder`; for images by name set `runtime` to `podman` or `docker`",
        ),
        (
            "command: [a]\nsandbox: {image: 'oci:/srv/../etc'}",
            "spec.sandbox.image: `oci:/srv/../etc` has the path \"/srv/../etc\"; write an absolute one without `..`, `:` and \
             control characters",
        ),
        (
            "command: [a]\nsandbox: {runtime: podman, image: 'oci:/srv/a'}",
            "spec.sandbox.image: `oci:/srv/a` lies on the node; the runtime `podman` takes images by name, and `native` takes \
             this one",
        ),
        (
            "steps: [{name: a, container: {}}]",
            "spec.steps[0].container: has no image; write one, or spec.sandbox.image, or set spec.sandbox.runtime to `podman` or \
             `docker`",
        ),
        (
            "sandbox: {image: 'oci:/srv/a'}\nsteps: [{name: a, container: {readOnlyRoot: false}}]",
            "spec.steps[0].container.readOnlyRoot: `false` is not possible with the runtime `native`, which shows an image to \
             many jobs; name what must be written as `tmpfs`, or set `runtime` to `podman` or `docker`",
        ),
        (
            "command: [a]\nsandbox: {runtime: docker}",
            "spec.sandbox.image: is missing; the runtime `docker` needs an image",
        ),
        (
            "command: [a]\nsandbox: {runtime: docker, image: a b}",
            "spec.sandbox.image: `a b` has the part \"a b\"; parts are made of lower-case letters, digits, `.`, `_` and `-`",
        ),
        (
            "command: [a]\nsandbox: {resources: {cpu: 0}}",
            "spec.sandbox.resources.cpu: `0` leaves nothing to run with; raise it or remove the field",
        ),
        (
            "command: [a]\nsandbox: {resources: {memory: 0Mi}}",
            "spec.sandbox.resources.memory: `0` leaves nothing to run with; raise it or remove the field",
        ),
        (
            "command: [a]\nsandbox: {resources: {ioWrite: 0}}",
            "spec.sandbox.resources.ioWrite: `0` leaves nothing to run with; raise it or remove the field",
        ),
        (
            "command: [a]\nsandbox: {resources: {disk: 0}}",
            "spec.sandbox.resources.disk: `0` leaves nothing to run with; raise it or remove the field",
        ),
        (
            "command: [a]\nrequires: {cpu: 2}\nsandbox: {resources: {cpu: 500m}}",
            "spec.requires.cpu: `2` is more than spec.sandbox.resources.cpu, which is `500m`; lower it or raise the \
             other",
        ),
        (
            "command: [a]\nrequires: {memory: 2Gi}\nsandbox: {resources: {memory: 1Gi}}",
            "spec.requires.memory: `2Gi` is more than spec.sandbox.resources.memory, which is `1Gi`; lower it or raise \
             the other",
        ),
        (
            "command: [a]\nsandbox: {unenforced: [disk, cpu, disk]}",
            "spec.sandbox.unenforced[2]: `disk` is listed twice; remove one of them",
        ),
        // Times.
        ("command: [a]\ntimeout: 500ms", "spec.timeout: `500ms` is out of range: write a length from 1s to 720h"),
        ("command: [a]\ntimeout: 31d", "spec.timeout: `744h` is out of range: write a length from 1s to 720h"),
        (
            "command: [a]\nttlAfterFinished: 3651d",
            "spec.ttlAfterFinished: `87624h` is out of range: write a length from 0s to 87600h",
        ),
        (
            "steps: [{name: a, command: [a], timeout: 0s}]",
            "spec.steps[0].timeout: `0s` is out of range: write a length from 1s to 720h",
        ),
        (
            "timeout: 1m\nsteps: [{name: a, command: [a], timeout: 2m}]",
            "spec.steps[0].timeout: `2m` is longer than spec.timeout, which is `1m`; lower it or raise the other",
        ),
        (
            "steps: [{name: a, command: [a], timeout: 2h}]",
            "spec.steps[0].timeout: `2h` is longer than spec.timeout, which is `1h` by default; lower it or raise the \
             other",
        ),
        (
            "command: [a]\nretry: {backoff: {initial: 2m, max: 1m}}",
            "spec.retry.backoff.initial: `2m` is longer than spec.retry.backoff.max, which is `1m`",
        ),
        (
            "command: [a]\nretry: {backoff: {initial: 0s}}",
            "spec.retry.backoff.initial: `0s` is out of range: write a length from 1ms to 720h",
        ),
        (
            "command: [a]\nretry: {backoff: {max: 31d}}",
            "spec.retry.backoff.max: `744h` is out of range: write a length from 1ms to 720h",
        ),
    ]
    .into_iter()
    .map(|(spec, error)| (spec.to_owned(), vec![error.to_owned()]))
    .chain([
        (
            format!("command: [a]\nworkspace: {{inputs: [{{path: {long}, inline: x}}]}}"),
            vec![format!("spec.workspace.inputs[0].path: the part `{}…` is longer than 255 bytes", "x".repeat(60))],
        ),
        (
            format!("command: [a]\nworkspace: {{inputs: [{{path: ., upload: {upload}}}]}}"),
            vec![
                "spec.workspace.inputs[0].path: `.` is the workspace itself, where only an unpacked upload can be \
                 placed; choose a path in it"
                    .to_owned(),
            ],
        ),
        (
            format!("command: [a]\nworkspace: {{inputs: [{{path: a, upload: {unpacked}, executable: true}}]}}"),
            vec![
                "spec.workspace.inputs[0].executable: means nothing here: an unpacked upload and a host path keep \
                 their own modes; remove the field"
                    .to_owned(),
            ],
        ),
    ])
    .collect();
    for (spec, expected) in &rows {
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        assert_refused(spec, validate_job(&job(spec)), &expected);
    }
}

#[test]
fn rules_for_egress_need_a_restricted_network_and_are_listed_once() {
    let open = "command: [a]\nsandbox: {network: Open, egress: ['a.example:443']}";
    assert_refused(
        open,
        validate_job(&job(open)),
        &[
            "spec.sandbox.egress: means nothing with the network `Open`; write `network: Restricted`, or remove the rules",
        ],
    );
    let twice =
        "command: [a]\nsandbox: {network: Restricted, egress: ['a.example:80,443', 'A.example:443,80']}";
    assert_refused(
        twice,
        validate_job(&job(twice)),
        &["spec.sandbox.egress[1]: `a.example:80,443` is listed twice; remove one of them"],
    );
}

#[test]
fn an_unpacked_upload_may_be_the_workspace_and_hold_other_inputs() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let spec = format!(
        "command: [a]\nworkspace: {{inputs: [{{path: ., upload: {{digest: '{digest}', unpack: true}}}}, {{path: a/b, \
         inline: x}}, {{path: run, upload: {{digest: '{digest}'}}, executable: true}}]}}"
    );
    assert!(validate_job(&job(&spec)).is_ok());
}

#[test]
fn what_a_step_cannot_use_is_refused() {
    for (kind, step) in [("facts", "facts: {}"), ("service", "service: {action: restart, name: web}")] {
        let spec = format!(
            "steps: [{{name: a, {step}, timeout: 1m, continueOnError: true}}, {{name: b, {step}, env: {{A: b}}, secrets: [{{name: \
             a, key: b, file: c}}], configMaps: [{{name: a, key: b, env: C}}], workingDir: d}}]"
        );
        let refused = ["configMaps", "env", "secrets", "workingDir"].map(|field| {
            format!(
                "spec.steps[1].{field}: means nothing in a step of kind `{kind}`, of which nothing runs in the sandbox; remove \
                 it, or write it in the step that needs it"
            )
        });
        assert_refused(&spec, validate_job(&job(&spec)), &refused.each_ref().map(String::as_str));
    }
    let spec = "steps: [{name: a, facts: {}, env: {}, secrets: [], configMaps: []}]";
    assert!(validate_job(&job(spec)).is_ok());
}

#[test]
fn everything_that_is_wrong_is_said_at_once_and_in_order() {
    let spec = "timeout: 0s\nsandbox: {image: a, env: {WINDLASS_A: b}}\nsteps: [{name: b}, {name: b, command: ['']}]";
    assert_refused(
        spec,
        validate_job(&job(spec)),
        &[
            "spec.sandbox.env.WINDLASS_A: `WINDLASS_A` is reserved: choose a name that does not begin with \
             `WINDLASS_`",
            "spec.sandbox.image: `a` is not on the node; the runtime `native` takes `docker-archive:/path`, \
             `oci-archive:/path`, `oci:/folder` or `rootfs:/folder`; for images by name set `runtime` to `podman` or `docker`",
            "spec.steps[0]: does nothing; write a `command`, a `script`, a `container`, `facts` or a `service`",
            "spec.steps[1].command[0]: is empty; write the program to run",
            "spec.steps[1].name: `b` is also the name of spec.steps[0]; choose another",
            "spec.timeout: `0s` is out of range: write a length from 1s to 720h",
        ],
    );
}

#[test]
fn the_bounds_of_the_schema_hold_for_objects_that_were_not_read() {
    let mut wide = job("command: [a]");
    wide.spec.queue = "Big Queue".to_owned();
    wide.spec.sandbox.resources.pids = Some(0);
    wide.spec.command = Some(vec!["x".to_owned(); 1025]);
    wide.metadata.name = Some("A".to_owned());
    assert_refused(
        "bounds",
        validate_job(&wide),
        &[
            "metadata.name: `A` must be lower-case letters, digits, `-` and `.`, each part starting and ending with a \
             letter or digit",
            "spec.command: has 1025 items, at most 1024 are accepted",
            "spec.queue: `Big Queue` is not accepted: write lower-case letters, digits and `-`, starting and ending \
             with a letter or digit",
            "spec.sandbox.resources.pids: `0` is out of range: write a whole number from 1 to 1000000",
        ],
    );
}

#[test]
fn sizes_that_no_system_could_run_are_refused() {
    let mut large = job("command: [a]");
    large.spec.command = Some(vec!["a".to_owned(), "ä".repeat(MAX_ARGUMENT_BYTES / 2)]);
    large.spec.sandbox.env.insert("A".to_owned(), "b".repeat(MAX_ARGUMENT_BYTES - 2));
    assert_refused(
        "arguments",
        validate_job(&large),
        &[
            "spec.command[1]: takes 131073 bytes, at most 131072 fit; write it to a file and pass its path",
            "spec.sandbox.env.A: takes 131073 bytes, at most 131072 fit; write it to a file and pass its path",
        ],
    );

    let mut huge = job("command: [a]");
    huge.spec.command = Some(vec!["x".repeat(MAX_ARGUMENT_BYTES - 1); 9]);
    let errors = validate_job(&huge).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].message.contains("at most 1048576 are accepted; upload large content"), "{errors:#?}");
}

#[test]
fn every_rule_of_nodes_names_the_field_and_the_fix() {
    assert!(validate_node(&node("")).is_ok());
    for (spec, expected) in [
        (
            "labels: {zone: a b}",
            "spec.labels.zone: `a b` must be letters, digits, `-`, `_` and `.`, starting and ending with a letter or \
             digit",
        ),
        ("queues: [a, b, a]", "spec.queues[2]: `a` is listed twice; remove one of them"),
        ("offlineGrace: 0s", "spec.offlineGrace: `0s` is out of range: write a length from 1s to 720h"),
        (
            "sandbox: {runtimes: [native, podman, native]}",
            "spec.sandbox.runtimes[2]: `native` is listed twice; remove one of them",
        ),
        (
            "sandbox: {networks: [None, None]}",
            "spec.sandbox.networks[1]: `None` is listed twice; remove one of them",
        ),
        (
            "sandbox: {max: {memory: 0}}",
            "spec.sandbox.max.memory: `0` leaves nothing to run with; raise it or remove the field",
        ),
        (
            "sandbox: {defaults: {cpu: 0}}",
            "spec.sandbox.defaults.cpu: `0` leaves nothing to run with; raise it or remove the field",
        ),
        (
            "sandbox: {defaults: {cpu: 2}, max: {cpu: 1}}",
            "spec.sandbox.defaults.cpu: `2` is more than spec.sandbox.max.cpu, which is `1`; lower it or raise the other",
        ),
        (
            "sandbox: {defaults: {memory: 2Gi}, max: {memory: 1Gi}}",
            "spec.sandbox.defaults.memory: `2Gi` is more than spec.sandbox.max.memory, which is `1Gi`; lower it or \
             raise the other",
        ),
        (
            "sandbox: {defaults: {pids: 20}, max: {pids: 10}}",
            "spec.sandbox.defaults.pids: `20` is more than spec.sandbox.max.pids, which is `10`; lower it or raise the \
             other",
        ),
        (
            "sandbox: {defaults: {disk: 2Gi}, max: {disk: 1Gi}}",
            "spec.sandbox.defaults.disk: `2Gi` is more than spec.sandbox.max.disk, which is `1Gi`; lower it or raise \
             the other",
        ),
        (
            "sandbox: {defaults: {cpuWeight: 20}, max: {cpuWeight: 10}}",
            "spec.sandbox.defaults.cpuWeight: `20` is more than spec.sandbox.max.cpuWeight, which is `10`; lower it or \
             raise the other",
        ),
        (
            "sandbox: {defaults: {files: 99}, max: {files: 64}}",
            "spec.sandbox.defaults.files: `99` is more than spec.sandbox.max.files, which is `64`; lower it or raise the \
             other",
        ),
        (
            "sandbox: {blockedCommands: [dd, ' ']}",
            "spec.sandbox.blockedCommands[1]: ` ` names no command; write it as in a script, or remove it",
        ),
        (
            "sandbox: {allowedCommands: [sh, sh]}",
            "spec.sandbox.allowedCommands[1]: `sh` is listed twice; remove one of them",
        ),
        (
            "sandbox: {maxTimeout: 31d}",
            "spec.sandbox.maxTimeout: `744h` is out of range: write a length from 1s to 720h",
        ),
        (
            "sandbox: {hostPaths: [{path: /srv/../etc}]}",
            "spec.sandbox.hostPaths[0].path: `/srv/../etc` contains `..`; write the path without it",
        ),
        (
            "sandbox: {hostPaths: [{path: /srv}, {path: /srv, readOnly: false}]}",
            "spec.sandbox.hostPaths[1].path: `/srv` is listed twice; remove one of them",
        ),
        (
            "sandbox: {services: [web, db, web]}",
            "spec.sandbox.services[2]: `web` is listed twice; remove one of them",
        ),
        (
            "sandbox: {outputCap: 0}",
            "spec.sandbox.outputCap: `0` would keep no output; raise it or remove the field",
        ),
    ] {
        assert_refused(spec, validate_node(&node(spec)), &[expected]);
    }
    let mut reserved = node("");
    reserved.metadata.name = Some("claim".to_owned());
    assert!(validate_node(&reserved).unwrap_err()[0].message.contains("cannot name a node"));
}

#[test]
fn a_template_is_checked_with_its_parameters_filled_in() {
    let good = "version: '1'\nparameters: [{name: zone}, {name: file, default: a.txt}, {name: n, type: integer}]\njob:\n  \
                nodeSelector: {zone: '${{ params.zone }}'}\n  command: [head, '-n${{params.n}}', '${{ params.file }}']\n  \
                workspace: {inputs: [{path: '${{ params.file }}', inline: x}]}";
    assert!(validate_template(&template(good)).is_ok(), "{:#?}", validate_template(&template(good)));
    for (spec, expected) in [
        (
            "version: a b\njob: {command: [a]}",
            "spec.version: `a b` must be letters, digits, `-`, `_` and `.`, starting and ending with a letter or digit",
        ),
        (
            "version: '1'\nparameters: [{name: a}, {name: a}]\njob: {command: [a]}",
            "spec.parameters[1].name: `a` is listed twice; choose another name",
        ),
        (
            "version: '1'\nparameters: [{name: a, type: integer, default: x}]\njob: {command: [a]}",
            "spec.parameters[0].default: `\"x\"` is not of the parameter's type `integer`",
        ),
        (
            "version: '1'\nparameters: [{name: a, required: true, default: x}]\njob: {command: [a]}",
            "spec.parameters[0].default: is never used, as the parameter is required; remove one of the two",
        ),
        (
            "version: '1'\nparameters: [{name: a}]\njob: {command: ['${{ params.b }}']}",
            "spec.job.command[0]: `params.b` is no parameter of the template; declared: a",
        ),
        (
            "version: '1'\njob: {command: ['${{ steps.a }}']}",
            "spec.job.command[0]: `steps.a` is no parameter of the template; none is declared",
        ),
        (
            "version: '1'\njob: {command: ['${{ params.a']}",
            "spec.job.command[0]: `${{ params.a` does not end; close it with `}}`",
        ),
        (
            "version: '1'\njob: {title: a}",
            "spec.job: does nothing; write `steps`, or one `command` or `script`",
        ),
        (
            "version: '1'\nparameters: [{name: p, default: /etc}]\njob: {steps: [{name: a, command: [a], workingDir: '${{ \
             params.p }}'}]}",
            "spec.job.steps[0].workingDir: `/etc` is absolute; write a path relative to the workspace",
        ),
    ] {
        assert_refused(spec, validate_template(&template(spec)), &[expected]);
    }
}

#[test]
fn only_four_fields_of_a_job_change_and_a_cancel_stays() {
    let old = job("command: [a]\npriority: low").spec;
    for spec in [
        "command: [a]\npriority: low",
        "command: [a]\npriority: high\nsuspend: true\nttlAfterFinished: 1h\ncancel: true",
        "steps: [{name: main, command: [a]}]",
    ] {
        assert_eq!(validate_job_update(&old, &job(spec).spec), Ok(()), "{spec}");
    }
    let only = "only `suspend`, `cancel`, `priority` and `ttlAfterFinished` can: submit a new job instead";
    for (spec, expected) in [
        ("command: [b]", vec![format!("spec.command[0]: cannot change from `a` to `b`; {only}")]),
        (
            "command: [a]\nqueue: big",
            vec![format!("spec.queue: cannot change from `default` to `big`; {only}")],
        ),
        (
            "command: [a, b]\ntimeout: 5m",
            vec![
                format!("spec.command: cannot change from `[\"a\"]` to `[\"a\",\"b\"]`; {only}"),
                format!("spec.timeout: cannot change from nothing to `5m`; {only}"),
            ],
        ),
        (
            "command: [a]\nsandbox: {network: Open}",
            vec![format!(
                "spec.sandbox: cannot change from nothing to `{{\"network\":\"Open\",\"runtime\":\"native\"}}`; {only}"
            )],
        ),
    ] {
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        assert_refused(spec, validate_job_update(&old, &job(spec).spec), &expected);
    }
    let cancelled = job("command: [a]\ncancel: true").spec;
    assert_refused(
        "cancel",
        validate_job_update(&cancelled, &old),
        &["spec.cancel: cannot be taken back; submit the job again under a new name"],
    );
}

#[test]
fn every_example_breaks_no_rule() {
    let folder = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut checked = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        for document in manifest::parse_bytes(&std::fs::read(&path).unwrap(), "example").unwrap() {
            let errors: Vec<String> = validate_object(&document.object)
                .err()
                .unwrap_or_default()
                .iter()
                .map(|error| document.locate(error).to_string())
                .collect();
            assert!(errors.is_empty(), "{}\n{}", path.display(), errors.join("\n"));
            checked += 1;
        }
    }
    assert!(checked >= 7, "found {checked} examples");
}

fn any_ask() -> impl Strategy<Value = LabelRequirement> {
    let operators = prop_oneof![
        Just(LabelOperator::In),
        Just(LabelOperator::NotIn),
        Just(LabelOperator::Exists),
        Just(LabelOperator::DoesNotExist),
        Just(LabelOperator::Gt),
        Just(LabelOperator::Lt),
    ];
    (operators, proptest::collection::vec(0u8..6, 1..3)).prop_map(|(operator, values)| {
        let count = match operator {
            LabelOperator::In | LabelOperator::NotIn => values.len(),
            LabelOperator::Exists | LabelOperator::DoesNotExist => 0,
            LabelOperator::Gt | LabelOperator::Lt => 1,
        };
        let values = values.iter().take(count).map(ToString::to_string).collect();
        LabelRequirement { key: "a".to_owned(), operator, values }
    })
}

/// What a node's label must be to meet a requirement, said independently of the code under test.
fn meets(requirement: &LabelRequirement, label: Option<i64>) -> bool {
    let values: Vec<i64> = requirement.values.iter().map(|value| value.parse().unwrap()).collect();
    match requirement.operator {
        LabelOperator::In => label.is_some_and(|label| values.contains(&label)),
        LabelOperator::NotIn => label.is_none_or(|label| !values.contains(&label)),
        LabelOperator::Exists => label.is_some(),
        LabelOperator::DoesNotExist => label.is_none(),
        LabelOperator::Gt => label.is_some_and(|label| label > values[0]),
        LabelOperator::Lt => label.is_some_and(|label| label < values[0]),
    }
}

proptest! {
    #[test]
    fn two_conditions_contradict_exactly_when_no_label_meets_both(one in any_ask(), other in any_ask()) {
        let mut job = job("command: [a]");
        job.spec.requires = Requirements { labels: vec![one.clone(), other.clone()], ..Requirements::default() };
        let candidates = std::iter::once(None).chain((-10..20).map(Some));
        let possible = candidates.into_iter().any(|label| meets(&one, label) && meets(&other, label));
        prop_assert_eq!(validate_job(&job).is_ok(), possible);
    }
}
