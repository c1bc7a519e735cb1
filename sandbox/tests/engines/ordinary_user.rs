//! The same suite once more as an ordinary user with a Podman without root, if it runs as root.

use windlass_test_engines::{self as services, IMAGE, Rootless, run};

use crate::world::program;

#[test]
fn the_whole_suite_passes_as_an_ordinary_user_with_podman_without_root() {
    if !rustix::process::geteuid().is_root() {
        // It is running as one already.
        return;
    }
    let rootless = Rootless::start(54_322, 700_000);
    // The user may not reach the folder of the build.
    let suite = rootless.program(&std::env::current_exe().unwrap(), "suite");
    let program = rootless.program(&program(), "program");
    services::make_images(rootless.folder());
    for (archive, name) in [("image.tar", IMAGE), ("bare.tar", services::BARE)] {
        services::import_into_podman(&rootless.socket(), &rootless.folder().join(archive), name);
    }
    let mut suite = rootless.command(&suite);
    suite
        .args(["--test-threads=2", "--nocapture"])
        .env("WINDLASS_TEST_PROGRAM", program)
        .env("WINDLASS_TEST_PODMAN", rootless.socket());
    let told = run(&mut suite);
    assert!(told.contains("test result: ok.") && !told.contains(" 0 passed"), "{told}");
    // Nothing that it has made is root's.
    assert_eq!(rootless.of_root(&rootless.folder().join("tmp")), Vec::<String>::new());
}
