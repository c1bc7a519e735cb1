//! Join tokens and API tokens.

use jiff::Timestamp;

use crate::engine::value::{Cells, args, ms};
use crate::engine::writer::Tx;
use crate::{ApiTokenRow, Error, JoinTokenRow, Store};

impl Store {
    /// Adds a join token. `token.created_at` is replaced by `now`, `uses` by 0 and `revoked_at` by nothing.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for an id or a secret that is known.
    pub async fn create_join_token(&self, now: Timestamp, token: JoinTokenRow) -> Result<(), Error> {
        self.write("create_join_token", move |tx| {
            Box::pin(async move {
                let sql = "
                    INSERT INTO join_tokens (id, secret_hash, description, expires_at, max_uses, uses, replaces, created_at)
                    VALUES ($1, $2, $3, $4, $5, 0, $6, $7) ON CONFLICT DO NOTHING";
                let args = args![
                    token.id.as_str(),
                    token.secret_hash.to_vec(),
                    token.description,
                    token.expires_at.map(ms),
                    token.max_uses.map(i64::from),
                    token.replaces,
                    ms(now)
                ];
                match tx.conn.execute(sql, args).await? {
                    0 => Err(Error::AlreadyExists { object: "join token", key: token.id }),
                    _ => Ok(()),
                }
            })
        })
        .await
    }

    /// All join tokens, newest first.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn list_join_tokens(&self) -> Result<Vec<JoinTokenRow>, Error> {
        self.read("list_join_tokens", move |conn| {
            Box::pin(async move {
                let sql = "
                    SELECT id, secret_hash, description, expires_at, max_uses, uses, replaces, created_at, revoked_at
                    FROM join_tokens ORDER BY created_at DESC, id";
                let rows = conn.rows(sql, args![]).await?;
                rows.iter().map(|row| read_join_token(&mut row.cells("join_tokens"))).collect()
            })
        })
        .await
    }

    /// The join token with this secret, whether it still admits anyone or not.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn find_join_token(&self, secret_hash: &[u8; 32]) -> Result<Option<JoinTokenRow>, Error> {
        let hash = secret_hash.to_vec();
        self.read("find_join_token", move |conn| {
            Box::pin(async move {
                let sql = "
                    SELECT id, secret_hash, description, expires_at, max_uses, uses, replaces, created_at, revoked_at
                    FROM join_tokens WHERE secret_hash = $1";
                let row = conn.row(sql, args![hash]).await?;
                row.map(|row| read_join_token(&mut row.cells("join_tokens"))).transpose()
            })
        })
        .await
    }

    /// Makes a join token admit nobody any more; yields whether there is such a token. Doing so again changes nothing.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn revoke_join_token(&self, now: Timestamp, id: &str) -> Result<bool, Error> {
        let id = id.to_owned();
        self.write("revoke_join_token", move |tx| {
            Box::pin(async move {
                let sql = "UPDATE join_tokens SET revoked_at = coalesce(revoked_at, $2) WHERE id = $1";
                Ok(tx.conn.execute(sql, args![id, ms(now)]).await? > 0)
            })
        })
        .await
    }

    /// Adds an API token.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for an id or a secret that is known.
    pub async fn create_api_token(&self, token: ApiTokenRow) -> Result<(), Error> {
        self.write("create_api_token", move |tx| Box::pin(insert_api_token(tx, token))).await
    }

    /// Adds an API token and removes all others of its name.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for an id or a secret that another name has.
    pub async fn replace_api_tokens(&self, token: ApiTokenRow) -> Result<(), Error> {
        self.write("replace_api_tokens", move |tx| {
            Box::pin(async move {
                let sql = "DELETE FROM api_tokens WHERE name = $1";
                tx.conn.execute(sql, args![token.name.as_str()]).await?;
                insert_api_token(tx, token).await
            })
        })
        .await
    }

    /// The API token with this secret, whether it has expired or not.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn find_api_token(&self, secret_hash: &[u8; 32]) -> Result<Option<ApiTokenRow>, Error> {
        let hash = secret_hash.to_vec();
        self.read("find_api_token", move |conn| {
            Box::pin(async move {
                let sql = "
                    SELECT id, secret_hash, name, role, created_at, expires_at FROM api_tokens WHERE secret_hash = $1";
                let row = conn.row(sql, args![hash]).await?;
                row.map(|row| read_api_token(&mut row.cells("api_tokens"))).transpose()
            })
        })
        .await
    }
}

async fn insert_api_token(tx: &mut Tx, token: ApiTokenRow) -> Result<(), Error> {
    let sql = "
        INSERT INTO api_tokens (id, secret_hash, name, role, created_at, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
    let args = args![
        token.id.as_str(),
        token.secret_hash.to_vec(),
        token.name,
        token.role,
        ms(token.created_at),
        token.expires_at.map(ms)
    ];
    match tx.conn.execute(sql, args).await? {
        0 => Err(Error::AlreadyExists { object: "API token", key: token.id }),
        _ => Ok(()),
    }
}

fn read_join_token(cells: &mut Cells<'_>) -> Result<JoinTokenRow, Error> {
    Ok(JoinTokenRow {
        id: cells.text("id")?,
        secret_hash: cells.hash("secret_hash")?,
        description: cells.text("description")?,
        expires_at: cells.opt_time("expires_at")?,
        max_uses: cells.opt_number("max_uses")?,
        uses: cells.number("uses")?,
        replaces: cells.opt_text("replaces")?,
        created_at: cells.time("created_at")?,
        revoked_at: cells.opt_time("revoked_at")?,
    })
}

fn read_api_token(cells: &mut Cells<'_>) -> Result<ApiTokenRow, Error> {
    Ok(ApiTokenRow {
        id: cells.text("id")?,
        secret_hash: cells.hash("secret_hash")?,
        name: cells.text("name")?,
        role: cells.text("role")?,
        created_at: cells.time("created_at")?,
        expires_at: cells.opt_time("expires_at")?,
    })
}
