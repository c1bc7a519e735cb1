//! Names and chance, injected, so that a simulation with a seed replays exactly.

/// Where the agent takes unique names and random numbers from.
pub trait IdSource: Send + Sync + 'static {
    /// A text that nobody has used before.
    fn unique(&self) -> String;

    /// A random number, at least 0 and below 1, for jitter.
    fn fraction(&self) -> f64;
}

/// UUIDs of version 7 and the thread's random number generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemIds;

impl IdSource for SystemIds {
    #[expect(clippy::disallowed_methods, reason = "this is the seam that everything else takes ids from")]
    fn unique(&self) -> String {
        uuid::Uuid::now_v7().to_string()
    }

    fn fraction(&self) -> f64 {
        rand::random::<f64>()
    }
}
