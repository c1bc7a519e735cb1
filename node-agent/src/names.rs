//! Names of attempts and their steps on this host: for files, folders and units of the sandbox.

use sha2::Digest as _;
use windlass_crds::protocol::AttemptId;
use windlass_sandbox::UnitId;

/// A name for an attempt: its job's uid and its epoch. A uid that is not made of lower-case letters, digits and dashes
/// is replaced by its hash, since it comes from outside and must never lead out of a folder.
pub(crate) fn attempt_name(attempt: &AttemptId) -> String {
    let uid = &attempt.job;
    let plain = !uid.is_empty()
        && uid.len() <= 64
        && !uid.starts_with('-')
        && uid.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if plain {
        format!("{uid}-{}", attempt.epoch)
    } else {
        let hash = hex::encode(sha2::Sha256::digest(uid.as_bytes()));
        format!("x-{}-{}", &hash[..40], attempt.epoch)
    }
}

/// The unit of a step of an attempt.
pub(crate) fn unit_id(attempt: &AttemptId, step: u32) -> UnitId {
    UnitId::new(format!("{}-{step}", attempt_name(attempt)))
        .expect("an attempt's name has at most 85 of the allowed letters, and a step's number at most 10")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(job: &str) -> AttemptId {
        AttemptId { job: job.to_owned(), epoch: u64::MAX }
    }

    #[test]
    fn a_uuid_stays_readable() {
        let attempt = AttemptId { job: "0198c1de-7a4b-7000-8000-000000000001".to_owned(), epoch: 2 };
        assert_eq!(attempt_name(&attempt), "0198c1de-7a4b-7000-8000-000000000001-2");
        assert_eq!(unit_id(&attempt, 3).as_str(), "0198c1de-7a4b-7000-8000-000000000001-2-3");
    }

    #[test]
    fn a_name_from_outside_is_always_a_plain_file_name() {
        for job in
            ["../../etc/passwd", "", "a/b", "-x", "a b", "ž", ".", "A", &"a".repeat(64), &"a".repeat(65)]
        {
            let unit = unit_id(&id(job), u32::MAX);
            assert!(!unit.as_str().contains(['/', '_', ' ']), "{unit}");
        }
        assert_ne!(attempt_name(&id("A")), attempt_name(&id("B")));
    }
}
