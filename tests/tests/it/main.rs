//! End-to-end suites: the whole system as its users meet it.

mod architecture;
mod chart;
mod features;
mod kube;
mod simulation;
mod system;
