//! Which server, and how to log in there.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use crate::Error;

/// How long a store waits for its server at start, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

/// A PostgreSQL database and how to log in there. What it shows of itself never holds the password.
///
/// Read from `postgres://USER[:PASSWORD]@HOST[:PORT]/DATABASE[?OPTION=VALUE…]` with the options of libpq: `sslmode`,
/// `sslrootcert`, `sslcert`, `sslkey`, `host` (also a folder with a Unix socket), `application_name` and others. Without
/// `sslmode`, a server on another host must prove its name by a certificate (`verify-full`); one on this host need not.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    /// Without the password.
    url: String,
    password: Option<String>,
    patience: Duration,
}

impl PostgresUrl {
    /// Logs in with this password, whatever the URL says.
    #[must_use]
    pub fn with_password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Waits so long for a server that cannot be reached when the store is opened; 30 seconds unless told otherwise.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    pub(super) const fn patience(&self) -> Duration {
        self.patience
    }

    /// What the driver makes of it.
    pub(super) fn options(&self) -> Result<PgConnectOptions, Error> {
        let problem = |_| Error::BadUrl { problem: "an option that cannot be read".to_owned() };
        let mut options = PgConnectOptions::from_str(&self.url).map_err(problem)?;
        if let Some(password) = &self.password {
            options = options.password(password);
        }
        let chosen = Url::parse(&self.url)
            .is_ok_and(|url| url.query_pairs().any(|(name, _)| matches!(&*name, "sslmode" | "ssl-mode")));
        if !chosen {
            let mode = if is_local(&options) { PgSslMode::Prefer } else { PgSslMode::VerifyFull };
            options = options.ssl_mode(mode);
        }
        // Statements are timed by the operations' spans; there are fewer of them than this.
        Ok(options.statement_cache_capacity(256).disable_statement_logging())
    }
}

fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// User, host, port and database, for people.
pub(super) fn label(options: &PgConnectOptions) -> String {
    let host = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => options.get_host().to_owned(),
    };
    let user = options.get_username();
    format!("{user}@{host}:{}/{}", options.get_port(), options.get_database().unwrap_or(user))
}

/// The options that the driver knows; it takes no notice of others.
const OPTIONS: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

fn is_known(option: &str) -> bool {
    OPTIONS.contains(&option) || (option.starts_with("options[") && option.ends_with(']'))
}

impl FromStr for PostgresUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |problem: String| Error::BadUrl { problem };
        let mut url = Url::parse(text).map_err(|error| bad(error.to_string()))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(bad(format!("the scheme `{}`", url.scheme())));
        }
        if let Some((unknown, _)) = url.query_pairs().find(|(name, _)| !is_known(name)) {
            return Err(bad(format!("the unknown option `{unknown}`")));
        }
        let decoded =
            |text: &str| percent_decoded(text).ok_or_else(|| bad("a password that is not UTF-8".to_owned()));
        let mut password = url.password().map(decoded).transpose()?;
        let kept: Vec<(String, String)> = url
            .query_pairs()
            .filter_map(|(name, value)| {
                if name == "password" {
                    password = Some(value.into_owned());
                    return None;
                }
                Some((name.into_owned(), value.into_owned()))
            })
            .collect();
        if url.password().is_some() {
            url.set_password(None).map_err(|()| bad("a password without a host".to_owned()))?;
        }
        url.set_query(None);
        if !kept.is_empty() {
            url.query_pairs_mut().extend_pairs(kept);
        }
        let url = Self { url: url.into(), password, patience: PATIENCE };
        url.options()?;
        Ok(url)
    }
}

/// A text with its `%XX` replaced; `None` where that is not UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match hex.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            Some(_) | None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PostgresUrl").field(&self.url).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> PostgresUrl {
        text.parse().expect("a URL that can be read")
    }

    #[test]
    fn what_a_url_shows_of_itself_never_holds_the_password() {
        for text in ["postgres://u:s%33cret@h/d", "postgres://u@h/d?password=s3cret&sslmode=require"] {
            let url = read(text);
            for shown in [format!("{url}"), format!("{url:?}"), label(&url.options().expect("options"))] {
                assert!(!shown.contains("cret"), "{shown}");
            }
            assert_eq!(url.password.as_deref(), Some("s3cret"));
        }
        assert_eq!(read("postgres://u:1@h/d").with_password("2").password.as_deref(), Some("2"));
    }

    #[test]
    fn a_server_elsewhere_must_prove_its_name_unless_told_otherwise() {
        let mode = |text: &str| read(text).options().expect("options").get_ssl_mode();
        assert!(matches!(mode("postgres://u@db.example/d"), PgSslMode::VerifyFull));
        assert!(matches!(mode("postgres://u@db.example/d?sslmode=require"), PgSslMode::Require));
        for local in [
            "postgres://u@localhost/d",
            "postgres://u@127.0.0.1/d",
            "postgres://u@[::1]/d",
            "postgres:///d?host=/tmp",
        ] {
            assert!(matches!(mode(local), PgSslMode::Prefer), "{local}");
        }
    }

    #[test]
    fn errors_name_user_host_port_and_database() {
        let shown = |text: &str| label(&read(text).options().expect("options"));
        assert_eq!(shown("postgres://u:p@db.example:7/d"), "u@db.example:7/d");
        assert_eq!(shown("postgres:///d?host=/tmp&user=u&port=7"), "u@/tmp:7/d");
    }

    #[test]
    fn other_schemes_and_nonsense_are_refused() {
        let unknown =
            "postgres://u@h/d?sslmode=require&foo=1".parse::<PostgresUrl>().expect_err("it means nothing");
        assert!(unknown.to_string().starts_with("the store's URL has the unknown option `foo`"), "{unknown}");
        read("postgres://u@h/d?options[search_path]=a&application_name=b&host=/tmp");
        for text in ["mysql://u@h/d", "postgres", "postgres://u@h/d?sslmode=never", "postgres://u@h:x/d"] {
            let refused = text.parse::<PostgresUrl>().expect_err(text);
            assert!(matches!(refused, Error::BadUrl { .. }), "{refused}");
        }
    }
}
