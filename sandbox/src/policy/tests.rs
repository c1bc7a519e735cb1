use super::*;
use crate::identity::Identity;
use crate::image::{Account, ImageConfig, SystemImage};
use crate::spec::{Entrypoint, Limit, Mount, UnitId};
use windlass_launcher::plan::Filter;

fn spec() -> UnitSpec {
    let identity = Identity { uid: 1_900_000_007, gid: 1_900_000_007 };
    let mut spec = UnitSpec::new(
        UnitId::new("attempt-1.build").unwrap(),
        vec!["make".into(), "all".into()],
        "/var/lib/windlass/workspaces/attempt-1".into(),
        identity,
        "/var/lib/windlass/leases/attempt-1".into(),
    );
    spec.env.insert("PATH".into(), "/opt/bin:/usr/bin".into());
    spec.env.insert("CI".into(), "true".into());
    spec.cwd = "src".into();
    spec.mounts.push(Mount { source: "/srv/data".into(), target: "data".into(), read_only: true });
    spec.limits.disk_bytes = Some(Limit::named(1 << 30));
    spec.timeout = Some(std::time::Duration::from_secs(60));
    spec
}

fn host() -> Host {
    Host {
        system: vec![
            ("/usr", Place::Present),
            ("/bin", Place::Link("usr/bin".into())),
            ("/etc/ld.so.cache", Place::Present),
            ("/etc/ssl/certs", Place::Present),
        ],
        landlock: Some(6),
        cgroup_namespace: true,
        time_namespace: true,
        resolver: true,
        opened_outside: true,
        made_outside: true,
        filters: Filters {
            policy: Filter(vec![0; 3]),
            telling: Some(Filter(vec![0; 4])),
            denied: Vec::new(),
        },
    }
}

#[test]
fn the_plan_of_a_unit_is_this() {
    let cgroups = Cgroups {
        v2: false,
        dirs: vec!["/sys/fs/cgroup/memory/windlass/attempt-1.build".into()],
        memory: Some("/sys/fs/cgroup/memory/windlass/attempt-1.build".into()),
        pids: None,
        io: None,
    };
    let enforcement = Enforcement { cgroups: Some(cgroups), tasks: Some(64), disk: Some(DiskMeans::Looking) };
    let plan = plan(&spec(), &host(), enforcement).unwrap();
    let steps: Vec<String> = plan.steps().map(ToString::to_string).collect();
    insta::assert_snapshot!("steps", steps.join("\n"));
    let base = Base { steps: Vec::new(), ..plan.base };
    let own = Own { steps: Vec::new(), ..plan.own };
    insta::assert_debug_snapshot!("rest", LaunchPlan { base, own, ..plan });
}

fn system() -> SystemRoot {
    let account = Account {
        uid: 1000,
        gid: 1000,
        passwd: Some("root:x:0:0::/:/bin/sh\n".to_owned()),
        group: Some("job:x:1000:\n".to_owned()),
    };
    let config = ImageConfig {
        entrypoint: vec!["/bin/app".to_owned()],
        command: vec!["--help".to_owned()],
        env: vec!["PATH=/image/bin".to_owned(), "A=image".to_owned(), "HOME=/root".to_owned()],
        ..ImageConfig::default()
    };
    let dir = "/state/images/1/root".into();
    let programs = vec!["/bin".to_owned(), "/etc".to_owned()];
    SystemRoot::new(SystemImage { id: "sha256:1".to_owned(), dir, config, account, programs })
}

#[test]
fn a_system_of_ones_own_takes_the_same_spare_and_has_the_small_root_laid_over_it() {
    let mut spec = spec();
    spec.env.clear();
    spec.system = Some(SystemRoot { scratch: vec!["/var/cache".to_owned()], ..system() });
    let plan = plan(&spec, &host(), Enforcement::default()).unwrap();
    assert_eq!(plan.base, base(&host(), spec.identity, (JOB, JOB), Network::None, false));
    let steps: Vec<String> = plan.own.steps.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!("system", steps.join("\n"));
    let environment: Vec<&str> = plan.own.environment.iter().map(Text::as_str).collect();
    assert!(environment.contains(&"PATH=/image/bin") && environment.contains(&"A=image"), "{environment:?}");
    assert!(environment.contains(&"HOME=/home/job"), "{environment:?}");
    assert_eq!(plan.own.programs[0].as_str(), "/image/bin/make");
}

#[test]
fn the_proxy_of_a_restricted_network_is_found_whatever_an_image_says() {
    let mut system = system();
    system.image.config.env = vec!["http_proxy=http://proxy.corp:80".to_owned(), "NO_PROXY=*".to_owned()];
    let environment = |network, env: &[(&str, &str)]| {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let spec = UnitSpec { system: Some(system.clone()), network, env, ..spec() };
        super::environment(&spec)
    };
    let restricted = environment(Network::Restricted, &[]);
    assert_eq!(restricted["http_proxy"], "http://127.0.0.1:3128");
    assert_ne!(restricted["NO_PROXY"], "*");
    assert_eq!(environment(Network::Restricted, &[("http_proxy", "of the job")])["http_proxy"], "of the job");
    assert_eq!(environment(Network::Open, &[])["http_proxy"], "http://proxy.corp:80");
}

#[test]
fn the_working_folder_that_an_image_names_is_made_in_what_begins_empty() {
    let made = |named: &str, cwd: &str| {
        let mut system = SystemRoot { scratch: vec!["/var/cache".to_owned()], ..system() };
        system.image.config.working_dir = Some(named.to_owned());
        let spec = UnitSpec { system: Some(system), cwd: cwd.to_owned(), ..spec() };
        let steps = plan(&spec, &host(), Enforcement::default()).unwrap().own.steps;
        let steps =
            steps.iter().map(ToString::to_string).skip_while(|step| !step.starts_with("set the umask"));
        steps.filter_map(|step| step.strip_prefix("make folder ").map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(made("/tmp/a/b", "/tmp/a/b"), ["/tmp/a with mode 755", "/tmp/a/b with mode 755"]);
    assert_eq!(made("/var/cache/a", "/var/cache/a"), ["/var/cache/a with mode 755"]);
    for (named, cwd) in
        [("/srv/app", "/srv/app"), ("/tmp", "/tmp"), ("/tmpfs/a", "/tmpfs/a"), ("/tmp/a", "/tmp/b")]
    {
        assert!(made(named, cwd).is_empty(), "{named}");
    }
}

#[test]
fn who_a_program_is_in_a_system_is_said_by_the_image_or_is_root_by_the_jobs_wish() {
    let ids = |system: SystemRoot| {
        let spec = UnitSpec { system: Some(system), ..spec() };
        let identity = plan(&spec, &host(), Enforcement::default()).unwrap().base.identity;
        (identity.uid, identity.gid, identity.host_uid)
    };
    let mut app = system();
    (app.image.account.uid, app.image.account.gid) = (200, 0);
    assert_eq!(ids(app.clone()), (200, 0, 1_900_000_007));
    assert_eq!(ids(SystemRoot { root: true, ..app }), (0, 0, 1_900_000_007));
}

#[test]
fn what_runs_is_put_together_as_engines_do() {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let run = |entrypoint, command: &[&str]| SystemRoot { entrypoint, ..system() }.command(&words(command));
    assert_eq!(run(Entrypoint::Image, &[]), ["/bin/app", "--help"]);
    assert_eq!(run(Entrypoint::Image, &["-v"]), ["/bin/app", "-v"]);
    assert_eq!(run(Entrypoint::Given(words(&["sh", "-c"])), &["x"]), ["sh", "-c", "x"]);
    assert_eq!(run(Entrypoint::Given(words(&["sh"])), &[]), ["sh"]);
    assert_eq!(run(Entrypoint::Replaced, &["true"]), ["true"]);
}

#[test]
fn mounts_of_a_system_stay_below_the_workspace() {
    let mut spec = UnitSpec { system: Some(system()), ..spec() };
    spec.mounts[0].target = "/etc/x".into();
    let error = plan(&spec, &host(), Enforcement::default()).unwrap_err();
    assert!(error.to_string().contains("/etc/x is not below /workspace"), "{error}");
}

#[test]
fn mounts_cannot_cover_the_workspace() {
    let mut spec = spec();
    spec.mounts[0].target = "/workspace/".into();
    assert!(matches!(
        plan(&spec, &host(), Enforcement::default()),
        Err(Error::InvalidSpec { field: "mounts", .. })
    ));
}

#[test]
fn a_kernel_without_landlock_has_no_landlock_step() {
    let host = Host { landlock: Some(1), ..host() };
    let plan = plan(&spec(), &host, Enforcement::default()).unwrap();
    assert!(!plan.steps().any(|step| matches!(step, Step::Landlock { .. })));
}

#[test]
fn an_ordinary_users_sandbox_holds_the_hosts_root_until_it_has_opened_what_its_unit_needs() {
    let host = Host { opened_outside: false, ..host() };
    let plan = plan(&spec(), &host, Enforcement::default()).unwrap();
    assert!(!plan.base.steps.contains(&Step::EnterRoot));
    let at = |wanted: &str| plan.own.steps.iter().position(|step| step.to_string().starts_with(wanted));
    assert!(at("enter the new root") < at("attach ") && at("enter the new root").is_some());
}

#[test]
fn what_is_the_same_for_all_units_is_a_template_where_root_can_make_one_and_nothing_is_to_be_put_into_it() {
    let template = |host: &Host, target: &str| {
        let mut spec = spec();
        spec.mounts[0].target = target.to_owned();
        let base = plan(&spec, host, Enforcement::default()).unwrap().base;
        base.template().map(|steps| steps.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let steps = template(&host(), "data").unwrap();
    assert_eq!(steps.first().map(String::as_str), Some("cut mount propagation"));
    assert_eq!(steps.last().map(String::as_str), Some("enter the new root"));
    for target in ["/workspace/a/b", "/tmp/a", "/run/a", "/dev/shm/a", "/home/job/a"] {
        assert_eq!(template(&host(), target).as_ref(), Some(&steps), "{target}");
    }
    for target in ["/data", "/etc/x", "/tmpfs", "/tmp", "/home/other", "/dev/x"] {
        assert_eq!(template(&host(), target), None, "{target}");
    }
    assert_eq!(template(&Host { made_outside: false, ..host() }, "data"), None);
    let other = Identity { uid: 1_900_000_008, gid: 1_900_000_008 };
    let open = base(&host(), other, (0, 0), Network::Open, false);
    assert_eq!(open.template().unwrap().len(), steps.len(), "it is that of all users and networks");
}

#[test]
fn units_of_one_identity_have_one_base_whatever_else_they_are() {
    let other = UnitSpec { hostname: "other".into(), mounts: Vec::new(), ..spec() };
    let other = plan(&other, &host(), Enforcement::default()).unwrap();
    assert_eq!(
        other.base,
        plan(&spec(), &host(), Enforcement { tasks: Some(64), ..Enforcement::default() }).unwrap().base
    );
    assert_eq!(other.base, base(&host(), spec().identity, (JOB, JOB), Network::None, false));
    let identity = Identity { uid: 1_900_000_008, gid: 1_900_000_008 };
    assert_ne!(other.base, base(&host(), identity, (JOB, JOB), Network::None, false));
}

/// What of a plan one network has and another has not.
fn difference(network: Network, host: &Host) -> (Vec<String>, Vec<String>) {
    let steps = |network| {
        let plan = plan(&UnitSpec { network, ..spec() }, host, Enforcement::default()).unwrap();
        plan.steps().map(ToString::to_string).collect::<Vec<_>>()
    };
    let (none, other) = (steps(Network::None), steps(network));
    let less = |from: &[String], what: &[String]| {
        from.iter().filter(|step| !what.contains(step)).cloned().collect::<Vec<_>>()
    };
    (less(&other, &none), less(&none, &other))
}

#[test]
fn a_restricted_network_is_none_with_a_socket_and_takes_the_same_spare() {
    let spec = UnitSpec { network: Network::Restricted, ..spec() };
    let plan = plan(&spec, &host(), Enforcement::default()).unwrap();
    assert_eq!(plan.base, base(&host(), spec.identity, (JOB, JOB), Network::None, false));
    let (more, less) = difference(Network::Restricted, &host());
    assert_eq!(more, ["listen on 127.0.0.1:3128 for those outside", "install the seccomp filter"]);
    assert_eq!(less, ["install the seccomp filter, which tells of sockets"]);
    let environment: Vec<&str> = plan.own.environment.iter().map(Text::as_str).collect();
    for expected in ["http_proxy=http://127.0.0.1:3128", "NO_PROXY=localhost,127.0.0.1,::1", "CI=true"] {
        assert!(environment.contains(&expected), "{environment:?}");
    }
}

#[test]
fn an_open_network_is_the_hosts_without_its_local_sockets() {
    let (more, less) = difference(Network::Open, &host());
    let resolver = "show host /etc/resolv.conf at etc/resolv.conf, read-only";
    assert_eq!(more, [resolver, "install the seccomp filter"]);
    assert_eq!(less, ["install the seccomp filter, which tells of sockets"]);
    let (more, less) =
        difference(Network::Open, &Host { opened_outside: false, made_outside: false, ..host() });
    assert_eq!((more, less), (vec![resolver.to_owned()], vec!["bring the loopback interface up".to_owned()]));
    let plan = plan(&UnitSpec { network: Network::Open, ..spec() }, &host(), Enforcement::default()).unwrap();
    assert_eq!(plan.base.network, NetworkSource::Host);
    // A kernel that cannot scope abstract sockets: there are no local sockets at all.
    let (more, _) = difference(Network::Open, &Host { landlock: Some(5), ..host() });
    assert!(more.iter().any(|step| step.starts_with("install the seccomp filter")), "{more:?}");
}
