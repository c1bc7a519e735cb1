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
        let inner =
            Inner { registry, requests, latency, jobs, oldest_queued, nodes, live_attempts, expired_leases };
        Self { inner: Arc::new(inner) }
    }

    /// Counts a request.
    pub fn request(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        let labels =
            RequestLabels { method: method.to_string(), route: route.to_owned(), status: status.as_u16() };
        self.inner.requests.get_or_create(&labels).inc();
        self.inner.latency.observe(took.as_secs_f64());
    }

    /// The metrics as OpenMetrics text, with the store's counts as they are now.
    pub fn render(&self, counts: &Counts, now: Timestamp) -> Result<String, std::fmt::Error> {
        let whole = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let inner = &self.inner;
        for phase in <windlass_crds::JobPhase as strum::IntoEnumIterator>::iter() {
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
