//! The same suite once more as an ordinary user, if it runs as root.

use crate::fixture::suite_as_ordinary_user;

#[test]
fn the_whole_suite_passes_as_an_ordinary_user() {
    // One test counts the descriptors of its process, so it must have one of its own.
    let alone = "leftovers::fifty_runs_leave_nothing";
    suite_as_ordinary_user(&["--skip", alone]);
    suite_as_ordinary_user(&["--exact", alone]);
}
