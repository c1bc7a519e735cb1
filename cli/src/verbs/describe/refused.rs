//! What the steps of a job tried to reach and did not, from the events that tell of it.

use std::collections::BTreeMap;

use windlass_crds::protocol::EgressAttempts;

use crate::client::model::EventItem;

/// Attempts by what they have in common. Each event has the sums so far, so the last one counts.
#[derive(Default)]
pub(super) struct Refused(BTreeMap<(String, String, u16, String), EgressAttempts>);

impl Refused {
    /// Takes an event in, if it tells of such attempts.
    pub(super) fn take(&mut self, event: &EventItem) -> bool {
        if !matches!(event.reason.as_str(), "EgressDenied" | "EgressFailed") {
            return false;
        }
        let attempts =
            event.data.clone().and_then(|data| serde_json::from_value::<EgressAttempts>(data).ok());
        // What a newer version says in another way stays an event.
        let Some(attempts) = attempts else { return false };
        let reason = attempts.reason.clone().unwrap_or_default();
        let key = (attempts.step.clone(), attempts.host.clone(), attempts.port, reason);
        self.0.insert(key, attempts);
        true
    }

    /// Those attempts, by step, host and port.
    pub(super) fn attempts(&self) -> impl Iterator<Item = &EgressAttempts> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_several_events_counts_and_others_are_left_alone() {
        let event = |reason: &str, host: &str, count: u64| EventItem {
            at: "2026-01-02T03:04:05Z".parse().unwrap(),
            level: "warn".to_owned(),
            reason: reason.to_owned(),
            message: String::new(),
            data: Some(serde_json::json!({
                "step": "s", "protocol": "HTTP", "host": host, "port": 80, "reason": "no", "attempts": count,
                "sent_bytes": 0, "received_bytes": 0, "later": true,
            })),
        };
        let mut refused = Refused::default();
        assert!(refused.take(&event("EgressDenied", "a", 1)));
        assert!(refused.take(&event("EgressDenied", "a", 7)));
        assert!(refused.take(&event("EgressFailed", "b", 1)));
        assert!(!refused.take(&event("EgressAllowed", "c", 1)));
        assert!(!refused.take(&EventItem { data: None, ..event("EgressDenied", "d", 1) }));
        let found: Vec<_> =
            refused.attempts().map(|attempts| (attempts.host.as_str(), attempts.attempts)).collect();
        assert_eq!(found, [("a", 7), ("b", 1)]);
    }
}
