//! Rows of the store as the objects that callers see.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Serialize;
use serde_json::{Value, json};
use windlass_core::placement::Offer;
use windlass_crds::conditions::{Condition, ConditionStatus};
use windlass_crds::inference::InferenceStatus;
use windlass_crds::job_template::JobTemplate;
use windlass_crds::node_config::{AtDeadline, DispatchMode, DispatchStatus, HostSummary, NodeHold};
use windlass_crds::protocol::{CapabilityReport, EngineCapability, GpuDevice};
use windlass_crds::sandbox_job::{StepPhase, StepStatus};
use windlass_crds::{
    API_VERSION, JobPhase, NodeConfig, NodeConfigStatus, Priority, SandboxJob, SandboxJobStatus, Span,
};
use windlass_store::{AttemptRow, EventRow, JobRow, NodeRow, Overdue, TemplateRow};

use crate::reconcile::hold_phase;
use crate::tls;

/// Reasons that are shown of a node; its capability report has them all.
const MOST_LACKS: usize = 16;

/// A job as a manifest with its status.
pub(crate) fn job(row: &JobRow) -> SandboxJob {
    let mut spec = (*row.spec).clone();
    spec.suspend = row.suspend;
    spec.cancel = spec.cancel || row.cancel_requested_at.is_some();
    if let Some(priority) = Priority::new(row.priority) {
        spec.priority = priority;
    }
    SandboxJob {
        metadata: metadata(Meta {
            name: &row.name,
            namespace: Some(&row.namespace),
            uid: &row.uid,
            generation: row.generation,
            resource_version: row.resource_version,
            created_at: row.created_at,
            labels: &row.labels,
            annotations: &row.annotations,
        }),
        spec,
        status: Some(job_status(row)),
    }
}

/// What has become of a job.
pub(crate) fn job_status(row: &JobRow) -> SandboxJobStatus {
    let ran = row.started_at.zip(row.finished_at).map(|(from, to)| to.duration_since(from).as_millis());
    SandboxJobStatus {
        phase: row.phase,
        reason: row.reason.clone(),
        message: row.message.clone(),
        node: row.node.clone(),
        attempts: row.attempts,
        epoch: row.epoch,
        exit_code: row.exit_code,
        step: current_step(&row.steps),
        steps: row.steps.clone(),
        steps_omitted: 0,
        unenforced: row.unenforced.clone(),
        logs_complete: row.logs_complete,
        queued_at: row.queued_at,
        not_before: row.not_before,
        started_at: row.started_at,
        finished_at: row.finished_at,
        duration: ran.and_then(|millis| u64::try_from(millis).ok()).map(Span::from_millis),
        observed_generation: Some(row.generation),
        conditions: job_conditions(row),
    }
}

/// The step that runs, or the last one that ran.
fn current_step(steps: &[StepStatus]) -> Option<String> {
    let ran = |step: &&StepStatus| match step.phase {
        StepPhase::Running | StepPhase::Succeeded | StepPhase::Failed => true,
        StepPhase::Pending | StepPhase::Skipped => false,
    };
    let runs = steps.iter().find(|step| step.phase == StepPhase::Running);
    runs.or_else(|| steps.iter().rfind(ran)).map(|step| step.name.clone())
}

/// `Complete` once the job has succeeded and `Failed` once it has ended otherwise; nothing before.
fn job_conditions(row: &JobRow) -> Vec<Condition> {
    let condition_type = match row.phase {
        JobPhase::Succeeded => "Complete",
        JobPhase::Failed | JobPhase::Cancelled | JobPhase::TimedOut => "Failed",
        JobPhase::PendingApproval
        | JobPhase::Queued
        | JobPhase::Claimed
        | JobPhase::Running
        | JobPhase::Waiting => return Vec::new(),
    };
    vec![Condition {
        condition_type: condition_type.to_owned(),
        status: ConditionStatus::True,
        reason: row.reason.clone().unwrap_or_else(|| row.phase.to_string()),
        message: row.message.clone().unwrap_or_default(),
        last_transition_time: row.finished_at.unwrap_or(row.created_at),
        observed_generation: Some(row.generation),
    }]
}

/// A node as a manifest with its status.
pub(crate) fn node(row: &NodeRow) -> NodeConfig {
    let labels = row
        .capability
        .as_ref()
        .map(|capability| Offer::new(&row.name, capability, &row.spec).labels)
        .unwrap_or_default();
    let status = NodeConfigStatus {
        state: windlass_core::node::state(&row.conditions),
        hold: row.hold.as_ref().map(hold),
        conditions: row.conditions.clone(),
        config_version: row.config_version,
        acknowledged_version: row.acked_version,
        applied_version: row.applied_version,
        agent_version: row.agent_version.clone(),
        last_seen_at: row.last_seen_at,
        running_jobs: row.running,
        slots: slots(row),
        host: row.capability.as_ref().map(host),
        dispatch: dispatch(row),
        inference: inference(row),
        labels,
        observed_generation: Some(row.generation),
    };
    NodeConfig {
        metadata: metadata(Meta {
            name: &row.name,
            namespace: None,
            uid: &row.uid,
            generation: row.generation,
            resource_version: row.resource_version,
            created_at: row.created_at,
            labels: &row.meta_labels,
            annotations: &row.annotations,
        }),
        spec: row.spec.clone(),
        status: Some(status),
    }
}

/// What an operator has asked of a node.
fn hold(row: &windlass_store::NodeHold) -> NodeHold {
    NodeHold {
        phase: hold_phase(row),
        since: row.since,
        deadline: row.drain.and_then(|drain| drain.deadline_at),
        at_deadline: row.drain.filter(|drain| drain.deadline_at.is_some()).map(|drain| match drain.overdue {
            Overdue::Requeue => AtDeadline::Requeue,
            Overdue::Cancel => AtDeadline::Cancel,
        }),
        drained_at: row.drain.and_then(|drain| drain.drained_at),
    }
}

/// How jobs reach a node, where it has a Worker API or should have one.
fn dispatch(row: &NodeRow) -> Option<DispatchStatus> {
    let report = row.capability.as_ref();
    let url = report.and_then(|report| report.worker_api.as_ref()).map(|api| api.base_url.clone());
    let mode = row.spec.dispatch;
    if url.is_none() && mode == DispatchMode::Pull {
        return None;
    }
    let certificate = report
        .and_then(|report| report.tls.as_ref()?.worker_api_server_cert_pem.as_deref())
        .and_then(tls::fingerprint_of);
    let push = row.push.as_ref().filter(|_| mode == DispatchMode::Push);
    Some(DispatchStatus {
        mode,
        url,
        certificate,
        token_issued_at: push.map(|push| push.issued_at),
        delivered_at: push.and_then(|push| push.delivered_at),
        error: push.and_then(|push| push.error.clone()),
        error_since: push.and_then(|push| push.error_since),
    })
}

/// How many attempts a node can hold.
pub(super) fn slots(row: &NodeRow) -> u32 {
    let sandbox = row.capability.as_ref().and_then(|capability| capability.sandbox.as_ref());
    let own = sandbox.and_then(|sandbox| sandbox.max_concurrency);
    row.spec.concurrency.or(own).unwrap_or(row.slots)
}

/// The server of models, where one is configured and was reported.
fn inference(row: &NodeRow) -> Option<InferenceStatus> {
    row.spec.inference.as_ref().filter(|inference| inference.enabled)?;
    Some(row.capability.as_ref()?.inference.as_ref()?.status.clone())
}

fn host(report: &CapabilityReport) -> HostSummary {
    HostSummary {
        os: report.platform.distro.clone().unwrap_or_else(|| report.platform.os.clone()),
        arch: report.platform.arch.clone(),
        kernel: report.platform.kernel_version.clone().unwrap_or_default(),
        cpus: report.compute.cpu_cores,
        memory_mib: report.compute.ram_mb,
        runtimes: report.sandbox.as_ref().map(|sandbox| sandbox.runtimes.clone()).unwrap_or_default(),
        gpus: report.gpu.as_ref().map_or(0, |gpu| u32::try_from(gpu.devices.len()).unwrap_or(u32::MAX)),
        devices: report.gpu.iter().flat_map(|gpu| &gpu.devices).map(device).collect(),
        engines: report.sandbox.iter().flat_map(|sandbox| &sandbox.engines).map(engine).collect(),
        lacks: report.sandbox.iter().flat_map(|sandbox| &sandbox.lacks).take(MOST_LACKS).cloned().collect(),
    }
}

/// A graphics processor in a few words.
fn device(device: &GpuDevice) -> String {
    let GpuDevice { vendor, model, device_id, vram_mb, features } = device;
    let name = model.as_ref().or(device_id.as_ref());
    let memory = vram_mb.map(|mib| format!("{mib} MiB"));
    let cuda = features.as_ref().and_then(|features| features.cuda_version.as_ref());
    let cuda = cuda.map(|version| format!("CUDA {version}"));
    let words = [vendor.as_ref(), name, memory.as_ref(), cuda.as_ref()];
    words.into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// A container engine in a few words.
fn engine(engine: &EngineCapability) -> String {
    let EngineCapability { engine, version, rootless, storage, runtimes, limits: _ } = engine;
    let rootless = if *rootless { ", without root" } else { "" };
    format!("{engine} {version} ({storage}, {}{rootless})", runtimes.join(" "))
}

/// A template as a manifest.
pub(super) fn template(row: &TemplateRow) -> JobTemplate {
    let none = BTreeMap::new();
    JobTemplate {
        metadata: metadata(Meta {
            name: &row.name,
            namespace: Some(&row.namespace),
            uid: &row.uid,
            generation: row.generation,
            resource_version: row.resource_version,
            created_at: row.created_at,
            labels: &none,
            annotations: &none,
        }),
        spec: row.spec.clone(),
        status: None,
    }
}

/// An attempt.
pub(super) fn attempt(row: &AttemptRow) -> Value {
    json!({
        "epoch": row.epoch,
        "number": row.number,
        "node": row.node,
        "phase": row.phase.to_string(),
        "reason": row.reason,
        "message": row.message,
        "exitCode": row.exit_code,
        "claimedAt": row.claimed_at,
        "startedAt": row.started_at,
        "endedAt": row.ended_at,
        "leaseUntil": row.ended_at.is_none().then_some(row.lease_until),
    })
}

/// An event.
pub(super) fn event(row: &EventRow) -> Value {
    json!({
        "id": row.id,
        "at": row.at,
        "level": row.level.to_string(),
        "source": row.source,
        "reason": row.reason,
        "message": row.message,
        "data": row.data,
        "job": row.job,
        "node": row.node,
    })
}

/// A list as Kubernetes writes it.
pub(super) fn list<T: Serialize>(kind: &str, items: &[T], next: Option<String>) -> Value {
    let metadata = next.map_or_else(|| json!({}), |next| json!({"continue": next}));
    json!({"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "items": items})
}

#[derive(Clone, Copy)]
struct Meta<'a> {
    name: &'a str,
    namespace: Option<&'a str>,
    uid: &'a str,
    generation: i64,
    resource_version: i64,
    created_at: Timestamp,
    labels: &'a BTreeMap<String, String>,
    annotations: &'a BTreeMap<String, String>,
}

fn metadata(meta: Meta<'_>) -> ObjectMeta {
    let Meta { name, namespace, uid, generation, resource_version, created_at, labels, annotations } = meta;
    let map = |map: &BTreeMap<String, String>| (!map.is_empty()).then(|| map.clone());
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.map(str::to_owned),
        uid: Some(uid.to_owned()),
        generation: Some(generation),
        resource_version: Some(resource_version.to_string()),
        creation_timestamp: Some(Time(created_at)),
        labels: map(labels),
        annotations: map(annotations),
        ..ObjectMeta::default()
    }
}
