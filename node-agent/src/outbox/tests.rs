use std::sync::Arc;

use jiff::Timestamp;
use windlass_crds::protocol::{AttemptId, LogBody, RecordBody, Stream, Terminal, TerminalPhase};

use super::sender::Sender;
use super::*;
use crate::executor::output::Chunker;
use crate::fs::{AgentFs, DiskFs};
use crate::testing::controller::{Answer, FakeController};
use crate::testing::{Crash, MemoryFs, SeededIds};

fn id(job: &str) -> AttemptId {
    AttemptId { job: job.to_owned(), epoch: 1 }
}

fn record(body: RecordBody) -> NewRecord {
    NewRecord { at: Timestamp::UNIX_EPOCH, body, mark: None }
}

fn step(step: u32) -> NewRecord {
    record(RecordBody::StepStarted { step })
}

fn log(text: &str) -> NewRecord {
    let body =
        RecordBody::Log { step: 0, stream: Stream::Stdout, offset: 0, body: LogBody::Text(text.to_owned()) };
    record(body)
}

fn terminal() -> NewRecord {
    record(RecordBody::Terminal(Terminal {
        phase: TerminalPhase::Succeeded,
        reason: "Completed".to_owned(),
        message: None,
        exit_code: Some(0),
        last_sequence: 0,
    }))
}

/// An outbox whose writer runs until it is dropped.
struct Open {
    outbox: Arc<Outbox>,
    writer: tokio::task::JoinHandle<std::convert::Infallible>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

async fn open(fs: Arc<dyn AgentFs>) -> Open {
    let (outbox, writer) = Outbox::open(fs).await.unwrap();
    let outbox = Arc::new(outbox);
    Open { writer: tokio::spawn(writer.run(Arc::clone(&outbox))), outbox }
}

fn sequences(outbox: &Outbox) -> Vec<(String, u64)> {
    outbox
        .batch(usize::MAX, u64::MAX)
        .into_iter()
        .map(|record| (record.attempt.job, record.sequence))
        .collect()
}

fn session() -> crate::session::SessionHandle {
    let handle = crate::session::SessionHandle::new();
    let url = String::new;
    handle.renewed(crate::session::Session {
        node_uid: None,
        token: "token".to_owned(),
        issued_at: Timestamp::UNIX_EPOCH,
        expires_at: Timestamp::MAX,
        endpoints: windlass_crds::protocol::Endpoints {
            worker_registration_url: url(),
            node_report_url: url(),
            node_config_url: url(),
            claim_url: url(),
            heartbeat_url: url(),
            report_url: url(),
            inputs_url: url(),
            artifacts_url: Some(url()),
        },
    });
    handle
}

fn send(
    outbox: &Arc<Outbox>,
    controller: &FakeController,
) -> tokio::task::JoinHandle<std::convert::Infallible> {
    let sender = Sender {
        outbox: Arc::clone(outbox),
        client: Arc::new(controller.clone()),
        session: session(),
        ids: Arc::new(SeededIds::new(1)),
        held: crate::held::HeldAttempts::default(),
        runs: crate::worker_api::runs::Runs::empty(Arc::new(MemoryFs::default())),
    };
    tokio::spawn(sender.run())
}

#[tokio::test]
async fn of_a_bare_run_there_is_an_account_and_nothing_to_send() {
    let fs = Arc::new(MemoryFs::default());
    let bare = AttemptId { job: "bare".to_owned(), epoch: 0 };
    for _ in 0..2 {
        let open = open(fs.clone()).await;
        open.outbox.append(&bare, vec![step(0)]).await;
        assert_eq!(sequences(&open.outbox), []);
        assert_eq!(open.outbox.backlog().borrow().records, 0);
    }
    let open = open(fs.clone()).await;
    assert_eq!(open.outbox.progress()[&bare].last_sequence, 2);
    assert_eq!(sequences(&open.outbox), []);
}

#[tokio::test]
async fn records_are_numbered_by_attempt_and_survive_a_restart_in_order() {
    let fs = Arc::new(MemoryFs::default());
    {
        let open = open(fs.clone()).await;
        open.outbox.append(&id("a"), vec![step(0), step(1)]).await;
        open.outbox.append(&id("b"), vec![step(0)]).await;
        open.outbox.append(&id("a"), vec![terminal()]).await;
    }
    let open = open(fs.clone()).await;
    let expected = [("a", 1), ("a", 2), ("b", 1), ("a", 3)].map(|(job, sequence)| (job.to_owned(), sequence));
    assert_eq!(sequences(&open.outbox), expected);
    let progress = open.outbox.progress();
    assert_eq!(progress[&id("a")].terminal.as_ref().unwrap().last_sequence, 3);
    assert_eq!(progress[&id("a")].steps.len(), 2);
    open.outbox.append(&id("b"), vec![step(1)]).await;
    assert_eq!(sequences(&open.outbox).last(), Some(&("b".to_owned(), 2)));
}

#[tokio::test]
async fn acknowledgements_come_in_any_order_and_twice() {
    let fs = Arc::new(MemoryFs::default());
    {
        let open = open(fs.clone()).await;
        open.outbox.append(&id("a"), (0..4).map(step).collect()).await;
        let acknowledge = |sequence| open.outbox.acknowledge([(id("a"), sequence)]).count;
        assert_eq!([acknowledge(4), acknowledge(2), acknowledge(2), acknowledge(9)], [1, 1, 0, 0]);
        assert_eq!(open.outbox.backlog().borrow().records, 2);
        open.outbox.settle().await;
    }
    let open = open(fs).await;
    assert_eq!(sequences(&open.outbox), [("a".to_owned(), 1), ("a".to_owned(), 3)]);
    open.outbox.acknowledge([(id("a"), 3), (id("a"), 1)]);
    open.outbox.drained().await;
    assert_eq!(*open.outbox.backlog().borrow(), Backlog::default());
}

#[tokio::test]
async fn a_segment_goes_when_its_records_are_acknowledged_and_progress_stays() {
    let fs = Arc::new(MemoryFs::default());
    let big = "x".repeat(1 << 20);
    {
        let open = open(fs.clone()).await;
        open.outbox.append(&id("open"), vec![step(0)]).await;
        for _ in 0..20 {
            open.outbox.append(&id("big"), vec![log(&big)]).await;
        }
        assert_eq!(fs.paths().len(), 3, "{:?}", fs.paths());
        let all: Vec<_> = (1..=20).map(|sequence| (id("big"), sequence)).chain([(id("open"), 1)]).collect();
        let Acknowledged { count, free, ended: _ } = open.outbox.acknowledge(all);
        assert_eq!((count, free.len()), (21, 2));
        remove_segments(&*fs, free).await;
        open.outbox.settle().await;
        assert_eq!(fs.paths().len(), 1, "{:?}", fs.paths());
    }
    let reopened = open(fs.clone()).await;
    assert!(sequences(&reopened.outbox).is_empty());
    assert_eq!(reopened.outbox.progress()[&id("open")].steps.len(), 1);
    reopened.outbox.append(&id("open"), vec![step(1)]).await;
    assert_eq!(sequences(&reopened.outbox), [("open".to_owned(), 2)]);
    reopened.outbox.acknowledge([(id("open"), 2)]);
    reopened.outbox.forget(&id("open"));
    reopened.outbox.forget(&id("big"));
    reopened.outbox.settle().await;
    drop(reopened);
    let empty = open(fs.clone()).await;
    assert!(empty.outbox.progress().is_empty());
    assert!(fs.paths().is_empty(), "{:?}", fs.paths());
}

#[tokio::test]
async fn a_torn_end_is_cut_wherever_the_crash_was_and_nothing_durable_is_lost() {
    for crash in [Crash::Before, Crash::Within, Crash::After] {
        for at in 1..=4 {
            let fs = Arc::new(MemoryFs::default());
            let mut durable = 0;
            {
                let open = open(fs.clone()).await;
                fs.crash_at(at, crash);
                for number in 0..4 {
                    let attempt = id("a");
                    let append = open.outbox.append(&attempt, vec![step(number)]);
                    // Cancel-safe for the test: the crash ends it.
                    tokio::select! {
                        () = append => durable = number + 1,
                        () = fs.crashed() => break,
                    }
                }
            }
            fs.restart();
            let open = open(fs).await;
            let kept = u32::try_from(sequences(&open.outbox).len()).unwrap();
            let expected = if crash == Crash::After { durable + 1 } else { durable };
            assert_eq!((u64::from(durable) + 1, kept), (at, expected), "{crash:?} {at}");
            open.outbox.append(&id("a"), vec![step(9)]).await;
            let sequences: Vec<u64> =
                sequences(&open.outbox).into_iter().map(|(_, sequence)| sequence).collect();
            assert_eq!(sequences, (1..=u64::from(kept) + 1).collect::<Vec<_>>());
        }
    }
}

#[tokio::test]
async fn on_a_real_disk_a_torn_end_is_cut_at_any_byte() {
    let folder = tempfile::tempdir().unwrap();
    {
        let open = open(Arc::new(DiskFs::new(folder.path()))).await;
        open.outbox.append(&id("a"), vec![step(0)]).await;
        open.outbox.append(&id("a"), vec![step(1)]).await;
    }
    let path = folder.path().join(journal::segment_path(1));
    let whole = std::fs::read(&path).unwrap();
    let first = 8 + usize::try_from(u32::from_le_bytes(whole[..4].try_into().unwrap())).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let open = open(Arc::new(DiskFs::new(folder.path()))).await;
        assert_eq!(sequences(&open.outbox).len(), usize::from(length >= first), "{length}");
        let kept = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        assert_eq!(kept, if length >= first { first as u64 } else { 0 }, "{length}");
    }
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&path, damaged).unwrap();
    {
        let open = open(Arc::new(DiskFs::new(folder.path()))).await;
        assert_eq!(sequences(&open.outbox).len(), 1);
    }
    // A crash leaves no whole frame with a wrong sum: it is kept for somebody to look at.
    let aside = path.with_extension("damaged");
    assert_eq!(std::fs::read(&aside).unwrap().len(), whole.len() - first);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), first as u64);
    std::fs::remove_file(&aside).unwrap();
    let mut zeros = whole[..first].to_vec();
    zeros.resize(whole.len(), 0);
    std::fs::write(&path, zeros).unwrap();
    open(Arc::new(DiskFs::new(folder.path()))).await;
    assert!(!aside.exists(), "a file whose length was written before its content is a torn end");
}

#[tokio::test]
async fn a_frame_of_a_newer_agent_is_not_thrown_away() {
    let fs = Arc::new(MemoryFs::default());
    fs.damage(&journal::segment_path(3), |content| {
        let body = br#"{"later":{}}"#;
        content.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        content.extend(crc32fast::hash(body).to_le_bytes());
        content.extend(body);
    });
    let error = Outbox::open(fs).await.err().unwrap();
    assert_eq!(error.kind(), "outbox_unknown_frame");
    assert!(error.to_string().contains("segment 3"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_holds_records_back_until_there_is_room() {
    let fs = Arc::new(MemoryFs::default());
    let open = open(fs.clone()).await;
    open.outbox.append(&id("a"), vec![step(0)]).await;
    fs.set_full(true);
    let outbox = Arc::clone(&open.outbox);
    let waiting = tokio::spawn(async move { outbox.append(&id("a"), vec![step(1)]).await });
    let mut stalled = open.outbox.stalled();
    stalled.wait_for(Option::is_some).await.unwrap();
    let why = stalled.borrow().clone().unwrap();
    assert!(why.contains("state folder"), "{why}");
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert!(!waiting.is_finished());
    assert_eq!(sequences(&open.outbox).len(), 1);
    fs.set_full(false);
    waiting.await.unwrap();
    assert_eq!(*open.outbox.stalled().borrow(), None);
    drop(open);
    let reopened = self::open(fs).await;
    assert_eq!(sequences(&reopened.outbox).len(), 2, "what a failed write left was cut");
}

#[tokio::test]
async fn output_waits_when_too_much_is_unsent() {
    let open = open(Arc::new(MemoryFs::default())).await;
    let big = "x".repeat(32 << 20);
    open.outbox.append(&id("a"), vec![log(&big)]).await;
    open.outbox.room().await;
    open.outbox.append(&id("a"), vec![log(&big)]).await;
    let outbox = Arc::clone(&open.outbox);
    let waiting = tokio::spawn(async move { outbox.room().await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    open.outbox.acknowledge([(id("a"), 1)]);
    waiting.await.unwrap();
}

#[tokio::test]
async fn the_mark_of_output_is_durable_with_its_record() {
    let fs = Arc::new(MemoryFs::default());
    let mut chunks = Vec::new();
    let mut chunker = Chunker::new(OutputMark::default());
    chunker.push(Stream::Stdout, "é".as_bytes(), 17, &mut chunks);
    let chunk = chunker.flush().unwrap();
    let mark = chunk.mark.clone();
    {
        let open = open(fs.clone()).await;
        open.outbox.append(&id("a"), vec![NewRecord { mark: Some(chunk.mark), ..log("é") }]).await;
    }
    let open = open(fs).await;
    assert_eq!(open.outbox.progress()[&id("a")].steps[&0].mark, Some(mark));
}

#[tokio::test(start_paused = true)]
async fn the_sender_delivers_everything_once_through_lost_partial_and_reversed_answers() {
    let controller = FakeController::default();
    let open = open(Arc::new(MemoryFs::default())).await;
    for job in ["a", "b"] {
        open.outbox.append(&id(job), (0..9).map(step).chain([terminal()]).collect()).await;
    }
    controller
        .change(|state| state.answers = [Answer::Lost, Answer::Half, Answer::Half, Answer::Lost].into());
    let sending = send(&open.outbox, &controller);
    open.outbox.drained().await;
    sending.abort();
    let state = controller.state();
    state.check_records();
    assert_eq!(state.records.len(), 20);
    assert!(state.received.len() > 20, "some went twice");
}

#[tokio::test(start_paused = true)]
async fn a_rejected_record_does_not_hold_up_the_others() {
    let controller = FakeController::default();
    controller.change(|state| state.reject.insert((id("a"), 2)));
    let open = open(Arc::new(MemoryFs::default())).await;
    open.outbox.append(&id("a"), (0..3).map(step).collect()).await;
    let sending = send(&open.outbox, &controller);
    open.outbox.drained().await;
    sending.abort();
    let state = controller.state();
    assert_eq!(state.records.keys().map(|(_, sequence)| *sequence).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(state.received.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_refused_batch_is_sent_in_smaller_ones() {
    let controller = FakeController::default();
    controller.change(|state| state.answers = [Answer::OnlySingles].into());
    let open = open(Arc::new(MemoryFs::default())).await;
    open.outbox.append(&id("a"), (0..5).map(step).collect()).await;
    let sending = send(&open.outbox, &controller);
    open.outbox.drained().await;
    sending.abort();
    assert_eq!(controller.state().records.len(), 5);
    assert_eq!(controller.state().largest_batch, 1);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_survived_and_batches_are_bounded() {
    let controller = FakeController::default();
    controller.change(|state| state.down = true);
    let open = open(Arc::new(MemoryFs::default())).await;
    let sending = send(&open.outbox, &controller);
    open.outbox.append(&id("a"), (0..1000).map(step).collect()).await;
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    assert_eq!(open.outbox.backlog().borrow().records, 1000);
    controller.change(|state| state.down = false);
    open.outbox.drained().await;
    sending.abort();
    assert_eq!(controller.state().records.len(), 1000);
    assert_eq!(controller.state().largest_batch, 256);
}
