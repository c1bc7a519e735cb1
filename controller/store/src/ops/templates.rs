//! Job templates and their versions.

use jiff::Timestamp;
use windlass_crds::JobTemplateSpec;

use super::expect_version;
use crate::engine::conn::Conn;
use crate::engine::value::{Cells, args, json, ms, truncated};
use crate::engine::writer::Tx;
use crate::{Change, Error, PutTemplate, Store, TemplateRow};

/// The columns of a template, of `templates AS t` and `template_versions AS v`.
macro_rules! template_columns {
    () => {
        "t.uid, t.namespace, t.name, v.spec, t.created_at, t.updated_at, t.generation, t.resource_version"
    };
}

impl Store {
    /// Makes `spec` the template's current version. Every version is kept: one that was put before becomes current
    /// again where its content is the same, and is refused where it is not. `uid` is taken when the template is new.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the template is not at the version that is expected, [`Error::Corrupt`] and what the
    /// engine reports.
    pub async fn put_template(
        &self,
        now: Timestamp,
        (namespace, name): (&str, &str),
        uid: &str,
        spec: JobTemplateSpec,
        expected: Option<i64>,
    ) -> Result<PutTemplate, Error> {
        let (namespace, name, uid) = (namespace.to_owned(), name.to_owned(), uid.to_owned());
        self.write("put_template", move |tx| {
            Box::pin(async move {
                let found = get(&mut tx.conn, &namespace, &name, None).await?;
                let found = found.map_or(0, |row| row.resource_version);
                expect_version("template", &name, expected, found)?;
                put(tx, truncated(now), namespace, name, &uid, spec).await
            })
        })
        .await
    }

    /// The template of this name with its current version.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn get_template(&self, namespace: &str, name: &str) -> Result<Option<TemplateRow>, Error> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        self.read("get_template", move |conn| {
            Box::pin(async move { get(conn, &namespace, &name, None).await })
        })
        .await
    }

    /// The template of this name with the given version, current or not.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn get_template_version(
        &self,
        namespace: &str,
        name: &str,
        version: &str,
    ) -> Result<Option<TemplateRow>, Error> {
        let (namespace, name, version) = (namespace.to_owned(), name.to_owned(), version.to_owned());
        self.read("get_template_version", move |conn| {
            Box::pin(async move { get(conn, &namespace, &name, Some(&version)).await })
        })
        .await
    }

    /// The templates of a namespace, or of all, by namespace and name.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn list_templates(&self, namespace: Option<&str>) -> Result<Vec<TemplateRow>, Error> {
        const SQL: &str = concat!(
            "SELECT ",
            template_columns!(),
            " FROM templates AS t JOIN template_versions AS v ON v.template_id = t.id AND v.version = t.version",
            " WHERE $1 IS NULL OR t.namespace = $1 ORDER BY t.namespace, t.name"
        );
        let namespace = namespace.map(str::to_owned);
        self.read("list_templates", move |conn| {
            Box::pin(async move {
                let rows = conn.rows(SQL, args![namespace]).await?;
                rows.iter().map(|row| read(&mut row.cells("templates"))).collect()
            })
        })
        .await
    }

    /// Deletes a template with all its versions; yields it where it was there.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the template is not at the version that is expected, [`Error::Corrupt`] and what the
    /// engine reports.
    pub async fn delete_template(
        &self,
        namespace: &str,
        name: &str,
        expected: Option<i64>,
    ) -> Result<Option<TemplateRow>, Error> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        self.write("delete_template", move |tx| {
            Box::pin(async move {
                let Some(row) = get(&mut tx.conn, &namespace, &name, None).await? else { return Ok(None) };
                expect_version("template", &name, expected, row.resource_version)?;
                tx.conn.execute("DELETE FROM templates WHERE uid = $1", args![row.uid.as_str()]).await?;
                tx.changed(Change::Template { namespace, name });
                Ok(Some(row))
            })
        })
        .await
    }
}

fn read(cells: &mut Cells<'_>) -> Result<TemplateRow, Error> {
    Ok(TemplateRow {
        uid: cells.text("uid")?,
        namespace: cells.text("namespace")?,
        name: cells.text("name")?,
        spec: cells.json("spec")?,
        created_at: cells.time("created_at")?,
        updated_at: cells.time("updated_at")?,
        generation: cells.int("generation")?,
        resource_version: cells.int("resource_version")?,
    })
}

async fn get(
    conn: &mut Conn,
    namespace: &str,
    name: &str,
    version: Option<&str>,
) -> Result<Option<TemplateRow>, Error> {
    const SQL: &str = concat!(
        "SELECT ",
        template_columns!(),
        " FROM templates AS t JOIN template_versions AS v",
        " ON v.template_id = t.id AND v.version = coalesce($3, t.version) WHERE t.namespace = $1 AND t.name = $2"
    );
    let row = conn.row(SQL, args![namespace, name, version.map(str::to_owned)]).await?;
    row.map(|row| read(&mut row.cells("templates"))).transpose()
}

async fn put(
    tx: &mut Tx,
    now: Timestamp,
    namespace: String,
    name: String,
    uid: &str,
    spec: JobTemplateSpec,
) -> Result<PutTemplate, Error> {
    let current = get(&mut tx.conn, &namespace, &name, None).await?;
    let same_version = get(&mut tx.conn, &namespace, &name, Some(&spec.version)).await?;
    if let Some(existing) = same_version.as_ref().filter(|existing| existing.spec != spec) {
        return Ok(PutTemplate::VersionConflict { existing: existing.clone() });
    }
    if let Some(current) = current.as_ref().filter(|current| current.spec == spec) {
        return Ok(PutTemplate::Unchanged(current.clone()));
    }
    let version = tx.draw_version();
    let sql = "
        INSERT INTO templates (namespace, name, uid, version, created_at, updated_at, generation, resource_version)
        VALUES ($1, $2, $3, $4, $5, $5, 1, $6)
        ON CONFLICT (namespace, name) DO UPDATE SET version = excluded.version, updated_at = excluded.updated_at,
            generation = templates.generation + 1, resource_version = excluded.resource_version";
    let args = args![namespace.as_str(), name.as_str(), uid, spec.version.as_str(), ms(now), version];
    tx.conn.execute(sql, args).await?;
    let sql = "
        INSERT INTO template_versions (template_id, version, spec, created_at)
        SELECT id, $3, $4, $5 FROM templates WHERE namespace = $1 AND name = $2
        ON CONFLICT (template_id, version) DO NOTHING";
    let args = args![namespace.as_str(), name.as_str(), spec.version.as_str(), json(&spec), ms(now)];
    tx.conn.execute(sql, args).await?;
    let row = get(&mut tx.conn, &namespace, &name, None).await?;
    let row = row.ok_or_else(|| Error::NotFound { object: "template", key: name.clone() })?;
    tx.changed(Change::Template { namespace, name });
    Ok(if current.is_some() { PutTemplate::Updated(row) } else { PutTemplate::Created(row) })
}
