//! Prometheus metrics. Labels come from enums and route patterns only, so their number is bounded.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use strum::IntoEnumIterator as _;
use windlass_store::Counts;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClosingLabels {
    reason: &'static str,
}

/// Why a connection is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::EnumIter)]
#[strum(serialize_all = "snake_case")]
pub enum Refusal {
    /// There are too many.
    Full,
    /// Its peer has too many.
    Peer,
}

/// Why a connection was closed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::EnumIter)]
#[strum(serialize_all = "snake_case")]
pub enum Closing {
    /// No request was under way.
    Idle,
    /// The peer read nothing.
    Stalled,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeliveryLabels {
    outcome: &'static str,
}

/// What became of a job that was to be given to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::EnumIter)]
#[strum(serialize_all = "snake_case")]
pub enum Delivery {
    /// The node has taken it.
    Taken,
    /// The node will not have it.
    Refused,
    /// It could not be given.
    Failed,
}

/// What came of a secret that a job names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::EnumIter)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum SecretDelivery {
    /// The node was given it.
    Given,
    /// There is no such Secret or key.
    Missing,
    /// The controller lacks the key that opens it, or it is damaged.
    Unreadable,
    /// The job has more of them than one job may have.
    TooLarge,
    /// The cluster that the job comes from lacks one; the job waits for it.
    Postponed,
}

/// The controller's metrics; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    latency: Histogram,
    jobs: Family<PhaseLabels, Gauge>,
    oldest_queued: Gauge<f64, AtomicU64>,
    nodes: Gauge,
    live_attempts: Gauge,
    expired_leases: Gauge,
    connections: Gauge,
    refused_connections: Family<RefusalLabels, Counter>,
    secrets: Family<DeliveryLabels, Counter>,
    closed_connections: Family<ClosingLabels, Counter>,
    damaged_rows: Gauge,
    swept_bodies: Counter,
    swept_bytes: Counter,
    swept_at: Gauge<f64, AtomicU64>,
    unreadable_logs: Counter,
    deliveries: Family<DeliveryLabels, Counter>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Metrics with everything at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("windlass");
        let requests = Family::default();
        registry.register("http_requests", "Requests by method, route and status.", requests.clone());
        // 0.5 ms to 16 s.
        let latency = Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        registry.register_with_unit(
            "http_request_duration",
            "Time to answer a request, long polls included.",
            Unit::Seconds,
            latency.clone(),
        );
        let jobs = Family::default();
        registry.register("jobs", "Jobs by phase.", jobs.clone());
        let oldest_queued = Gauge::default();
        registry.register_with_unit(
            "oldest_queued_job_age",
            "Age of the oldest job that waits for a node.",
            Unit::Seconds,
            oldest_queued.clone(),
        );
        let nodes = Gauge::default();
        registry.register("nodes", "Nodes that have registered.", nodes.clone());
        let live_attempts = Gauge::default();
        registry.register("live_attempts", "Attempts that nodes hold.", live_attempts.clone());
        let expired_leases = Gauge::default();
        registry.register(
            "expired_leases",
            "Attempts whose lease has ended and that are not taken back yet.",
            expired_leases.clone(),
        );
        let connections = Gauge::default();
        registry.register("connections", "Connections that are open.", connections.clone());
        // With each reason from the start, because an increase is seen only of what was there before.
        let secrets = Family::<DeliveryLabels, Counter>::default();
        for outcome in SecretDelivery::iter() {
            drop(secrets.get_or_create(&DeliveryLabels { outcome: outcome.into() }));
        }
        registry.register("secrets", "Secrets that jobs name, by what came of it.", secrets.clone());
        let refused_connections = Family::<RefusalLabels, Counter>::default();
        for reason in Refusal::iter() {
            drop(refused_connections.get_or_create(&RefusalLabels { reason: reason.into() }));
        }
        registry.register(
            "refused_connections",
            "Connections that were turned away: `full` when there are too many, `peer` when one address has too many.",
            refused_connections.clone(),
        );
        let closed_connections = Family::<ClosingLabels, Counter>::default();
        for reason in Closing::iter() {
            drop(closed_connections.get_or_create(&ClosingLabels { reason: reason.into() }));
        }
        registry.register(
            "closed_connections",
            "Connections that were closed here: `idle` without a request under way, `stalled` when nothing was read.",
            closed_connections.clone(),
        );
        let damaged_rows = Gauge::default();
        registry.register(
            "damaged_rows",
            "Rows of the database that the sweeper cannot read and leaves out.",
            damaged_rows.clone(),
        );
        let swept_bodies = Counter::default();
        registry.register("swept_bodies", "Stored bodies removed that nobody named.", swept_bodies.clone());
        let swept_bytes = Counter::default();
        registry.register_with_unit("swept_bodies", "Their size.", Unit::Bytes, swept_bytes.clone());
        let swept_at = Gauge::default();
        registry.register_with_unit(
            "swept_bodies_time",
            "When stored bodies were last swept, since 1970.",
            Unit::Seconds,
            swept_at.clone(),
        );
        let unreadable_logs = Counter::default();
        registry.register(
            "unreadable_logs",
            "Pieces of output that somebody asked for and that could not be read.",
            unreadable_logs.clone(),
        );
        let deliveries = Family::<DeliveryLabels, Counter>::default();
        for outcome in Delivery::iter() {
            drop(deliveries.get_or_create(&DeliveryLabels { outcome: outcome.into() }));
        }
        registry.register(
            "push_deliveries",
            "Jobs that were to be given to nodes with `dispatch: Push`: `taken`, `refused` by the node, `failed` to get there.",
            deliveries.clone(),
        );
        let inner = Inner {
            registry,
            requests,
            latency,
            jobs,
            oldest_queued,
            nodes,
            live_attempts,
            expired_leases,
            connections,
            refused_connections,
            secrets,
            closed_connections,
            damaged_rows,
            swept_bodies,
            swept_bytes,
            swept_at,
            unreadable_logs,
            deliveries,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Counts a request.
    pub fn request(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        let labels =
            RequestLabels { method: method.to_string(), route: route.to_owned(), status: status.as_u16() };
        self.inner.requests.get_or_create(&labels).inc();
        self.inner.latency.observe(took.as_secs_f64());
    }

    /// Says how many connections are open.
    pub fn connections(&self, open: usize) {
        self.inner.connections.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    /// Notes what came of a secret that a job names.
    pub(crate) fn secret(&self, outcome: SecretDelivery) {
        self.inner.secrets.get_or_create(&DeliveryLabels { outcome: outcome.into() }).inc();
    }

    /// Counts a connection that was turned away.
    pub fn refused(&self, reason: Refusal) {
        self.inner.refused_connections.get_or_create(&RefusalLabels { reason: reason.into() }).inc();
    }

    /// Counts a connection that was closed here.
    pub fn closed(&self, reason: Closing) {
        self.inner.closed_connections.get_or_create(&ClosingLabels { reason: reason.into() }).inc();
    }

    /// Counts a job that was to be given to a node.
    pub fn delivery(&self, outcome: Delivery) {
        self.inner.deliveries.get_or_create(&DeliveryLabels { outcome: outcome.into() }).inc();
    }

    /// Says how many rows the sweeper cannot read.
    pub fn damaged_rows(&self, count: usize) {
        self.inner.damaged_rows.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts what a sweep of stored bodies has removed.
    pub fn bodies_swept(&self, count: u64, bytes: u64, at: Timestamp) {
        self.inner.swept_bodies.inc_by(count);
        self.inner.swept_bytes.inc_by(bytes);
        self.inner.swept_at.set(at.duration_since(Timestamp::UNIX_EPOCH).as_secs_f64());
    }

    /// Counts a piece of output that could not be read.
    pub fn unreadable_log(&self) {
        self.inner.unreadable_logs.inc();
    }

    /// The metrics as OpenMetrics text, with the store's counts as they are now.
    pub fn render(&self, counts: &Counts, now: Timestamp) -> Result<String, std::fmt::Error> {
        let whole = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let inner = &self.inner;
        for phase in windlass_crds::JobPhase::iter() {
            let labels = PhaseLabels { phase: phase.into() };
            inner.jobs.get_or_create(&labels).set(whole(counts.jobs.get(&phase).copied().unwrap_or(0)));
        }
        let age = counts.oldest_queued_at.map_or(0.0, |at| now.duration_since(at).as_secs_f64().max(0.0));
        inner.oldest_queued.set(age);
        inner.nodes.set(whole(counts.registered_nodes));
        inner.live_attempts.set(whole(counts.live_attempts));
        inner.expired_leases.set(whole(counts.expired_leases));
        let mut text = String::new();
        encode(&mut text, &inner.registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
