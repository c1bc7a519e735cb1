//! The OpenAPI document, made from one table of operations and the schemas of the types.

use axum::Json;
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};
use windlass_crds::protocol::{
    ArtifactsLost, Bootstrap, CapabilityReport, ClaimRequest, ClaimResponse, ConfigAck, Configuration,
    HeartbeatRequest, HeartbeatResponse, Problem, RegisterRequest, ReportRequest, ReportResponse,
};
use windlass_crds::rollout::{NewRollout, Rollout};
use windlass_crds::{JobTemplate, NodeConfig, SandboxJob};

use super::jobs::{ArtifactLink, ArtifactList, BatchResult, LinkRequest};
use super::nodes::DrainRequest;
use super::queues::QueueRequest;
use super::secrets::{Secret, SecretRequest};

/// Who may call an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    Anyone,
    Operator,
    Node,
}

/// One operation.
struct Operation {
    method: &'static str,
    path: &'static str,
    tag: &'static str,
    summary: &'static str,
    caller: Caller,
    query: &'static [(&'static str, &'static str)],
    body: Option<&'static str>,
    answers: &'static [(u16, Option<&'static str>)],
}

const NO_QUERY: &[(&str, &str)] = &[];
const DRY_RUN: &[(&str, &str)] = &[("dryRun", "Check only; change nothing.")];
const JOB_LIST: &[(&str, &str)] = &[
    ("queue", "Only jobs of this queue."),
    ("phase", "Only jobs in these phases, separated by commas."),
    ("selector", "Only jobs with these labels: `key=value`, separated by commas."),
    ("name", "Only the job of this name; with a namespace."),
    ("limit", "How many at most: 1 to 500, 100 by default."),
    ("cursor", "Go on after this page: `metadata.continue` of the last one."),
    ("watch", "Stream every job and then each change as server-sent events."),
];
const WATCH: &[(&str, &str)] = &[
    ("name", "Only the node of this name."),
    ("watch", "Stream every object and then each change as server-sent events."),
];
const DEREGISTER: &[(&str, &str)] = &[(
    "force",
    "Also a node that holds attempts: they end with their leases, and their jobs go on elsewhere.",
)];
const LOGS: &[(&str, &str)] = &[
    ("step", "Only this step."),
    ("stream", "`stdout` or `stderr`."),
    ("epoch", "Only this attempt."),
    ("cursor", "Go on after this record."),
    ("limit", "How many records at most: 1 to 1000."),
];
const ARTIFACTS: &[(&str, &str)] = &[("epoch", "Only of this attempt; else of the last one.")];
const ALL_ARTIFACTS: &[(&str, &str)] = &[("epoch", "Only of this attempt.")];
const LINKED: &[(&str, &str)] = &[("expires", "As in the link."), ("signature", "As in the link.")];
const EVENTS: &[(&str, &str)] = &[
    ("node", "Only events of this node."),
    ("cursor", "Go on after this event."),
    ("limit", "How many at most: 1 to 500, 100 by default."),
    ("watch", "Stream events as they come."),
];
const CONFIG: &[(&str, &str)] = &[
    ("after", "The version that the node has."),
    ("wait", "How many seconds to wait for a newer one, at most 50."),
];

use Caller::{Anyone, Node, Operator};

/// Every operation of the API. A test holds it against the router.
const OPERATIONS: &[Operation] = &[
    op(
        "get",
        "/v1/jobs",
        "jobs",
        "List jobs of all namespaces.",
        Operator,
        JOB_LIST,
        None,
        &[(200, Some("SandboxJobList"))],
    ),
    op(
        "get",
        "/v1/namespaces/{namespace}/jobs",
        "jobs",
        "List jobs.",
        Operator,
        JOB_LIST,
        None,
        &[(200, Some("SandboxJobList"))],
    ),
    op(
        "post",
        "/v1/namespaces/{namespace}/jobs",
        "jobs",
        "Create a job. The header Idempotency-Key makes a repeated request harmless for a day.",
        Operator,
        DRY_RUN,
        Some("SandboxJob"),
        &[(201, Some("SandboxJob")), (200, Some("SandboxJob"))],
    ),
    op(
        "post",
        "/v1/namespaces/{namespace}/job-batches",
        "jobs",
        "Create up to 1000 jobs at once. What is wrong with the request refuses all of it; a name that is taken refuses \
         only its job. The header Idempotency-Key holds for each position.",
        Operator,
        DRY_RUN,
        Some("SandboxJobList"),
        &[(200, Some("BatchResult"))],
    ),
    op(
        "get",
        "/v1/namespaces/{namespace}/jobs/{name}",
        "jobs",
        "Read a job.",
        Operator,
        NO_QUERY,
        None,
        &[(200, Some("SandboxJob"))],
    ),
    op(
        "put",
        "/v1/namespaces/{namespace}/jobs/{name}",
        "jobs",
        "Apply a job: create it, or change what may be changed.",
        Operator,
        DRY_RUN,
        Some("SandboxJob"),
        &[(201, Some("SandboxJob")), (200, Some("SandboxJob"))],
    ),
    op(
        "delete",
        "/v1/namespaces/{namespace}/jobs/{name}",
        "jobs",
        "Delete a job; one that a node holds is cancelled first (202).",
        Operator,
        NO_QUERY,
        None,
        &[(200, Some("SandboxJob")), (202, Some("SandboxJob"))],
    ),
    op(
        "post",
        "/v1/namespaces/{namespace}/jobs/{name}/cancel",
        "jobs",
        "Cancel a job.",
        Operator,
        NO_QUERY,
        None,
        &[(200, Some("SandboxJob"))],
    ),
    op(
        "post",
        "/v1/namespaces/{namespace}/jobs/{name}/retry",
        "jobs",
        "Run a job again that has ended.",
        Operator,
        NO_QUERY,
        None,
        &[(200, Some("SandboxJob"))],
    ),
    op(
        "get",
        "/v1/namespaces/{namespace}/jobs/{name}/logs",
        "jobs",
        "Read or follow a job's output.",
        Operator,
        LOGS,
        None,
        &[(200, None)],
    ),
    op(
        "get",
        "/v1/namespaces/{namespace}/jobs/{name}/events",
        "jobs",
        "Read or follow a job's events.",
        Operator,
        EVENTS,
        None,
        &[(200, None)],
    ),
    op(
        "get",
        "/v1/namespaces/{namespace}/jobs/{name}/attempts",
        "jobs",
        "List a job's attempts.",
        Operator,
        NO_QUERY,
        None,
        &[(200, None)],
    ),
    op(
        "get",
        "/v1/namespaces/{namespace}/jobs/{name}/result",
        "jobs",
        "Read a job's result with the beginning of each step's output.",
        Operator,
        NO_QUERY,
        None,
        &[(200, None)],
    ),
    op(
        "get",
        "/v1/namespaces/{namespace}/jobs/{name}/placement",
        "jobs",
        "Tell for each node why the job does not run there.",
        Operator,
        NO_QUERY,
        None,
        &[(200, None)],
    ),
    op(
        "get",
        "/v1/namespaces/{namespace}/jobs/{name}/artifacts",
        "jobs",
        "List what a job's attempts have left in their folders of artifacts, also what was refused.",
        Operator,
        ALL_ARTIFACTS,
        None,
        &[(200, Some("ArtifactList"))],
    ),
    op(
        "get",
        "/v1/namespaces/{namespace}/jobs/{name}/artifacts/{artifact}",
        "jobs",
        "Download an artifact, or a range of its bytes; a slash in its name is written `%2F`.",
        Operator,
        ARTIFACTS,
        None,
        &[(200, None), (206, None)],
    ),
    op(
        "post",
        "/v1/namespaces/{namespace}/jobs/{name}/artifacts/{artifact}/link",
        "jobs",
        "Make a link to an artifact that works for a while without a token.",
        Operator,
        ARTIFACTS,
        Some("LinkRequest"),
        &[(200, Some("ArtifactLink"))],
    ),
    op(
        "get",
        "/v1/artifacts/{job}/{epoch}/{number}",
        "jobs",
        "Download the artifact of a link.",
        Anyone,
        LINKED,
        None,
        &[(200, None), (206, None)],
    ),
    op("get", "/v1/nodes", "nodes", "List nodes.", Operator, WATCH, None, &[(200, Some("NodeConfigList"))]),
    op(
        "get",
        "/v1/nodes/{name}",
        "nodes",
        "Read a node.",
        Operator,
        NO_QUERY,
        None,
        &[(200, Some("NodeConfig"))],
    ),
    op(
        "put",
        "/v1/nodes/{name}",
        "nodes",
        "Apply a node's configuration.",
        Operator,
        DRY_RUN,
        Some("NodeConfig"),
        &[(201, Some("NodeConfig")), (200, Some("NodeConfig"))],
    ),
    op(
        "delete",
        "/v1/nodes/{name}",
        "nodes",
        "Deregister a node; its key and tokens work no more.",
        Operator,
        DEREGISTER,
        None,
        &[(200, Some("NodeConfig"))],
    ),
    op(
        "post",
        "/v1/nodes/{name}/cordon",
        "nodes",
        "Keep new jobs away from a node until it is uncordoned.",
        Operator,
        NO_QUERY,
        None,
        &[(200, Some("NodeConfig"))],
    ),
    op(
        "post",
        "/v1/nodes/{name}/uncordon",
        "nodes",
        "Lift a cordon or a drain.",
        Operator,
        NO_QUERY,
        None,
        &[(200, Some("NodeConfig"))],
    ),
    op(
        "post",
        "/v1/nodes/{name}/drain",
        "nodes",
        "Keep new jobs away from a node and have it emptied.",
        Operator,
        NO_QUERY,
        Some("DrainRequest"),
        &[(200, Some("NodeConfig"))],
    ),
    op(
        "get",
        "/v1/nodes/{name}/attempts",
        "nodes",
        "List what a node holds.",
        Operator,
        NO_QUERY,
        None,
        &[(200, None)],
    ),
    op(
        "get",
        "/v1/nodes/{name}/history",
        "nodes",
        "Tell what happened to a node, newest first.",
        Operator,
        NO_QUERY,
        None,
        &[(200, None)],
    ),
    op(
        "get",
        "/v1/nodes/{name}/facts",
        "nodes",
        "Tell what a node has reported of its host, newest first.",
        Operator,
        &[("limit", "How many reports, 1 to 50; one without it.")],
        None,
        &[(200, None)],
    ),
    op(
        "get",
        "/v1/templates",
        "templates",
        "List templates of all namespaces.",
        Operator,
        NO_QUERY,
        None,
        &[(200, Some("JobTemplateList"))],
    ),
    op(
        "get",
        "/v1/namespaces/{namespace}/templates",
        "templates",
        "List templates.",
        Operator,
        NO_QUERY,
        None,
        &[(200, Some("JobTemplateList"))],
    ),
    op(
        "get",
        "/v1/namespaces/{namespace}/templates/{name}",
        "templates",
        "Read a template.",
        Operator,
        NO_QUERY,
        None,
        &[(200, Some("JobTemplate"))],
    ),
    op(
        "put",
        "/v1/namespaces/{namespace}/templates/{name}",
        "templates",
        "Apply a template; the same version with other content is refused.",
        Operator,
        NO_QUERY,
        Some("JobTemplate"),
        &[(201, Some("JobTemplate")), (200, Some("JobTemplate"))],
    ),
    op(
        "delete",
        "/v1/namespaces/{namespace}/templates/{name}",
        "templates",
        "Delete a template.",
        Operator,
        NO_QUERY,
        None,
        &[(200, Some("JobTemplate"))],
    ),
    op(
        "get",
        "/v1/queues",
        "queues",
        "Statistics and settings of queues.",
        Operator,
        NO_QUERY,
        None,
        &[(200, None)],
    ),
    op(
        "put",
        "/v1/queues/{name}",
        "queues",
        "Set a queue's weight and the number of its jobs that may run at once.",
        Operator,
        NO_QUERY,
        Some("QueueRequest"),
        &[(200, None)],
    ),
    op(
        "get",
        "/v1/rollouts",
        "rollouts",
        "List roll-outs, the newest first.",
        Operator,
        NO_QUERY,
        None,
        &[(200, None)],
    ),
    op(
        "post",
        "/v1/rollouts",
        "rollouts",
        "Roll a change out over the nodes with these labels, a few at a time.",
        Operator,
        NO_QUERY,
        Some("NewRollout"),
        &[(201, Some("Rollout"))],
    ),
    op(
        "get",
        "/v1/rollouts/{name}",
        "rollouts",
        "Read a roll-out with its nodes.",
        Operator,
        NO_QUERY,
        None,
        &[(200, Some("Rollout"))],
    ),
    op(
        "post",
        "/v1/rollouts/{name}/pause",
        "rollouts",
        "Change no further nodes for now.",
        Operator,
        NO_QUERY,
        None,
        &[(200, Some("Rollout"))],
    ),
    op(
        "post",
        "/v1/rollouts/{name}/resume",
        "rollouts",
        "Go on, and try again what has failed.",
        Operator,
        NO_QUERY,
        None,
        &[(200, Some("Rollout"))],
    ),
    op(
        "post",
        "/v1/rollouts/{name}/abort",
        "rollouts",
        "End a roll-out; nodes stay as they are.",
        Operator,
        NO_QUERY,
        None,
        &[(200, Some("Rollout"))],
    ),
    op(
        "post",
        "/v1/rollouts/{name}/undo",
        "rollouts",
        "Give the changed nodes back what they had before, a few at a time.",
        Operator,
        NO_QUERY,
        None,
        &[(200, Some("Rollout"))],
    ),
    op("get", "/v1/events", "events", "Read or follow events.", Operator, EVENTS, None, &[(200, None)]),
    op(
        "post",
        "/v1/join-tokens",
        "nodes",
        "Make a join token; its text is shown once.",
        Operator,
        NO_QUERY,
        None,
        &[(201, None)],
    ),
    op("get", "/v1/join-tokens", "nodes", "List join tokens.", Operator, NO_QUERY, None, &[(200, None)]),
    op(
        "delete",
        "/v1/join-tokens/{id}",
        "nodes",
        "Revoke a join token.",
        Operator,
        NO_QUERY,
        None,
        &[(204, None)],
    ),
    op(
        "get",
        "/v1/secrets",
        "secrets",
        "List Secrets of all namespaces, without their values.",
        Operator,
        NO_QUERY,
        None,
        &[(200, None)],
    ),
    op(
        "post",
        "/v1/secrets/rotate",
        "secrets",
        "Read the key file again, and put all secrets under its first key.",
        Operator,
        NO_QUERY,
        None,
        &[(200, None)],
    ),
    op(
        "get",
        "/v1/namespaces/{namespace}/secrets",
        "secrets",
        "List Secrets, without their values.",
        Operator,
        NO_QUERY,
        None,
        &[(200, None)],
    ),
    op(
        "get",
        "/v1/namespaces/{namespace}/secrets/{name}",
        "secrets",
        "Read which keys a Secret has.",
        Operator,
        NO_QUERY,
        None,
        &[(200, Some("Secret"))],
    ),
    op(
        "put",
        "/v1/namespaces/{namespace}/secrets/{name}",
        "secrets",
        "Set values of a Secret; its other keys stay. A value is never shown again.",
        Operator,
        NO_QUERY,
        Some("SecretRequest"),
        &[(201, Some("Secret")), (200, Some("Secret"))],
    ),
    op(
        "delete",
        "/v1/namespaces/{namespace}/secrets/{name}",
        "secrets",
        "Delete a Secret.",
        Operator,
        NO_QUERY,
        None,
        &[(204, None)],
    ),
    op(
        "delete",
        "/v1/namespaces/{namespace}/secrets/{name}/keys/{key}",
        "secrets",
        "Delete one key of a Secret.",
        Operator,
        NO_QUERY,
        None,
        &[(204, None)],
    ),
    op(
        "get",
        "/v1/inputs/{digest}",
        "inputs",
        "Tell whether an input is there; also HEAD.",
        Operator,
        NO_QUERY,
        None,
        &[(200, None)],
    ),
    op(
        "put",
        "/v1/inputs/{digest}",
        "inputs",
        "Upload an input; the body must have the digest.",
        Operator,
        NO_QUERY,
        None,
        &[(201, None), (200, None)],
    ),
    op(
        "post",
        "/v1/nodes/register",
        "agent protocol",
        "Register a node.",
        Anyone,
        NO_QUERY,
        Some("RegisterRequest"),
        &[(201, Some("Bootstrap")), (200, Some("Bootstrap"))],
    ),
    op(
        "get",
        "/v1/nodes/config",
        "agent protocol",
        "Wait for a newer configuration.",
        Node,
        CONFIG,
        None,
        &[(200, Some("Configuration")), (204, None)],
    ),
    op(
        "post",
        "/v1/nodes/config",
        "agent protocol",
        "Acknowledge a configuration.",
        Node,
        NO_QUERY,
        Some("ConfigAck"),
        &[(204, None)],
    ),
    op(
        "post",
        "/v1/nodes/capability",
        "agent protocol",
        "Report what the host can do.",
        Node,
        NO_QUERY,
        Some("CapabilityReport"),
        &[(204, None)],
    ),
    op(
        "post",
        "/v1/nodes/claim",
        "agent protocol",
        "Wait for work and orders.",
        Node,
        NO_QUERY,
        Some("ClaimRequest"),
        &[(200, Some("ClaimResponse"))],
    ),
    op(
        "post",
        "/v1/nodes/heartbeat",
        "agent protocol",
        "Show a sign of life and renew leases.",
        Node,
        NO_QUERY,
        Some("HeartbeatRequest"),
        &[(200, Some("HeartbeatResponse"))],
    ),
    op(
        "post",
        "/v1/nodes/report",
        "agent protocol",
        "Report what happened in attempts.",
        Node,
        NO_QUERY,
        Some("ReportRequest"),
        &[(200, Some("ReportResponse"))],
    ),
    op(
        "get",
        "/v1/nodes/inputs/{digest}",
        "agent protocol",
        "Fetch an input of a job that the node holds.",
        Node,
        NO_QUERY,
        None,
        &[(200, None)],
    ),
    op(
        "put",
        "/v1/nodes/artifacts/{job}/{epoch}/{number}",
        "agent protocol",
        "Send the body of an artifact that the attempt's manifest names. It may be sent again.",
        Node,
        NO_QUERY,
        None,
        &[(201, None), (200, None)],
    ),
    op(
        "post",
        "/v1/nodes/artifacts",
        "agent protocol",
        "Tell which bodies of artifacts will never come.",
        Node,
        NO_QUERY,
        Some("ArtifactsLost"),
        &[(204, None)],
    ),
    op(
        "get",
        "/v1/version",
        "controller",
        "The controller's version.",
        Anyone,
        NO_QUERY,
        None,
        &[(200, None)],
    ),
    op("get", "/v1/openapi.json", "controller", "This document.", Anyone, NO_QUERY, None, &[(200, None)]),
    op("get", "/livez", "controller", "Whether the process lives.", Anyone, NO_QUERY, None, &[(200, None)]),
    op("get", "/healthz", "controller", "The same as /livez.", Anyone, NO_QUERY, None, &[(200, None)]),
    op(
        "get",
        "/readyz",
        "controller",
        "Whether the controller can serve; else 503 with the reason.",
        Anyone,
        NO_QUERY,
        None,
        &[(200, None), (503, None)],
    ),
    op(
        "get",
        "/metrics",
        "controller",
        "Metrics as OpenMetrics text.",
        Anyone,
        NO_QUERY,
        None,
        &[(200, None)],
    ),
];

#[expect(clippy::too_many_arguments, reason = "a row of the table above, read as a row")]
const fn op(
    method: &'static str,
    path: &'static str,
    tag: &'static str,
    summary: &'static str,
    caller: Caller,
    query: &'static [(&'static str, &'static str)],
    body: Option<&'static str>,
    answers: &'static [(u16, Option<&'static str>)],
) -> Operation {
    Operation { method, path, tag, summary, caller, query, body, answers }
}

/// Serves the document.
pub(super) async fn document() -> Json<Value> {
    Json(build())
}

/// The document.
pub fn build() -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    let generator = &mut generator;
    for add in [
        add::<SandboxJob>,
        add::<NodeConfig>,
        add::<JobTemplate>,
        add::<Problem>,
        add::<RegisterRequest>,
        add::<Bootstrap>,
        add::<Configuration>,
        add::<ConfigAck>,
        add::<CapabilityReport>,
        add::<ClaimRequest>,
        add::<ClaimResponse>,
        add::<HeartbeatRequest>,
        add::<HeartbeatResponse>,
        add::<ReportRequest>,
        add::<ReportResponse>,
        add::<DrainRequest>,
        add::<QueueRequest>,
        add::<Secret>,
        add::<SecretRequest>,
        add::<NewRollout>,
        add::<Rollout>,
        add::<ArtifactsLost>,
        add::<ArtifactList>,
        add::<ArtifactLink>,
        add::<LinkRequest>,
        add::<BatchResult>,
    ] {
        add(generator);
    }
    let mut schemas = generator.take_definitions(true);
    for kind in ["SandboxJob", "NodeConfig", "JobTemplate"] {
        schemas.insert(format!("{kind}List"), list_schema(kind));
    }
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let entry = paths.entry(operation.path).or_insert_with(|| json!({}));
        entry[operation.method] = describe(operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Windlass controller",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Declared nodes and jobs. Errors are problem details (RFC 9457) with a stable `code`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "operator": {"type": "http", "scheme": "bearer", "description": "An API token."},
                "node": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "A node's token, given at registration."},
            },
        },
    })
}

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

fn list_schema(kind: &str) -> Value {
    json!({
        "type": "object",
        "required": ["apiVersion", "kind", "items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object", "properties": {"continue": {"type": "string"}}},
            "items": {"type": "array", "items": {"$ref": format!("#/components/schemas/{kind}")}},
        },
    })
}

fn describe(operation: &Operation) -> Value {
    let in_path = operation.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let in_path = in_path
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}));
    let in_query = operation.query.iter().map(|(name, description)| {
        json!({"name": name, "in": "query", "description": description, "schema": {"type": "string"}})
    });
    let versioned = ["put", "delete"].contains(&operation.method)
        && ["jobs", "templates", "nodes"].contains(&operation.tag)
        && operation.caller == Operator;
    let in_header = versioned.then(|| {
        let description = "Only if the object has this `metadata.resourceVersion`, or, with `*`, if it exists; \
                           otherwise 412.";
        json!({"name": "If-Match", "in": "header", "description": description, "schema": {"type": "string"}})
    });
    let mut answers = Map::new();
    for (status, schema) in operation.answers {
        let mut answer = json!({"description": "Success."});
        if *status >= 400 {
            answer["description"] = "Not now.".into();
        }
        if let Some(schema) = schema {
            answer["content"] = content("application/json", schema);
        }
        answers.insert(status.to_string(), answer);
    }
    let mut error = json!({"description": "What is wrong and what to do about it."});
    error["content"] = content("application/problem+json", "Problem");
    answers.insert("default".to_owned(), error);
    let mut value = json!({
        "tags": [operation.tag],
        "summary": operation.summary,
        "operationId": operation_id(operation),
        "parameters": in_path.chain(in_query).chain(in_header).collect::<Vec<_>>(),
        "responses": answers,
        "security": match operation.caller {
            Anyone => json!([]),
            Operator => json!([{"operator": []}]),
            Node => json!([{"node": []}]),
        },
    });
    if let Some(schema) = operation.body {
        value["requestBody"] = json!({"required": true, "content": content("application/json", schema)});
    }
    value
}

fn content(kind: &str, schema: &str) -> Value {
    json!({kind: {"schema": {"$ref": format!("#/components/schemas/{schema}")}}})
}

/// Such as `get_v1_namespaces_jobs`.
fn operation_id(operation: &Operation) -> String {
    let words = operation.path.split(['/', '.', '-', '{', '}']).filter(|word| !word.is_empty());
    std::iter::once(operation.method).chain(words).collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_to_a_schema() {
        let document = build();
        let mut pending = vec![&document];
        while let Some(value) = pending.pop() {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(reference)) = map.get("$ref") {
                        let pointer = reference.strip_prefix('#').unwrap();
                        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
                    }
                    pending.extend(map.values());
                }
                Value::Array(items) => pending.extend(items),
                _ => {}
            }
        }
    }

    #[test]
    fn operation_ids_are_unique() {
        let mut ids: Vec<_> = OPERATIONS.iter().map(operation_id).collect();
        ids.sort();
        let all = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), all);
    }

    #[test]
    fn the_table_names_the_routes_of_the_router_and_no_others() {
        let source = include_str!("../rest.rs");
        let routed: std::collections::BTreeSet<_> = source
            .split('"')
            .filter(|text| {
                text.starts_with("/v1/") || ["/livez", "/healthz", "/readyz", "/metrics"].contains(text)
            })
            .collect();
        let listed: std::collections::BTreeSet<_> =
            OPERATIONS.iter().map(|operation| operation.path).collect();
        assert_eq!(listed, routed);
    }
}
