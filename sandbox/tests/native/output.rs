//! Output: whatever a program writes, however much, in order.

use std::time::{Duration, Instant};

use windlass_sandbox::{Driver, Stream};

use crate::fixture::Fixture;

#[tokio::test]
async fn nul_bytes_and_invalid_utf_8_pass_untouched() {
    let fixture = Fixture::new().await;
    let program = r"
import os
os.write(1, bytes(range(256)) + b'\xf0\x9f\x98')
os.write(2, b'\xff\x00\xc3')
";
    let outcome = fixture.python(program).await;
    let mut expected: Vec<u8> = (0..=255).collect();
    expected.extend([0xf0, 0x9f, 0x98]);
    assert_eq!(outcome.stdout, expected);
    assert_eq!(outcome.stderr, [0xff, 0, 0xc3]);
    assert_eq!((outcome.exit.stdout.bytes, outcome.exit.stdout.truncated), (259, false));
}

#[tokio::test]
async fn a_gigabyte_neither_fills_the_disk_nor_blocks() {
    let fixture = Fixture::new().await;
    let unit = fixture.unit("flood", &["bash", "-c", "head -c 1G /dev/zero; echo end >&2"]);
    let outcome = fixture.run(&unit).await;
    outcome.ok();
    let end = outcome.exit.stdout;
    assert_eq!((end.bytes, end.kept, end.truncated), (1 << 30, 10 << 20, true));
    assert_eq!(outcome.stdout.len(), 10 << 20);
    assert_eq!(outcome.stderr, b"end\n");
    assert!(!outcome.exit.stderr.truncated);
    let spool = fixture.dir.path().join("state/units/flood/output");
    assert!(std::fs::metadata(spool).unwrap().len() < 11 << 20);
}

#[tokio::test]
async fn the_cap_cuts_between_characters() {
    let fixture = Fixture::new().await;
    let mut unit = fixture.unit("cap", &["bash", "-c", "printf 'äöüß%.0s' {1..100}"]);
    unit.output_cap = 101;
    let outcome = fixture.run(&unit).await;
    assert_eq!(outcome.text().chars().count(), 50);
    assert_eq!(
        (outcome.exit.stdout.bytes, outcome.exit.stdout.kept, outcome.exit.stdout.truncated),
        (800, 100, true)
    );
}

#[tokio::test]
async fn chunks_of_both_streams_come_in_the_order_of_their_arrival() {
    let fixture = Fixture::new().await;
    let script = "for i in 1 2 3 4 5; do echo o$i; sleep 0.05; echo e$i >&2; sleep 0.05; done";
    let unit = fixture.unit("order", &["bash", "-c", script]);
    fixture.run(&unit).await.ok();
    let mut reader = fixture.native.output(&unit.id, 0);
    let (mut order, mut last) = (String::new(), 0);
    while let Some(chunk) = reader.next().await.unwrap() {
        assert!(chunk.time_ms >= last);
        last = chunk.time_ms;
        order.push_str(std::str::from_utf8(&chunk.bytes).unwrap().trim_end());
        order.push(' ');
    }
    assert_eq!(order, "o1 e1 o2 e2 o3 e3 o4 e4 o5 e5 ");
}

#[tokio::test]
async fn output_is_seen_while_the_unit_runs_and_soon() {
    let fixture = Fixture::new().await;
    // The program tells the time at which it writes, in nanoseconds of the boot clock.
    let program = r"
import time
for _ in range(20):
    print(time.clock_gettime_ns(time.CLOCK_BOOTTIME), flush=True)
    time.sleep(0.03)
";
    let unit = fixture.unit("live", &["python3", "-c", program]);
    fixture.native.prepare(&unit).await.unwrap();
    fixture.native.start(&unit.id).await.unwrap();
    let mut reader = fixture.native.output(&unit.id, 0);
    let mut delays = Vec::new();
    while let Some(chunk) = reader.next().await.unwrap() {
        let now = windlass_launcher::deadline::boottime_ns();
        for line in std::str::from_utf8(&chunk.bytes).unwrap().lines() {
            delays.push(Duration::from_nanos(now - line.parse::<u64>().unwrap()));
        }
    }
    assert_eq!(delays.len(), 20);
    delays.sort_unstable();
    println!("output delay: median {:?}, worst {:?}", delays[10], delays[19]);
    assert!(delays[10] < Duration::from_millis(50), "{delays:?}");
}

#[tokio::test]
async fn a_reader_can_be_dropped_in_the_middle_and_resumed_from_its_cursor() {
    let fixture = Fixture::new().await;
    let script = "for i in $(seq 1 30); do echo line $i; sleep 0.01; done";
    let unit = fixture.unit("resume", &["bash", "-c", script]);
    fixture.native.prepare(&unit).await.unwrap();
    fixture.native.start(&unit.id).await.unwrap();
    let (mut cursor, mut text) = (0, Vec::new());
    let began = Instant::now();
    'units: loop {
        assert!(began.elapsed() < Duration::from_secs(30));
        let mut reader = fixture.native.output(&unit.id, cursor);
        for _ in 0..3 {
            // A call that is cut short must not lose what comes next.
            match tokio::time::timeout(Duration::from_millis(3), reader.next()).await {
                Err(_elapsed) => {}
                Ok(Ok(None)) => break 'units,
                Ok(chunk) => {
                    let chunk = chunk.unwrap().unwrap();
                    assert_eq!(chunk.stream, Stream::Stdout);
                    text.extend(chunk.bytes);
                    cursor = chunk.next_cursor;
                }
            }
        }
    }
    let expected: String = (1..=30).map(|index| format!("line {index}\n")).collect();
    assert_eq!(String::from_utf8(text).unwrap(), expected);
}
