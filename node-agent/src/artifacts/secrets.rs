//! Whether the secrets of an attempt are in what it leaves, and which.

use windlass_crds::protocol::SecretValue;

use crate::mask::{FileFinder, FileMask, Mask};

/// The most bytes of a name that is shown because it was refused.
const SHOWN: usize = 200;

/// The secrets that an attempt was given.
pub(crate) struct FileSecrets {
    mask: FileMask,
    /// What those with a value are called, such as `db/password`, in the order in which the mask knows them.
    names: Vec<String>,
}

impl FileSecrets {
    /// Those of these that have a value, which `mask` was made of. Takes its time where they are large and no ASCII.
    pub(crate) fn new(mask: Mask, secrets: &[SecretValue]) -> Self {
        let with_values =
            || secrets.iter().filter_map(|secret| Some((secret, secret.value.as_ref()?.expose())));
        let mask = FileMask::new(mask, with_values().map(|(_, value)| value));
        let names = with_values().map(|(SecretValue { name, key, .. }, _)| format!("{name}/{key}"));
        Self { mask, names: names.collect() }
    }

    /// Looks for any of them, from the beginning of a file.
    pub(super) fn finder(&self) -> FileFinder {
        FileFinder::new(&self.mask)
    }

    /// What the secret is called that a finder has found.
    pub(super) fn name(&self, found: u32) -> &str {
        self.names.get(found as usize).map_or("of the job", String::as_str)
    }

    /// What can be shown of a path: without secrets, short, and without what would steer a terminal. Secrets go first, while
    /// nothing of the path was changed or cut that would let them be missed.
    pub(super) fn shown(&self, path: &[u8]) -> String {
        let masked = self.mask.bytes(path);
        let text = String::from_utf8_lossy(&masked);
        let is_strange = |c: char| c.is_control() || c == char::REPLACEMENT_CHARACTER;
        let plain: String = text.chars().filter(|c| !is_strange(*c)).collect();
        if self.finder().finds(plain.as_bytes()).is_some() {
            return "***".to_owned();
        }
        let readable = text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c });
        let mut shown: String = readable.collect();
        if shown.len() > SHOWN {
            shown.truncate(shown.floor_char_boundary(SHOWN));
            shown.push('…');
        }
        shown
    }
}
