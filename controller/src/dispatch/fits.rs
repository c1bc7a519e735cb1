//! Which requirement classes a node fits, remembered per node profile.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use windlass_core::placement::{self, Offer};
use windlass_core::requirement::Requirement;
use windlass_store::Store;

use crate::error::ApiError;

/// Classes seen so far, and the fitting ones of each profile.
///
/// The lock protects both together; it is never held across an await. Classes are immutable and their ids only grow,
/// so an entry stays right for ever; profiles that no node has any more are dropped when there are many.
#[derive(Debug, Default)]
pub(super) struct Fits {
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    classes: Vec<(i64, Requirement)>,
    profiles: HashMap<String, Profile>,
}

#[derive(Debug, Default)]
struct Profile {
    /// How many of `Known::classes` were looked at.
    seen: usize,
    fitting: Arc<Vec<i64>>,
}

/// Profiles to remember; each configuration change of a node makes a new one.
const MAX_PROFILES: usize = 10_000;

impl Fits {
    /// The classes that a node with this offer fits.
    pub(super) async fn fitting(&self, store: &Store, offer: &Offer) -> Result<Arc<Vec<i64>>, ApiError> {
        let newest = self.read().classes.last().map_or(0, |(id, _)| *id);
        let new = store.unfitted_classes(newest).await?;
        let profile = offer.profile();
        {
            let known = self.read();
            if let Some(found) = known.profiles.get(&profile)
                && new.is_empty()
                && found.seen == known.classes.len()
            {
                return Ok(found.fitting.clone());
            }
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for class in new {
            // Another claim may have added it between the two locks.
            if known.classes.last().is_none_or(|(id, _)| *id < class.id) {
                let requirement = serde_json::from_value(class.predicates)
                    .map_err(|error| ApiError::internal("read a requirement class", error))?;
                known.classes.push((class.id, requirement));
            }
        }
        if known.profiles.len() >= MAX_PROFILES {
            known.profiles.clear();
        }
        let Known { classes, profiles } = &mut *known;
        let entry = profiles.entry(profile).or_default();
        let fitting = Arc::make_mut(&mut entry.fitting);
        fitting.extend(
            classes[entry.seen..]
                .iter()
                .filter(|(_, requirement)| placement::exclusion(requirement, offer).is_none())
                .map(|(id, _)| *id),
        );
        entry.seen = classes.len();
        Ok(entry.fitting.clone())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }
}
