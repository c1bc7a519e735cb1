//! The policy in the JSON that container engines take: names instead of numbers, for their own compiler, which is libseccomp.
//!
//! That one takes an unconditional rule over all conditions, and one comparison of an argument in a rule. So what a
//! [`Conditional`](super::Conditional) refuses is written the other way round: as the arguments that are allowed. Other arguments get what
//! unknown calls get, ENOSYS instead of EPERM; that is the one difference to a native unit.

use serde_json::{Value, json};

use super::{ALLOW, CONDITIONAL, CREATING, Call, DENY, Group, REFUSE, SET_ID, TYPE_MASK};

/// An argument, the bits of it that are looked at, and what they must be.
type Masked = (u8, u32, u32);

/// All bits that the kernel looks at in the calls concerned.
const WHOLE: u32 = u32::MAX;

/// The policy as a seccomp profile of Podman and Docker.
#[must_use]
pub fn oci_profile() -> String {
    let depends = |call: &&Call| CONDITIONAL.iter().any(|conditional| conditional.call == call.number);
    let calls = |groups: &'static [Group]| groups.iter().flat_map(|group| group.calls);
    let always: Vec<_> = calls(ALLOW).filter(|call| !depends(call)).map(Call::name).collect();
    let refused: Vec<_> = calls(REFUSE).map(Call::name).collect();
    let killed: Vec<_> = DENY.iter().map(|denied| denied.name).collect();
    let mut rules = vec![
        json!({"names": always, "action": "SCMP_ACT_ALLOW"}),
        json!({"names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM}),
        json!({"names": killed, "action": "SCMP_ACT_KILL_PROCESS"}),
    ];
    for call in calls(ALLOW).filter(depends) {
        rules.extend(permitted(call.number).into_iter().map(|comparisons| {
            let args: Vec<Value> = comparisons.into_iter().map(argument).collect();
            json!({"names": [call.name()], "action": "SCMP_ACT_ALLOW", "args": args})
        }));
    }
    let profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::ENOSYS,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": rules,
    });
    profile.to_string()
}

fn argument((index, mask, value): Masked) -> Value {
    json!({"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"})
}

/// The arguments with which a conditional call is allowed: all comparisons of one entry hold. A test holds this against
/// [`CONDITIONAL`]. A call that is not known here is not allowed at all.
fn permitted(call: libc::c_long) -> Vec<Vec<Masked>> {
    let set_id = SET_ID[0] | SET_ID[1];
    let creating = CREATING[0] | CREATING[1];
    match call {
        libc::SYS_clone => {
            let namespaces = [
                libc::CLONE_NEWUSER,
                libc::CLONE_NEWNS,
                libc::CLONE_NEWPID,
                libc::CLONE_NEWNET,
                libc::CLONE_NEWIPC,
                libc::CLONE_NEWUTS,
                libc::CLONE_NEWCGROUP,
            ];
            let mask = namespaces.into_iter().fold(0, |mask, flag| mask | flag.unsigned_abs());
            vec![vec![(0, mask, 0)]]
        }
        libc::SYS_socket => sockets(),
        libc::SYS_ioctl => neither(1, libc::TIOCSTI as u32, libc::TIOCLINUX as u32),
        libc::SYS_sched_setscheduler => vec![vec![(1, libc::SCHED_RESET_ON_FORK.unsigned_abs(), 0)]],
        libc::SYS_personality => vec![vec![(0, WHOLE, 0)], vec![(0, WHOLE, 0xffff_ffff)]],
        libc::SYS_chmod | libc::SYS_fchmod | libc::SYS_mknod | libc::SYS_creat => {
            vec![vec![(1, set_id, 0)]]
        }
        libc::SYS_fchmodat | libc::SYS_fchmodat2 | libc::SYS_mknodat => vec![vec![(2, set_id, 0)]],
        libc::SYS_open => vec![vec![(1, creating, 0)], vec![(2, set_id, 0)]],
        libc::SYS_openat => vec![vec![(2, creating, 0)], vec![(3, set_id, 0)]],
        _ => Vec::new(),
    }
}

/// Local and internet sockets of every type but raw ones, and those of routes.
fn sockets() -> Vec<Vec<Masked>> {
    // The types that there are, but for SOCK_PACKET.
    let types = 1..=6u32;
    let raw = libc::SOCK_RAW as u32;
    let of = |family: u32, of_type: u32| vec![(0, WHOLE, family), (1, TYPE_MASK, of_type)];
    let mut rules = Vec::new();
    for of_type in types {
        rules.push(of(super::AF_UNIX, of_type));
        if of_type != raw {
            rules.extend([super::AF_INET, super::AF_INET6].map(|family| of(family, of_type)));
        }
        let mut route = of(super::AF_NETLINK, of_type);
        route.push((2, WHOLE, libc::NETLINK_ROUTE as u32));
        rules.push(route);
    }
    rules
}

/// Every value of an argument but two: one that differs from both in a bit that they share, or in those that they do not.
fn neither(index: u8, one: u32, other: u32) -> Vec<Vec<Masked>> {
    let differ = one ^ other;
    let shared = (0..u32::BITS).map(|bit| 1 << bit).filter(|bit| differ & bit == 0);
    let mut rules: Vec<Vec<Masked>> = shared.map(|bit| vec![(index, bit, !one & bit)]).collect();
    // All values of the bits in which they differ, from the mask down.
    let mut value = differ;
    loop {
        if value != one & differ && value != other & differ {
            rules.push(vec![(index, differ, value)]);
        }
        if value == 0 {
            return rules;
        }
        value = (value - 1) & differ;
    }
}

#[cfg(test)]
mod tests {
    use super::super::Op;
    use super::*;

    /// Arguments around everything that a condition or a rule looks at.
    fn telling() -> Vec<u32> {
        let bits = (0..u32::BITS).map(|bit| 1 << bit);
        let near = [
            libc::TIOCSTI as u32,
            libc::TIOCLINUX as u32,
            0o644,
            0o4755,
            0o2755,
            libc::O_TMPFILE as u32,
            (libc::O_CREAT | libc::O_WRONLY) as u32,
            libc::AF_NETLINK as u32,
            libc::SOCK_RAW as u32 | libc::SOCK_CLOEXEC as u32,
            WHOLE,
        ];
        bits.chain(0..=16)
            .chain(near.into_iter().flat_map(|value| [value - 1, value, value.wrapping_add(1)]))
            .collect()
    }

    #[test]
    fn what_is_allowed_is_what_no_condition_refuses() {
        let values = telling();
        for conditional in CONDITIONAL {
            let (tests, rules) = ((conditional.tests)(), permitted(conditional.call));
            assert!(!rules.is_empty(), "system call {} has no rules", conditional.call);
            // No condition looks at more than the first four arguments.
            let used = tests.iter().flatten().map(|(index, _, _)| *index).max().unwrap_or(0);
            let mut arguments = [0u32; 4];
            let check = |arguments: [u32; 4]| {
                let at = |index: u8| arguments[usize::from(index)];
                let refused = tests.iter().any(|all| {
                    all.iter().all(|(index, op, value)| match op {
                        Op::Eq => at(*index) == *value,
                        Op::Ne => at(*index) != *value,
                        Op::MaskedEq(mask) => at(*index) & mask == *value,
                    })
                });
                let allowed = rules
                    .iter()
                    .any(|all| all.iter().all(|(index, mask, value)| at(*index) & mask == *value));
                // A type of socket that does not exist is no loss.
                let exists = conditional.call != libc::SYS_socket || (1..=6).contains(&(at(1) & TYPE_MASK));
                if exists || refused {
                    assert_eq!(allowed, !refused, "system call {} with {arguments:?}", conditional.call);
                }
            };
            for first in &values {
                for second in &values {
                    let last = usize::from(used);
                    arguments[last] = *first;
                    arguments[last.saturating_sub(1)] = *second;
                    check(arguments);
                    if last == 2 {
                        // Sockets look at three arguments.
                        for family in
                            [0, super::super::AF_UNIX, super::super::AF_INET, super::super::AF_NETLINK]
                        {
                            check([family, *second, *first, 0]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_rule_compares_an_argument_once_and_names_are_names() {
        let profile: Value = serde_json::from_str(&oci_profile()).unwrap();
        for rule in profile["syscalls"].as_array().unwrap() {
            for name in rule["names"].as_array().unwrap() {
                let name = name.as_str().unwrap();
                assert!(
                    name.bytes()
                        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
                );
            }
            let mut seen = std::collections::BTreeSet::new();
            for argument in rule["args"].as_array().into_iter().flatten() {
                assert!(seen.insert(argument["index"].as_u64()), "{rule}");
            }
        }
    }
}
