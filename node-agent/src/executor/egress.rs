//! The way out of steps with a restricted network: from the job's rules to the proxy's policy, and from what the proxy
//! records to events of the attempt.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use windlass_crds::EgressRule;
use windlass_crds::egress::Destination;
use windlass_crds::protocol::{AttemptId, EgressAttempts, RecordBody};
use windlass_sandbox::egress::{
    Limits, LocalServer, Outcome, Policy, Proxy, Record, Resolver, Rule, SystemResolver, Target,
};
use windlass_sandbox::{Driver, UnitId};

use crate::clock::Clock;
use crate::inference::InferenceHandle;
use crate::mask::Mask;
use crate::outbox::{NewRecord, Outbox};

/// How long the controller's name may take to be looked up, while the step's connections wait.
const LOOK_UP: Duration = Duration::from_secs(5);

/// What the proxies of all steps need of the host.
#[derive(Clone)]
pub struct Egress {
    /// How names are looked up.
    pub resolver: Arc<dyn Resolver>,
    /// The controller's host: a name or an address. Steps do not reach it unless a rule names its very address.
    pub controller: Option<String>,
}

/// The proxy of one step, from the unit's start or adoption to its end.
pub(super) struct StepProxy {
    pub(super) egress: Egress,
    pub(super) driver: Arc<dyn Driver>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) attempt: AttemptId,
    pub(super) unit: UnitId,
    /// The step's name.
    pub(super) step: String,
    pub(super) rules: Vec<EgressRule>,
    pub(super) transfer: Option<u64>,
    /// Where the job wants the node's server of models.
    pub(super) inference: Option<InferenceHandle>,
    pub(super) mask: Mask,
}

impl Egress {
    /// By the host's own resolver.
    pub fn system(controller: Option<String>) -> Self {
        Self { resolver: Arc::new(SystemResolver), controller }
    }
}

impl StepProxy {
    /// Serves the unit until it has ended. What was tried is queued by then. A step that cannot be served goes on: what it
    /// does not reach is for it to handle.
    pub(super) async fn run(self, ended: impl Future<Output = ()> + Send) {
        if let Err(why) = self.serve(ended).await {
            tracing::warn!(step = self.step, error = why, "the egress proxy of a step cannot be served");
            let body = RecordBody::Event {
                level: "error".to_owned(),
                reason: "EgressUnserved".to_owned(),
                message: format!("step `{}` reaches nobody: {why}", self.step),
                data: None,
            };
            self.tell(body);
        }
    }

    fn tell(&self, body: RecordBody) {
        let record = NewRecord { at: self.clock.now(), body: self.mask.record(body), mark: None };
        self.outbox.push(&self.attempt, vec![record]);
    }

    /// Keeps to what the node has of a server of models while the step runs.
    async fn follow(&self, proxy: &Proxy, mut given: Option<LocalServer>) -> Infallible {
        let Some(inference) = &self.inference else { return std::future::pending().await };
        loop {
            given = inference.other_than(given.as_ref()).await;
            proxy.offer_local(given.clone());
            let (level, reason, what) = match &given {
                None => (
                    "warn",
                    "InferenceWithdrawn",
                    "the node's server of models was withdrawn; open requests were cut off, and others are refused",
                ),
                Some(_) => ("info", "InferenceGiven", "the node's server of models can be used"),
            };
            self.tell(RecordBody::Event {
                level: level.to_owned(),
                reason: reason.to_owned(),
                message: format!("step `{}`: {what}", self.step),
                data: None,
            });
        }
    }

    async fn serve(&self, ended: impl Future<Output = ()> + Send) -> Result<(), String> {
        let listener = self.driver.egress(&self.unit).await.map_err(|error| crate::error_chain(&error))?;
        // Without one it has ended already.
        let Some(listener) = listener else { return Ok(()) };
        let policy = Policy {
            rules: self.rules.iter().map(rule).collect(),
            guarded: controller_addresses(&self.egress).await,
        };
        let limits = Limits { transfer: self.transfer, ..Limits::default() };
        let (outbox, clock) = (Arc::clone(&self.outbox), Arc::clone(&self.clock));
        let (attempt, step, mask) = (self.attempt.clone(), self.step.clone(), self.mask.clone());
        let sink = move |record: Record| {
            let body = mask.record(event(&step, record));
            let record = NewRecord { at: clock.now(), body, mark: None };
            outbox.push(&attempt, vec![record]);
        };
        let local = match &self.inference {
            Some(inference) => inference.local_server().await,
            None => None,
        };
        let proxy = Proxy::new(policy, limits, Arc::clone(&self.egress.resolver), sink);
        let proxy = Arc::new(proxy.with_local(local.clone()));
        // Cancel-safe: the first never wins, the second is not dropped before it does.
        tokio::select! {
            biased;
            never = self.follow(&proxy, local) => match never {},
            served = Arc::clone(&proxy).serve(listener, ended) => served.map_err(|error| error.to_string()),
        }
    }
}

/// Where the controller is, as far as it can be found out now.
async fn controller_addresses(egress: &Egress) -> Vec<IpAddr> {
    let Some(host) = &egress.controller else { return Vec::new() };
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return vec![address];
    }
    match tokio::time::timeout(LOOK_UP, egress.resolver.resolve(host)).await {
        Ok(Ok(addresses)) => addresses,
        Ok(Err(error)) => {
            tracing::debug!(host, %error, "the controller's name cannot be looked up");
            Vec::new()
        }
        Err(_elapsed) => {
            tracing::debug!(host, "the controller's name cannot be looked up in time");
            Vec::new()
        }
    }
}

/// A job's rule in the proxy's terms.
pub(super) fn rule(rule: &EgressRule) -> Rule {
    let target = match rule.destination() {
        Destination::Name(name) => Target::Name(name.clone()),
        Destination::Below(name) => Target::Below(name.clone()),
        Destination::AnyName => Target::AnyName,
        Destination::Network(network) => Target::Network(*network),
    };
    Rule { target, ports: rule.ports().collect(), text: rule.to_string() }
}

/// The event that says what the proxy has recorded.
fn event(step: &str, record: Record) -> RecordBody {
    let Record { protocol, host, port, address, outcome, attempts, sent, received } = record;
    let whom = match (host.as_str(), address) {
        ("", _) => "a host".to_owned(),
        (host, Some(address)) if host.trim_matches(['[', ']']) != address.to_string() => {
            format!("{host}:{port} ({address})")
        }
        (host, _) => format!("{host}:{port}"),
    };
    let times = if attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") };
    let (level, reason, message) = match &outcome {
        Outcome::Allowed { rule } => (
            "info",
            "EgressAllowed",
            format!(
                "step `{step}`: {protocol} to {whom} allowed by `{rule}`: {times}, {sent} bytes sent, {received} received"
            ),
        ),
        Outcome::Denied { reason, remedy } => {
            let remedy = remedy
                .as_ref()
                .map_or_else(String::new, |rule| format!("; the rule `{rule}` in sandbox.egress would"));
            (
                "warn",
                "EgressDenied",
                format!("step `{step}`: {protocol} to {whom} denied: {reason}{remedy} ({times})"),
            )
        }
        Outcome::Failed { reason } => (
            "warn",
            "EgressFailed",
            format!("step `{step}`: {protocol} to {whom} failed: {reason} ({times})"),
        ),
    };
    let (rule, why, remedy) = match outcome {
        Outcome::Allowed { rule } => (Some(rule), None, None),
        Outcome::Denied { reason, remedy } => (None, Some(reason), remedy),
        Outcome::Failed { reason } => (None, Some(reason), None),
    };
    let data = EgressAttempts {
        step: step.to_owned(),
        protocol: protocol.to_string(),
        host,
        port,
        address,
        rule,
        reason: why,
        remedy,
        attempts,
        sent_bytes: sent,
        received_bytes: received,
    };
    let data = serde_json::to_value(data).expect("it is plain data with string keys");
    RecordBody::Event { level: level.to_owned(), reason: reason.to_owned(), message, data: Some(data) }
}

#[cfg(test)]
mod tests {
    use windlass_sandbox::egress::Protocol;

    use super::*;

    #[test]
    fn a_denial_is_an_event_that_says_what_would_have_allowed_it() {
        let record = Record {
            protocol: Protocol::Connect,
            host: "db.example".to_owned(),
            port: 5432,
            address: Some([10, 1, 2, 3].into()),
            outcome: Outcome::Denied {
                reason: "10.1.2.3 is a private network".to_owned(),
                remedy: Some("10.1.2.3:5432".to_owned()),
            },
            attempts: 2,
            sent: 0,
            received: 0,
        };
        let RecordBody::Event { level, reason, message, data } = event("build", record) else { panic!() };
        assert_eq!((level.as_str(), reason.as_str()), ("warn", "EgressDenied"));
        assert_eq!(
            message,
            "step `build`: CONNECT to db.example:5432 (10.1.2.3) denied: 10.1.2.3 is a private network; the rule \
             `10.1.2.3:5432` in sandbox.egress would (2 attempts)"
        );
        let data: EgressAttempts = serde_json::from_value(data.unwrap()).unwrap();
        assert_eq!((data.attempts, data.remedy.as_deref()), (2, Some("10.1.2.3:5432")));
    }

    #[test]
    fn rules_mean_the_same_to_the_proxy() {
        let read = |text: &str| rule(&text.parse().unwrap());
        assert_eq!(read("*.a.example:80,443").target, Target::Below("a.example".to_owned()));
        assert_eq!(read("a.example:80,443").ports, [80..=80, 443..=443]);
        assert_eq!(read("10.0.0.0/8").ports, []);
        assert_eq!(read("[::1]:80").text, "[::1]:80");
    }
}
