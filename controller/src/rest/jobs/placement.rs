//! Why a job is not running: for each node, the first reason that excludes it.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use windlass_core::placement::{self, Exclusion, Offer};
use windlass_core::requirement::{self, Requirement};
use windlass_crds::conditions::ConditionStatus;
use windlass_store::{JobRow, NodeRow};

use super::super::App;
use super::super::extract::Operator;
use super::find;
use crate::error::ApiError;

pub(in crate::rest) async fn placement(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let job = find(&app, &namespace, &name).await?;
    let nodes = app.store.list_nodes().await?;
    let items: Vec<_> = nodes.iter().map(|node| verdict(&job, node)).collect();
    Ok(Json(json!({"job": waiting(&app, &job), "items": items})))
}

/// What keeps the job itself from running, whatever the nodes say.
fn waiting(app: &App, job: &JobRow) -> Option<String> {
    if job.phase.is_terminal() || job.phase.is_held() {
        return Some(format!("the job is {}", job.phase));
    }
    if job.suspend {
        return Some("the job is suspended (spec.suspend)".to_owned());
    }
    let not_before = job.not_before.filter(|at| *at > app.clock.now())?;
    Some(format!("the job is tried again at {not_before}"))
}

fn verdict(job: &JobRow, node: &NodeRow) -> Value {
    let reason = lasting(job, node).or_else(|| passing(job, node));
    match reason {
        Some((reason, message)) => {
            json!({"node": node.name, "fits": false, "reason": reason, "message": message})
        }
        None => json!({"node": node.name, "fits": true}),
    }
}

/// A reason that only a change of the job or the node removes.
fn lasting(job: &JobRow, node: &NodeRow) -> Option<(String, String)> {
    let Some(capability) = &node.capability else {
        let reason = Exclusion::NotRegistered;
        return Some((<&str>::from(&reason).to_owned(), reason.to_string()));
    };
    let offer = Offer::new(&node.name, capability, &node.spec);
    let requirement = Requirement::of(&job.spec);
    let reason = placement::exclusion_with_room(&requirement, requirement::room(&job.spec), &offer)?;
    Some((<&str>::from(&reason).to_owned(), reason.to_string()))
}

/// A reason that goes by itself or by an operator's hand.
fn passing(job: &JobRow, node: &NodeRow) -> Option<(String, String)> {
    if !node.spec.queues.is_empty() && !node.spec.queues.contains(&job.queue) {
        return Some(("Queue".to_owned(), format!("the node does not serve the queue `{}`", job.queue)));
    }
    let schedulable = node.conditions.iter().find(|condition| condition.condition_type == "Schedulable");
    if let Some(condition) = schedulable.filter(|condition| condition.status != ConditionStatus::True) {
        let ready = node.conditions.iter().find(|condition| condition.condition_type == "Ready");
        let told = ready.filter(|ready| ready.status != ConditionStatus::True).unwrap_or(condition);
        return Some((told.reason.clone(), told.message.clone()));
    }
    let own = node.capability.as_ref().and_then(|capability| capability.sandbox.as_ref()?.max_concurrency);
    let slots = node.spec.concurrency.or(own).unwrap_or(1);
    (node.running >= slots)
        .then(|| ("Full".to_owned(), format!("all {slots} slots are taken; the job starts when one is free")))
}
