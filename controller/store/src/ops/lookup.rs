//! Reading jobs: one, several, lists.

use std::collections::HashMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use windlass_crds::JobPhase;

use super::job_rows::{self, job_columns};
use crate::engine::conn::Conn;
use crate::engine::value::{Value, args, ms, word};
use crate::{Cursor, Error, JobFilter, JobRow, Page, Store};

impl Store {
    /// The job of this name.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn get_job(&self, namespace: &str, name: &str) -> Result<Option<JobRow>, Error> {
        const SQL: &str = concat!(
            "SELECT ",
            job_columns!(),
            " FROM jobs AS j JOIN job_bodies AS b ON b.job_id = j.id WHERE j.namespace = $1 AND j.name = $2"
        );
        let args = args![namespace, name];
        self.read("get_job", move |conn| {
            Box::pin(async move {
                let row = conn.row(SQL, args).await?;
                row.map(|row| Ok(job_rows::read(&row)?.row)).transpose()
            })
        })
        .await
    }

    /// The job with this uid.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn get_job_by_uid(&self, uid: &str) -> Result<Option<JobRow>, Error> {
        let uid = uid.to_owned();
        self.read("get_job_by_uid", move |conn| {
            Box::pin(async move { Ok(job_rows::by_uid(conn, &uid).await?.map(|job| job.row)) })
        })
        .await
    }

    /// The jobs with these uids, in their order; those that do not exist are left out.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn get_jobs(&self, uids: &[String]) -> Result<Vec<JobRow>, Error> {
        let uids = uids.to_vec();
        self.read("get_jobs", move |conn| {
            Box::pin(async move {
                let jobs = job_rows::by_uids(conn, &uids).await?;
                let mut jobs: HashMap<String, JobRow> =
                    jobs.into_iter().map(|job| (job.row.uid.clone(), job.row)).collect();
                Ok(uids.iter().filter_map(|uid| jobs.remove(uid)).collect())
            })
        })
        .await
    }

    /// Jobs that match, newest first, and where the next page begins if there may be one. Jobs that are created or
    /// deleted meanwhile move no others from page to page.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn list_jobs(
        &self,
        filter: JobFilter,
        page: Page,
    ) -> Result<(Vec<JobRow>, Option<Cursor>), Error> {
        self.read("list_jobs", move |conn| Box::pin(list(conn, filter, page))).await
    }
}

/// A statement that is put together from fixed parts, and its arguments.
#[derive(Default)]
struct Condition {
    sql: String,
    args: Vec<Value>,
}

impl Condition {
    /// Adds a part; `?` in it stands for the next arguments.
    fn and(&mut self, part: &str, values: impl IntoIterator<Item = Value>) {
        let mut values = values.into_iter();
        for (position, piece) in part.split('?').enumerate() {
            if position > 0 {
                self.args.extend(values.next());
                write!(self.sql, "${}", self.args.len()).expect("writing to a string never fails");
            }
            self.sql.push_str(piece);
        }
    }
}

/// Which index a part of a list descends, newest first; everything else is judged row by row.
enum Path {
    /// That of the first label.
    Label,
    /// That of what has not ended, by phase.
    Live(&'static str),
    /// That of what has ended, by phase.
    Ended(&'static str),
    /// That of the namespace or of the queue, or the table.
    Narrowest,
}

impl Path {
    fn of(phase: JobPhase) -> Self {
        if phase.is_terminal() { Self::Ended(word(phase)) } else { Self::Live(word(phase)) }
    }
}

fn paths(filter: &JobFilter) -> Vec<Path> {
    if !filter.label_equals.is_empty() {
        return vec![Path::Label];
    }
    let mut phases = filter.phases.clone();
    phases.sort_unstable();
    phases.dedup();
    if phases.is_empty() { vec![Path::Narrowest] } else { phases.into_iter().map(Path::of).collect() }
}

/// Adds one part of a list: its first `limit` ids.
fn part(query: &mut Condition, filter: &JobFilter, cursor: Option<Cursor>, path: &Path, limit: i64) {
    let JobFilter { namespace, queue, phases, label_equals, name_prefix, created_after, created_before } =
        filter;
    let mut labels = label_equals.iter();
    match path {
        Path::Label => {
            // CROSS JOIN keeps SQLite from turning the join around.
            query.and(
                "SELECT j.id AS id FROM job_labels AS l CROSS JOIN jobs AS j WHERE j.id = l.job_id",
                args![],
            );
            if let Some((key, value)) = labels.next() {
                query.and(" AND l.key = ? AND l.value = ?", args![key.as_str(), value.as_str()]);
            }
            if let Some(Cursor(id)) = cursor {
                query.and(" AND l.job_id < ?", args![id]);
            }
            if !phases.is_empty() {
                let words = phases.iter().map(|phase| word(*phase)).collect::<Vec<_>>();
                let marks = vec!["?"; words.len()].join(", ");
                query.and(&format!(" AND j.phase IN ({marks})"), words.into_iter().map(Value::from));
            }
        }
        Path::Live(phase) => {
            query.and(
                "SELECT j.id AS id FROM jobs AS j WHERE j.finished_at IS NULL AND j.phase = ?",
                args![*phase],
            );
            if let Some(Cursor(id)) = cursor {
                query.and(" AND j.id < ?", args![id]);
            }
        }
        Path::Ended(phase) => {
            query.and(
                "SELECT j.id AS id FROM jobs AS j WHERE j.finished_at IS NOT NULL AND j.phase = ?",
                args![*phase],
            );
            if let Some(Cursor(id)) = cursor {
                query.and(" AND j.id < ?", args![id]);
            }
        }
        Path::Narrowest => {
            query.and("SELECT j.id AS id FROM jobs AS j WHERE true", args![]);
            if let Some(Cursor(id)) = cursor {
                query.and(" AND j.id < ?", args![id]);
            }
        }
    }
    // An expression is in no index: nearly all that has ended has succeeded, and every other phase is the narrower path.
    let hidden = match path {
        Path::Label | Path::Live(_) => " || ''",
        Path::Ended(phase) if *phase != word(JobPhase::Succeeded) => " || ''",
        Path::Ended(_) | Path::Narrowest => "",
    };
    for (column, value) in [("namespace", namespace), ("queue", queue)] {
        if let Some(value) = value {
            query.and(&format!(" AND j.{column}{hidden} = ?"), args![value.as_str()]);
        }
    }
    // The index of the namespace is for those alone who say this.
    if namespace.is_some() && hidden.is_empty() {
        query.and(" AND j.id > 0", args![]);
    }
    for (key, value) in labels {
        query.and(
            " AND EXISTS (SELECT 1 FROM job_labels AS o WHERE o.key = ? AND o.value = ? AND o.job_id = j.id)",
            args![key.as_str(), value.as_str()],
        );
    }
    if let Some(prefix) = name_prefix {
        let length = i64::from(i32::try_from(prefix.chars().count()).unwrap_or(i32::MAX));
        query.and(" AND substr(j.name, 1, CAST(? AS INTEGER)) = ?", args![length, prefix.as_str()]);
    }
    if let Some(after) = created_after {
        query.and(" AND j.created_at >= ?", args![ceiling(*after)]);
    }
    if let Some(before) = created_before {
        query.and(" AND j.created_at < ?", args![ceiling(*before)]);
    }
    let order = match path {
        Path::Label => "l.job_id",
        Path::Live(_) | Path::Ended(_) | Path::Narrowest => "j.id",
    };
    query.and(&format!(" ORDER BY {order} DESC LIMIT ?"), args![limit]);
}

async fn list(
    conn: &mut Conn,
    filter: JobFilter,
    page: Page,
) -> Result<(Vec<JobRow>, Option<Cursor>), Error> {
    let limit = page.limit.max(1);
    let wanted = i64::from(limit) + 1;
    let mut query = Condition::default();
    for (position, path) in paths(&filter).iter().enumerate() {
        let glue = if position == 0 { "" } else { " UNION ALL " };
        query.and(&format!("{glue}SELECT id FROM ("), args![]);
        part(&mut query, &filter, page.cursor, path, wanted);
        query.and(") AS part", args![]);
    }
    let mut whole = format!(
        "SELECT {} FROM ({}) AS picked JOIN jobs AS j ON j.id = picked.id JOIN job_bodies AS b ON b.job_id = j.id",
        job_columns!(),
        query.sql
    );
    query.args.push(Value::from(wanted));
    write!(whole, " ORDER BY j.id DESC LIMIT ${}", query.args.len())
        .expect("writing to a string never fails");
    let rows = conn.rows_of(whole, query.args).await?;
    let mut jobs = Vec::with_capacity(rows.len());
    for row in &rows {
        jobs.push(job_rows::read(row)?);
    }
    let more = jobs.len() > limit as usize;
    jobs.truncate(limit as usize);
    let cursor = if more { jobs.last().map(|job| Cursor(job.id)) } else { None };
    Ok((jobs.into_iter().map(|job| job.row).collect(), cursor))
}

/// The first millisecond that is not before `time`: stored times have no fraction.
fn ceiling(time: Timestamp) -> i64 {
    ms(time) + i64::from(time.subsec_nanosecond().rem_euclid(1_000_000) != 0)
}
