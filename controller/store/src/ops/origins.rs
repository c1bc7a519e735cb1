//! Origins: what is declared by objects of other systems.

use jiff::Timestamp;

use super::{create, job_rows};
use crate::engine::conn::Conn;
use crate::engine::value::{Row, args, truncated, word};
use crate::engine::writer::Tx;
use crate::{Binding, CreateOutcome, Error, NewJob, Origin, OriginKind, OriginOutcome, OriginRow, Store};

/// The columns of an origin.
macro_rules! select_origin {
    () => {
        "SELECT o.cluster, o.object, o.kind, o.subject, o.released FROM origins AS o"
    };
}

impl Store {
    /// Creates the job of an object, once: an object that has or had a job does not get another one. A job that was
    /// released belongs to its object again.
    ///
    /// # Errors
    /// As [`Store::create_jobs`].
    pub async fn create_job_of(
        &self,
        now: Timestamp,
        origin: Origin,
        job: NewJob,
    ) -> Result<OriginOutcome, Error> {
        create::check(&job)?;
        self.write("create_job_of", move |tx| Box::pin(create_once(tx, truncated(now), origin, job))).await
    }

    /// Makes something in the store belong to an object. What was released belongs to its object again.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn bind_origin(
        &self,
        origin: Origin,
        kind: OriginKind,
        subject: &str,
    ) -> Result<Binding, Error> {
        let subject = subject.to_owned();
        self.write("bind_origin", move |tx| {
            Box::pin(async move {
                if insert(tx, &origin, kind, &subject).await? {
                    return Ok(Binding::Bound);
                }
                let own = by_object(&mut tx.conn, &origin).await?;
                let other = by_subject(&mut tx.conn, &subject).await?;
                match own.or(other) {
                    Some(row) if row.origin == origin && row.subject == subject => {
                        unrelease(tx, &origin).await?;
                        Ok(Binding::Bound)
                    }
                    Some(row) => Ok(Binding::Taken(row)),
                    // It stood in the way a statement ago in this very transaction.
                    None => Err(Error::Unavailable { operation: "bind_origin", source: None }),
                }
            })
        })
        .await
    }

    /// The object that a job, node or template was declared by, found by its uid.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn origin_of(&self, subject: &str) -> Result<Option<OriginRow>, Error> {
        let subject = subject.to_owned();
        self.read("origin_of", move |conn| Box::pin(async move { by_subject(conn, &subject).await })).await
    }

    /// What the store holds for an object.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn find_origin(&self, origin: &Origin) -> Result<Option<OriginRow>, Error> {
        let origin = origin.clone();
        self.read("find_origin", move |conn| Box::pin(async move { by_object(conn, &origin).await })).await
    }

    /// Every object of a cluster that something of this kind was declared by, released ones included.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn origins(&self, cluster: &str, kind: OriginKind) -> Result<Vec<OriginRow>, Error> {
        const SQL: &str =
            concat!(select_origin!(), " WHERE o.cluster = $1 AND o.kind = $2 ORDER BY o.object");
        let cluster = cluster.to_owned();
        self.read("origins", move |conn| {
            Box::pin(async move {
                let rows = conn.rows(SQL, args![cluster, word(kind)]).await?;
                rows.iter().map(read).collect()
            })
        })
        .await
    }

    /// Lets what an object has declared belong to the store alone; yields whether it did not before.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn release_origin(&self, origin: &Origin) -> Result<bool, Error> {
        let origin = origin.clone();
        self.write("release_origin", move |tx| {
            Box::pin(async move {
                let sql =
                    "UPDATE origins SET released = 1 WHERE cluster = $1 AND object = $2 AND released = 0";
                Ok(tx.conn.execute(sql, args![origin.cluster, origin.object]).await? > 0)
            })
        })
        .await
    }

    /// Forgets an object that is known to be gone for good; yields whether it was known.
    ///
    /// # Errors
    /// What the engine reports.
    pub async fn forget_origin(&self, origin: &Origin) -> Result<bool, Error> {
        let origin = origin.clone();
        self.write("forget_origin", move |tx| Box::pin(async move { forget(tx, &origin).await })).await
    }
}

async fn create_once(
    tx: &mut Tx,
    now: Timestamp,
    origin: Origin,
    job: NewJob,
) -> Result<OriginOutcome, Error> {
    // Written first: another transaction with the same object waits here for this one.
    if !insert(tx, &origin, OriginKind::Job, &job.uid).await? {
        let known = by_object(&mut tx.conn, &origin).await?;
        let Some(known) = known else {
            return Err(Error::AlreadyExists { object: "origin of job", key: job.uid });
        };
        unrelease(tx, &origin).await?;
        let job = job_rows::by_uid(&mut tx.conn, &known.subject).await?;
        return Ok(job.map_or(OriginOutcome::Ended, |job| OriginOutcome::Known(job.row)));
    }
    let outcome = create::create(tx, now, vec![job]).await?.pop();
    match outcome {
        Some(CreateOutcome::Created(row) | CreateOutcome::Replayed(row)) => Ok(OriginOutcome::Created(row)),
        Some(CreateOutcome::NameTaken(row)) => {
            forget(tx, &origin).await?;
            Ok(OriginOutcome::NameTaken(row))
        }
        Some(CreateOutcome::KeyReused) | None => Err(Error::Invalid {
            operation: "create_job_of",
            problem: "an idempotency key, where the object itself is one".to_owned(),
        }),
    }
}

async fn insert(tx: &mut Tx, origin: &Origin, kind: OriginKind, subject: &str) -> Result<bool, Error> {
    let sql = "INSERT INTO origins (cluster, object, kind, subject, released) VALUES ($1, $2, $3, $4, 0)
        ON CONFLICT DO NOTHING";
    let args = args![origin.cluster.as_str(), origin.object.as_str(), word(kind), subject];
    Ok(tx.conn.execute(sql, args).await? > 0)
}

async fn unrelease(tx: &mut Tx, origin: &Origin) -> Result<(), Error> {
    let sql = "UPDATE origins SET released = 0 WHERE cluster = $1 AND object = $2 AND released = 1";
    tx.conn.execute(sql, args![origin.cluster.as_str(), origin.object.as_str()]).await.map(drop)
}

async fn forget(tx: &mut Tx, origin: &Origin) -> Result<bool, Error> {
    let sql = "DELETE FROM origins WHERE cluster = $1 AND object = $2";
    Ok(tx.conn.execute(sql, args![origin.cluster.as_str(), origin.object.as_str()]).await? > 0)
}

async fn by_object(conn: &mut Conn, origin: &Origin) -> Result<Option<OriginRow>, Error> {
    const SQL: &str = concat!(select_origin!(), " WHERE o.cluster = $1 AND o.object = $2");
    let row = conn.row(SQL, args![origin.cluster.as_str(), origin.object.as_str()]).await?;
    row.as_ref().map(read).transpose()
}

async fn by_subject(conn: &mut Conn, subject: &str) -> Result<Option<OriginRow>, Error> {
    const SQL: &str = concat!(select_origin!(), " WHERE o.subject = $1");
    conn.row(SQL, args![subject]).await?.as_ref().map(read).transpose()
}

fn read(row: &Row) -> Result<OriginRow, Error> {
    let mut cells = row.cells("origins");
    Ok(OriginRow {
        origin: Origin { cluster: cells.text("cluster")?, object: cells.text("object")? },
        kind: cells.word("kind")?,
        subject: cells.text("subject")?,
        released: cells.flag("released")?,
    })
}
