//! What only a terminal sees: tables that fit, colours, progress.

use std::fs::File;
use std::io::Read as _;
use std::process::Stdio;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::process::Command;
use unicode_width::UnicodeWidthStr as _;

use crate::world::World;

/// Runs a command on a terminal of this many columns and yields what it showed there.
async fn show(mut command: Command, columns: u16) -> String {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("there are pseudo-terminals");
    grantpt(&master).expect("it is ours");
    unlockpt(&master).expect("it is ours");
    let name = ptsname(&master, Vec::new()).expect("it has a name");
    let slave =
        rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("it opens");
    tcsetwinsize(&master, Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })
        .expect("a size");
    let slave = File::from(slave);
    let other = slave.try_clone().expect("descriptors are left");
    let mut child = command
        .env("TERM", "xterm")
        .stdout(Stdio::from(slave))
        .stderr(Stdio::from(other))
        .spawn()
        .expect("the command was built");
    // The command keeps copies of the terminal; without ours, reading ends when the program does.
    drop(command);
    let reading = tokio::task::spawn_blocking(move || {
        let mut master = File::from(master);
        let mut shown = Vec::new();
        let mut buffer = [0; 4096];
        // A terminal whose last user is gone answers with an error in place of an end.
        while let Ok(count) = master.read(&mut buffer) {
            if count == 0 {
                break;
            }
            shown.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8_lossy(&shown).into_owned()
    });
    let status =
        tokio::time::timeout(crate::world::BOUND, child.wait()).await.expect("it ends").expect("a status");
    let shown = reading.await.expect("the reader does not panic");
    assert!(status.success(), "{shown}");
    shown
}

fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_fit_the_terminal_and_are_coloured_unless_that_is_unwanted() {
    let world = World::new().await;
    for name in ["a-job-with-quite-a-long-name", "another"] {
        world.cli(&["run", "--detach", "--name", name, "--", "true"]).await.ok();
        world.cli(&["cancel", name]).await.ok();
    }
    let args = ["get", "jobs", "-o", "wide"];
    for columns in [40, 60, 80, 100, 200] {
        let shown = show(world.command(&args), columns).await;
        assert!(shown.contains("\u{1b}["), "colours: {shown:?}");
        let plain = plain(&shown);
        assert_eq!(plain.lines().count(), 3, "{plain}");
        for line in plain.lines() {
            assert!(line.trim_end_matches('\r').width() <= usize::from(columns), "{line:?} in {columns}");
        }
    }
    let mut command = world.command(&args);
    command.env("NO_COLOR", "1");
    assert!(!show(command, 80).await.contains('\u{1b}'));
    let piped = world.cli(&args).await.ok().stdout;
    assert!(!piped.contains('\u{1b}') && piped.contains("a-job-with-quite-a-long-name"), "{piped}");
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_drawn_on_a_terminal_only() {
    let world = World::new().await;
    world.file("data/file", &"x".repeat(1 << 20));
    let args = ["run", "--detach", "--input", "data", "--", "true"];
    let shown = show(world.command(&args), 80).await;
    assert!(shown.contains("uploading data"), "{shown:?}");
    world.file("data/file", "other");
    let piped = world.cli(&args).await.ok();
    assert_eq!(piped.stderr, "");
}
