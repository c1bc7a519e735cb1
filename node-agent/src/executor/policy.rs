//! The node's rules are the ceiling: what a job asks for beyond them is refused here, before anything of it runs, and
//! the refusal names the rule. The controller checks the same when it places a job; the node does not rely on that.

use std::path::{Path, PathBuf};

use windlass_crds::EgressRule;
use windlass_crds::egress::{self, Destination};
use windlass_crds::protocol::{Assignment, SandboxCapability, SandboxRules};
use windlass_crds::sandbox_job::{HostPath, Network};

/// A job asks for more than the node's rules allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused by the node's rule {rule}: {message}")]
pub(crate) struct Refusal {
    /// The rule, as the field of the configuration.
    pub(crate) rule: &'static str,
    /// What the job asks for and what is allowed.
    pub(crate) message: String,
}

/// What the file system says of a path: where it really is, without symbolic links.
pub(crate) type Resolve<'a> = &'a dyn Fn(&Path) -> std::io::Result<PathBuf>;

/// Checks a job against the node's rules and the host. Returns the host paths that it uses, resolved, in the order of
/// its inputs.
///
/// # Errors
/// The first rule that is broken.
pub(crate) fn check(
    assignment: &Assignment,
    rules: &SandboxRules,
    host: &SandboxCapability,
    resolve: Resolve<'_>,
) -> Result<Vec<PathBuf>, Refusal> {
    let sandbox = &assignment.spec.sandbox;
    let refuse = |rule, message: String| Err(Refusal { rule, message });

    let runtime: &str = (&sandbox.runtime).into();
    if !rules.runtimes.is_empty() && !rules.runtimes.contains(&sandbox.runtime) {
        let allowed = rules.runtimes.iter().map(std::convert::Into::into);
        return refuse("policy.sandbox.runtimes", asks_for("runtime", runtime, allowed));
    }
    if !host.runtimes.iter().any(|works| works == runtime) {
        let works = host.runtimes.iter().map(String::as_str);
        return refuse("capability.sandbox.runtimes", asks_for("runtime", runtime, works));
    }

    let network: &str = (&sandbox.network).into();
    // An open network must be permitted by name.
    let by_default = [Network::None, Network::Restricted];
    let allowed = if rules.networks.is_empty() { &by_default[..] } else { &rules.networks };
    if !allowed.contains(&sandbox.network) {
        let allowed = allowed.iter().map(std::convert::Into::into);
        return refuse("policy.sandbox.networks", asks_for("network", network, allowed));
    }
    if !host.networks.iter().any(|works| works == network) {
        let works = host.networks.iter().map(String::as_str);
        return refuse("capability.sandbox.networks", asks_for("network", network, works));
    }

    if sandbox.network == Network::Restricted {
        check_egress(&sandbox.egress, &rules.egress)?;
    }

    let (job, max) = (&sandbox.resources, &rules.max);
    let limits = [
        ("policy.sandbox.max.cpu_millis", job.cpu.map(windlass_crds::Cpu::millis), max.cpu_millis),
        ("policy.sandbox.max.memory_bytes", job.memory.map(windlass_crds::Bytes::get), max.memory_bytes),
        ("policy.sandbox.max.pids", job.pids.map(u64::from), max.pids.map(u64::from)),
        ("policy.sandbox.max.disk_bytes", job.disk.map(windlass_crds::Bytes::get), max.disk_bytes),
        ("policy.sandbox.max.cpu_weight", job.cpu_weight.map(u64::from), max.cpu_weight.map(u64::from)),
        ("policy.sandbox.max.io_read_bps", job.io_read.map(windlass_crds::Bytes::get), max.io_read_bps),
        ("policy.sandbox.max.io_write_bps", job.io_write.map(windlass_crds::Bytes::get), max.io_write_bps),
        ("policy.sandbox.max.files", job.files.map(u64::from), max.files.map(u64::from)),
    ];
    for (rule, asked, max) in limits {
        if let (Some(asked), Some(max)) = (asked, max)
            && asked > max
        {
            return refuse(rule, format!("the job asks for {asked}, the node allows {max}"));
        }
    }

    super::images::check(assignment, rules, resolve)?;
    super::service::check(assignment, rules, host)?;
    for step in super::steps(assignment) {
        super::guard::check(&step, rules)?;
    }

    let wanted = assignment.spec.workspace.inputs.iter().filter_map(|input| input.host_path.as_ref());
    wanted.map(|wanted| host_path(wanted, &rules.host_paths, resolve)).collect()
}

/// Checks that a job's rules for egress lie within the node's.
fn check_egress(asked: &[EgressRule], ceiling: &[EgressRule]) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal { rule: "policy.sandbox.egress", message });
    if let Some(rule) = egress::beyond(asked, ceiling) {
        let allowed: Vec<String> = ceiling.iter().map(ToString::to_string).collect();
        let allowed =
            if allowed.is_empty() { "every name and no address".to_owned() } else { allowed.join(", ") };
        return refuse(format!("the job asks for `{rule}`, the node allows {allowed}"));
    }
    let network = |rule: &EgressRule| match rule.destination() {
        Destination::Network(network) => Some(*network),
        Destination::Name(_) | Destination::Below(_) | Destination::AnyName => None,
    };
    let open: Vec<_> = ceiling.iter().filter_map(network).collect();
    for rule in asked {
        if let Some(special) =
            network(rule).and_then(|network| windlass_sandbox::egress::widens(&network, &open))
        {
            return refuse(format!(
                "the job asks for `{rule}`, which is {}; the node must allow it by a network within {}",
                special.what, special.network
            ));
        }
    }
    Ok(())
}

fn asks_for<'a>(what: &str, asked: &str, allowed: impl Iterator<Item = &'a str>) -> String {
    let allowed: Vec<&str> = allowed.collect();
    let allowed = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
    format!("the job asks for {what} `{asked}`, the node allows {allowed}")
}

/// Where a host path really is, if one of the allowed ones holds it, also behind symbolic links.
fn host_path(wanted: &HostPath, allowed: &[HostPath], resolve: Resolve<'_>) -> Result<PathBuf, Refusal> {
    const RULE: &str = "policy.sandbox.host_paths";
    let refusal = |message: String| Refusal { rule: RULE, message };
    let path = Path::new(&wanted.path);
    let escapes = path.components().any(|part| part == std::path::Component::ParentDir);
    if !path.is_absolute() || escapes {
        return Err(refusal(format!("host path `{}` must be absolute and without `..`", wanted.path)));
    }
    // Only then is the file system asked: a refusal must not tell whether other paths exist.
    let named: Vec<&HostPath> =
        allowed.iter().filter(|allowed| path.starts_with(Path::new(&allowed.path))).collect();
    let not_allowed = || refusal(format!("host path `{}` is not among the allowed ones", wanted.path));
    if named.is_empty() {
        return Err(not_allowed());
    }
    let real = resolve(path)
        .map_err(|error| refusal(format!("host path `{}` cannot be resolved: {error}", wanted.path)))?;
    let holding: Vec<&HostPath> = named
        .into_iter()
        .filter(|allowed| resolve(Path::new(&allowed.path)).is_ok_and(|allowed| real.starts_with(allowed)))
        .collect();
    if holding.is_empty() {
        return Err(not_allowed());
    }
    if !wanted.read_only && holding.iter().all(|allowed| allowed.read_only) {
        return Err(refusal(format!("host path `{}` may only be read", wanted.path)));
    }
    Ok(real)
}

#[cfg(test)]
mod tests {
    use windlass_crds::sandbox_job::{Input, Runtime};

    use super::*;
    use crate::testing::{assignment, capability};

    fn checked(
        job: impl FnOnce(&mut Assignment),
        rules: impl FnOnce(&mut SandboxRules),
    ) -> Result<Vec<PathBuf>, Refusal> {
        let mut assignment = assignment("uid", 1, &["true"]);
        job(&mut assignment);
        let mut given = SandboxRules::default();
        rules(&mut given);
        // `/data/link` leads out of `/data`.
        let resolve = |path: &Path| match path.to_str() {
            Some("/data/link") => Ok(PathBuf::from("/etc")),
            Some("/data/missing") => Err(std::io::ErrorKind::NotFound.into()),
            _ => Ok(path.to_owned()),
        };
        check(&assignment, &given, &capability(), &resolve)
    }

    fn wants(path: &str, read_only: bool) -> impl FnOnce(&mut Assignment) {
        let input = Input {
            path: "data".to_owned(),
            host_path: Some(HostPath { path: path.to_owned(), read_only }),
            ..Input::default()
        };
        move |assignment| assignment.spec.workspace.inputs = vec![input]
    }

    fn allows(path: &str, read_only: bool) -> impl FnOnce(&mut SandboxRules) {
        let path = HostPath { path: path.to_owned(), read_only };
        move |rules| rules.host_paths = vec![path]
    }

    #[test]
    fn a_plain_job_passes_without_rules() {
        assert_eq!(checked(|_| {}, |_| {}), Ok(Vec::new()));
    }

    #[test]
    fn what_the_rules_do_not_allow_is_refused_by_name() {
        let rule = |result: Result<_, Refusal>| result.unwrap_err().rule;
        let podman = |job: &mut Assignment| job.spec.sandbox.runtime = Runtime::Podman;
        assert_eq!(rule(checked(podman, |_| {})), "capability.sandbox.runtimes");
        assert_eq!(
            rule(checked(|_| {}, |rules| rules.runtimes = vec![Runtime::Podman])),
            "policy.sandbox.runtimes"
        );
        let open = |job: &mut Assignment| job.spec.sandbox.network = Network::Open;
        assert_eq!(rule(checked(open, |_| {})), "policy.sandbox.networks");
        assert_eq!(
            rule(checked(open, |rules| rules.networks = vec![Network::Open])),
            "capability.sandbox.networks"
        );
        let memory = |job: &mut Assignment| {
            job.spec.sandbox.resources.memory = Some("2Gi".parse().unwrap());
        };
        let refusal = checked(memory, |rules| rules.max.memory_bytes = Some(1 << 30)).unwrap_err();
        assert_eq!(refusal.rule, "policy.sandbox.max.memory_bytes");
        assert!(refusal.to_string().contains("2147483648"), "{refusal}");
        checked(memory, |rules| rules.max.memory_bytes = Some(2 << 30)).unwrap();
    }

    #[test]
    fn rules_for_egress_must_lie_within_the_nodes_and_open_no_special_network_that_it_does_not_name() {
        let refusal = |asked: &str, ceiling: &[&str]| {
            let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
            check_egress(&rules(&[asked]), &rules(ceiling)).err().map(|refusal| refusal.to_string())
        };
        assert_eq!(refusal("a.example:443", &[]), None);
        assert_eq!(refusal("10.1.0.0/16:5432", &["10.1.0.0/16"]), None);
        assert_eq!(refusal("1.1.1.1:443", &["0.0.0.0/0:443"]), None);
        for (asked, ceiling, expected) in [
            ("1.1.1.1:443", &[][..], "the node allows every name and no address"),
            (
                "b.example:443",
                &["a.example:443"],
                "the job asks for `b.example:443`, the node allows a.example:443",
            ),
            (
                "10.1.0.0/16",
                &["0.0.0.0/0"],
                "which is a private network; the node must allow it by a network within 10.0.0.0/8",
            ),
            ("169.254.169.254:80", &["169.254.0.0/16"], "within 169.254.169.254/32"),
        ] {
            let message = refusal(asked, ceiling).unwrap();
            assert!(message.contains("policy.sandbox.egress") && message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_host_path_must_be_allowed_and_stay_where_it_is_allowed() {
        assert_eq!(checked(wants("/data/in", true), allows("/data", true)), Ok(vec!["/data/in".into()]));
        assert_eq!(checked(wants("/data/in", false), allows("/data", false)), Ok(vec!["/data/in".into()]));
        for (path, read_only, allowed) in [
            ("/data/in", true, "/other"),
            ("/database", true, "/data"),
            ("/data/../etc", true, "/data"),
            ("data", true, "/"),
            ("/data/link", true, "/data"),
            ("/data/missing", true, "/data"),
            ("/data/in", false, "/data"),
        ] {
            let refusal = checked(wants(path, read_only), allows(allowed, true)).unwrap_err();
            assert_eq!(refusal.rule, "policy.sandbox.host_paths", "{path}");
            assert!(refusal.message.contains(path), "{refusal}");
        }
        assert!(checked(wants("/data", true), |_| {}).is_err(), "nothing is allowed without a rule");
    }
}
