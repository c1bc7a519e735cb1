//! Jobs that do not want to end.

use std::time::Duration;

use windlass_sandbox::{EndReason, Limit, UnitSpec};

use crate::case::{bash, python, run};

fn impatient(unit: &mut UnitSpec) {
    unit.timeout = Some(Duration::from_millis(500));
    unit.grace = Duration::from_millis(200);
}

#[tokio::test]
async fn whatever_a_job_leaves_behind_ends_with_it() {
    run([
        bash("ignores TERM", "trap '' TERM INT HUP; while :; do sleep 0.05; done")
            .with(impatient)
            .ends(EndReason::Timeout),
        python(
            "daemon",
            "if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.closerange(0, 100)
time.sleep(1000)",
        ),
        bash("holds pipes open", "sleep 1000 & setsid sleep 1000 & echo done").prints("done\n"),
        bash("passes its pipe on", "(trap '' HUP TERM; exec sleep 1000 <&1) & echo done").prints("done\n"),
        bash("another group", "set -m; sleep 1000 & setsid --fork sleep 1000; kill -KILL 0")
            .ends(EndReason::Signalled),
        bash("kills all that it can", "sleep 1000 & kill -KILL -1; echo alone").prints("alone\n"),
        bash("kills its init", "kill -TERM 1; kill -KILL 1; kill -STOP 1; sleep 0.1; echo alive")
            .prints("alive\n"),
        bash("stops itself", "sleep 1000 & kill -STOP $$").with(impatient).ends(EndReason::Timeout),
        bash("stops the others", "for i in 1 2 3; do sleep 1000 & kill -STOP $!; done; echo stopped")
            .prints("stopped\n"),
        python("flees by forking", "if os.fork(): os._exit(0)\nwhile True:\n    if os.fork(): os._exit(0)"),
        python("flees until it is ended", "while True:\n    if os.fork() == 0: continue\n    os.wait()")
            .with(|unit| {
                impatient(unit);
                unit.limits.pids = Some(Limit::default_value(50));
            })
            .ends(EndReason::Timeout),
        python("zombies", "for _ in range(200):\n    if os.fork() == 0: os._exit(0)\nprint('left')")
            .prints("left\n"),
        python(
            "blocks everything",
            "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: time.sleep(1)",
        )
        .with(impatient)
        .ends(EndReason::Timeout),
    ])
    .await;
}
