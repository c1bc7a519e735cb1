//! The Helm chart: by Helm's own engine, on a real API server, with the controller that it describes.

mod buckets;
pub(crate) mod engine;
mod files;
mod images;
mod monitoring;
mod release;
mod rights;
mod security;
mod served;
