//! From a manifest to the plan of each sandbox: what the controller takes has a plan or a reason, and no plan leaves out what must
//! not be missing.

#![no_main]

use libfuzzer_sys::fuzz_target;
use windlass_core::validate::{ValidJob, validate_job};
use windlass_crds::SandboxJob;
use windlass_crds::manifest::{Object, parse_bytes};
use windlass_crds::sandbox_job::{Input, Network as JobNetwork, Step};
use windlass_sandbox::image::{Account, ImageConfig, SystemImage};
use windlass_sandbox::{
    Entrypoint, Identity, Limit, Mount, Network, SystemRoot, UnitId, UnitSpec, planned_steps,
};

/// What every plan holds, in this order.
const ALWAYS: [&str; 10] = [
    "become user ",
    "tie the sandbox's life to its supervisor",
    "cut mount propagation",
    "mount what the unit may fill at proc",
    "mount a fresh proc",
    "let no program gain a capability",
    "make the root read-only",
    "drop all capabilities",
    "forbid new privileges",
    "install the seccomp filter",
];

/// The unit of a step, as the agent makes it.
fn unit(job: &SandboxJob, step: &Step) -> UnitSpec {
    let sandbox = &job.spec.sandbox;
    let identity = Identity { uid: 1_900_000_001, gid: 1_900_000_001 };
    let id = UnitId::new("fuzz-1-0").expect("it is an id");
    let container = step.container.as_ref();
    let command = step.command.clone().or(container.map(|container| container.args.clone())).unwrap_or_else(|| {
        let script = step.script.as_ref().expect("a step does one thing");
        [script.interpreter.clone(), "/workspace/.windlass/steps/0".to_owned()].into_iter().chain(script.args.clone()).collect()
    });
    let mut unit = UnitSpec::new(id, command, "/state/workspace".into(), identity, "/state/lease".into());
    unit.env = sandbox.env.clone().into_iter().chain(step.env.clone()).collect();
    unit.cwd = step.working_dir.clone().unwrap_or_else(|| "/workspace".to_owned());
    let mount = |input: &Input| {
        let path = input.host_path.as_ref()?;
        Some(Mount { source: path.path.clone().into(), target: input.path.clone(), read_only: path.read_only })
    };
    unit.mounts = job.spec.workspace.inputs.iter().filter_map(mount).collect();
    unit.network = match sandbox.network {
        JobNetwork::None => Network::None,
        JobNetwork::Restricted => Network::Restricted,
        JobNetwork::Open => Network::Open,
    };
    let resources = &sandbox.resources;
    unit.limits.memory_bytes = resources.memory.map(|memory| Limit::named(memory.get()));
    unit.limits.pids = resources.pids.map(|pids| Limit::named(pids.into()));
    unit.limits.disk_bytes = resources.disk.map(|disk| Limit::named(disk.get()));
    if sandbox.image.is_some() || container.is_some_and(|container| container.image.is_some()) {
        let account = Account { uid: 1000, gid: 1000, passwd: Some(String::new()), group: None };
        let config = ImageConfig { entrypoint: vec!["/bin/app".to_owned()], ..ImageConfig::default() };
        let image =
            SystemImage { id: "sha256:0".to_owned(), dir: "/state/image".into(), config, account, programs: Vec::new() };
        let mut system = SystemRoot::new(image);
        if let Some(container) = container {
            system.entrypoint = container.entrypoint.clone().map_or(Entrypoint::Image, Entrypoint::Given);
            system.scratch.clone_from(&container.tmpfs);
        }
        unit.system = Some(system);
    }
    unit
}

fn check(job: &ValidJob, whole: &SandboxJob) {
    // The agent carries out the others itself.
    for step in job.steps().iter().filter(|step| step.facts.is_none() && step.service.is_none()) {
        let unit = unit(whole, step);
        let Ok(steps) = planned_steps(&unit) else { continue };
        let mut rest = steps.iter();
        for wanted in ALWAYS {
            assert!(rest.any(|step| step.starts_with(wanted)), "{wanted}: {steps:#?}");
        }
        assert!(rest.next().is_none(), "the filter is the last: {steps:#?}");
        let attached = steps.iter().filter(|step| step.starts_with("attach ")).count();
        assert_eq!(attached, 1 + unit.mounts.len(), "{steps:#?}");
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(documents) = parse_bytes(data, "fuzz") else { return };
    for document in documents {
        let Object::Job(job) = document.object else { continue };
        if let Ok(valid) = validate_job(&job) {
            check(&valid, &job);
        }
    }
});
