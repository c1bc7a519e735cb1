//! The cases, by what they are about.

pub(crate) mod artifacts;
pub(crate) mod changing;
pub(crate) mod claiming;
pub(crate) mod creating;
pub(crate) mod facts;
pub(crate) mod fleet;
pub(crate) mod keeping;
pub(crate) mod leasing;
pub(crate) mod listing;
pub(crate) mod merging;
pub(crate) mod nodes;
pub(crate) mod origins;
pub(crate) mod placement;
pub(crate) mod pushing;
pub(crate) mod queues;
pub(crate) mod reporting;
pub(crate) mod reserving;
pub(crate) mod rollouts;
pub(crate) mod secrets;
pub(crate) mod transitions;
