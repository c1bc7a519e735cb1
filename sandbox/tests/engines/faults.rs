//! What goes wrong outside of a unit, and what a unit tries.

use std::os::unix::fs::symlink;

use windlass_sandbox::engine::EngineKind;
use windlass_sandbox::{Container, EndReason, Entrypoint, Error, Limit, Mount};
use windlass_test_process::Signal;

use crate::life::containers_of;
use crate::world::{World, finish, printed, request};
use windlass_test_engines::{self as services, BARE, run, serve_podman};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_removed_by_hand_ends_its_unit_with_that_reason() {
    let world = World::new();
    for runtime in world.engines().await {
        let unit = world.script(&runtime, "removed", "echo up; sleep 987; sleep 987");
        runtime.driver.prepare(&unit).await.unwrap();
        runtime.driver.start(&unit.id).await.unwrap();
        printed(&*runtime.driver, &unit.id, "up\n").await;
        let socket = format!("unix://{}", crate::world::socket(runtime.kind.unwrap()).display());
        let [container] = &containers_of(&runtime, unit.id.as_str())[..] else { panic!() };
        let mut remove = match runtime.kind.unwrap() {
            EngineKind::Podman => {
                let mut remove = std::process::Command::new("podman");
                remove.args(["--remote", "--url", &socket, "rm", "-f", "-t", "0", container]);
                remove
            }
            EngineKind::Docker => {
                let mut remove = std::process::Command::new("docker");
                remove.args(["-H", &socket, "rm", "-f", container]);
                remove
            }
        };
        run(&mut remove);
        let ran = finish(&*runtime.driver, &unit.id).await;
        assert_eq!((ran.exit.reason, ran.exit.signal), (EndReason::Signalled, Some(9)), "{ran:?}");
        assert!(ran.exit.message.as_ref().unwrap().contains("removed by somebody else"), "{ran:?}");
        assert!(ran.exit.proof.as_ref().unwrap().holds());
        runtime.driver.cleanup(&unit.id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_whose_engine_goes_away_is_killed_and_lost() {
    if rustix::process::geteuid().as_raw() != 0 {
        // The service without root is somebody else's; this one starts its own.
        return;
    }
    let world = World::new();
    // A second service on the images of the first one.
    let socket = world.dir.path().join("podman.sock");
    let pid = i32::try_from(serve_podman(services::folder(), &socket)).unwrap();
    let runtime = world.engine(EngineKind::Podman, socket).await;
    let unit = world.script(&runtime, "lost", "echo up; sleep 987; sleep 987");
    runtime.driver.prepare(&unit).await.unwrap();
    runtime.driver.start(&unit.id).await.unwrap();
    printed(&*runtime.driver, &unit.id, "up\n").await;
    windlass_test_process::send(pid, Signal::KILL);
    let ran = finish(&*runtime.driver, &unit.id).await;
    assert_eq!((ran.exit.reason, &*ran.stdout), (EndReason::EngineLost, "up\n"), "{ran:?}");
    assert!(ran.exit.message.as_ref().unwrap().contains("podman was lost"), "{ran:?}");
    assert!(ran.exit.proof.as_ref().unwrap().holds(), "{ran:?}");
    // A unit that begins now does not begin, and says why.
    let next = world.script(&runtime, "next", "true");
    let error = runtime.driver.prepare(&next).await.unwrap_err();
    assert_eq!(error.kind(), "engine_unreachable", "{error}");
    assert!(error.to_string().contains("podman.sock"), "{error}");
    // The container goes once an engine is there again.
    let left = containers_of(&runtime, unit.id.as_str());
    assert_eq!(left.len(), 1);
    let again = world.engine(EngineKind::Podman, crate::world::socket(EngineKind::Podman)).await;
    again.driver.inventory().await.unwrap();
    assert!(containers_of(&runtime, unit.id.as_str()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_a_shell_runs_its_own_program_and_says_that_there_is_no_shell() {
    let world = World::new();
    for runtime in world.engines().await {
        let containers = runtime.containers.clone().unwrap();
        let bare = containers.ensure_image(&request(BARE), &mut |_| {}).await.unwrap();
        let with = |unit: &mut windlass_sandbox::UnitSpec, entrypoint| {
            let container = Container::new(containers.kind(), bare.id.clone(), BARE);
            unit.container = Some(Container { entrypoint, ..container });
        };
        let mut own = world.unit(&runtime, "own", &["true"]);
        with(&mut own, Entrypoint::Replaced);
        runtime.run(&own).await.ok();
        let mut script = world.script(&runtime, "script", "true");
        with(&mut script, Entrypoint::Replaced);
        let ran = runtime.run(&script).await;
        assert_eq!(ran.exit.code, Some(127), "{ran:?}");
        let message = ran.exit.message.unwrap();
        assert!(message.contains("sh: command not found in image") && message.contains(BARE), "{message}");
        let mut given = world.unit(&runtime, "given", &["ignored"]);
        with(&mut given, Entrypoint::Given(vec!["/bin/true".to_owned()]));
        runtime.run(&given).await.ok();
        // Without a command of its own and without one of the image there is nothing to run.
        let mut nothing = world.unit(&runtime, "nothing", &["x"]);
        with(&mut nothing, Entrypoint::Image);
        nothing.command.clear();
        let ran = match runtime.driver.prepare(&nothing).await {
            Ok(_) => {
                let started = runtime.driver.start(&nothing.id).await;
                (
                    started.err().map(|error| error.to_string()),
                    runtime.driver.wait(&nothing.id).await.unwrap(),
                )
            }
            Err(error) => panic!("{error}"),
        };
        assert!(!ran.1.program_started && ran.1.message.is_some(), "{ran:?}");
        assert!(containers_of(&runtime, nothing.id.as_str()).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tricks_with_paths_of_mounts_lead_nowhere() {
    let world = World::new();
    let data = world.dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let victim = world.dir.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    for runtime in world.engines().await {
        let mount =
            |target: &str| Mount { source: data.clone(), target: target.to_owned(), read_only: false };
        for target in ["../x", "/etc", "/proc/self", "/proc/self/root", "/workspace/../etc", "/sys", "/"] {
            let mut unit = world.unit(&runtime, "trick", &["true"]);
            unit.mounts = vec![mount(target)];
            let error = runtime.driver.prepare(&unit).await.unwrap_err();
            assert_eq!(error.kind(), "invalid_spec", "{target}: {error}");
        }
        // A step before has put a link where the next one mounts.
        for (name, to) in [("link", victim.as_path()), ("proc", std::path::Path::new("/proc/self/root/etc"))]
        {
            let place = world.workspace.path().join(name);
            symlink(to, &place).unwrap();
            let mut unit = world.unit(&runtime, name, &["true"]);
            unit.mounts = vec![mount(&format!("{name}/in"))];
            let error = runtime.driver.prepare(&unit).await.unwrap_err();
            assert!(matches!(error, Error::Io { .. } | Error::UnsafePath { .. }), "{error:?}");
            std::fs::remove_file(place).unwrap();
        }
        assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 0);
        let units = world.dir.path().join("containers").join(runtime.name()).join("units");
        assert_eq!(std::fs::read_dir(units).unwrap().count(), 0, "a refused unit leaves nothing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_engine_cannot_do_is_refused_with_a_reason_and_a_fix() {
    let world = World::new();
    for runtime in world.engines().await {
        let mut io = world.unit(&runtime, "io", &["true"]);
        io.limits.io_read_bps = Some(Limit::named(1 << 20));
        let error = runtime.driver.prepare(&io).await.unwrap_err();
        assert!(matches!(error, Error::Unenforceable { .. }), "{error}");
        assert!(error.to_string().contains("unenforced: [io]"), "{error}");
        io.limits.accept_unenforced = [windlass_sandbox::LimitName::Io].into();
        assert_eq!(runtime.driver.prepare(&io).await.unwrap().unenforced.len(), 1);
        runtime.driver.cleanup(&io.id).await.unwrap();
        let mut root = world.unit(&runtime, "root", &["id", "-u"]);
        root.container.as_mut().unwrap().root = true;
        if rustix::process::geteuid().is_root() {
            let error = runtime.driver.prepare(&root).await.unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        } else {
            assert_eq!(runtime.run(&root).await.ok(), "0\n");
        }
        let mut gone = world.unit(&runtime, "gone", &["true"]);
        gone.container.as_mut().unwrap().image = format!("sha256:{}", "0".repeat(64));
        assert_eq!(runtime.driver.prepare(&gone).await.unwrap_err().kind(), "image");
    }
}
