//! What goes into the store and what comes out of it: plain data without behaviour beyond conversions.

mod artifact;
mod change;
mod claim;
mod event;
mod facts;
mod fleet;
mod input;
mod job;
mod node;
mod origin;
mod placement;
mod push;
mod queue;
mod readable;
mod report;
mod reservation;
mod retention;
mod rollout;
mod secret;
mod stats;
mod template;
mod token;

pub use artifact::{ArtifactOutcome, ArtifactRow};
pub use change::Change;
pub use claim::{AttemptPhase, AttemptRow, Beat, BeatOutcome, ClaimSpec, ClaimedJob, ClassRow};
pub use event::{EventLevel, EventRow, NewEvent};
pub use facts::{FactsRow, NewFacts};
pub use fleet::{
    DrainRow, DrainStep, LiveAttempts, NewDrain, NewNodeEvent, NodeEventKind, NodeEventRow, NodeHold, Overdue,
};
pub use input::InputRow;
pub use job::{
    CancelOutcome, CreateOutcome, Cursor, DeleteOutcome, IdempotencyKey, InvalidCursor, JobFilter, JobPatch,
    JobRow, NewJob, Page, Requirement, Reserve, RetryOutcome,
};
pub use node::{
    Ack, CapabilitySnapshot, CapabilityUpdate, NewNodeConfig, NodeRegistration, NodeRow, Put, RedeemedToken,
    RegisterOutcome,
};
pub use origin::{Binding, Origin, OriginKind, OriginOutcome, OriginRow};
pub use placement::{HolderRow, NodeUsage, QueuePosition};
pub use push::PushRow;
pub use queue::{QueueSettings, QueueSettingsRow};
pub use readable::Readable;
pub use report::{
    Applied, AttemptChange, JobChange, LateOutcome, LateSteps, LogCursor, LogFilter, LogRow, MAX_SEQUENCE,
    NewRecord, NodeChange, RecordKind, RecordStore, Reportable, Transition, TransitionOutcome,
};
pub use reservation::{NewReservation, ReservationRow, WaitingRow};
pub use retention::{BodyOf, Pruned, RetentionPolicy, StoredBody};
pub use rollout::{NewRollout, RolloutNodeRow, RolloutRow, RolloutStep};
pub use secret::{PutSecret, SealedValue, SecretEntryRow, SecretValueRow};
pub use stats::{Counts, PriorityRow, QueueCounts, QueueRow};
pub use template::{PutTemplate, TemplateRow};
pub use token::{ApiTokenRow, JoinTokenRow};
