//! What a restored database must not forget: that things have happened which it does not know.
//!
//! Between a backup and its restore, attempts were handed out and configurations delivered; nodes may still run the one and
//! hold the other. A restored database therefore draws all its numbers anew, above everything that anybody can have seen,
//! and keeps what may still be running elsewhere waiting until that has ended by itself.
//!
//! # Guarantees
//! - *Numbers.* Epochs, versions of configurations, versions of objects and ids of events go on above one number that is
//!   taken from the clock: a millisecond of it is more than any of them grows by in that time. So it is above what was
//!   handed out after the backup, also by an earlier restore of the same backup.
//! - *Nothing at once twice.* A job of the backup is not handed out before [`Restored::hold_until`]: by then every lease has
//!   ended that it can have been given after the backup. Attempts of the backup that their nodes still have go on; the
//!   lease of the others ends then, and uses up no retry.
//!
//! # Assumptions
//! The hold is as long as the longest lease; the clock is not behind that of an earlier restore.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use windlass_crds::JobPhase;

use crate::Error;
use crate::engine::conn::Conn;
use crate::engine::value::args;

/// The setting that holds it.
pub(super) const SETTING: &str = "restored";

/// How a database came to be that was restored from a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// When.
    pub at: Timestamp,
    /// What is numbered above this was made since.
    pub number: i64,
    /// Until when jobs of the backup may still run somewhere without being known here.
    pub hold_until: Timestamp,
}

impl Restored {
    /// Whether an attempt is one of the backup.
    pub fn had(&self, epoch: u64) -> bool {
        i64::try_from(epoch).is_ok_and(|epoch| epoch <= self.number)
    }

    /// When a job may be handed out again that is to wait until `not_before`.
    pub(crate) fn not_before(
        &self,
        id: i64,
        phase: JobPhase,
        now: Timestamp,
        not_before: Option<Timestamp>,
    ) -> Option<Timestamp> {
        if phase == JobPhase::Queued && id <= self.number && self.hold_until > now {
            return Some(not_before.map_or(self.hold_until, |time| time.max(self.hold_until)));
        }
        not_before
    }
}

/// How the database came to be; `None` where it was not restored.
pub(crate) async fn read(conn: &mut Conn) -> Result<Option<Restored>, Error> {
    let row = conn.row("SELECT value FROM settings WHERE key = $1", args![SETTING]).await?;
    let Some(row) = row else { return Ok(None) };
    let value = row.cells("settings").bytes("value")?;
    let damaged = |_| Error::Corrupt { table: "settings", column: "value", row: SETTING.to_owned() };
    serde_json::from_slice(&value).map(Some).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn jobs_of_the_backup_wait_for_the_end_of_the_hold_and_others_do_not() {
        let restored = Restored { at: at(100), number: 50, hold_until: at(200) };
        let wait = |id, phase, now, not_before| restored.not_before(id, phase, at(now), not_before);
        assert_eq!(wait(50, JobPhase::Queued, 150, None), Some(at(200)));
        assert_eq!(wait(50, JobPhase::Queued, 150, Some(at(160))), Some(at(200)));
        assert_eq!(wait(50, JobPhase::Queued, 150, Some(at(300))), Some(at(300)));
        assert_eq!(wait(51, JobPhase::Queued, 150, None), None);
        assert_eq!(wait(50, JobPhase::Queued, 200, None), None);
        assert_eq!(wait(50, JobPhase::Succeeded, 150, None), None);
        assert!(restored.had(50) && !restored.had(51));
    }
}
