//! Time, injected: the wall clock for what people read, and the time since the host's boot for leases.
//!
//! Sleeping goes through `tokio::time`, so that a test with a paused runtime governs both.

use std::time::Duration;

use jiff::Timestamp;

/// Where the agent takes the time from.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock. It may jump; nothing that must be safe is decided by it.
    fn now(&self) -> Timestamp;

    /// Time since the host was booted, suspension included (`CLOCK_BOOTTIME`). It never goes back.
    fn boottime(&self) -> Duration;

    /// Names the run of the host that [`Clock::boottime`] counts in; another value means that the host was booted
    /// again and that no process of before can be alive.
    fn host_boot(&self) -> String;
}

/// The clocks of this host.
#[derive(Clone, Debug)]
pub struct SystemClock {
    host_boot: String,
}

impl SystemClock {
    /// Reads which run of the host this is.
    ///
    /// # Errors
    /// When the kernel does not tell, which happens only without `/proc`.
    pub fn new() -> std::io::Result<Self> {
        let host_boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Self { host_boot })
    }
}

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the seam that everything else takes the time from"
    )]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn boottime(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).expect("time since boot is never negative");
        let nanos = u32::try_from(time.tv_nsec).expect("nanoseconds are below a second");
        Duration::new(seconds, nanos)
    }

    fn host_boot(&self) -> String {
        self.host_boot.clone()
    }
}
