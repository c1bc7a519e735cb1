//! Where a user's files are, by the XDG base directory specification.

use std::path::PathBuf;

/// The folders of this user; `None` where neither the environment nor the user database says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Folders {
    /// Configuration that the user writes.
    pub(crate) config: Option<PathBuf>,
    /// Data to keep.
    pub(crate) data: Option<PathBuf>,
    /// What a program remembers.
    pub(crate) state: Option<PathBuf>,
}

impl Folders {
    /// The folders of whoever runs this process.
    #[expect(
        clippy::disallowed_methods,
        reason = "these variables name folders of the user and no settings of ours, which all have flags"
    )]
    pub(crate) fn of_this_user() -> Self {
        let variable = |name| std::env::var_os(name).map(PathBuf::from);
        Self::new(
            variable("XDG_CONFIG_HOME"),
            variable("XDG_DATA_HOME"),
            variable("XDG_STATE_HOME"),
            std::env::home_dir(),
        )
    }

    /// The folders by these variables, each with the default below the home folder. A relative path counts as unset,
    /// as the specification says.
    pub(crate) fn new(
        config: Option<PathBuf>,
        data: Option<PathBuf>,
        state: Option<PathBuf>,
        home: Option<PathBuf>,
    ) -> Self {
        let home = home.filter(|home| home.is_absolute());
        let choose = |named: Option<PathBuf>, below: &str| {
            named.filter(|path| path.is_absolute()).or_else(|| home.as_ref().map(|home| home.join(below)))
        };
        Self {
            config: choose(config, ".config"),
            data: choose(data, ".local/share"),
            state: choose(state, ".local/state"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_win_over_the_home_folder_unless_they_are_relative() {
        let folders =
            Folders::new(Some("/c".into()), Some("relative".into()), None, Some("/home/someone".into()));
        assert_eq!(folders.config, Some("/c".into()));
        assert_eq!(folders.data, Some("/home/someone/.local/share".into()));
        assert_eq!(folders.state, Some("/home/someone/.local/state".into()));
        assert_eq!(Folders::new(None, None, None, None), Folders::default());
    }
}
