//! Host names and addresses as clients write them. There is one spelling for each; what others might read differently is
//! refused, not guessed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest name, by the domain name system.
const MAX_NAME: usize = 253;
/// Longest part of a name.
const MAX_LABEL: usize = 63;

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A name: lower case, ASCII, without a final dot.
    Name(String),
    /// An address.
    Address(IpAddr),
}

/// Why a text is no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum BadHost {
    /// There is none.
    #[error("no host is given")]
    Empty,
    /// It is longer than a name can be.
    #[error("the host name is longer than {MAX_NAME} characters")]
    TooLong,
    /// A part is empty or too long.
    #[error("a part of the host name is empty or longer than {MAX_LABEL} characters")]
    Label,
    /// It has other characters than names have.
    #[error(
        "the host name has characters other than letters, digits, `-`, `_` and `.`; write it in its `xn--` form"
    )]
    Characters,
    /// It looks like an address, in a form that is read differently by different programs.
    #[error("the address is not written as four decimal numbers")]
    OddAddress,
    /// An IPv6 address is broken, not in brackets, or names an interface.
    #[error("the IPv6 address is not written as `[address]`")]
    Ipv6,
    /// There is a user name.
    #[error("a user name before the host is not accepted")]
    User,
    /// The port is missing or none.
    #[error("the port is not a number from 1 to 65535")]
    Port,
}

impl Host {
    /// Reads a name or an address without brackets and port.
    ///
    /// # Errors
    /// [`BadHost`].
    pub fn parse(text: &str) -> Result<Self, BadHost> {
        if text.is_empty() {
            return Err(BadHost::Empty);
        }
        if text.contains('@') {
            return Err(BadHost::User);
        }
        if text.contains(':') {
            // An interface after `%` is refused with it.
            let address: Ipv6Addr = text.parse().map_err(|_| BadHost::Ipv6)?;
            return Ok(Self::Address(address.into()));
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(address.into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(BadHost::Empty);
        }
        if name.len() > MAX_NAME {
            return Err(BadHost::TooLong);
        }
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
            return Err(BadHost::Characters);
        }
        if name.split('.').any(|label| label.is_empty() || label.len() > MAX_LABEL) {
            return Err(BadHost::Label);
        }
        // What ends in a number is an address to some: decimal, octal or hexadecimal, with fewer than four parts.
        let last = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
        let is_hex = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_number(&last) || last.strip_prefix("0x").is_some_and(is_hex) {
            return Err(BadHost::OddAddress);
        }
        Ok(Self::Name(name.to_ascii_lowercase()))
    }

    /// Reads `host:port` or `[address]:port`; without a port there must be a default.
    ///
    /// # Errors
    /// [`BadHost`].
    pub fn with_port(text: &str, default: Option<u16>) -> Result<(Self, u16), BadHost> {
        if text.contains('@') {
            return Err(BadHost::User);
        }
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (address, rest) = rest.split_once(']').ok_or(BadHost::Ipv6)?;
            let address: Ipv6Addr = address.parse().map_err(|_| BadHost::Ipv6)?;
            let port =
                if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or(BadHost::Port)?) };
            (Self::Address(address.into()), port)
        } else {
            match text.split_once(':') {
                Some((_, port)) if port.contains(':') => return Err(BadHost::Ipv6),
                Some((host, port)) => (Self::parse(host)?, Some(port)),
                None => (Self::parse(text)?, None),
            }
        };
        let port = match port {
            None => default.ok_or(BadHost::Port)?,
            // The parser of numbers would take a sign.
            Some(digits) if !digits.bytes().all(|byte| byte.is_ascii_digit()) => return Err(BadHost::Port),
            Some(digits) => digits.parse().map_err(|_| BadHost::Port)?,
        };
        if port == 0 { Err(BadHost::Port) } else { Ok((host, port)) }
    }

    /// The text of a rule for exactly this host and port.
    pub(super) fn rule(&self, port: u16) -> String {
        format!("{self}:{port}")
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_has_one_spelling() {
        for (text, expected) in [
            ("example.com", "example.com"),
            ("EXAMPLE.Com.", "example.com"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("_dmarc.example.com", "_dmarc.example.com"),
            ("localhost", "localhost"),
            ("0x7f.example", "0x7f.example"),
            ("1.2.3.4", "1.2.3.4"),
            ("::1", "[::1]"),
            ("2001:DB8:0:0::1", "[2001:db8::1]"),
            ("::ffff:127.0.0.1", "[::ffff:127.0.0.1]"),
        ] {
            assert_eq!(Host::parse(text).map(|host| host.to_string()).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let long = format!("{}.com", "a".repeat(64));
        let longer = vec!["abcdefgh"; 30].join(".");
        for (text, expected) in [
            ("", BadHost::Empty),
            (".", BadHost::Empty),
            ("..", BadHost::Label),
            ("a..b", BadHost::Label),
            (".a", BadHost::Label),
            ("a.com..", BadHost::Label),
            (long.as_str(), BadHost::Label),
            (longer.as_str(), BadHost::TooLong),
            ("bücher.example", BadHost::Characters),
            ("a b", BadHost::Characters),
            ("a\0.com", BadHost::Characters),
            ("a/b", BadHost::Characters),
            ("a%2ecom", BadHost::Characters),
            ("*.example.com", BadHost::Characters),
            ("user@example.com", BadHost::User),
            ("127.1", BadHost::OddAddress),
            ("127.0.0.1.", BadHost::OddAddress),
            ("0177.0.0.1", BadHost::OddAddress),
            ("0x7f.0.0.1", BadHost::OddAddress),
            ("0x7f000001", BadHost::OddAddress),
            ("0x", BadHost::OddAddress),
            ("2130706433", BadHost::OddAddress),
            ("1.2.3.4.5", BadHost::OddAddress),
            ("256.1.1.1", BadHost::OddAddress),
            ("example.0X7F", BadHost::OddAddress),
            ("fe80::1%eth0", BadHost::Ipv6),
            ("1::2::3", BadHost::Ipv6),
        ] {
            assert_eq!(Host::parse(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn ports_are_numbers_from_1() {
        let read = |text| Host::with_port(text, None).map(|(host, port)| format!("{host} {port}"));
        assert_eq!(read("a.com:443").as_deref(), Ok("a.com 443"));
        assert_eq!(read("[::1]:80").as_deref(), Ok("[::1] 80"));
        assert_eq!(Host::with_port("a.com", Some(80)).map(|(_, port)| port), Ok(80));
        assert_eq!(Host::with_port("[::1]", Some(80)).map(|(_, port)| port), Ok(80));
        for text in
            ["a.com", "a.com:", "a.com:0", "a.com:65536", "a.com:+80", "a.com:8 0", "[::1]80", "a.com:80a"]
        {
            assert_eq!(read(text), Err(BadHost::Port), "{text}");
        }
        for text in ["::1:80", "[::1", "[127.0.0.1]:80", "[fe80::1%1]:80"] {
            assert_eq!(read(text), Err(BadHost::Ipv6), "{text}");
        }
        assert_eq!(read("a@b:80"), Err(BadHost::User));
        assert_eq!(read("a@[::1]:80"), Err(BadHost::User));
        assert_eq!(read(":80"), Err(BadHost::Empty));
    }
}
