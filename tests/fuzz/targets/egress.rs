//! Rules for egress: what is accepted is shown and read again as the same, and lies within itself and within everything.

#![no_main]

use libfuzzer_sys::fuzz_target;
use windlass_crds::EgressRule;
use windlass_crds::egress::{Destination, beyond};

fuzz_target!(|input: (&str, &str)| {
    let Ok(rule) = input.0.parse::<EgressRule>() else { return };
    let shown = rule.to_string();
    assert_eq!(shown.parse::<EgressRule>().as_ref(), Ok(&rule), "{shown}");
    assert!(rule.is_within(std::slice::from_ref(&rule)), "{shown}");
    assert!(rule.ports().all(|ports| ports.start() <= ports.end() && *ports.start() > 0), "{shown}");
    let everything: Vec<EgressRule> = match rule.destination() {
        Destination::Network(_) => {
            ["0.0.0.0/0", "[::]/0", "[::/0]"].iter().filter_map(|all| all.parse().ok()).collect()
        }
        Destination::Name(_) | Destination::Below(_) | Destination::AnyName => {
            vec!["*:1-65535".parse().expect("it is a rule")]
        }
    };
    assert!(rule.is_within(&everything), "{shown}");
    let Ok(other) = input.1.parse::<EgressRule>() else { return };
    let ceiling = [other];
    assert_eq!(beyond(std::slice::from_ref(&rule), &ceiling).is_none(), rule.is_within(&ceiling), "{shown}");
});
