//! Jobs as they are handed to the store, whichever way they come.

use sha2::{Digest as _, Sha256};
use windlass_core::requirement::{self, Requirement};
use windlass_core::validate;
use windlass_crds::protocol::FieldError;
use windlass_crds::{JobPhase, SandboxJob, SandboxJobSpec};
use windlass_store::{IdempotencyKey, JobPatch, JobRow, NewJob, Reserve, Store};

use crate::bodies::Bodies;
use crate::clock::{Clock, IdSource};
use crate::error::ApiError;
use crate::rest::inputs;

/// What applying the manifest changes on the job.
pub(crate) fn changes(row: &JobRow, job: &SandboxJob) -> JobPatch {
    let labels = job.metadata.labels.clone().unwrap_or_default();
    let annotations = job.metadata.annotations.clone().unwrap_or_default();
    let ttl = job.spec.ttl_after_finished;
    JobPatch {
        suspend: (job.spec.suspend != row.suspend).then_some(job.spec.suspend),
        priority: (job.spec.priority.get() != row.priority).then_some(job.spec.priority.get()),
        ttl_after_finished: (ttl != row.spec.ttl_after_finished).then_some(ttl),
        labels: (labels != row.labels).then_some(labels),
        annotations: (annotations != row.annotations).then_some(annotations),
    }
}

/// What making a job needs.
#[derive(Clone, Copy)]
pub(crate) struct Submission<'a> {
    pub(crate) store: &'a Store,
    pub(crate) bodies: &'a Bodies,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) ids: &'a dyn IdSource,
    /// Whether it comes from a cluster, which has ConfigMaps.
    pub(crate) of_cluster: bool,
}

impl Submission<'_> {
    /// Validates a manifest and makes the row that it becomes.
    pub(crate) async fn prepare(
        &self,
        job: SandboxJob,
        idempotency: Option<IdempotencyKey>,
    ) -> Result<NewJob, ApiError> {
        let valid = validate::validate_job(&job).map_err(|errors| ApiError::invalid("job", errors))?;
        let spec = valid.spec().clone();
        if !self.of_cluster {
            refuse_config_maps(&job.spec).map_err(|errors| ApiError::invalid("job", errors))?;
        }
        let input_digests = self.check_inputs(&job).await?;
        let json = serde_json::to_vec(&spec).map_err(|error| ApiError::internal("hash a job", error))?;
        let requirement = Requirement::of(&spec);
        let predicates =
            serde_json::to_value(&requirement).map_err(|error| ApiError::internal("store a job", error))?;
        let room = requirement::room(&spec);
        let metadata = job.metadata;
        let name = match metadata.name {
            Some(name) => name,
            None => self.generated_name(metadata.generate_name.as_deref().unwrap_or("job-")),
        };
        Ok(NewJob {
            uid: self.ids.uid(self.clock.now()),
            namespace: metadata.namespace.unwrap_or_else(|| "default".to_owned()),
            name,
            labels: metadata.labels.unwrap_or_default(),
            annotations: metadata.annotations.unwrap_or_default(),
            spec_hash: hex::encode(Sha256::digest(json)),
            requirement: windlass_store::Requirement { hash: requirement.class(), predicates },
            reserve: Reserve {
                cpu_millis: room.cpu_millis,
                memory_bytes: room.memory_bytes,
                gpus: room.gpus,
            },
            queue: spec.queue.clone(),
            priority: spec.priority.get(),
            phase: JobPhase::Queued,
            idempotency,
            input_digests,
            spec,
        })
    }

    /// A prefix and five random characters, without vowels and look-alikes, as Kubernetes makes them.
    fn generated_name(&self, prefix: &str) -> String {
        const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
        let random = self.ids.secret();
        let suffix = random[..5].iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
        format!("{prefix}{}", suffix.collect::<String>())
    }

    /// Every uploaded input must be there before a job may name it.
    async fn check_inputs(&self, job: &SandboxJob) -> Result<Vec<String>, ApiError> {
        let mut digests = Vec::new();
        let mut errors = Vec::new();
        for (position, input) in job.spec.workspace.inputs.iter().enumerate() {
            let Some(upload) = &input.upload else { continue };
            if inputs::find_whole(self.store, self.bodies, &upload.digest).await?.is_none() {
                errors.push(FieldError {
                field: format!("spec.workspace.inputs[{position}].upload.digest"),
                message: format!(
                    "`{}` was never uploaded, or is not there any more; `windlass run --input PATH` does it, or PUT /v1/inputs/{{digest}}",
                    upload.digest
                ),
            });
            }
            digests.push(upload.digest.clone());
        }
        if errors.is_empty() { Ok(digests) } else { Err(ApiError::invalid("job", errors)) }
    }
}

/// What comes by REST has no cluster to read ConfigMaps from.
fn refuse_config_maps(spec: &SandboxJobSpec) -> Result<(), Vec<FieldError>> {
    let of_steps = spec.steps.iter().enumerate();
    let lists = of_steps.map(|(index, step)| (format!("spec.steps[{index}].configMaps"), &step.config_maps));
    let lists = lists.chain([("spec.configMaps".to_owned(), &spec.config_maps)]);
    let errors: Vec<_> = lists
        .filter(|(_, uses)| !uses.is_empty())
        .map(|(field, _)| FieldError {
            field,
            message: "names ConfigMaps, which a job has only if it comes from a Kubernetes cluster; create it with kubectl, or write \
                      the values into `env` and `workspace.inputs`"
                .to_owned(),
        })
        .collect();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
