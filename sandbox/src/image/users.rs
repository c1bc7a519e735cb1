//! Who a program is inside of an image: the user that the image names, with an entry in its accounts.

use serde::{Deserialize, Serialize};

use super::Trouble;

/// The job's user and group where an image names none.
pub(crate) const JOB: u32 = 1000;
/// Bytes of a file of accounts that is read and added to.
pub(super) const MAX_ACCOUNTS: usize = 64 << 10;

/// The user that a program runs as, by its numbers inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The image's /etc/passwd; `None` where it is too large to be read.
    pub passwd: Option<String>,
    /// Its /etc/group.
    pub group: Option<String>,
}

impl Account {
    /// The account that an image wants: its `user`, which is never root, else the job's own.
    pub(super) fn of(user: &str, passwd: Option<String>, group: Option<String>) -> Result<Self, Trouble> {
        let (name, group_name) = match user.split_once(':') {
            Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
            None => (user, None),
        };
        let unknown = |what: &str, name: &str, file: &str| {
            Trouble::unusable(format!("wants the {what} `{name}`, who is not in its {file}"))
        };
        let users = passwd.as_deref().unwrap_or_default();
        let groups = group.as_deref().unwrap_or_default();
        let entry = entry_of(users, name);
        // The largest means none to the kernel.
        let number = |entry: &[&str], field: usize| {
            entry.get(field).and_then(|id| id.parse::<u32>().ok()).filter(|id| *id != u32::MAX)
        };
        let uid = match (&entry, name.parse::<u32>()) {
            _ if name.is_empty() => 0,
            (Some(entry), _) => number(entry, 2).ok_or_else(|| unknown("user", name, "/etc/passwd"))?,
            (None, Ok(uid)) if uid != u32::MAX => uid,
            (None, _) => return Err(unknown("user", name, "/etc/passwd")),
        };
        let gid = match group_name {
            None => entry.as_deref().and_then(|entry| number(entry, 3)).unwrap_or(0),
            Some(name) => match (entry_of(groups, name), name.parse::<u32>()) {
                (Some(entry), _) => number(&entry, 2).ok_or_else(|| unknown("group", name, "/etc/group"))?,
                (None, Ok(gid)) if gid != u32::MAX => gid,
                (None, _) => return Err(unknown("group", name, "/etc/group")),
            },
        };
        // Root inside is asked for by a job, not by an image.
        let (uid, gid) = if uid == 0 { (JOB, JOB) } else { (uid, gid) };
        Ok(Self { uid, gid, passwd, group })
    }

    /// The same files for another user.
    #[must_use]
    pub fn root(self) -> Self {
        Self { uid: 0, gid: 0, ..self }
    }

    /// The image's /etc/passwd with an entry for the user.
    pub(crate) fn passwd_file(&self, home: &str) -> Option<String> {
        let (uid, gid) = (self.uid, self.gid);
        with_entry(self.passwd.as_deref()?, uid, 2, &format!("job:x:{uid}:{gid}:job:{home}:/bin/sh"))
    }

    /// The image's /etc/group with an entry for the group.
    pub(crate) fn group_file(&self) -> Option<String> {
        with_entry(self.group.as_deref()?, self.gid, 2, &format!("job:x:{}:", self.gid))
    }
}

/// The entry of a file of accounts with a name, or a number in its third field.
fn entry_of<'f>(file: &'f str, name: &str) -> Option<Vec<&'f str>> {
    let entries = || file.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let named = entries().find(|entry| entry.first() == Some(&name));
    named.or_else(|| entries().find(|entry| name.parse::<u32>().is_ok() && entry.get(2) == Some(&name)))
}

/// A file with a line more, if none has the number in a field; `None` where nothing is to be added.
fn with_entry(file: &str, number: u32, field: usize, line: &str) -> Option<String> {
    let number = number.to_string();
    if file.lines().any(|line| line.split(':').nth(field) == Some(number.as_str())) {
        return None;
    }
    let gap = if file.is_empty() || file.ends_with('\n') { "" } else { "\n" };
    Some(format!("{file}{gap}{line}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:200:300::/app:/bin/false";
    const GROUP: &str = "root:x:0:\nwww:x:33:\n";

    fn account(user: &str) -> Result<(u32, u32), String> {
        match Account::of(user, Some(PASSWD.to_owned()), Some(GROUP.to_owned())) {
            Ok(account) => Ok((account.uid, account.gid)),
            Err(Trouble::Image(_, message)) => Err(message),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_user_of_an_image_is_found_as_podman_finds_it_and_is_never_root() {
        for (user, expected) in [
            ("", (1000, 1000)),
            ("root", (1000, 1000)),
            ("0:33", (1000, 1000)),
            ("app", (200, 300)),
            ("200", (200, 300)),
            ("app:www", (200, 33)),
            ("4711", (4711, 0)),
            ("4711:4712", (4711, 4712)),
            ("app:", (200, 300)),
        ] {
            assert_eq!(account(user), Ok(expected), "{user}");
        }
        assert!(account("nobody").unwrap_err().contains("`nobody`, who is not in its /etc/passwd"));
        assert!(account("app:staff").unwrap_err().contains("group `staff`"));
        assert!(account("4294967295").is_err());
    }

    #[test]
    fn a_user_without_an_entry_gets_one() {
        let account = Account { uid: 4711, gid: 33, passwd: Some(PASSWD.into()), group: Some(GROUP.into()) };
        let passwd = account.passwd_file("/home/job").unwrap();
        assert!(passwd.ends_with("/bin/false\njob:x:4711:33:job:/home/job:/bin/sh\n"), "{passwd}");
        assert_eq!(account.group_file(), None);
        let none = Account { passwd: None, ..account };
        assert_eq!(none.passwd_file("/home/job"), None);
    }
}
