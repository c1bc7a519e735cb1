//! The agent against a real network, disk and sandbox.

#![expect(clippy::unwrap_used, reason = "a test that finds something else than it expects ends there")]

mod binary;
mod client;
mod controller;
mod gpu;
