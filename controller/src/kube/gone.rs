//! Objects that are gone: what they have declared goes too, once that is certain.

use std::time::Duration;

use kube::Api;
use kube::api::DynamicObject;
use windlass_crds::Span;
use windlass_store::{DeleteOutcome, JobPatch, OriginKind, OriginRow};

use super::cluster::{Error, request};
use super::object::Name;
use super::queue::Then;
use super::session::{Key, Looked, Session};
use crate::reconcile::remove_bodies;

/// An object that seems to be gone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Gone {
    /// The name that it had.
    pub(super) name: Name,
    pub(super) uid: String,
}

/// Why an object is thought to be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// The API server said so.
    Told,
    /// It is not in a whole list. It is asked for once more before it is believed.
    NotListed,
    /// A whole list is empty, right after something went wrong: an API server that lost its data would say the same. Nothing is
    /// deleted for that; what was declared belongs to the store alone, until the object is seen again.
    EmptyListAfterError,
}

/// What is known after it was asked for once more.
enum Certainty {
    Gone,
    /// It is there, or cannot be told from one that is.
    There,
}

pub(super) async fn look(session: &Session, gone: &Gone) -> Looked {
    match handle(session, gone).await {
        Ok(then) => {
            if then == Then::Settled {
                session.settle_gone(gone);
            }
            Looked { then, writes: 0 }
        }
        Err(error) => session.failed(&error, "remove what an object that is gone had declared", 0),
    }
}

async fn handle(session: &Session, gone: &Gone) -> Result<Then, Error> {
    let Some(evidence) = session.evidence(gone) else { return Ok(Then::Settled) };
    let origin = session.origin(&gone.uid);
    let Some(row) = session.parts.store.find_origin(&origin).await? else { return Ok(Then::Settled) };
    match evidence {
        Evidence::Told => {}
        Evidence::NotListed => match confirm(session, gone).await? {
            Certainty::Gone => {}
            Certainty::There => {
                session.queue.wake(Key::Object(gone.name.clone()));
                return Ok(Then::Settled);
            }
        },
        Evidence::EmptyListAfterError => {
            session.lead.check()?;
            if session.parts.store.release_origin(&origin).await? {
                tracing::warn!(
                    kube.kind = %gone.name.kind.manifest(), kube.name = %gone.name.name, kube.uid = %gone.uid,
                    "an object is gone after an error; what it declared is kept, and belongs to the store alone now"
                );
            }
            return Ok(Then::Settled);
        }
    }
    session.lead.check()?;
    let then = match row.kind {
        OriginKind::Job => job(session, gone, &row).await?,
        OriginKind::Node => node(session, gone).await?,
        OriginKind::Template => template(session, gone, &row).await?,
    };
    if then == Then::Settled {
        session.parts.store.forget_origin(&origin).await?;
        session.cache.forget_subject(&row.subject);
        // Its name is free for another object.
        session.queue.wake(Key::Object(gone.name.clone()));
    }
    Ok(then)
}

/// Asks for the object itself. An answer that the resource is not served says nothing about it.
async fn confirm(session: &Session, gone: &Gone) -> Result<Certainty, Error> {
    if gone.name.name.is_empty() {
        // Its job was deleted before, and with it its name; nothing but the memory of it is left to be removed.
        return Ok(Certainty::Gone);
    }
    let resource = gone.name.kind.resource();
    let api: Api<DynamicObject> = match &gone.name.namespace {
        Some(namespace) => Api::namespaced_with(session.client.clone(), namespace, &resource),
        None => Api::all_with(session.client.clone(), &resource),
    };
    match request("get an object", api.get(&gone.name.name)).await {
        Ok(found) if found.metadata.uid.as_deref() == Some(&gone.uid) => Ok(Certainty::There),
        Ok(_) => Ok(Certainty::Gone),
        Err(error) if error.is_object_missing(&gone.name.name) => Ok(Certainty::Gone),
        Err(error) => Err(error),
    }
}

/// Cancels and deletes a job; a node that holds it is waited for.
async fn job(session: &Session, gone: &Gone, row: &OriginRow) -> Result<Then, Error> {
    let parts = &session.parts;
    let now = parts.clock.now();
    session.cache.concern(&row.subject, &Key::Gone(gone.clone()));
    match parts.store.delete_job(now, &row.subject, None).await? {
        DeleteOutcome::NotFound => Ok(Then::Settled),
        DeleteOutcome::Deleted { bodies } => {
            remove_bodies(&parts.store, &parts.bodies, bodies).await?;
            tracing::info!(job.id = %row.subject, kube.uid = %gone.uid, "job deleted with its object");
            Ok(Then::Settled)
        }
        DeleteOutcome::StillHeld(job) => {
            if job.cancel_requested_at.is_none() {
                tracing::info!(job.id = %row.subject, kube.uid = %gone.uid, "job cancelled, because its object is gone");
            }
            let at_once =
                JobPatch { ttl_after_finished: Some(Some(Span::from_millis(0))), ..JobPatch::default() };
            parts.store.update_job(now, &row.subject, at_once, None).await?;
            parts.store.request_cancel(now, &row.subject).await?;
            Ok(Then::After(Duration::from_secs(30)))
        }
    }
}

/// A node that lives goes on with the default configuration; one that does not is forgotten.
async fn node(session: &Session, gone: &Gone) -> Result<Then, Error> {
    let store = &session.parts.store;
    let now = session.parts.clock.now();
    let Some(node) = store.get_node(&gone.name.name).await? else { return Ok(Then::Settled) };
    let ready = node.conditions.iter().any(|condition| {
        condition.condition_type == "Ready"
            && condition.reason != "HeartbeatStale"
            && node.registered_at.is_some()
    });
    if ready || node.running > 0 {
        super::node::put_default(session, &node).await?;
        tracing::info!(node.name = %node.name, "a node that lives has lost its object; it is configured by default, and gets another one");
        return Ok(Then::Settled);
    }
    match store.forget_node(now, &node.name).await {
        // It has just begun to work.
        Err(windlass_store::Error::InUse { .. }) => Ok(Then::After(Duration::from_secs(1))),
        result => {
            result?;
            tracing::info!(node.name = %node.name, "node deregistered with its object");
            Ok(Then::Settled)
        }
    }
}

async fn template(session: &Session, gone: &Gone, row: &OriginRow) -> Result<Then, Error> {
    let store = &session.parts.store;
    let namespace = gone.name.namespace.as_deref().unwrap_or_default();
    // Another one may have its name by now.
    if store
        .get_template(namespace, &gone.name.name)
        .await?
        .is_some_and(|template| template.uid == row.subject)
    {
        store.delete_template(namespace, &gone.name.name, None).await?;
    }
    Ok(Then::Settled)
}
