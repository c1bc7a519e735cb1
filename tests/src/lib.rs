//! What tests and generators share. The suites are in `tests/it`, one program with a module each.

pub mod chart_values;
