//! The agent against a real network, disk and sandbox.

mod binary;
mod client;
mod controller;
