//! Objects as `KIND/NAME`, ready to be given to another verb.

use crate::kind::Kind;

/// An object as `KIND/NAME`.
pub(crate) fn format(kind: Kind, name: &str) -> String {
    format!("{}/{name}", kind.word())
}
