//! The only place where the command reads the clock, makes ids and measures ages.

use jiff::Timestamp;

/// The time now.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the command's edge: ages of what it prints start here"
)]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// A word that nobody else makes, to recognise a repeated request by.
pub(crate) fn unique() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}
