//! Wake-ups.

/// Something has changed and is committed. A wake-up carries a key and no content: receivers read again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// A job was created, changed or deleted.
    Job {
        /// The job's uid.
        uid: String,
    },
    /// A job became ready to be claimed, or may have: claims that wait should look again.
    Queued,
    /// A node was registered, configured, acknowledged or deleted, or has an order to fetch. Heartbeats alone do
    /// not wake anyone.
    Node {
        /// The node's name.
        name: String,
    },
    /// A node has more room: an attempt on it has ended, or waits for an answer.
    Freed {
        /// The node's name.
        node: String,
    },
    /// Records of a job arrived.
    Records {
        /// The job's uid.
        uid: String,
    },
    /// An event was written.
    Event {
        /// The uid of the job that it is about.
        job: Option<String>,
    },
    /// Anything may have changed: so much did that nobody said what, or wake-ups were lost.
    Any,
    /// A template was put or deleted.
    Template {
        /// The template's namespace.
        namespace: String,
        /// The template's name.
        name: String,
    },
}
