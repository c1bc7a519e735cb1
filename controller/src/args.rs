//! Settings of the controller: flags, then `WINDLASS_*`. The environment is read nowhere else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use windlass_crds::Span;
use windlass_store::{PostgresUrl, StoreUrl};

use crate::bodies::Place;
use crate::connections::{self, ConnectionLimits};
use crate::dispatch::LeaseSettings;
use crate::kube::KubeArgs;
use crate::secrets::{self, KeyPlace};

/// Settings of the controller.
#[derive(Args, Clone, Debug)]
pub struct ControllerArgs {
    /// The folder that holds the database, logs, inputs and keys.
    #[arg(
        long,
        env = "WINDLASS_STATE_DIR",
        default_value = "/var/lib/windlass/controller",
        value_name = "DIR"
    )]
    pub state_dir: PathBuf,

    /// The database. Without it a file in the state folder, for one controller. With
    /// `postgres://USER@HOST[:PORT]/DATABASE[?sslmode=MODE&sslrootcert=FILE]` several controllers may share it.
    #[arg(long, env = "WINDLASS_STORE", hide_env_values = true, value_name = "URL")]
    pub store: Option<StoreText>,

    /// A file with the password for the database, in place of one in its URL.
    #[arg(long, env = "WINDLASS_STORE_PASSWORD_FILE", value_name = "FILE", requires = "store")]
    pub store_password_file: Option<PathBuf>,

    /// How long to wait at start for a database that cannot be reached.
    #[arg(long, env = "WINDLASS_STORE_WAIT", default_value = "30s", value_name = "SPAN")]
    pub store_wait: Span,

    /// Make a new admin token, and end the one there was.
    #[arg(long)]
    pub new_admin_token: bool,

    /// A file with the admin token, in place of one that is made in the state folder: 32 to 256 characters, as
    /// `windlass identity create` makes it. Another one that there was ends.
    #[arg(long, env = "WINDLASS_ADMIN_TOKEN_FILE", value_name = "FILE", conflicts_with = "new_admin_token")]
    pub admin_token_file: Option<PathBuf>,

    /// A folder with the certificate authority, `ca.crt` and `ca.key`, as `windlass identity create` makes it; it is read only.
    /// Without it one is made in the state folder. Controllers that share a database need the same.
    #[arg(long, env = "WINDLASS_AUTHORITY", value_name = "DIR")]
    pub authority: Option<PathBuf>,

    /// Where logs, artifacts and inputs are kept: `file:///FOLDER`, or `s3://BUCKET[/PREFIX]` with `AWS_ACCESS_KEY_ID`, `AWS_REGION`,
    /// `AWS_ENDPOINT` and their like in the environment. Without it in the state folder. Controllers that share a database
    /// need the same.
    #[arg(long, env = "WINDLASS_BODIES", value_name = "URL")]
    pub bodies: Option<Place>,

    /// A file with the keys that seal secrets, as `windlass secret new-key` makes it; the first one seals. Without it the systemd
    /// credential `windlass-secrets-key`, else, where the database is a file, one that is made in the state folder. Controllers that
    /// share a database need the same.
    #[arg(long, env = "WINDLASS_SECRETS_KEY_FILE", value_name = "FILE")]
    pub secrets_key_file: Option<PathBuf>,

    /// The folder with the credentials that systemd gives.
    #[arg(long, env = "CREDENTIALS_DIRECTORY", value_name = "DIR", hide = true)]
    pub credentials_directory: Option<PathBuf>,

    /// Remove the secret values that no key opens. For a key that is lost.
    #[arg(long)]
    pub discard_unreadable_secrets: bool,

    /// The address to listen on; port 0 takes a free one.
    #[arg(long, env = "WINDLASS_LISTEN", default_value = "127.0.0.1:12082", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// The URL under which nodes reach this controller, such as `https://windlass.example:12082`. Without it the
    /// listening address; where that is every address, the one of this host that leads to others.
    #[arg(long, env = "WINDLASS_ADVERTISE_URL", value_name = "URL")]
    pub advertise_url: Option<url::Url>,

    /// Another host name or address that the server certificate names; may be repeated.
    #[arg(long, env = "WINDLASS_TLS_SAN", value_delimiter = ',', value_name = "NAME")]
    pub tls_san: Vec<String>,

    /// The most connections at once; without it what the limit of open files permits, and no more than 16384.
    #[arg(long, env = "WINDLASS_MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<u64>,

    /// The most connections of one address (of IPv6 one /64); without it a quarter of all. Behind a proxy or NAT that
    /// many nodes share, give it more.
    #[arg(long, env = "WINDLASS_MAX_CONNECTIONS_PER_PEER", value_name = "N")]
    pub max_connections_per_peer: Option<u64>,

    /// How often nodes show a sign of life.
    #[arg(long, env = "WINDLASS_HEARTBEAT", default_value = "10s", value_name = "SPAN")]
    pub heartbeat: Span,

    /// How long an attempt lives without a sign of life of its node.
    #[arg(long, env = "WINDLASS_LEASE", default_value = "25s", value_name = "SPAN")]
    pub lease: Span,

    /// How long jobs with `offline: continue` go on without the controller, where the node says nothing else.
    #[arg(long, env = "WINDLASS_OFFLINE_GRACE", default_value = "15m", value_name = "SPAN")]
    pub offline_grace: Span,

    /// How long a job is passed over, because what it needs is free on no node at once, before room is kept for it on one.
    #[arg(long, env = "WINDLASS_RESERVE_AFTER", default_value = "60s", value_name = "SPAN")]
    pub reserve_after: Span,

    /// How long a node that is given its jobs (`dispatch: Push`) has to take one before it is asked for it again.
    #[arg(long, env = "WINDLASS_PUSH_TIMEOUT", default_value = "30s", value_name = "SPAN")]
    pub push_timeout: Span,

    /// How long a token works by which the controller calls a node; at half of it another one is issued.
    #[arg(long, env = "WINDLASS_WORKER_TOKEN_LIFE", default_value = "24h", value_name = "SPAN")]
    pub worker_token_life: Span,

    /// The bridge to Kubernetes.
    #[command(flatten)]
    pub kube: KubeArgs,
}

/// Where the database is, as it was given: it may hold a password, so it shows nothing of itself.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreText(String);

impl std::str::FromStr for StoreText {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl std::fmt::Debug for StoreText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreText(…)")
    }
}

/// Settings that contradict each other, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lease does not outlast two heartbeats.
    #[error(
        "--lease {lease} must be more than twice --heartbeat {heartbeat}, or one lost heartbeat ends every attempt"
    )]
    ShortLease {
        /// What was given.
        lease: Span,
        /// What was given.
        heartbeat: Span,
    },
    /// The grace is shorter than the lease.
    #[error("--offline-grace {grace} must not be shorter than --lease {lease}")]
    ShortGrace {
        /// What was given.
        grace: Span,
        /// What was given.
        lease: Span,
    },
    /// The heartbeat has no length the protocol can say.
    #[error("--heartbeat {heartbeat} must be at least 1s and whole seconds")]
    Heartbeat {
        /// What was given.
        heartbeat: Span,
    },
    /// Not a URL of a database.
    #[error("--store cannot be used")]
    Store(#[source] windlass_store::Error),
    /// The password for the database cannot be read.
    #[error("could not read --store-password-file {}", file.display())]
    StorePassword {
        /// The file.
        file: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Tokens would end before nodes could hear of the next one.
    #[error(
        "--worker-token-life {life} must be at least 2s: at half of it a node must have heard of the next token"
    )]
    TokenLife {
        /// What was given.
        life: Span,
    },
    /// Not a URL that nodes can use.
    #[error("--advertise-url {url} must be https://HOST[:PORT] without a path")]
    AdvertiseUrl {
        /// What was given.
        url: String,
    },
}

impl ControllerArgs {
    /// Settings for a state folder and an address, with every other default.
    pub fn new(state_dir: PathBuf, listen: SocketAddr) -> Self {
        Self {
            state_dir,
            store: None,
            store_password_file: None,
            store_wait: Span::from_secs(30),
            new_admin_token: false,
            admin_token_file: None,
            authority: None,
            bodies: None,
            secrets_key_file: None,
            credentials_directory: None,
            discard_unreadable_secrets: false,
            listen,
            advertise_url: None,
            tls_san: Vec::new(),
            max_connections: None,
            max_connections_per_peer: None,
            heartbeat: Span::from_secs(10),
            lease: Span::from_secs(25),
            offline_grace: Span::from_secs(15 * 60),
            reserve_after: Span::from_secs(60),
            push_timeout: Span::from_secs(30),
            worker_token_life: Span::from_secs(24 * 3600),
            kube: KubeArgs::default(),
        }
    }

    /// Where the database is.
    pub(crate) fn store_url(&self) -> Result<StoreUrl, Error> {
        let file = self.store_password_file.as_deref();
        store_url(&self.state_dir, self.store.as_ref(), file, self.store_wait)
    }

    /// How long tokens work by which nodes are called.
    pub(crate) fn worker_token_life(&self) -> Result<jiff::SignedDuration, Error> {
        let life = self.worker_token_life;
        if life < Span::from_secs(2) {
            return Err(Error::TokenLife { life });
        }
        Ok(jiff::SignedDuration::try_from(life.get()).unwrap_or(jiff::SignedDuration::MAX))
    }

    /// Where the keys of secrets are.
    pub(crate) fn key_place(&self) -> KeyPlace {
        let own = self.store.is_none().then(|| self.state_dir.clone());
        secrets::key_place(self.secrets_key_file.clone(), self.credentials_directory.clone(), own)
    }

    /// The times of the agent protocol, if they make sense together.
    pub fn leases(&self) -> Result<LeaseSettings, Error> {
        let (heartbeat, lease, grace) = (self.heartbeat, self.lease, self.offline_grace);
        if heartbeat.millis() < 1000 || heartbeat.millis() % 1000 != 0 {
            return Err(Error::Heartbeat { heartbeat });
        }
        if lease.millis() <= 2 * heartbeat.millis() {
            return Err(Error::ShortLease { lease, heartbeat });
        }
        if grace < lease {
            return Err(Error::ShortGrace { grace, lease });
        }
        Ok(LeaseSettings {
            beat: heartbeat.get(),
            lease: Duration::from_secs(lease.millis() / 1000),
            grace: Duration::from_secs(grace.millis() / 1000),
        })
    }

    /// How many connections there may be.
    pub(crate) fn connections(&self) -> Result<ConnectionLimits, connections::Error> {
        ConnectionLimits::new(
            self.max_connections,
            self.max_connections_per_peer,
            connections::permitted_files(),
        )
    }

    /// The base of every URL that nodes are given, without a trailing slash. A wildcard address is nowhere to connect to:
    /// in its place is `outward`, the address of this host that leads to others, or loopback where there is none.
    pub(crate) fn base_url(&self, listening: SocketAddr, outward: Option<IpAddr>) -> Result<String, Error> {
        let Some(url) = &self.advertise_url else {
            let ip = match listening.ip() {
                ip if !ip.is_unspecified() => ip,
                ip if ip.is_ipv4() => outward.unwrap_or(Ipv4Addr::LOCALHOST.into()),
                _ => outward.unwrap_or(Ipv6Addr::LOCALHOST.into()),
            };
            return Ok(format!("https://{}", SocketAddr::new(ip, listening.port())));
        };
        let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if url.scheme() != "https" || url.host().is_none() || !bare || !url.username().is_empty() {
            return Err(Error::AdvertiseUrl { url: url.to_string() });
        }
        Ok(url.as_str().trim_end_matches('/').to_owned())
    }

    /// Every name and address that the server certificate must carry.
    pub(crate) fn certificate_names(
        &self,
        listening: SocketAddr,
        outward: Option<IpAddr>,
        hostname: Option<String>,
    ) -> Vec<String> {
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        names.extend(outward.map(|ip| ip.to_string()));
        if !listening.ip().is_unspecified() {
            names.push(listening.ip().to_string());
        }
        if let Some(host) = self.advertise_url.as_ref().and_then(url::Url::host_str) {
            names.push(host.trim_matches(['[', ']']).to_owned());
        }
        names.extend(hostname);
        names.extend(self.tls_san.iter().cloned());
        names.sort();
        names.dedup();
        names
    }
}

/// Where the database of a controller is that has these settings.
pub(crate) fn store_url(
    state_dir: &Path,
    store: Option<&StoreText>,
    password_file: Option<&Path>,
    wait: Span,
) -> Result<StoreUrl, Error> {
    let Some(StoreText(text)) = store else {
        return Ok(StoreUrl::Sqlite(state_dir.join("windlass.db")));
    };
    let mut url: PostgresUrl = text.parse().map_err(Error::Store)?;
    url = url.with_patience(wait.get());
    if let Some(file) = password_file {
        let password = std::fs::read_to_string(file)
            .map_err(|source| Error::StorePassword { file: file.to_owned(), source })?;
        url = url.with_password(password.trim_end_matches(['\r', '\n']));
    }
    Ok(StoreUrl::Postgres(url))
}

/// The address of this host by which others reach it, where it listens on all of them: the one that its route to
/// everywhere begins with. Nothing is sent.
pub(crate) fn outward(listening: SocketAddr) -> Option<IpAddr> {
    // Addresses that documentation may use and that nobody has.
    const FAR_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const FAR_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
    if !listening.ip().is_unspecified() {
        return None;
    }
    let through = |here: IpAddr, far: IpAddr| {
        let socket = UdpSocket::bind((here, 0)).ok()?;
        socket.connect((far, 9)).ok()?;
        let ip = socket.local_addr().ok()?.ip();
        (!ip.is_unspecified() && !ip.is_loopback()).then_some(ip)
    };
    let v4 = || through(Ipv4Addr::UNSPECIFIED.into(), FAR_V4);
    // A socket of IPv6 takes both in.
    if listening.is_ipv4() { v4() } else { through(Ipv6Addr::UNSPECIFIED.into(), FAR_V6).or_else(v4) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> ControllerArgs {
        ControllerArgs::new("/tmp/x".into(), ([0, 0, 0, 0], 0).into())
    }

    #[test]
    fn contradictory_times_are_refused() {
        let span = Span::from_secs;
        let refused = |heartbeat, lease, grace| {
            ControllerArgs { heartbeat, lease, offline_grace: grace, ..args() }.leases().unwrap_err()
        };
        assert!(matches!(refused(span(10), span(20), span(60)), Error::ShortLease { .. }));
        assert!(matches!(refused(span(10), span(25), span(20)), Error::ShortGrace { .. }));
        assert!(matches!(refused(Span::from_millis(1500), span(25), span(60)), Error::Heartbeat { .. }));
        assert!(args().leases().is_ok());
    }

    #[test]
    fn the_database_is_a_file_unless_told_otherwise() {
        let file = StoreUrl::Sqlite("/tmp/x/windlass.db".into());
        assert_eq!(args().store_url().unwrap(), file);
        let given = |text: &str| ControllerArgs { store: Some(text.parse().unwrap()), ..args() };
        let folder = tempfile::tempdir().unwrap();
        let password = folder.path().join("password");
        std::fs::write(&password, "s3cret\n").unwrap();
        let by_file =
            ControllerArgs { store_password_file: Some(password), ..given("postgres://u@127.0.0.1/d") };
        let by_url = given("postgres://u:s3cret@127.0.0.1/d");
        assert_eq!(by_file.store_url().unwrap(), by_url.store_url().unwrap());
        assert!(!format!("{by_url:?}").contains("s3cret"));
        assert!(matches!(given("mysql://u@h/d").store_url(), Err(Error::Store(_))));
        let missing = ControllerArgs { store_password_file: Some("/nowhere".into()), ..by_file };
        assert!(matches!(missing.store_url(), Err(Error::StorePassword { .. })));
    }

    #[test]
    fn nodes_are_given_an_address_that_can_be_connected_to() {
        let all = ([0, 0, 0, 0], 8000).into();
        let lan = Some(IpAddr::from([192, 0, 2, 7]));
        assert_eq!(args().base_url(all, lan).unwrap(), "https://192.0.2.7:8000");
        assert!(args().certificate_names(all, lan, None).contains(&"192.0.2.7".to_owned()));
        assert_eq!(args().base_url(all, None).unwrap(), "https://127.0.0.1:8000");
        let all_v6 = (Ipv6Addr::UNSPECIFIED, 8000).into();
        assert_eq!(args().base_url(all_v6, None).unwrap(), "https://[::1]:8000");
        let one = ([198, 51, 100, 1], 8000).into();
        assert_eq!(args().base_url(one, lan).unwrap(), "https://198.51.100.1:8000");
        assert_eq!(outward(one), None, "it was chosen already");
        let url = |text: &str| ControllerArgs { advertise_url: Some(text.parse().unwrap()), ..args() };
        let listening = ([127, 0, 0, 1], 1).into();
        assert_eq!(url("https://w.example:9").base_url(listening, None).unwrap(), "https://w.example:9");
        assert!(url("http://w.example").base_url(listening, None).is_err());
        assert!(url("https://w.example/path").base_url(listening, None).is_err());
    }
}
