//! What jobs leave: lists, downloads, and what is said of them.

mod folder;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};

use crate::client::Client;
use crate::client::model::{ArtifactItem, ArtifactState, Items};
use crate::console::Console;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::output::human::{self, printable};
use crate::output::table::{Cell, Column, column, flexible};
use folder::Folder;

/// How long artifacts are waited for that their node still has to send.
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

/// Those of the last attempt that has left any; of attempts that were given away only where there is no other.
pub(crate) fn of_last_attempt(items: Vec<ArtifactItem>) -> Vec<ArtifactItem> {
    let last = items.iter().map(|item| (!item.superseded, item.epoch)).max();
    items.into_iter().filter(|item| Some((!item.superseded, item.epoch)) == last).collect()
}

impl Artifacts<'_> {
    /// All of them.
    pub(crate) async fn list(&self) -> Result<Vec<ArtifactItem>, Failure> {
        let items: Items<ArtifactItem> =
            self.client.job_detail(self.namespace, self.job, "artifacts", &[]).await?;
        Ok(items.items)
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

    /// Saves one as a file, which it replaces once it is there as a whole.
    pub(crate) async fn save(&self, item: &ArtifactItem, file: &Path) -> Result<(), Failure> {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        let failed = |error: std::io::Error| {
            Failure::from(
                Report::new(Exit::Failed, format!("{} cannot be written", file.display()))
                    .detail(error.to_string()),
            )
        };
        let mut saved = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).map_err(failed)?;
        self.write(item, |piece| saved.write_all(piece).map_err(failed)).await?;
        saved.persist(file).map_err(|error| failed(error.error))?;
        Ok(())
    }

    /// Saves all of these below a folder, and nothing anywhere else. One that cannot be saved does not keep the others from it.
    pub(crate) async fn save_all(&self, items: &[ArtifactItem], folder: &Path) -> Result<Exit, Failure> {
        let unusable = |error: std::io::Error| {
            Report::new(Exit::Failed, format!("the folder {} cannot be used", folder.display()))
                .detail(error.to_string())
        };
        let into = Folder::make(folder).map_err(unusable)?;
        let mut exit = Exit::Success;
        let mut saved = 0;
        for item in items {
            match item.state {
                ArtifactState::Stored => {}
                ArtifactState::Refused
                | ArtifactState::Lost
                | ArtifactState::Pending
                | ArtifactState::Unknown => {
                    let reason = item.reason.as_deref().unwrap_or("its node has not sent it yet");
                    self.console.warn(format!(
                        "{} is not there: {}",
                        printable(&item.name),
                        printable(reason)
                    ));
                    continue;
                }
            }
            match self.save_below(item, &into).await {
                Ok(()) => saved += 1,
                Err(Failure::Report(report)) => {
                    self.console.report(&report);
                    exit = exit.worst(report.exit);
                }
                Err(closed @ Failure::OutputClosed) => return Err(closed),
            }
        }
        let plural = if saved == 1 { "artifact" } else { "artifacts" };
        self.console.note(format!("{saved} {plural} saved in {}", folder.display()));
        Ok(exit)
    }

    async fn save_below(&self, item: &ArtifactItem, folder: &Folder) -> Result<(), Failure> {
        let failed = |error: std::io::Error| {
            Failure::from(
                Report::new(Exit::Failed, format!("{} cannot be saved", printable(&item.name)))
                    .detail(error.to_string()),
            )
        };
        let mut place = folder.place(&item.name).map_err(failed)?;
        self.write(item, |piece| place.file().write_all(piece).map_err(failed)).await?;
        place.keep().map_err(failed)
    }

    /// What is said and done at the end of a job that was followed: tells of its artifacts, or saves them in a folder.
    pub(crate) async fn after_the_end(&self, folder: Option<&Path>, is_kept: bool) -> Result<Exit, Failure> {
        let mut items = match self.list().await {
            Ok(items) => of_last_attempt(items),
            // The job may be gone by now, and a server of before has none. Who wants none need not hear of that.
            Err(Failure::Report(_)) if folder.is_none() => return Ok(Exit::Success),
            Err(failure) => return Err(failure),
        };
        if let Some(folder) = folder {
            let until = tokio::time::Instant::now() + PATIENCE;
            while items.iter().any(|item| item.state == ArtifactState::Pending)
                && tokio::time::Instant::now() < until
            {
                tokio::time::sleep(LOOK).await;
                items = of_last_attempt(self.list().await?);
            }
            return self.save_all(&items, folder).await;
        }
        let refused = items.iter().filter(|item| item.state == ArtifactState::Refused).count();
        let left = items.len() - refused;
        if items.is_empty() {
            return Ok(Exit::Success);
        }
        let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let refused =
            if refused > 0 { format!(", {} refused", count(refused, "file")) } else { String::new() };
        let how = if is_kept {
            let namespace =
                if self.namespace == "default" { String::new() } else { format!(" -n {}", self.namespace) };
            format!("windlass artifacts {}{namespace}", self.job)
        } else {
            "`--artifacts DIR` saves them".to_owned()
        };
        self.console.note(format!("{}{refused}: {how}", count(left, "artifact")));
        Ok(Exit::Success)
    }
}
