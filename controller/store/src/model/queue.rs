//! Settings of queues.

/// What is set for a queue. A queue for which nothing is set has weight 1 and no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// The queue's share, against the weights of the others, of what runs.
    pub weight: u32,
    /// How many of its jobs may be claimed or running at once; `None` for any number.
    pub concurrency: Option<u32>,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self { weight: 1, concurrency: None }
    }
}

/// A queue for which something is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSettingsRow {
    /// The queue.
    pub queue: String,
    /// What is set.
    pub settings: QueueSettings,
    /// How many of its jobs are claimed or running.
    pub running: u32,
    /// Whether a job of it is ready to be claimed.
    pub has_ready: bool,
}
