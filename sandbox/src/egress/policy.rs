//! What may be reached: rules, and the judgement of a host and of an address. Pure.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::address::{self, Special};
use super::host::{BadHost, Host};

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A name, in lower case and without a final dot.
    Name(String),
    /// Every name below this one, but not itself.
    Below(String),
    /// Every name.
    AnyName,
    /// Every address of a network. It opens addresses of a special network only if it lies within that network, so that
    /// `0.0.0.0/0` opens the internet and nothing else.
    Network(IpNet),
}

/// Allows to reach something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Whom.
    pub target: Target,
    /// At which ports; none for all.
    pub ports: Vec<RangeInclusive<u16>>,
    /// The rule as it was written, for records.
    pub text: String,
}

/// What one sandbox may reach. Without a rule, nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// The rules: each allows something, none forbids.
    pub rules: Vec<Rule>,
    /// Addresses that, like the host's own, are reached only by a rule that names exactly that address.
    pub guarded: Vec<IpAddr>,
}

/// Why something may not be reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Denial {
    /// No rule allows it.
    #[error("no rule allows it")]
    NoRule,
    /// The name may be reached, but not where it leads.
    #[error("{address} is {what}, which must be named by its address")]
    Special {
        /// Where it leads.
        address: IpAddr,
        /// What that is.
        what: &'static str,
    },
    /// It leads to the host itself or to who controls it.
    #[error("{address} belongs to this host or its controller, which must be named by its address")]
    Guarded {
        /// Where it leads.
        address: IpAddr,
    },
    /// Host or port are not written as they must be.
    #[error("{0}")]
    Malformed(#[from] BadHost),
    /// The request contradicts itself or the protocol.
    #[error("{0}")]
    Protocol(&'static str),
    /// The server of the host was asked for what it does not do for sandboxes.
    #[error("{request} is not among what steps may ask of it")]
    NotOffered {
        /// Method and path.
        request: String,
    },
    /// The sandbox had a server of the host, and has it no more.
    #[error("the server of the host was withdrawn while the step ran")]
    Withdrawn,
    /// The sandbox has used up what it may transfer.
    #[error("the step has transferred as many bytes as it may")]
    Transfer,
}

impl Rule {
    fn has_port(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|ports| ports.contains(&port))
    }

    fn allows_name(&self, name: &str, port: u16) -> bool {
        self.has_port(port)
            && match &self.target {
                Target::Name(allowed) => allowed == name,
                Target::Below(above) => name
                    .strip_suffix(above.as_str())
                    .and_then(|rest| rest.strip_suffix('.'))
                    .is_some_and(|rest| !rest.is_empty()),
                Target::AnyName => true,
                Target::Network(_) => false,
            }
    }

    /// Whether it opens an address that lies in this special network, if it lies in one.
    fn opens(&self, address: IpAddr, special: Option<&IpNet>, port: u16) -> bool {
        let Target::Network(network) = &self.target else { return false };
        self.has_port(port)
            && network.contains(&address)
            && special.is_none_or(|special| special.contains(network))
    }
}

impl Policy {
    /// The rule by which a host may be asked for at a port, before anything is looked up.
    ///
    /// # Errors
    /// [`Denial::NoRule`], and for an address why it cannot be reached.
    pub fn admit(&self, host: &Host, port: u16, is_own: impl Fn(IpAddr) -> bool) -> Result<&Rule, Denial> {
        match host {
            Host::Name(name) => {
                self.rules.iter().find(|rule| rule.allows_name(name, port)).ok_or(Denial::NoRule)
            }
            Host::Address(address) => self.opening(*address, port, is_own),
        }
    }

    /// Whether the address that an admitted name leads to may be connected to.
    ///
    /// # Errors
    /// [`Denial::Special`], [`Denial::Guarded`].
    pub fn check(&self, address: IpAddr, port: u16, is_own: impl Fn(IpAddr) -> bool) -> Result<(), Denial> {
        match self.opening(address, port, is_own) {
            Ok(_) | Err(Denial::NoRule) => Ok(()),
            Err(denial) => Err(denial),
        }
    }

    /// The rule that opens an address; [`Denial::NoRule`] for an address like any other without one.
    fn opening(&self, address: IpAddr, port: u16, is_own: impl Fn(IpAddr) -> bool) -> Result<&Rule, Denial> {
        let special = address::special(address);
        // Loopback is special as a whole; any part of it may be opened together.
        let guarded = !address.is_loopback() && (self.guarded.contains(&address) || is_own(address));
        let around =
            if guarded { Some(address::single(address)) } else { special.map(|special| special.network) };
        let found = self.rules.iter().find(|rule| rule.opens(address, around.as_ref(), port));
        found.ok_or(match special {
            _ if guarded => Denial::Guarded { address },
            Some(Special { what, .. }) => Denial::Special { address, what },
            None => Denial::NoRule,
        })
    }
}

impl Denial {
    /// The rule that would have allowed it, where one would.
    #[must_use]
    pub fn remedy(&self, host: &Host, port: u16) -> Option<String> {
        match self {
            Self::NoRule => Some(host.rule(port)),
            Self::Special { address, .. } | Self::Guarded { address } => {
                Some(Host::Address(*address).rule(port))
            }
            Self::Malformed(_)
            | Self::Protocol(_)
            | Self::NotOffered { .. }
            | Self::Withdrawn
            | Self::Transfer => None,
        }
    }
}

/// Whether a network rule would open a special network that no rule of the ceiling opens: `10.0.0.0/8` under a ceiling of
/// `0.0.0.0/0`. Gives what it would open. That the ceiling contains the rule at all is for the caller to see to.
#[must_use]
pub fn widens(network: &IpNet, ceiling: &[IpNet]) -> Option<Special> {
    let special = address::special_around(network)?;
    let opened = ceiling.iter().any(|open| open.contains(network) && special.network.contains(open));
    (!opened).then_some(special)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A rule by its text: `a.example at 80,443`.
    pub(in super::super) fn rule(text: &str) -> Rule {
        let (target, ports) = text.rsplit_once(" at ").unwrap_or((text, ""));
        let ports = ports.split(',').filter(|part| !part.is_empty()).map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            first.parse().unwrap()..=last.parse().unwrap()
        });
        let network = || target.parse::<IpNet>().or_else(|_| target.parse::<IpAddr>().map(IpNet::from));
        let kind = match (target, target.strip_prefix("*."), network()) {
            ("*", ..) => Target::AnyName,
            (_, Some(above), _) => Target::Below(above.to_owned()),
            (_, _, Ok(network)) => Target::Network(network),
            (name, ..) => Target::Name(name.to_owned()),
        };
        Rule { target: kind, ports: ports.collect(), text: text.to_owned() }
    }

    fn policy(rules: &[&str]) -> Policy {
        Policy { rules: rules.iter().map(|text| rule(text)).collect(), guarded: Vec::new() }
    }

    fn admitted(rules: &[&str], host: &str, port: u16) -> bool {
        policy(rules).admit(&Host::parse(host).unwrap(), port, |_| false).is_ok()
    }

    #[test]
    fn names_are_admitted_by_their_rules_alone() {
        for (rules, host, port, expected) in [
            (&["example.com at 443"][..], "example.com", 443, true),
            (&["example.com at 443"], "EXAMPLE.com.", 443, true),
            (&["example.com at 443"], "example.com", 80, false),
            (&["example.com at 443"], "www.example.com", 443, false),
            (&["example.com at 443"], "example.com.evil.org", 443, false),
            (&["example.com at 443"], "notexample.com", 443, false),
            (&["*.example.com at 443"], "www.example.com", 443, true),
            (&["*.example.com at 443"], "a.b.example.com", 443, true),
            (&["*.example.com at 443"], "example.com", 443, false),
            (&["*.example.com at 443"], "badexample.com", 443, false),
            (&["example.com at 8000-8010,443"], "example.com", 8010, true),
            (&["example.com at 8000-8010,443"], "example.com", 8011, false),
            (&["* at 443"], "anything.at.all", 443, true),
            (&["* at 443"], "1.1.1.1", 443, false),
            (&["0.0.0.0/0", "::/0"], "example.com", 443, false),
            (&[], "example.com", 443, false),
        ] {
            assert_eq!(admitted(rules, host, port), expected, "{rules:?} {host}:{port}");
        }
    }

    #[test]
    fn a_network_opens_special_addresses_only_from_within() {
        for (rule, address, expected) in [
            ("0.0.0.0/0", "1.1.1.1", true),
            ("0.0.0.0/0", "10.0.0.1", false),
            ("0.0.0.0/0", "127.0.0.1", false),
            ("0.0.0.0/0", "169.254.169.254", false),
            ("8.0.0.0/5", "10.0.0.1", false),
            ("10.0.0.0/8", "10.0.0.1", true),
            ("10.1.0.0/16", "10.0.0.1", false),
            ("127.0.0.1/32", "127.0.0.1", true),
            ("169.254.0.0/16", "169.254.7.7", true),
            ("169.254.0.0/16", "169.254.169.254", false),
            ("169.254.169.254", "169.254.169.254", true),
            ("::/0", "2606:4700::1111", true),
            ("::/0", "::1", false),
            ("::/0", "::ffff:8.8.8.8", false),
            ("0.0.0.0/0", "::ffff:8.8.8.8", false),
            ("8.8.8.8", "::ffff:8.8.8.8", false),
            ("::ffff:8.8.8.8", "::ffff:8.8.8.8", true),
            ("fd00::/8", "fd00::1", true),
            ("fd00::/8", "fd00:ec2::254", false),
        ] {
            assert_eq!(admitted(&[rule], address, 443), expected, "{rule} {address}");
        }
    }

    #[test]
    fn what_an_allowed_name_leads_to_must_be_public_or_named_by_its_address() {
        let check =
            |rules: &[&str], address: &str| policy(rules).check(address.parse().unwrap(), 443, |_| false);
        assert_eq!(check(&["db.example at 443"], "93.184.216.34"), Ok(()));
        let denial = check(&["db.example at 443"], "10.1.2.3").unwrap_err();
        assert_eq!(denial.to_string(), "10.1.2.3 is a private network, which must be named by its address");
        let host = Host::parse("db.example").unwrap();
        assert_eq!(denial.remedy(&host, 443).as_deref(), Some("10.1.2.3:443"));
        assert_eq!(check(&["db.example at 443", "10.1.2.0/24 at 443"], "10.1.2.3"), Ok(()));
        assert!(check(&["db.example at 443", "10.1.2.0/24 at 5432"], "10.1.2.3").is_err());
    }

    #[test]
    fn the_hosts_own_and_guarded_addresses_are_named_one_by_one_or_not_reached() {
        let own: IpAddr = "192.168.1.5".parse().unwrap();
        let public: IpAddr = "93.184.216.34".parse().unwrap();
        let check = |rules: &[&str], address: IpAddr| {
            let mut policy = policy(rules);
            policy.guarded.push(public);
            policy.check(address, 443, |address| address == own)
        };
        assert_eq!(check(&["* at 443"], public), Err(Denial::Guarded { address: public }));
        assert_eq!(check(&["* at 443", "0.0.0.0/0"], public), Err(Denial::Guarded { address: public }));
        assert_eq!(check(&["* at 443", "93.184.216.34"], public), Ok(()));
        assert_eq!(check(&["* at 443", "192.168.0.0/16"], own), Err(Denial::Guarded { address: own }));
        assert_eq!(check(&["* at 443", "192.168.1.5"], own), Ok(()));
    }

    #[test]
    fn a_ceiling_that_is_wide_open_opens_no_special_network() {
        let widens = |network: &str, ceiling: &[&str]| {
            let ceiling: Vec<IpNet> = ceiling.iter().map(|net| net.parse().unwrap()).collect();
            super::widens(&network.parse().unwrap(), &ceiling).map(|special| special.network.to_string())
        };
        assert_eq!(widens("10.0.0.0/8", &["0.0.0.0/0"]).as_deref(), Some("10.0.0.0/8"));
        assert_eq!(widens("10.1.0.0/16", &["10.0.0.0/8"]), None);
        assert_eq!(widens("169.254.169.254/32", &["169.254.0.0/16"]).as_deref(), Some("169.254.169.254/32"));
        assert_eq!(widens("1.1.1.0/24", &["0.0.0.0/0"]), None);
    }

    proptest! {
        /// Whatever the rules, an address that no network rule holds is not admitted, and a special one only by a rule
        /// within the same special network.
        #[test]
        fn no_rule_opens_more_than_its_network(
            octets in any::<[u8; 4]>(), base in any::<[u8; 4]>(), prefix in 0u8..=32, port in 1u16..,
        ) {
            let address = IpAddr::from(octets);
            let network = IpNet::new(base.into(), prefix).unwrap().trunc();
            let text = network.to_string();
            let policy = policy(&[&text, "* at 1-65535"]);
            let admitted = policy.admit(&Host::Address(address), port, |_| false).is_ok();
            let special = address::special(address);
            let expected = network.contains(&address)
                && special.is_none_or(|special| special.network.contains(&network));
            prop_assert_eq!(admitted, expected);
            prop_assert_eq!(policy.check(address, port, |_| false).is_ok(), special.is_none() || expected);
        }

        /// A wildcard admits exactly what has at least one more part in front.
        #[test]
        fn wildcards_admit_only_what_is_below(
            labels in proptest::collection::vec("[a-z][a-z0-9-]{0,5}", 1..4), above in "[a-z]{1,4}\\.[a-z]{2,3}",
        ) {
            let wildcard = format!("*.{above}");
            let below = format!("{}.{above}", labels.join("."));
            prop_assert!(admitted(&[&wildcard], &below, 443));
            prop_assert!(!admitted(&[&wildcard], &above, 443));
            let glued = format!("{}{above}", labels.join("."));
            prop_assert_eq!(admitted(&[&wildcard], &glued, 443), glued.ends_with(&format!(".{above}")));
            let behind = format!("{below}.evil");
            prop_assert!(!admitted(&[&wildcard], &behind, 443));
        }

        /// What is read as a host is read the same when it is written again.
        #[test]
        fn hosts_survive_the_round_trip(text in "[a-zA-Z0-9._:\\[\\]%@-]{0,40}") {
            if let Ok((host, port)) = Host::with_port(&text, Some(80)) {
                prop_assert_eq!(Host::with_port(&host.rule(port), None), Ok((host, port)));
            }
        }
    }
}
