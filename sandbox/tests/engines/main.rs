//! Real container engines on this host: what a unit is by each of them, beside a native one, and what becomes of it when
//! something goes wrong. Once as root, and once more as an ordinary user with Podman alone.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod faults;
mod images;
mod life;
mod named;
mod ordinary_user;
mod registry;
mod table;
mod world;
