//! The native driver on this host, with real namespaces: as whoever runs the tests, and, if that is root, once more as an
//! ordinary user.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod disk;
mod fixture;
mod images;
mod isolation;
mod leftovers;
mod life;
mod limits;
mod network;
mod ordinary_user;
mod output;
