//! Nothing here: the suites are in `tests/it`, one program with a module each.
