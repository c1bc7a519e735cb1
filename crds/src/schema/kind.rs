//! The kinds of manifests and the words that name them.

use std::fmt;

/// A kind of manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, strum::EnumIter)]
pub enum Kind {
    /// The desired configuration of a node.
    NodeConfig,
    /// A piece of work.
    SandboxJob,
    /// A named, parameterised job.
    JobTemplate,
}

impl Kind {
    /// The word in a manifest's `kind`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NodeConfig => "NodeConfig",
            Self::SandboxJob => "SandboxJob",
            Self::JobTemplate => "JobTemplate",
        }
    }

    /// The word in paths and file names.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::NodeConfig => "nodeconfigs",
            Self::SandboxJob => "sandboxjobs",
            Self::JobTemplate => "jobtemplates",
        }
    }

    /// Whether objects of this kind belong to a namespace.
    pub const fn is_namespaced(self) -> bool {
        match self {
            Self::NodeConfig => false,
            Self::SandboxJob | Self::JobTemplate => true,
        }
    }

    /// The kind with this exact name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|kind| kind.name() == name)
    }

    /// The kind that a person means: its name, plural or a short word for it, in any case.
    pub fn from_alias(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        Self::all().find(|kind| kind.aliases().contains(&word.as_str()))
    }

    /// Every word that [`Kind::from_alias`] knows for this kind.
    pub const fn aliases(self) -> &'static [&'static str] {
        match self {
            Self::NodeConfig => &["nodeconfig", "nodeconfigs", "node", "nodes", "nc"],
            Self::SandboxJob => &["sandboxjob", "sandboxjobs", "job", "jobs", "sj"],
            Self::JobTemplate => &["jobtemplate", "jobtemplates", "template", "templates", "jt"],
        }
    }

    /// Every kind.
    pub fn all() -> impl Iterator<Item = Self> {
        <Self as strum::IntoEnumIterator>::iter()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
