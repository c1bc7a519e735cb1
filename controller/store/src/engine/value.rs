//! Values that go into statements, and rows that come out.

use std::fmt::Display;
use std::str::FromStr;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{Column as _, Row as _};

use crate::Error;

/// A value for a parameter.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Int(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
}

/// Builds the parameters `$1`, `$2`, … of a statement.
macro_rules! args {
    ($($value:expr),* $(,)?) => { vec![$($crate::engine::value::Value::from($value)),*] };
}
pub(crate) use args;

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}

impl From<Option<&'static str>> for Value {
    fn from(value: Option<&'static str>) -> Self {
        Self::Text(value.map(str::to_owned))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Int(Some(i64::from(value)))
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(Some(value.to_owned()))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(Some(value))
    }
}

impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        Self::Text(value)
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Bytes(Some(value))
    }
}

impl From<Option<Vec<u8>>> for Value {
    fn from(value: Option<Vec<u8>>) -> Self {
        Self::Bytes(value)
    }
}

/// The last time that can be kept: the last whole second, because the milliseconds after it cannot be read back.
pub(crate) fn last_ms() -> i64 {
    Timestamp::MAX.as_second() * 1000
}

/// A time as the database keeps it.
pub(crate) fn ms(time: Timestamp) -> i64 {
    time.as_millisecond().min(last_ms())
}

/// A time as it will be read back: to the millisecond.
pub(crate) fn truncated(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond())
        .expect("it was a timestamp before it lost its fraction")
}

/// A count as the database keeps it. What does not fit is beyond everything that is ever stored.
pub(crate) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A length of time in milliseconds.
pub(crate) fn millis(length: std::time::Duration) -> i64 {
    i64::try_from(length.as_millis()).unwrap_or(i64::MAX)
}

/// The time `length` after `time`, or the last that can be written.
pub(crate) fn later(time: Timestamp, length: std::time::Duration) -> Timestamp {
    Timestamp::from_millisecond(after(time, length))
        .expect("it is between two timestamps that can be written")
}

/// [`later`] in milliseconds.
pub(crate) fn after(now: Timestamp, length: std::time::Duration) -> i64 {
    ms(now).saturating_add(millis(length)).min(last_ms())
}

/// A document as the database keeps it.
pub(crate) fn json<T: serde::Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("our own types serialize, and their map keys are strings")
}

/// Text without NUL, which not every database can keep in text.
pub(crate) fn clean(text: &str) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text.to_owned() }
}

/// [`clean`] where there is a text.
pub(crate) fn clean_opt(text: Option<&String>) -> Option<String> {
    text.map(|text| clean(text))
}

/// A row.
pub(crate) enum Row {
    /// As SQLite's driver yields it.
    Sqlite(SqliteRow),
    /// As PostgreSQL's driver yields it.
    Postgres(PgRow),
    /// Out of a statement that packs all its rows into one document; see `Conn::packed`.
    Packed(Vec<Json>),
}

impl Row {
    /// Reads the row's columns in order. The first is its key.
    pub(crate) fn cells(&self, table: &'static str) -> Cells<'_> {
        Cells { row: self, table, next: 0 }
    }
}

/// Reads a row's columns one after the other; the caller names each, so that an unreadable one can be named.
pub(crate) struct Cells<'r> {
    row: &'r Row,
    table: &'static str,
    next: usize,
}

impl Cells<'_> {
    fn corrupt(&self, column: &'static str) -> Error {
        let key = match self.row {
            Row::Sqlite(row) => row.try_get_unchecked::<String, _>(0).ok(),
            Row::Postgres(row) => row
                .try_get::<String, _>(0)
                .or_else(|_| row.try_get::<i64, _>(0).map(|key| key.to_string()))
                .ok(),
            Row::Packed(values) => {
                values.first().map(|key| key.as_str().map_or_else(|| key.to_string(), str::to_owned))
            }
        };
        let row = key.unwrap_or_else(|| "without a readable key".to_owned());
        Error::Corrupt { table: self.table, column, row }
    }

    fn advance(&mut self, column: &'static str) -> usize {
        let index = self.next;
        self.next += 1;
        if let Row::Sqlite(row) = self.row {
            debug_assert_eq!(
                row.columns()[index].name(),
                column,
                "columns are read in the order of the statement"
            );
        }
        index
    }

    pub(crate) fn opt_int(&mut self, column: &'static str) -> Result<Option<i64>, Error> {
        let index = self.advance(column);
        match self.row {
            Row::Sqlite(row) => row.try_get(index).map_err(|_| self.corrupt(column)),
            // What a statement counts or makes up itself may be narrower than what is stored.
            Row::Postgres(row) => row
                .try_get(index)
                .or_else(|_| row.try_get::<Option<i32>, _>(index).map(|value| value.map(i64::from)))
                .map_err(|_| self.corrupt(column)),
            Row::Packed(values) => match values.get(index) {
                Some(Json::Null) => Ok(None),
                Some(value) => value.as_i64().map(Some).ok_or_else(|| self.corrupt(column)),
                None => Err(self.corrupt(column)),
            },
        }
    }

    pub(crate) fn int(&mut self, column: &'static str) -> Result<i64, Error> {
        self.opt_int(column)?.ok_or_else(|| self.corrupt(column))
    }

    /// An integer of a narrower type.
    pub(crate) fn number<T: TryFrom<i64>>(&mut self, column: &'static str) -> Result<T, Error> {
        let value = self.int(column)?;
        T::try_from(value).map_err(|_| self.corrupt(column))
    }

    pub(crate) fn opt_number<T: TryFrom<i64>>(&mut self, column: &'static str) -> Result<Option<T>, Error> {
        match self.opt_int(column)? {
            Some(value) => T::try_from(value).map(Some).map_err(|_| self.corrupt(column)),
            None => Ok(None),
        }
    }

    pub(crate) fn flag(&mut self, column: &'static str) -> Result<bool, Error> {
        match self.int(column)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.corrupt(column)),
        }
    }

    pub(crate) fn time(&mut self, column: &'static str) -> Result<Timestamp, Error> {
        self.opt_time(column)?.ok_or_else(|| self.corrupt(column))
    }

    pub(crate) fn opt_time(&mut self, column: &'static str) -> Result<Option<Timestamp>, Error> {
        match self.opt_int(column)? {
            Some(value) => Timestamp::from_millisecond(value).map(Some).map_err(|_| self.corrupt(column)),
            None => Ok(None),
        }
    }

    pub(crate) fn opt_text(&mut self, column: &'static str) -> Result<Option<String>, Error> {
        Ok(self.opt_str(column)?.map(str::to_owned))
    }

    pub(crate) fn text(&mut self, column: &'static str) -> Result<String, Error> {
        self.opt_text(column)?.ok_or_else(|| self.corrupt(column))
    }

    fn opt_str(&mut self, column: &'static str) -> Result<Option<&str>, Error> {
        let index = self.advance(column);
        match self.row {
            Row::Sqlite(row) => row.try_get(index).map_err(|_| self.corrupt(column)),
            Row::Postgres(row) => row.try_get(index).map_err(|_| self.corrupt(column)),
            Row::Packed(values) => match values.get(index) {
                Some(Json::Null) => Ok(None),
                Some(Json::String(text)) => Ok(Some(text)),
                Some(_) | None => Err(self.corrupt(column)),
            },
        }
    }

    /// Bytes, which no packed row can hold.
    pub(crate) fn opt_bytes(&mut self, column: &'static str) -> Result<Option<Vec<u8>>, Error> {
        let index = self.advance(column);
        match self.row {
            Row::Sqlite(row) => row.try_get(index).map_err(|_| self.corrupt(column)),
            Row::Postgres(row) => row.try_get(index).map_err(|_| self.corrupt(column)),
            Row::Packed(_) => Err(self.corrupt(column)),
        }
    }

    pub(crate) fn bytes(&mut self, column: &'static str) -> Result<Vec<u8>, Error> {
        self.opt_bytes(column)?.ok_or_else(|| self.corrupt(column))
    }

    /// 32 bytes.
    pub(crate) fn hash(&mut self, column: &'static str) -> Result<[u8; 32], Error> {
        let bytes = self.bytes(column)?;
        bytes.try_into().map_err(|_| self.corrupt(column))
    }

    /// One word of an enum.
    pub(crate) fn word<T: FromStr>(&mut self, column: &'static str) -> Result<T, Error> {
        self.opt_word(column)?.ok_or_else(|| self.corrupt(column))
    }

    pub(crate) fn opt_word<T: FromStr>(&mut self, column: &'static str) -> Result<Option<T>, Error> {
        let parsed = self.opt_str(column)?.map(str::parse::<T>);
        match parsed {
            Some(Ok(word)) => Ok(Some(word)),
            Some(Err(_)) => Err(self.corrupt(column)),
            None => Ok(None),
        }
    }

    /// One of these, by the word that it is stored as.
    pub(crate) fn one_of<T: Copy + Into<&'static str>, const N: usize>(
        &mut self,
        column: &'static str,
        words: [T; N],
    ) -> Result<T, Error> {
        self.opt_one_of(column, words)?.ok_or_else(|| self.corrupt(column))
    }

    pub(crate) fn opt_one_of<T: Copy + Into<&'static str>, const N: usize>(
        &mut self,
        column: &'static str,
        words: [T; N],
    ) -> Result<Option<T>, Error> {
        let found = match self.opt_str(column)? {
            Some(text) => words.into_iter().find(|word| (*word).into() == text),
            None => return Ok(None),
        };
        found.map(Some).ok_or_else(|| self.corrupt(column))
    }

    /// A JSON document.
    pub(crate) fn json<T: DeserializeOwned>(&mut self, column: &'static str) -> Result<T, Error> {
        self.opt_json(column)?.ok_or_else(|| self.corrupt(column))
    }

    pub(crate) fn opt_json<T: DeserializeOwned>(&mut self, column: &'static str) -> Result<Option<T>, Error> {
        let parsed = self.opt_str(column)?.map(serde_json::from_str::<T>);
        match parsed {
            Some(Ok(document)) => Ok(Some(document)),
            Some(Err(_)) => Err(self.corrupt(column)),
            None => Ok(None),
        }
    }

    /// A JSON document and the length of its text.
    pub(crate) fn opt_sized_json<T: DeserializeOwned>(
        &mut self,
        column: &'static str,
    ) -> Result<Option<(T, usize)>, Error> {
        let parsed = self.opt_str(column)?.map(|text| (serde_json::from_str::<T>(text), text.len()));
        match parsed {
            Some((Ok(document), length)) => Ok(Some((document, length))),
            Some((Err(_), _)) => Err(self.corrupt(column)),
            None => Ok(None),
        }
    }

    /// A JSON list or map that is mostly empty.
    pub(crate) fn json_or_default<T: DeserializeOwned + Default>(
        &mut self,
        column: &'static str,
    ) -> Result<T, Error> {
        let parsed = match self.opt_str(column)? {
            Some("[]" | "{}") => return Ok(T::default()),
            Some(text) => serde_json::from_str::<T>(text).ok(),
            None => None,
        };
        parsed.ok_or_else(|| self.corrupt(column))
    }
}

/// The word that an enum is stored as.
pub(crate) fn word<T: Into<&'static str>>(value: T) -> &'static str {
    value.into()
}

/// A list of things as one text, for messages.
pub(crate) fn listed<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}
