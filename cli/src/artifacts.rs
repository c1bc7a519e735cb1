//! What jobs leave: lists, downloads, and what is said of them.

mod folder;
mod target;

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};

use crate::client::Client;
use crate::client::model::{ArtifactItem, ArtifactState, Items, Job};
use crate::console::Console;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::kind::Kind;
use crate::output::human::{self, printable};
use crate::output::table::{Cell, Column, column, flexible};
use folder::Folder;
use target::Target;

pub(crate) use folder::Existing;

/// How long artifacts are waited for that their node still has to send, where nothing else is said.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often is looked whether they are there.
const LOOK: Duration = Duration::from_millis(100);

/// A job whose artifacts are meant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Artifacts<'a> {
    /// The server.
    pub(crate) client: &'a Client,
    /// Where is told what is going on.
    pub(crate) console: Console,
    /// The job's namespace.
    pub(crate) namespace: &'a str,
    /// The job's name.
    pub(crate) job: &'a str,
}

/// Where and how the artifacts of an attempt are saved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Saving<'a> {
    /// The folder.
    pub(crate) folder: &'a Path,
    /// What becomes of files that are there already.
    pub(crate) existing: Existing,
    /// The number of the attempt; without it the last one is meant, and no other.
    pub(crate) attempt: Option<u32>,
    /// How long those are waited for that their node still has to send.
    pub(crate) patience: Duration,
}

impl<'a> Saving<'a> {
    /// What the last attempt has left, as it is saved at the end of a job.
    pub(crate) const fn at_the_end(folder: &'a Path, existing: Existing) -> Self {
        Self { folder, existing, attempt: None, patience: PATIENCE }
    }
}

/// The columns of [`row`].
pub(crate) const COLUMNS: [Column; 5] =
    [column("NAME"), column("KIND"), column("SIZE"), column("STATE"), flexible("REASON")];

/// An artifact in a table.
pub(crate) fn row(item: &ArtifactItem) -> Vec<Cell> {
    let state = item.state.to_string();
    vec![
        Cell::from(&item.name),
        Cell::from(&item.kind),
        Cell::from(human::bytes(item.size)),
        match item.state {
            ArtifactState::Stored => Cell::good(state),
            ArtifactState::Pending => Cell::active(state),
            ArtifactState::Refused => Cell::notable(state),
            ArtifactState::Lost => Cell::bad(state),
            ArtifactState::Unknown => Cell::from(state),
        },
        Cell::from(item.reason.as_deref().unwrap_or("-")),
    ]
}

/// How much an artifact is the one that is meant where none of the same name, or any, would do: one of the job's last attempt
/// first, of attempts that were given away only where there is no other. `last` is the epoch of the job's last attempt.
pub(crate) const fn rank(item: &ArtifactItem, last: u64) -> (bool, bool, u64) {
    (item.epoch == last, !item.superseded, item.epoch)
}

/// Those of the job's last attempt, which has this epoch; where it has left none, those of one before it.
pub(crate) fn of_last_attempt(items: Vec<ArtifactItem>, last: u64) -> Vec<ArtifactItem> {
    let epoch = items.iter().max_by_key(|item| rank(item, last)).map(|item| item.epoch);
    items.into_iter().filter(|item| Some(item.epoch) == epoch).collect()
}

/// A number of things.
fn count(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

impl Artifacts<'_> {
    /// All of them.
    pub(crate) async fn list(&self) -> Result<Vec<ArtifactItem>, Failure> {
        let items: Items<ArtifactItem> =
            self.client.job_detail(self.namespace, self.job, "artifacts", &[]).await?;
        Ok(items.items)
    }

    /// The epoch of the job's last attempt.
    pub(crate) async fn last_epoch(&self) -> Result<u64, Failure> {
        let job: Job = self.client.get(Kind::Job, self.namespace, self.job).await?;
        Ok(job.status.epoch)
    }

    /// Writes the content of one, piece by piece, to `to`. Fails where it is not what its node has collected.
    pub(crate) async fn write(
        &self,
        item: &ArtifactItem,
        mut to: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let response = self.client.artifact(self.namespace, self.job, &item.name, item.epoch).await?;
        let mut pieces = response.bytes_stream();
        let mut hash = Sha256::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| self.client.broken(error))?;
            hash.update(&piece);
            to(&piece)?;
        }
        let found = hex::encode(hash.finalize());
        if item.sha256.as_ref() == Some(&found) {
            return Ok(());
        }
        let report = Report::new(
            Exit::Failed,
            format!("what came of {} is not what was collected", printable(&item.name)),
        );
        Err(report
            .detail(format!("its SHA-256 is {found}, not {}", item.sha256.as_deref().unwrap_or("known")))
            .into())
    }

    /// Saves one as a file, which it replaces once it is there as a whole, or writes it to what is there that is no file.
    pub(crate) async fn save(&self, item: &ArtifactItem, file: &Path) -> Result<(), Failure> {
        let failed = |error: std::io::Error| {
            Failure::from(
                Report::new(Exit::Failed, format!("{} cannot be written", file.display()))
                    .detail(error.to_string()),
            )
        };
        let mut target = Target::open(file).map_err(failed)?;
        self.write(item, |piece| target.write_all(piece).map_err(failed)).await?;
        target.keep().map_err(failed)
    }

    /// Saves what an attempt has left, once its node has sent it. What does not come is a failure; what was refused is not.
    pub(crate) async fn save_attempt(&self, saving: Saving<'_>) -> Result<Exit, Failure> {
        let last = self.last_epoch().await?;
        let items = self.awaited(saving, last).await?;
        if saving.attempt.is_none() && self.tell_of_earlier(&items, last, true) {
            return Ok(Exit::Success);
        }
        self.save_all(&items, saving).await
    }

    /// What an attempt has left, when all of it has come or nobody wants to wait any longer.
    async fn awaited(&self, saving: Saving<'_>, last: u64) -> Result<Vec<ArtifactItem>, Failure> {
        let began = tokio::time::Instant::now();
        let mut told = 0;
        loop {
            let mut items = self.list().await?;
            items.retain(|item| saving.attempt.is_none_or(|number| item.attempt == number));
            let items = of_last_attempt(items, last);
            let is_meant = saving.attempt.is_some() || items.first().is_some_and(|item| item.epoch == last);
            let pending = items.iter().filter(|item| item.state == ArtifactState::Pending).count();
            if pending == 0 || !is_meant || began.elapsed() >= saving.patience {
                return Ok(items);
            }
            if told == 0 || (told != pending && self.console.is_watched()) {
                self.console.note(format!("waiting for {}", count(pending, "artifact")));
                told = pending;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Tells, where these are not of the job's last attempt, of which they are. Yields whether that is so.
    fn tell_of_earlier(&self, items: &[ArtifactItem], last: u64, is_kept: bool) -> bool {
        let Some(earlier) = items.first().filter(|item| item.epoch != last) else { return false };
        let number = earlier.attempt;
        let how = if is_kept { format!(": {} --attempt {number}", self.command()) } else { String::new() };
        self.console.warn(format!("the last attempt has left no artifacts; attempt {number} has{how}"));
        true
    }

    /// The command that lists them.
    fn command(&self) -> String {
        let namespace =
            if self.namespace == "default" { String::new() } else { format!(" -n {}", self.namespace) };
        format!("windlass artifacts {}{namespace}", self.job)
    }

    /// Saves all of these below a folder, and nothing anywhere else. One that cannot be saved does not keep the others from it.
    async fn save_all(&self, items: &[ArtifactItem], saving: Saving<'_>) -> Result<Exit, Failure> {
        let Saving { folder, existing, .. } = saving;
        let unusable = |error: std::io::Error| {
            Report::new(Exit::Failed, format!("the folder {} cannot be used", folder.display()))
                .detail(error.to_string())
        };
        let mut into = Folder::make(folder, existing).map_err(unusable)?;
        let mut exit = Exit::Success;
        let mut saved = 0;
        for item in items {
            if item.state != ArtifactState::Stored {
                exit = exit.worst(self.is_missing(item));
                continue;
            }
            match self.save_below(item, &mut into).await {
                Ok(()) => saved += 1,
                Err(Failure::Report(report)) => {
                    self.console.report(&report);
                    exit = exit.worst(report.exit);
                }
                Err(closed @ Failure::OutputClosed) => return Err(closed),
            }
        }
        self.console.note(format!("{} saved in {}", count(saved, "artifact"), folder.display()));
        Ok(exit)
    }

    /// Tells why one is not there, and what that means for the end of the command.
    fn is_missing(&self, item: &ArtifactItem) -> Exit {
        let (reason, exit) = match item.state {
            ArtifactState::Stored | ArtifactState::Refused => ("it was refused", Exit::Success),
            ArtifactState::Pending => ("its node has not sent it yet", Exit::TimedOut),
            ArtifactState::Lost => ("it will never come", Exit::Failed),
            ArtifactState::Unknown => ("its state is one that only a newer windlass knows", Exit::Failed),
        };
        let reason = item.reason.as_deref().unwrap_or(reason);
        self.console.warn(format!("{} is not there: {}", printable(&item.name), printable(reason)));
        exit
    }

    async fn save_below(&self, item: &ArtifactItem, folder: &mut Folder) -> Result<(), Failure> {
        let failed = |error: std::io::Error| {
            let report = Report::new(Exit::Failed, format!("{} cannot be saved", printable(&item.name)))
                .detail(error.to_string());
            Failure::from(report)
        };
        let mut place = folder.place(&item.name).map_err(failed)?;
        self.write(item, |piece| place.file().write_all(piece).map_err(failed)).await?;
        folder.keep(place).map_err(failed)
    }

    /// What is said and done at the end of a job that was followed: tells of its artifacts, or saves them in a folder.
    pub(crate) async fn after_the_end(
        &self,
        saving: Option<Saving<'_>>,
        is_kept: bool,
    ) -> Result<Exit, Failure> {
        if let Some(saving) = saving {
            return self.save_attempt(saving).await;
        }
        match self.tell(is_kept).await {
            // The job may be gone by now, and a server of before has none. Who wants none need not hear of that.
            Err(Failure::Report(_)) => Ok(Exit::Success),
            told => told.map(|()| Exit::Success),
        }
    }

    async fn tell(&self, is_kept: bool) -> Result<(), Failure> {
        let last = self.last_epoch().await?;
        let items = of_last_attempt(self.list().await?, last);
        if items.is_empty() || self.tell_of_earlier(&items, last, is_kept) {
            return Ok(());
        }
        let refused = items.iter().filter(|item| item.state == ArtifactState::Refused).count();
        let left = items.len() - refused;
        let refused =
            if refused > 0 { format!(", {} refused", count(refused, "file")) } else { String::new() };
        let how = if is_kept { self.command() } else { "`--artifacts DIR` saves them".to_owned() };
        self.console.note(format!("{}{refused}: {how}", count(left, "artifact")));
        Ok(())
    }
}
