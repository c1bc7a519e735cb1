//! End-to-end suites: the whole system as its users meet it.

mod architecture;
mod bases;
mod chart;
mod compose;
mod features;
mod kube;
mod simulation;
mod system;
