//! Which of several controllers works: leader election by a Lease, and the fence that writes pass.
//!
//! # Guarantees
//! Where two controllers reach the API server, no write of one that has lost the lead begins after another may have taken it,
//! and none goes on until then: the lead ends on this side a request earlier than on the other side. Both count the time that
//! passed since they sent or saw a renewal, so wrong clocks do no harm.
//!
//! # Caveats
//! A host that sleeps does not count that time. What such a controller then writes names the version of the object it has seen,
//! and is refused where another one has written since.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

use super::cluster::{Error, REQUEST, request};
use crate::clock::Clock;

/// The name of the Lease.
pub(super) const NAME: &str = "windlass-controller";

/// Until when this controller leads, as its writes see it; cheap to clone.
#[derive(Clone)]
pub(super) struct Lead {
    clock: Arc<dyn Clock>,
    /// Milliseconds of the steady clock; 0 while it does not lead.
    until: Arc<AtomicU64>,
    /// How long a write may take.
    patience: Duration,
}

impl Lead {
    pub(super) fn new(clock: Arc<dyn Clock>, length: Duration) -> Self {
        Self { clock, until: Arc::new(AtomicU64::new(0)), patience: REQUEST.min(length / 3) }
    }

    /// Whether a write that begins now ends before the lead does.
    pub(super) fn check(&self) -> Result<(), Error> {
        let until = Duration::from_millis(self.until.load(Ordering::SeqCst));
        if self.clock.steady() + self.patience < until { Ok(()) } else { Err(Error::NotLeading) }
    }

    /// Writes, if the lead lasts for as long as that may take.
    pub(super) async fn write<T>(
        &self,
        operation: &'static str,
        answer: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Error> {
        self.check()?;
        match tokio::time::timeout(self.patience, request(operation, answer)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::TimedOut { operation }),
        }
    }

    fn extend(&self, until: Duration) {
        self.until.store(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    fn end(&self) {
        self.until.store(0, Ordering::SeqCst);
    }
}

/// Takes part in the election.
pub(super) struct Candidate {
    leases: Api<Lease>,
    identity: String,
    length: Duration,
    clock: Arc<dyn Clock>,
    lead: Lead,
    /// The record of another holder, and since when it is as it is.
    seen: Option<(LeaseSpec, Duration)>,
}

impl Candidate {
    pub(super) fn new(
        client: Client,
        namespace: &str,
        identity: String,
        length: Duration,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let lead = Lead::new(clock.clone(), length);
        Self { leases: Api::namespaced(client, namespace), identity, length, clock, lead, seen: None }
    }

    /// The fence.
    pub(super) fn lead(&self) -> Lead {
        self.lead.clone()
    }

    /// How long to wait between two rounds.
    pub(super) fn period(&self) -> Duration {
        self.length / 5
    }

    /// Takes or renews the lead; yields whether this controller leads.
    ///
    /// # Errors
    /// Where the API server does not answer, or does not permit it. A lead that there was goes on until it ends.
    pub(super) async fn round(&mut self) -> Result<bool, Error> {
        let sent = self.clock.steady();
        let now = self.clock.now();
        let Some(found) = request("get the Lease", self.leases.get_opt(NAME)).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
                spec: Some(self.record(now, None)),
            };
            return self.settle(
                request("create the Lease", self.leases.create(&PostParams::default(), &lease)).await,
                sent,
            );
        };
        let spec = found.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty());
        if holder.as_ref().is_some_and(|holder| *holder != self.identity) && !self.has_ended(&spec) {
            self.lead.end();
            return Ok(false);
        }
        let own = (holder.as_deref() == Some(&self.identity)).then_some(&spec);
        let taken = own.is_none();
        let mut new = self.record(now, own);
        new.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(i32::from(taken)));
        let lease = Lease { metadata: found.metadata, spec: Some(new) };
        let params = PostParams::default();
        let written = request("update the Lease", self.leases.replace(NAME, &params, &lease)).await;
        self.settle(written, sent)
    }

    /// Gives the lead back, so that another controller need not wait.
    pub(super) async fn resign(&mut self) {
        let led = self.lead.check().is_ok();
        self.lead.end();
        if !led {
            return;
        }
        let given_back = async {
            let mut lease = request("get the Lease", self.leases.get(NAME)).await?;
            let mine =
                lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity));
            let Some(spec) = mine else { return Ok(()) };
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            request("update the Lease", self.leases.replace(NAME, &PostParams::default(), &lease))
                .await
                .map(drop)
        };
        if let Err(error) = given_back.await {
            let error: Error = error;
            tracing::info!(error = %crate::error::chain(&error), "the Lease was not given back; it ends by itself");
        }
    }

    /// The outcome of a write of the Lease that began at `sent`.
    fn settle(&mut self, written: Result<Lease, Error>, sent: Duration) -> Result<bool, Error> {
        match written {
            Ok(_) => {
                self.seen = None;
                self.lead.extend(sent + self.length);
                Ok(true)
            }
            // Another controller was quicker.
            Err(error) if error.status() == Some(409) => Ok(self.lead.check().is_ok()),
            Err(error) => Err(error),
        }
    }

    /// Whether another holder has not renewed its record for as long as it says that it lasts.
    fn has_ended(&mut self, spec: &LeaseSpec) -> bool {
        let now = self.clock.steady();
        let since = match &self.seen {
            Some((seen, since)) if seen == spec => *since,
            Some(_) | None => {
                self.seen = Some((spec.clone(), now));
                now
            }
        };
        let length = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        now.saturating_sub(since) > length.map_or(self.length, Duration::from_secs)
    }

    fn record(&self, now: Timestamp, own: Option<&LeaseSpec>) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.length.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: own.and_then(|own| own.acquire_time.clone()).or(Some(MicroTime(now))),
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(0),
            ..LeaseSpec::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn a_write_begins_only_while_it_ends_before_the_lead() {
        let clock = Arc::new(ManualClock::at_millis(1_000_000));
        let lead = Lead::new(clock.clone(), Duration::from_secs(15));
        assert!(lead.check().is_err(), "nobody leads from the start");
        lead.extend(clock.steady() + Duration::from_secs(15));
        clock.advance(Duration::from_secs(9));
        assert!(lead.check().is_ok());
        clock.advance(Duration::from_secs(1));
        assert!(lead.check().is_err(), "a request may take five seconds");
        lead.extend(clock.steady() + Duration::from_secs(15));
        clock.jump(jiff::SignedDuration::from_hours(100));
        assert!(lead.check().is_ok(), "the time of day means nothing");
        lead.end();
        assert!(lead.check().is_err());
    }

    #[tokio::test]
    async fn a_holder_whose_clock_is_wrong_is_judged_by_how_long_its_record_stays_the_same() {
        let clock = Arc::new(ManualClock::at_millis(1_000_000_000));
        let nowhere = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("nobody is asked"))
        });
        let length = Duration::from_secs(15);
        let mut candidate = Candidate::new(
            Client::new(nowhere, "default"),
            "default",
            "me".to_owned(),
            length,
            clock.clone(),
        );
        for hours in [-1000, 0, 1000] {
            let renewed = clock.now() + jiff::SignedDuration::from_hours(hours);
            let record = |seconds: i64| LeaseSpec {
                holder_identity: Some("other".to_owned()),
                lease_duration_seconds: Some(15),
                renew_time: Some(MicroTime(renewed + jiff::SignedDuration::from_secs(seconds))),
                ..LeaseSpec::default()
            };
            assert!(!candidate.has_ended(&record(0)), "{hours} h off: just seen");
            clock.advance(Duration::from_secs(10));
            clock.jump(jiff::SignedDuration::from_hours(7));
            assert!(!candidate.has_ended(&record(3)), "{hours} h off: renewed");
            clock.advance(Duration::from_secs(15));
            assert!(!candidate.has_ended(&record(3)), "{hours} h off: not for longer than it lasts");
            clock.advance(Duration::from_secs(1));
            assert!(candidate.has_ended(&record(3)), "{hours} h off: no longer renewed");
        }
    }
}
