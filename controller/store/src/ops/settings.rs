//! Settings that are made once, such as the cluster's id.

use crate::engine::value::args;
use crate::{Error, Store};

impl Store {
    /// The value of a setting.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn get_setting(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let key = key.to_owned();
        self.read("get_setting", move |conn| {
            Box::pin(async move {
                let row = conn.row("SELECT value FROM settings WHERE key = $1", args![key]).await?;
                row.map(|row| row.cells("settings").bytes("value")).transpose()
            })
        })
        .await
    }

    /// Sets a setting that has no value yet, and yields the value that is in force: of several callers one wins and all
    /// see the same.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn put_setting_if_absent(&self, key: &str, value: Vec<u8>) -> Result<Vec<u8>, Error> {
        let key = key.to_owned();
        self.write("put_setting_if_absent", move |tx| {
            Box::pin(async move {
                let sql = "INSERT INTO settings (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING";
                tx.conn.execute(sql, args![key.as_str(), value]).await?;
                let row =
                    tx.conn.row("SELECT value FROM settings WHERE key = $1", args![key.as_str()]).await?;
                let row = row.ok_or_else(|| Error::NotFound { object: "setting", key })?;
                row.cells("settings").bytes("value")
            })
        })
        .await
    }
}
