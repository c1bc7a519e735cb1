//! Rules for what a sandbox with a restricted network may reach: `example.com:443`, `*.example.com:443`, `10.1.0.0/16:5432`.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::names::Quoted;

/// Most characters of a rule: the longest name with some ports.
const MAX_LENGTH: usize = 400;
/// Longest name, by the domain name system.
const MAX_NAME: usize = 253;
/// Longest part of a name.
const MAX_LABEL: usize = 63;
/// Most ports and ranges of one rule.
const MAX_PORTS: usize = 16;

/// Allows to reach a host or a network at some ports.
///
/// Names are compared in lower case, without a final dot, in their ASCII (`xn--`) form. A rule for a network without ports is
/// for all of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EgressRule {
    destination: Destination,
    ports: Vec<(u16, u16)>,
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    /// A name.
    Name(String),
    /// Every name below this one, but not itself.
    Below(String),
    /// Every name.
    AnyName,
    /// Every address of a network.
    Network(IpNet),
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is not a rule for egress: {problem}", Quoted(text))]
pub struct Error {
    /// What was written.
    pub text: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

impl EgressRule {
    /// Whom it is about.
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// At which ports, sorted and apart from each other; none for all.
    pub fn ports(&self) -> impl Iterator<Item = RangeInclusive<u16>> {
        self.ports.iter().map(|(first, last)| *first..=*last)
    }

    /// Whether everything that this rule allows is allowed by the rules of a ceiling.
    pub fn is_within(&self, ceiling: &[Self]) -> bool {
        let around = ceiling.iter().filter(|rule| rule.destination.holds(&self.destination));
        let open = around.flat_map(Self::spans).collect();
        let open = merged(open);
        self.spans().all(|(first, last)| open.iter().any(|(from, to)| *from <= first && last <= *to))
    }

    /// The ports, all of them written out.
    fn spans(&self) -> impl Iterator<Item = (u16, u16)> + use<'_> {
        let all = self.ports.is_empty().then_some((1, u16::MAX));
        self.ports.iter().copied().chain(all)
    }
}

/// The first of a job's rules that goes beyond a node's. A node that names no rules allows every name at every port, and no
/// address.
pub fn beyond<'a>(rules: &'a [EgressRule], ceiling: &[EgressRule]) -> Option<&'a EgressRule> {
    rules.iter().find(|rule| match &rule.destination {
        Destination::Name(_) | Destination::Below(_) | Destination::AnyName if ceiling.is_empty() => false,
        Destination::Name(_) | Destination::Below(_) | Destination::AnyName | Destination::Network(_) => {
            !rule.is_within(ceiling)
        }
    })
}

impl Destination {
    /// Whether everything of `other` is in this one.
    fn holds(&self, other: &Self) -> bool {
        let below = |above: &str, name: &str| {
            name.strip_suffix(above)
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|rest| !rest.is_empty())
        };
        match (self, other) {
            (Self::Name(one), Self::Name(other)) => one == other,
            (Self::Below(above), Self::Name(name)) => below(above, name),
            (Self::Below(above), Self::Below(name)) => above == name || below(above, name),
            (Self::AnyName, Self::Name(_) | Self::Below(_) | Self::AnyName) => true,
            (Self::Network(network), Self::Network(other)) => network.contains(other),
            (Self::Name(_), Self::Below(_) | Self::AnyName | Self::Network(_))
            | (Self::Below(_), Self::AnyName | Self::Network(_))
            | (Self::AnyName, Self::Network(_))
            | (Self::Network(_), Self::Name(_) | Self::Below(_) | Self::AnyName) => false,
        }
    }
}

/// Ranges sorted and joined where they touch.
fn merged(mut spans: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    spans.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::new();
    for (first, last) in spans {
        match joined.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            Some(_) | None => joined.push((first, last)),
        }
    }
    joined
}

impl FromStr for EgressRule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).map_err(|problem| Error { text: text.to_owned(), problem })
    }
}

fn parse(text: &str) -> Result<EgressRule, String> {
    if text.len() > MAX_LENGTH {
        return Err(format!("it is longer than {MAX_LENGTH} characters"));
    }
    if text.contains("://") {
        return Err("write `host:port` without a scheme and a path".to_owned());
    }
    let (destination, ports) = split(text)?;
    let destination = match read_network(destination)? {
        Some(network) => Destination::Network(network),
        None => read_name(destination)?,
    };
    let ports = match (ports, &destination) {
        (Some(ports), _) => merged(read_ports(ports)?),
        (None, Destination::Network(_)) => Vec::new(),
        (None, Destination::Name(_) | Destination::Below(_) | Destination::AnyName) => {
            return Err("a name needs a port: write `example.com:443`".to_owned());
        }
    };
    Ok(EgressRule { destination, ports })
}

/// The part before the port, without brackets, and the ports.
fn split(text: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, rest) = rest.split_once(']').ok_or("the bracket is not closed")?;
        if !inside.contains(':') {
            return Err("brackets are for IPv6 addresses".to_owned());
        }
        return match rest.strip_prefix(':') {
            Some(ports) => Ok((inside, Some(ports))),
            None if rest.is_empty() => Ok((inside, None)),
            None => Err("after the bracket comes `:` and a port".to_owned()),
        };
    }
    match text.split_once(':') {
        // An IPv6 network without ports.
        Some((_, rest)) if rest.contains(':') => Ok((text, None)),
        Some((destination, ports)) => Ok((destination, Some(ports))),
        None => Ok((text, None)),
    }
}

fn read_network(text: &str) -> Result<Option<IpNet>, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Some(address.into()));
    }
    if !text.contains('/') && !text.contains(':') {
        return Ok(None);
    }
    let network: IpNet = text.parse().map_err(|_| {
        "a network is written as `10.1.0.0/16`, with ports as `10.1.0.0/16:5432` or `[2001:db8::/32]:443`"
            .to_owned()
    })?;
    if network != network.trunc() {
        return Err(format!("the network has bits beyond its length; write `{}`", network.trunc()));
    }
    Ok(Some(network))
}

fn read_name(text: &str) -> Result<Destination, String> {
    if text == "*" {
        return Ok(Destination::AnyName);
    }
    let (below, name) = match text.strip_prefix("*.") {
        Some(name) => (true, name),
        None => (false, text),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        return Err("there is no host: write `example.com:443`".to_owned());
    }
    if name.contains('*') {
        return Err("`*` stands for whole names in front: write `*.example.com:443`, or `*:443`".to_owned());
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(
            "a name has letters, digits, `-`, `_` and `.`; write others in their `xn--` form".to_owned()
        );
    }
    if name.len() > MAX_NAME || name.split('.').any(|label| label.is_empty() || label.len() > MAX_LABEL) {
        return Err(format!(
            "a name has at most {MAX_NAME} characters, and 1 to {MAX_LABEL} between its dots"
        ));
    }
    let last = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let is_hex = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if last.bytes().all(|byte| byte.is_ascii_digit()) || last.strip_prefix("0x").is_some_and(is_hex) {
        return Err("an address is written as four decimal numbers".to_owned());
    }
    let name = name.to_ascii_lowercase();
    Ok(if below { Destination::Below(name) } else { Destination::Name(name) })
}

fn read_ports(text: &str) -> Result<Vec<(u16, u16)>, String> {
    let problem = || "ports are numbers from 1 to 65535: `443`, `8000-8100` or `80,443`".to_owned();
    let port = |digits: &str| -> Result<u16, String> {
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let port = if plain { digits.parse().ok() } else { None };
        port.filter(|port| *port > 0).ok_or_else(problem)
    };
    let ports = text.split(',').map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (port(first)?, port(last)?);
        if first > last { Err(format!("the range {first}-{last} is empty")) } else { Ok((first, last)) }
    });
    let ports: Vec<_> = ports.collect::<Result<_, String>>()?;
    if ports.len() > MAX_PORTS {
        return Err(format!("it has {} ports and ranges, at most {MAX_PORTS} are accepted", ports.len()));
    }
    Ok(ports)
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_ports = !self.ports.is_empty();
        match &self.destination {
            Destination::Name(name) => f.write_str(name)?,
            Destination::Below(name) => write!(f, "*.{name}")?,
            Destination::AnyName => f.write_str("*")?,
            Destination::Network(network) => {
                let single = network.prefix_len() == network.max_prefix_len();
                let text = if single { network.addr().to_string() } else { network.to_string() };
                match network {
                    IpNet::V6(_) if has_ports => write!(f, "[{text}]")?,
                    IpNet::V4(_) | IpNet::V6(_) => f.write_str(&text)?,
                }
            }
        }
        for (index, (first, last)) in self.ports.iter().enumerate() {
            f.write_str(if index == 0 { ":" } else { "," })?;
            if first == last { write!(f, "{first}")? } else { write!(f, "{first}-{last}")? }
        }
        Ok(())
    }
}

impl Serialize for EgressRule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EgressRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for EgressRule {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "EgressRule".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Whom and at which ports: `example.com:443`, `*.example.com:80,443`, `*:443`, \
                `10.1.0.0/16:5432`, `[2001:db8::/32]:8000-8100`.",
            "type": "string",
            "format": "egress",
            "minLength": 1,
            "maxLength": MAX_LENGTH,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(texts: &[&str]) -> Vec<EgressRule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn rules_are_read_and_written_in_one_form() {
        for (text, expected) in [
            ("example.com:443", "example.com:443"),
            ("EXAMPLE.com.:443", "example.com:443"),
            ("*.Example.com:443,80", "*.example.com:80,443"),
            ("*:443", "*:443"),
            ("localhost:8000-8100,8101,9000", "localhost:8000-8101,9000"),
            ("10.1.0.0/16", "10.1.0.0/16"),
            ("10.1.0.0/16:5432", "10.1.0.0/16:5432"),
            ("1.2.3.4:80", "1.2.3.4:80"),
            ("1.2.3.4/32", "1.2.3.4"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("[2001:DB8::/32]:443", "[2001:db8::/32]:443"),
            ("[::1]:80", "[::1]:80"),
            ("::1", "::1"),
            ("xn--bcher-kva.example:443", "xn--bcher-kva.example:443"),
        ] {
            let rule: EgressRule = text.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(rule.to_string(), expected);
            assert_eq!(expected.parse::<EgressRule>().as_ref(), Ok(&rule));
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_the_fix() {
        let long = "a".repeat(64) + ".com:443";
        for (text, expected) in [
            ("example.com", "a name needs a port"),
            ("", "there is no host"),
            (":443", "there is no host"),
            ("*.:443", "there is no host"),
            ("https://example.com:443", "without a scheme"),
            ("example.com:https", "ports are numbers"),
            ("example.com:0", "ports are numbers"),
            ("example.com:65536", "ports are numbers"),
            ("example.com:+1", "ports are numbers"),
            ("example.com:90-80", "the range 90-80 is empty"),
            ("example.com:80,", "ports are numbers"),
            ("*example.com:443", "`*` stands for whole names"),
            ("a.*.example.com:443", "`*` stands for whole names"),
            ("bücher.example:443", "`xn--` form"),
            ("user@example.com:443", "a name has letters"),
            ("a..b:443", "between its dots"),
            (long.as_str(), "between its dots"),
            ("127.1:80", "four decimal numbers"),
            ("0x7f.1:80", "four decimal numbers"),
            ("2130706433:80", "four decimal numbers"),
            ("10.1.2.3/16", "write `10.1.0.0/16`"),
            ("10.0.0.0/33", "a network is written"),
            ("10.0/8", "a network is written"),
            ("[::1:80", "the bracket is not closed"),
            ("[::1]80", "after the bracket"),
            ("[1.2.3.4]:80", "brackets are for IPv6"),
            ("fe80::1%eth0", "a network is written"),
        ] {
            let error = text.parse::<EgressRule>().unwrap_err();
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_ceiling_holds_what_it_allows_and_no_more() {
        let within =
            |rule: &str, ceiling: &[&str]| rule.parse::<EgressRule>().unwrap().is_within(&rules(ceiling));
        for (rule, ceiling, expected) in [
            ("a.example:443", &["a.example:443"][..], true),
            ("a.example:443", &["a.example:80"], false),
            ("a.example:80,443", &["a.example:80", "*.example:443"], true),
            ("a.example:80-443", &["a.example:80-200", "a.example:201-500"], true),
            ("a.example:80-443", &["a.example:80-200", "a.example:202-500"], false),
            ("example:443", &["*.example:443"], false),
            ("*.example:443", &["*.example:443"], true),
            ("*.a.example:443", &["*.example:443"], true),
            ("*.example:443", &["a.example:443"], false),
            ("*.example:443", &["*:443"], true),
            ("*:443", &["*.example:443"], false),
            ("1.2.3.4:443", &["*:443"], false),
            ("1.2.3.4:443", &["1.2.3.0/24"], true),
            ("1.2.3.0/24", &["1.2.3.0/24:443"], false),
            ("1.2.0.0/16:443", &["1.2.3.0/24"], false),
            ("a.example:443", &["0.0.0.0/0"], false),
            ("a.example:443", &[], false),
        ] {
            assert_eq!(within(rule, ceiling), expected, "{rule} in {ceiling:?}");
        }
    }

    #[test]
    fn a_node_that_names_no_rules_allows_names_and_no_addresses() {
        assert_eq!(beyond(&rules(&["a.example:443", "*:1-65535"]), &[]), None);
        let asked = rules(&["a.example:443", "1.2.3.4"]);
        assert_eq!(beyond(&asked, &[]).map(ToString::to_string).as_deref(), Some("1.2.3.4"));
        assert_eq!(
            beyond(&asked, &rules(&["1.2.3.4"])).map(ToString::to_string).as_deref(),
            Some("a.example:443")
        );
    }

    proptest! {
        #[test]
        fn what_is_read_is_read_the_same_when_it_is_written_again(text in "[a-zA-Z0-9.*:/,\\[\\]-]{0,30}") {
            if let Ok(rule) = text.parse::<EgressRule>() {
                prop_assert_eq!(rule.to_string().parse::<EgressRule>(), Ok(rule.clone()));
                prop_assert!(rule.is_within(std::slice::from_ref(&rule)));
            }
        }
    }
}
