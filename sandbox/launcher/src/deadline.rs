//! The format of a lease file: one deadline in nanoseconds of CLOCK_BOOTTIME and its complement, so that a reader can
//! tell a torn or foreign record from a deadline. Both are read and written with one call.

/// Length of the record.
pub const LENGTH: usize = 16;

/// The record for a deadline.
#[must_use]
pub fn encode(deadline_ns: u64) -> [u8; LENGTH] {
    let mut record = [0; LENGTH];
    record[..8].copy_from_slice(&deadline_ns.to_le_bytes());
    record[8..].copy_from_slice(&(!deadline_ns).to_le_bytes());
    record
}

/// The deadline of a record, or `None` if it is torn or not a lease.
#[must_use]
pub fn decode(record: &[u8]) -> Option<u64> {
    let (value, complement) = record.split_at_checked(8)?;
    let value = u64::from_le_bytes(value.try_into().ok()?);
    let complement = u64::from_le_bytes(complement.try_into().ok()?);
    (value == !complement).then_some(value)
}

/// Now, in nanoseconds of CLOCK_BOOTTIME: it counts suspended time too and no one can set it.
#[must_use]
pub fn boottime_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).expect("the boot clock starts at zero");
    let nanos = u64::try_from(now.tv_nsec).expect("nanoseconds are not negative");
    seconds * 1_000_000_000 + nanos
}

/// Now, in milliseconds since the epoch.
#[must_use]
pub fn wall_ms() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec * 1000 + now.tv_nsec / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_records_are_deadlines() {
        let old = encode(5_000_000_000);
        let new = encode(9_000_000_001);
        assert_eq!(decode(&old), Some(5_000_000_000));
        for tear in 1..8 {
            let mut torn = old;
            torn[..tear].copy_from_slice(&new[..tear]);
            assert!(torn == old || decode(&torn).is_none(), "torn at {tear}");
        }
        assert_eq!(decode(&[0; LENGTH]), None);
        assert_eq!(decode(&old[..LENGTH - 1]), None);
    }
}
