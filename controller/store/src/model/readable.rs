//! Rows of which some may be damaged.

use crate::Error;

/// The rows that can be read, and what is wrong with the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readable<T> {
    /// The rows that can be read, in order.
    pub rows: Vec<T>,
    /// For each that cannot: the table, the column and the row's key, as one line.
    pub damaged: Vec<String>,
}

impl<T> Default for Readable<T> {
    fn default() -> Self {
        Self { rows: Vec::new(), damaged: Vec::new() }
    }
}

impl<T> Readable<T> {
    /// Sorts rows by whether they can be read.
    ///
    /// # Errors
    /// The first error that is not about a damaged row.
    pub(crate) fn of(read: impl Iterator<Item = Result<T, Error>>) -> Result<Self, Error> {
        let mut sorted = Self::default();
        for row in read {
            match row {
                Ok(row) => sorted.rows.push(row),
                Err(error @ Error::Corrupt { .. }) => sorted.damaged.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        Ok(sorted)
    }
}
