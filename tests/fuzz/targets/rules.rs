//! Hosts as clients write them, and rules that may allow them: what is read is read the same again, and a name is allowed
//! exactly if a rule's name says so.

#![no_main]

use libfuzzer_sys::fuzz_target;
use windlass_sandbox::egress::{Host, Policy, Rule, Target, special, widens};

/// The least that a rule has to be: spelled out with no thought of speed.
fn allows(target: &Target, name: &str) -> bool {
    match target {
        Target::Name(allowed) => allowed == name,
        Target::Below(parent) => name.len() > parent.len() && name.ends_with(&format!(".{parent}")),
        Target::AnyName => true,
        Target::Network(_) => false,
    }
}

fuzz_target!(|input: (&str, &str, u16, u16, u16)| {
    let (asked, allowed, port, first, last) = input;
    let Ok((host, _)) = Host::with_port(asked, Some(port.max(1))) else { return };
    let shown = host.to_string();
    assert_eq!(Host::with_port(&shown, Some(1)).as_ref().map(|(again, _)| again), Ok(&host), "{shown}");
    let mut targets = vec![Target::AnyName];
    match Host::parse(allowed) {
        Ok(Host::Name(name)) => targets.extend([Target::Name(name.clone()), Target::Below(name)]),
        Ok(Host::Address(address)) => targets.push(Target::Network(address.into())),
        Err(_) => targets.extend(allowed.parse().map(Target::Network)),
    }
    for target in targets {
        let rule = Rule { target: target.clone(), ports: vec![first..=last], text: String::new() };
        let policy = Policy { rules: vec![rule], guarded: Vec::new() };
        let admitted = policy.admit(&host, port, |_| false).is_ok();
        let in_ports = (first..=last).contains(&port);
        match &host {
            Host::Name(name) => {
                assert_eq!(admitted, in_ports && allows(&target, name), "{name} by {target:?}")
            }
            Host::Address(address) => {
                let within = matches!(&target, Target::Network(network) if network.contains(address));
                assert!(!admitted || in_ports && within, "{address} by {target:?}");
                let Target::Network(network) = &target else { continue };
                // An address of a special network is opened only by a network within it.
                if let Some(special) = special(*address) {
                    let alone = network.prefix_len() == network.max_prefix_len();
                    assert!(!admitted || alone || widens(network, &[]).is_some(), "{address}: {special:?}");
                }
            }
        }
    }
});
