//! What was declared in Kubernetes is changed there: one origin for each object.

use windlass_store::Store;

use super::App;
use crate::error::{ApiError, Code};

/// Refuses to change what an object in Kubernetes declares. `what` names it, such as ``job `default/a` ``.
pub(super) async fn require_native(app: &App, uid: &str, what: &str) -> Result<(), ApiError> {
    match declared_in(&app.store, uid).await? {
        None => Ok(()),
        Some(cluster) => Err(ApiError::new(
            Code::DeclaredElsewhere,
            format!(
                "{what} was declared in Kubernetes (cluster {cluster}); change or delete it there with kubectl"
            ),
        )),
    }
}

/// The cluster in which an object is that declares this; `None` too where the object was lost.
pub(crate) async fn declared_in(store: &Store, uid: &str) -> Result<Option<String>, windlass_store::Error> {
    let origin = store.origin_of(uid).await?;
    Ok(origin.filter(|origin| !origin.released).map(|origin| origin.origin.cluster))
}
