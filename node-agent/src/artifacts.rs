//! Artifacts: what attempts leave, from their workspaces to the controller.
//!
//! ```text
//!  attempt has ended ─► Collector: look through its folder, copy, hash, look for secrets ─► Spool (commit)
//!        │                                                                                     │
//!        ├─ manifest and terminal record ─► outbox ─► controller                               │
//!        ├─ release ──────────────────────────────────────────────────────────────────────────►│
//!        └─ workspace is removed, slot is free                                                 ▼
//!                                         ArtifactSender (one task): one body after the other ─► controller
//! ```
//!
//! *Guarantees.* What is in a committed collection is on disk before the records that tell of it, and these before the
//! workspace goes; so a crash at any moment loses nothing that was told of. A collection is made once: after a crash the one
//! that is there is used. Bodies are sent only after the controller has answered for every record of their attempt, so that it
//! knows them. A body is removed only when the controller has it, or says that it will never want it, or the spool has no room;
//! of that the controller is told, and shows it as a gap. Sending takes up no slot and no lease.
//!
//! Of a bare run of the Worker API nothing is collected: no controller knows of it.

pub(crate) mod collect;
mod kind;
mod secrets;
pub(crate) mod sender;
pub(crate) mod spool;

pub(crate) use self::collect::Halt;
pub(crate) use self::secrets::FileSecrets;
pub(crate) use self::spool::Spool;
