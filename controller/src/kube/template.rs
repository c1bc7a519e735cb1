//! Templates: a JobTemplate object and the template in the store.

use std::time::Duration;

use windlass_crds::JobTemplateStatus;
use windlass_store::{Binding, OriginKind, PutTemplate};

use super::cluster::Error;
use super::object::{Declared, Name, Seen};
use super::queue::Then;
use super::session::{Looked, Session};
use super::status::{Accepted, Refusal, json, settled};

/// Brings a template and its object together.
pub(super) async fn look(session: &Session, name: &Name) -> Looked {
    let mut writes = 0;
    let result = match session.cache.get(name) {
        None => Ok(Then::Settled),
        Some(seen) if session.cache.is_behind(name, &seen) => Ok(Then::After(Duration::from_millis(200))),
        Some(seen) => sync(session, name, &seen, &mut writes).await,
    };
    match result {
        Ok(then) => Looked { then, writes },
        Err(error) => session.failed(&error, "bring a template and its object together", writes),
    }
}

async fn sync(session: &Session, name: &Name, seen: &Seen, writes: &mut u32) -> Result<Then, Error> {
    if seen.is_deleted {
        return Ok(Then::Settled);
    }
    session.lead.check()?;
    let accepted = declare(session, name, seen).await?;
    let now = session.parts.clock.now();
    let conditions = vec![accepted.condition(seen, now)];
    let status = JobTemplateStatus {
        observed_generation: Some(seen.generation),
        conditions: settled(&seen.status, conditions, seen.generation),
    };
    let wanted = json(&status);
    if wanted != seen.status {
        *writes += session.writer.status(name, seen, &wanted).await?;
        session.cache.written(name, seen);
    }
    Ok(match accepted {
        Accepted::Yes => Then::Settled,
        Accepted::No(..) => Then::After(Duration::from_secs(60)),
    })
}

async fn declare(session: &Session, name: &Name, seen: &Seen) -> Result<Accepted, Error> {
    let Declared::Template(declared) = &seen.declared else { return Ok(Accepted::Yes) };
    let template = match declared {
        Ok(template) => template,
        Err(problem) => return Ok(Accepted::No(Refusal::Invalid, problem.clone())),
    };
    let parts = &session.parts;
    let namespace = name.namespace.as_deref().unwrap_or_default();
    let spec = template.get().spec.clone();
    let now = parts.clock.now();
    if let Some(row) = parts.store.get_template(namespace, &name.name).await? {
        let owner = parts.store.origin_of(&row.uid).await?.filter(|owner| !owner.released);
        if owner.is_none() && row.spec != spec {
            let message = format!(
                "template `{namespace}/{}` says something else in Windlass's own API; make both the same, or delete that one",
                name.name
            );
            return Ok(Accepted::No(Refusal::NameTaken, message));
        }
        let bound =
            parts.store.bind_origin(session.origin(&seen.uid), OriginKind::Template, &row.uid).await?;
        if let Binding::Taken(owner) = bound {
            let message = format!(
                "another object has declared it, {} of cluster {}",
                owner.origin.object, owner.origin.cluster
            );
            return Ok(Accepted::No(Refusal::NameTaken, message));
        }
    }
    let uid = parts.ids.uid(now);
    let row = match parts.store.put_template(now, (namespace, &name.name), &uid, spec, None).await? {
        PutTemplate::Created(row) | PutTemplate::Updated(row) | PutTemplate::Unchanged(row) => row,
        PutTemplate::VersionConflict { existing } => {
            let message =
                format!("version `{}` exists with other content; raise spec.version", existing.spec.version);
            return Ok(Accepted::No(Refusal::VersionConflict, message));
        }
    };
    match parts.store.bind_origin(session.origin(&seen.uid), OriginKind::Template, &row.uid).await? {
        Binding::Bound => Ok(Accepted::Yes),
        Binding::Taken(_) => Ok(Accepted::No(Refusal::NameTaken, "another object was quicker".to_owned())),
    }
}
