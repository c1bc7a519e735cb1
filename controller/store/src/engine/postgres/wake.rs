//! Wake-ups between controllers: what one notification says.
//!
//! There is one notification a commit, with ids and nothing else: the sender's name, then a change a line. Where they do
//! not fit, it says of the rest only that anything may have changed.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::hash::{BuildHasher as _, RandomState};

use crate::Change;

/// The channel that controllers listen to.
pub(super) const CHANNEL: &str = "windlass";

/// PostgreSQL takes up to 7,999 bytes.
const LONGEST: usize = 7_900;

/// What a sender calls itself, to know its own notifications.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name(String);

impl Name {
    /// A name that nobody else has.
    pub(super) fn new() -> Self {
        // Every new state is keyed by chance.
        let (first, second) = (RandomState::new().hash_one(1), RandomState::new().hash_one(2));
        Self(format!("{first:016x}{second:016x}"))
    }
}

/// The statement that tells the other controllers.
pub(super) fn notify(name: &Name, changes: &HashSet<Change>) -> String {
    // standard_conforming_strings is on: only quotes mean something.
    format!("SELECT pg_notify('{CHANNEL}', '{}'); ", payload(name, changes).replace('\'', "''"))
}

fn payload(name: &Name, changes: &HashSet<Change>) -> String {
    let mut text = name.0.clone();
    let mut lines: Vec<String> = changes.iter().map(line).collect();
    // What many wait for comes first.
    lines.sort_unstable_by_key(|line| (rank(line), line.len()));
    for line in lines {
        if text.len() + line.len() + "\n*".len() > LONGEST || line[1..].contains('\n') {
            text.push_str("\n*");
            break;
        }
        write!(text, "\n{line}").expect("writing to a string never fails");
    }
    text
}

fn rank(line: &str) -> u8 {
    match line.as_bytes().first() {
        Some(b'Q' | b'*') => 0,
        Some(b'N' | b'F') => 1,
        Some(_) | None => 2,
    }
}

fn line(change: &Change) -> String {
    match change {
        Change::Any => "*".to_owned(),
        Change::Queued => "Q".to_owned(),
        Change::Job { uid } => format!("J{uid}"),
        Change::Node { name } => format!("N{name}"),
        Change::Freed { node } => format!("F{node}"),
        Change::Records { uid } => format!("R{uid}"),
        Change::Event { job: Some(uid) } => format!("E{uid}"),
        Change::Event { job: None } => "e".to_owned(),
        Change::Template { namespace, name } => format!("T{namespace}/{name}"),
    }
}

/// What a notification says; nothing where it is one's own. One that cannot be read, of a newer controller, may mean
/// anything.
pub(super) fn read(own: &Name, payload: &str) -> Vec<Change> {
    let mut lines = payload.split('\n');
    if lines.next() == Some(own.0.as_str()) {
        return Vec::new();
    }
    lines.map(|line| read_line(line).unwrap_or(Change::Any)).collect()
}

fn read_line(line: &str) -> Option<Change> {
    let kind = line.chars().next()?;
    let rest = &line[kind.len_utf8()..];
    Some(match kind {
        'Q' => Change::Queued,
        'J' => Change::Job { uid: rest.to_owned() },
        'N' => Change::Node { name: rest.to_owned() },
        'F' => Change::Freed { node: rest.to_owned() },
        'R' => Change::Records { uid: rest.to_owned() },
        'E' => Change::Event { job: Some(rest.to_owned()) },
        'e' => Change::Event { job: None },
        'T' => {
            let (namespace, name) = rest.split_once('/')?;
            Change::Template { namespace: namespace.to_owned(), name: name.to_owned() }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> HashSet<Change> {
        let uid = || "0197-a'b".to_owned();
        HashSet::from([
            Change::Queued,
            Change::Job { uid: uid() },
            Change::Node { name: "n".to_owned() },
            Change::Freed { node: "n".to_owned() },
            Change::Records { uid: uid() },
            Change::Event { job: Some(uid()) },
            Change::Event { job: None },
            Change::Template { namespace: "a".to_owned(), name: "b".to_owned() },
        ])
    }

    #[test]
    fn every_change_is_read_as_it_was_told() {
        let told = payload(&Name::new(), &all());
        assert_eq!(read(&Name::new(), &told).into_iter().collect::<HashSet<_>>(), all());
    }

    #[test]
    fn ones_own_notification_says_nothing() {
        let name = Name::new();
        assert!(read(&name, &payload(&name, &all())).is_empty());
    }

    #[test]
    fn many_changes_fit_and_those_who_wait_for_work_are_still_told() {
        let mut changes: HashSet<Change> =
            (0..1000).map(|n| Change::Job { uid: format!("{n:036}") }).collect();
        changes.extend([Change::Queued, Change::Node { name: "n".to_owned() }]);
        let told = payload(&Name::new(), &changes);
        assert!(told.len() < 8000, "{}", told.len());
        let read = read(&Name::new(), &told);
        assert_eq!(read[..2], [Change::Queued, Change::Node { name: "n".to_owned() }]);
        assert_eq!(read.last(), Some(&Change::Any));
        assert!(read.len() > 200, "{}", read.len());
    }

    #[test]
    fn what_cannot_be_read_may_mean_anything() {
        for line in ["", "?", "T", "Ünknown"] {
            assert_eq!(read(&Name::new(), &format!("x\n{line}")), [Change::Any], "{line}");
        }
        let odd = HashSet::from([Change::Node { name: "a\nQ".to_owned() }]);
        assert_eq!(read(&Name::new(), &payload(&Name::new(), &odd)), [Change::Any]);
    }

    #[test]
    fn quotes_cannot_end_the_statement() {
        let odd = HashSet::from([Change::Node { name: "'); DROP TABLE jobs; --".to_owned() }]);
        let sql = notify(&Name::new(), &odd);
        assert!(sql.contains("''); DROP"), "{sql}");
    }
}
