//! The OpenAPI document of the Worker API.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::{RUN_PATH, RunJobRequest, RunJobResponse};
use crate::protocol::Problem;

/// The document.
pub fn openapi() -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    generator.subschema_for::<RunJobRequest>();
    generator.subschema_for::<RunJobResponse>();
    generator.subschema_for::<Problem>();
    let run = "RunJobResponse";
    let in_path = |name: &str, description: &str, schema: Value| json!({"name": name, "in": "path", "required": true, "description": description, "schema": schema});
    let attempt = json!([
        in_path("job_id", "The job.", json!({"type": "string", "format": "uuid"})),
        in_path(
            "epoch",
            "The epoch; 0 for a request that named none.",
            json!({"type": "integer", "minimum": 0})
        ),
    ]);
    let token = json!([{"token": []}]);
    let text = |description: &str| json!({"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}});
    let prefer = json!({
        "name": "Prefer", "in": "header", "schema": {"type": "string"},
        "description": "With `respond-async` the answer is 202 as soon as the run is taken on.",
    });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Windlass Worker API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Gives a node a job. A run is named by its job and epoch, and never runs twice. Errors are \
                            problem details (RFC 9457) with a stable `code`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            RUN_PATH: {"post": {
                "operationId": "run_job",
                "summary": "Run a job, join its run, or get its result. A job that fails is answered with 200.",
                "parameters": [prefer],
                "requestBody": {"required": true, "content": content("application/json", "RunJobRequest")},
                "responses": {
                    "200": answer("The run has ended.", run),
                    "202": answer("The run is taken on, and goes on.", run),
                    "400": problem("The request is wrong; `errors` names the field."),
                    "401": problem("The token is missing, wrong or has expired."),
                    "403": problem("The node's rules, or the caller's rights, do not permit the job."),
                    "408": problem("The request took too long to arrive."),
                    "409": problem("The job's id was used for another request."),
                    "410": problem("The job has run, and its result is not kept any more."),
                    "413": problem("The request is too large."),
                    "503": problem("The node takes no job just now."),
                },
                "security": token,
            }},
            "/v1/worker/jobs/{job_id}/attempts/{epoch}": {
                "get": {
                    "operationId": "get_attempt",
                    "summary": "Look at a run: what has become of it so far, or its result while it is kept.",
                    "parameters": attempt,
                    "responses": {
                        "200": answer("The run.", run),
                        "401": problem("The token is missing, wrong or has expired."),
                        "404": problem("There is no such run, or its result was stored by the controller."),
                        "410": problem("The job has run, and its result is not kept any more."),
                    },
                    "security": token,
                },
                "delete": {
                    "operationId": "settle_attempt",
                    "summary": "Say that the result of a run with the epoch 0 was stored: the node need not keep it.",
                    "parameters": attempt,
                    "responses": {
                        "204": {"description": "The result is not kept any more."},
                        "401": problem("The token is missing, wrong or has expired."),
                        "404": problem("There is no such run."),
                        "409": problem("The run goes on, or is an attempt of the controller."),
                    },
                    "security": token,
                },
            },
            "/healthz": {"get": {
                "operationId": "get_healthz",
                "summary": "Whether the agent lives.",
                "responses": {"200": text("`ok`")},
                "security": [],
            }},
            "/readyz": {"get": {
                "operationId": "get_readyz",
                "summary": "Whether the node takes jobs.",
                "responses": {"200": text("`ready`"), "503": text("Why it does not.")},
                "security": [],
            }},
            "/v1/openapi.json": {"get": {
                "operationId": "get_openapi",
                "summary": "This document.",
                "responses": {"200": {"description": "The document.", "content": {"application/json": {}}}},
                "security": [],
            }},
        },
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": {"token": {
                "type": "http", "scheme": "bearer",
                "description": "The controller's token from the node's configuration, or the one in the node's token file.",
            }},
        },
    })
}

fn content(kind: &str, schema: &str) -> Value {
    json!({kind: {"schema": {"$ref": format!("#/components/schemas/{schema}")}}})
}

fn answer(description: &str, schema: &str) -> Value {
    json!({"description": description, "content": content("application/json", schema)})
}

fn problem(description: &str) -> Value {
    json!({"description": description, "content": content("application/problem+json", "Problem")})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_to_a_schema() {
        let document = openapi();
        let mut pending = vec![&document];
        let mut references = 0;
        while let Some(value) = pending.pop() {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(reference)) = map.get("$ref") {
                        let pointer = reference.strip_prefix('#').unwrap();
                        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
                        references += 1;
                    }
                    pending.extend(map.values());
                }
                Value::Array(items) => pending.extend(items),
                _ => {}
            }
        }
        assert!(references > 10);
    }
}
