//! Hostile jobs: programs that take what they can get, do not end, plant traps in their workspace, and try what is known of
//! escapes from containers. After each of them the next job runs as if nothing had been, and nothing is left. As whoever
//! runs the tests, and, if that is root, once more as an ordinary user.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod calls;
mod case;
mod escapes;
mod files;
#[expect(dead_code, reason = "shared with the suite of the driver, which needs more of it")]
#[path = "../native/fixture.rs"]
mod fixture;
mod life;
mod namespaces;
mod resources;
mod sockets;

#[test]
fn the_whole_suite_passes_as_an_ordinary_user() {
    fixture::suite_as_ordinary_user(&[]);
}
