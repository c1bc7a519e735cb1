//! From names to addresses.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use tokio::sync::Semaphore;

/// Lookups at one time on the whole host: each takes a thread, which the rest of the process needs too.
const MAX_LOOKUPS: usize = 32;

/// Looks names up.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// The addresses of a name, in the order in which they should be tried.
    ///
    /// # Errors
    /// That there are none, or that they could not be found out.
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// The host's own resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        static LOOKUPS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(MAX_LOOKUPS)));
        let permit = Arc::clone(&LOOKUPS).acquire_owned().await.expect("the semaphore is never closed");
        let name = name.to_owned();
        let lookup = move || {
            // A lookup cannot be cut short, so its place is taken until it has ended, also when nobody waits any more.
            let _permit = permit;
            let found: Vec<IpAddr> = (name.as_str(), 0).to_socket_addrs()?.map(|found| found.ip()).collect();
            Ok(found)
        };
        match tokio::task::spawn_blocking(lookup).await {
            Ok(found) => found,
            Err(failed) => Err(io::Error::other(failed)),
        }
    }
}
