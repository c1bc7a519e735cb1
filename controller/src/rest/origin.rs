//! What was declared in Kubernetes is changed there: one origin for each object.

use super::App;
use crate::error::{ApiError, Code};

/// Refuses to change what an object in Kubernetes declares. `what` names it, such as ``job `default/a` ``.
pub(super) async fn require_native(app: &App, uid: &str, what: &str) -> Result<(), ApiError> {
    match app.store.origin_of(uid).await? {
        None => Ok(()),
        // Its object was lost.
        Some(origin) if origin.released => Ok(()),
        Some(origin) => Err(ApiError::new(
            Code::DeclaredElsewhere,
            format!(
                "{what} was declared in Kubernetes (cluster {}); change or delete it there with kubectl",
                origin.origin.cluster
            ),
        )),
    }
}
