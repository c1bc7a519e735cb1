//! Whether a node can be given jobs by calling it, and when its token is due. Pure.

use jiff::{SignedDuration, Timestamp};
use windlass_crds::protocol::AckStatus;

/// What has to be known of a node.
#[derive(Clone, Copy, Debug)]
pub struct PushView<'a> {
    /// The newest configuration that it has acknowledged, and how.
    pub acknowledged: Option<(u64, AckStatus)>,
    /// The one that is in force.
    pub applied: Option<u64>,
    /// Where it says that its Worker API is.
    pub url: Option<&'a str>,
    /// The certificate that it says to have, in PEM.
    pub certificate: Option<&'a str>,
    /// When the token that is in force on it stops working; `None` where there is none.
    pub token_expires_at: Option<Timestamp>,
}

/// Why a node cannot be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, strum::IntoStaticStr)]
pub enum Unreachable {
    /// It has not acknowledged any configuration, or could not apply the last one.
    #[error("it has not acknowledged its configuration as applied")]
    NotAcknowledged,
    /// It serves no Worker API.
    #[error(
        "its agent reports no Worker API; `windlass describe node` shows whether its configuration is applied, and an agent \
         of this version serves one"
    )]
    NoWorkerApi,
    /// The configuration in force holds no token.
    #[error("the configuration that is in force on it holds no token yet")]
    NoToken,
    /// The token is over, as after a long absence of the controller.
    #[error("its token has expired, and it has not applied a configuration with another one yet")]
    TokenExpired,
}

/// Why the node cannot be called; `None` where it can.
pub fn unreachable(node: &PushView<'_>, now: Timestamp) -> Option<Unreachable> {
    let applied = node.acknowledged.is_some_and(|(_, status)| status == AckStatus::Applied);
    if !applied || node.applied.is_none() {
        return Some(Unreachable::NotAcknowledged);
    }
    if node.url.is_none() || node.certificate.is_none() {
        return Some(Unreachable::NoWorkerApi);
    }
    match node.token_expires_at {
        None => Some(Unreachable::NoToken),
        Some(at) if at <= now => Some(Unreachable::TokenExpired),
        Some(_) => None,
    }
}

/// Whether another token is due: there is none, or half of the life of the newest is over, which leaves a node that is away
/// the other half to hear of the next one.
pub fn token_is_due(issued_at: Option<Timestamp>, life: SignedDuration, now: Timestamp) -> bool {
    // A clock that was put back makes no token newer.
    issued_at.is_none_or(|at| now.duration_since(at).abs() >= life / 2)
}

/// How long a node is left alone after so many failures in a row: a second, doubled each time, and never more than half a
/// minute, so that one that is back is soon used again.
pub fn pause(failures: u32) -> SignedDuration {
    match failures {
        0 => SignedDuration::ZERO,
        failures => SignedDuration::from_secs((1_i64 << (failures - 1).min(5)).min(30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn reachable() -> PushView<'static> {
        PushView {
            acknowledged: Some((3, AckStatus::Applied)),
            applied: Some(3),
            url: Some("https://n1:12090"),
            certificate: Some("pem"),
            token_expires_at: Some(at(200)),
        }
    }

    #[test]
    fn a_node_is_called_only_when_all_that_needs_is_there() {
        let why = |node: PushView<'_>| unreachable(&node, at(100));
        assert_eq!(why(reachable()), None);
        for (node, expected) in [
            (PushView { acknowledged: None, ..reachable() }, Unreachable::NotAcknowledged),
            (
                PushView { acknowledged: Some((4, AckStatus::Failed)), ..reachable() },
                Unreachable::NotAcknowledged,
            ),
            (PushView { applied: None, ..reachable() }, Unreachable::NotAcknowledged),
            (PushView { url: None, ..reachable() }, Unreachable::NoWorkerApi),
            (PushView { certificate: None, ..reachable() }, Unreachable::NoWorkerApi),
            (PushView { token_expires_at: None, ..reachable() }, Unreachable::NoToken),
            (PushView { token_expires_at: Some(at(100)), ..reachable() }, Unreachable::TokenExpired),
        ] {
            assert_eq!(why(node), Some(expected), "{node:?}");
        }
    }

    #[test]
    fn a_token_is_replaced_at_half_of_its_life() {
        let life = SignedDuration::from_secs(100);
        assert!(token_is_due(None, life, at(0)));
        assert!(!token_is_due(Some(at(100)), life, at(149)));
        assert!(token_is_due(Some(at(100)), life, at(150)));
        assert!(token_is_due(Some(at(100)), life, at(50)), "the clock was put back");
    }

    #[test]
    fn failures_in_a_row_lengthen_the_pause_up_to_a_bound() {
        let pauses: Vec<i64> = (0..8).map(|failures| pause(failures).as_secs()).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(pause(u32::MAX).as_secs(), 30);
    }
}
