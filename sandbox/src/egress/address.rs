//! Addresses that are not simply somebody on the internet.

use std::net::IpAddr;
use std::sync::LazyLock;

use ipnet::IpNet;

/// A network of special meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Special {
    /// The network.
    pub network: IpNet,
    /// What it is, for people.
    pub what: &'static str,
}

const METADATA: &str = "a cloud's metadata service";

/// Special networks, from the IANA registries of special-purpose addresses and the documentation of the clouds.
const NETWORKS: &[(&str, &str)] = &[
    ("0.0.0.0/8", "no address of a host"),
    ("10.0.0.0/8", "a private network"),
    ("100.64.0.0/10", "a provider's shared network"),
    ("100.100.100.200/32", METADATA),
    ("127.0.0.0/8", "the host itself"),
    ("168.63.129.16/32", METADATA),
    ("169.254.0.0/16", "a link-local network"),
    ("169.254.169.254/32", METADATA),
    ("169.254.170.2/32", METADATA),
    ("169.254.170.23/32", METADATA),
    ("172.16.0.0/12", "a private network"),
    ("192.0.0.0/24", "set aside for protocols"),
    ("192.0.0.192/32", METADATA),
    ("192.0.2.0/24", "set aside for documentation"),
    ("192.88.99.0/24", "a relay from IPv6 to IPv4"),
    ("192.168.0.0/16", "a private network"),
    ("198.18.0.0/15", "set aside for benchmarks"),
    ("198.51.100.0/24", "set aside for documentation"),
    ("203.0.113.0/24", "set aside for documentation"),
    ("224.0.0.0/4", "a multicast address"),
    ("240.0.0.0/4", "reserved"),
    ("255.255.255.255/32", "the broadcast address"),
    ("::/96", "an IPv4-compatible address"),
    ("::/128", "no address of a host"),
    ("::1/128", "the host itself"),
    ("::ffff:0:0/96", "an IPv4-mapped address"),
    ("::ffff:0:0:0/96", "an IPv4-translated address"),
    ("64:ff9b::/96", "a translation to IPv4"),
    ("64:ff9b:1::/48", "a translation to IPv4"),
    ("100::/64", "set aside to discard traffic"),
    ("2001::/23", "set aside for protocols"),
    ("2001::/32", "a tunnel over IPv4"),
    ("2001:db8::/32", "set aside for documentation"),
    ("2002::/16", "a tunnel over IPv4"),
    ("3fff::/20", "set aside for documentation"),
    ("5f00::/16", "set aside for segment routing"),
    ("fc00::/7", "a private network"),
    ("fd00:ec2::254/128", METADATA),
    ("fd00:ec2::23/128", METADATA),
    ("fd20:ce::254/128", METADATA),
    ("fe80::/10", "a link-local network"),
    ("fec0::/10", "a site-local network"),
    ("ff00::/8", "a multicast address"),
];

static SPECIAL: LazyLock<Vec<Special>> = LazyLock::new(|| {
    let parse = |(network, what): &(&str, &'static str)| Special {
        network: network.parse().expect("the table has networks, as the tests prove"),
        what,
    };
    NETWORKS.iter().map(parse).collect()
});

/// The narrowest special network that holds an address; `None` for an address like any other.
#[must_use]
pub fn special(address: IpAddr) -> Option<Special> {
    narrowest(|special| special.contains(&address))
}

/// The narrowest special network that holds a whole network.
pub(super) fn special_around(network: &IpNet) -> Option<Special> {
    narrowest(|special| special.contains(network))
}

fn narrowest(holds: impl Fn(&IpNet) -> bool) -> Option<Special> {
    let holding = SPECIAL.iter().filter(|special| holds(&special.network));
    holding.max_by_key(|special| special.network.prefix_len()).copied()
}

/// A network of one address.
pub(super) fn single(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_true_networks_and_none_twice() {
        let mut seen = std::collections::BTreeSet::new();
        for Special { network, what } in &*SPECIAL {
            assert_eq!(*network, network.trunc(), "{network}");
            assert!(!what.is_empty() && seen.insert(*network), "{network}");
        }
    }

    #[test]
    fn special_addresses_are_known_and_others_are_not() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.1.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.255.255",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2002:808:808::1",
            "2001:0:1::1",
            "fd00::1",
            "fc00::1",
            "fe80::1",
            "ff02::1",
            "fec0::1",
        ] {
            assert!(special(address.parse().unwrap()).is_some(), "{address}");
        }
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00::1",
            "2001:4860:4860::8888",
        ] {
            assert_eq!(special(address.parse().unwrap()), None, "{address}");
        }
    }

    #[test]
    fn metadata_services_are_a_network_of_their_own_each() {
        for address in ["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"] {
            let found = special(address.parse().unwrap()).unwrap();
            assert_eq!((found.what, found.network), (METADATA, single(address.parse().unwrap())));
        }
    }
}
