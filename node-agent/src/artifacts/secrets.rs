//! Whether the secrets of an attempt are in what it leaves, and which.

use std::io::{self, Read};

use windlass_crds::protocol::SecretValue;

use crate::mask::{Finder, Mask};

/// How much is read at once.
const PIECE: usize = 64 << 10;

/// The secrets that an attempt was given.
pub(crate) struct FileSecrets {
    all: Mask,
    values: Vec<SecretValue>,
}

impl FileSecrets {
    /// Those of these that have a value.
    pub(crate) fn new(values: &[SecretValue]) -> Self {
        Self { all: mask(values.iter()), values: values.to_vec() }
    }

    /// Looks for any of them, from the beginning of a file.
    pub(super) fn finder(&self) -> Finder {
        Finder::new(self.all.clone())
    }

    /// A name of a file without them.
    pub(super) fn masked(&self, name: String) -> String {
        self.all.text(name)
    }

    /// The names of those that are in a file, such as `db/password`.
    pub(super) fn named(&self, mut content: impl Read) -> io::Result<String> {
        let mut finders: Vec<(&SecretValue, Finder, bool)> = self
            .values
            .iter()
            .map(|value| (value, Finder::new(mask(std::iter::once(value))), false))
            .collect();
        let mut piece = vec![0; PIECE];
        loop {
            let length = match content.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for (_, finder, found) in &mut finders {
                *found = *found || finder.finds(&piece[..length]);
            }
        }
        let found = finders.iter().filter(|(_, _, found)| *found);
        let names: Vec<String> =
            found.map(|(SecretValue { name, key, .. }, ..)| format!("`{name}/{key}`")).collect();
        Ok(names.join(", "))
    }
}

fn mask<'a>(values: impl Iterator<Item = &'a SecretValue>) -> Mask {
    Mask::of_files(values.filter_map(|secret| Some(secret.value.as_ref()?.expose())))
}
