//! The person who uses the fleet: makes jobs, holds some back, cancels others; asks again when no answer comes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use super::network::Network;
use super::oracle::Invariant;
use super::plan::{JobPlan, Plan, STORM, Suspended};

/// What an operator has done so far.
pub(crate) struct Operator<'a> {
    plan: &'a Plan,
    network: Arc<Network>,
    rng: StdRng,
    /// The uid that each job was made under.
    made: BTreeMap<usize, String>,
    resumed: BTreeMap<usize, bool>,
    /// What was asked to be cancelled, and whether an answer came.
    cancelled: BTreeMap<usize, bool>,
}

impl<'a> Operator<'a> {
    pub(crate) fn new(plan: &'a Plan, network: &Arc<Network>) -> Self {
        Self {
            plan,
            network: Arc::clone(network),
            rng: StdRng::seed_from_u64(plan.seed ^ 0x6f70_6572),
            made: BTreeMap::new(),
            resumed: BTreeMap::new(),
            cancelled: BTreeMap::new(),
        }
    }

    /// Declares the nodes, before they have registered.
    pub(crate) fn declare_nodes(&mut self) {
        for (number, node) in self.plan.nodes.iter().enumerate() {
            let name = format!("n{number}");
            let manifest = node.manifest(&name);
            let answer = self.network.ask_operator("PUT", &format!("/v1/nodes/{name}"), None, &manifest);
            assert!(matches!(answer, Some((200 | 201, _))), "{answer:?}");
        }
    }

    /// Does what is due and was not answered yet.
    pub(crate) fn act(&mut self, at: Duration) {
        let plan = self.plan;
        for job in plan.jobs.iter().filter(|job| job.at <= at) {
            // Somebody who is not sure asks again, sometimes also when all is well.
            let again = at < STORM && !self.cancelled.contains_key(&job.number) && self.rng.random_bool(0.01);
            if !self.made.contains_key(&job.number) || again {
                self.make(job);
            }
            let made = self.made.contains_key(&job.number);
            if let Suspended::Until(until) = job.suspended
                && made
                && until <= at
                && !self.resumed.contains_key(&job.number)
                // A manifest without `cancel` would take the wish back.
                && !self.cancelled.contains_key(&job.number)
                && let Some(answer) = self.send("PUT", &path(job), None, &job.manifest(false))
            {
                assert!(matches!(answer.0, 200), "{answer:?}");
                self.resumed.insert(job.number, true);
                self.network.note(format!("{} is resumed", job.name));
            }
            if made
                && job.cancel_at.is_some_and(|due| due <= at)
                && self.cancelled.get(&job.number) != Some(&true)
            {
                // It may have arrived, whatever is heard of it.
                self.cancelled.insert(job.number, false);
                if let Some(answer) = self.send("POST", &format!("{}/cancel", path(job)), None, &json!({})) {
                    // A job that has ended cannot be cancelled.
                    assert!(matches!(answer.0, 200 | 409), "{answer:?}");
                    self.cancelled.insert(job.number, true);
                    self.network.note(format!("cancel of {}: {}", job.name, answer.0));
                }
            }
        }
    }

    /// Whether everything was done.
    pub(crate) fn is_done(&self) -> bool {
        self.made.len() == self.plan.jobs.len()
    }

    pub(crate) fn has_cancelled(&self, number: usize) -> bool {
        self.cancelled.contains_key(&number)
    }

    pub(crate) fn number_of(&self, uid: &str) -> Option<usize> {
        self.made.iter().find(|(_, made)| *made == uid).map(|(number, _)| *number)
    }

    fn make(&mut self, job: &JobPlan) {
        let suspended = match job.suspended {
            Suspended::No => false,
            Suspended::Until(_) => !self.resumed.contains_key(&job.number),
            Suspended::ForEver => true,
        };
        // A request that is repeated must be the same one; applying is not bound to that.
        let answer = if job.by_key {
            let manifest = job.manifest(job.suspended != Suspended::No);
            self.send("POST", "/v1/namespaces/default/jobs", Some(&format!("key-{}", job.number)), &manifest)
        } else {
            self.send("PUT", &path(job), None, &job.manifest(suspended))
        };
        let Some((status, body)) = answer else { return };
        let uid = body["metadata"]["uid"].as_str().map(str::to_owned);
        let Some(uid) = uid.filter(|_| matches!(status, 200 | 201)) else {
            self.network
                .oracle
                .violated(Invariant::Idempotency, format_args!("{} was answered {status}: {body}", job.name));
            return;
        };
        let known = self.made.entry(job.number).or_insert_with(|| uid.clone());
        if *known != uid {
            self.network
                .oracle
                .violated(Invariant::Idempotency, format_args!("{} is {known} and {uid}", job.name));
        }
    }

    /// Sends a request. `None` when nothing came back, which says nothing about what happened.
    fn send(&mut self, method: &str, path: &str, key: Option<&str>, body: &Value) -> Option<(u16, Value)> {
        let trouble = if self.network.elapsed() < STORM { 0.2 } else { 0.0 };
        if self.rng.random_bool(trouble / 2.0) {
            return None;
        }
        let answer = self.network.ask_operator(method, path, key, body);
        answer.filter(|_| !self.rng.random_bool(trouble))
    }
}

fn path(job: &JobPlan) -> String {
    format!("/v1/namespaces/default/jobs/{}", job.name)
}
