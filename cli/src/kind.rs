//! The kinds of objects by all their names, and how a command line points at objects.

use clap::builder::{PossibleValue, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumIter)]
pub(crate) enum Kind {
    /// A host with an agent, and its configuration.
    Node,
    /// A piece of work.
    Job,
    /// A parameterised job.
    Template,
    /// A lane that jobs wait in.
    Queue,
}

impl Kind {
    /// The word for one of them, as in `job/hello`.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Job => "job",
            Self::Template => "template",
            Self::Queue => "queue",
        }
    }

    /// The word for many of them, as in `windlass get jobs`.
    pub(crate) const fn plural(self) -> &'static str {
        match self {
            Self::Node => "nodes",
            Self::Job => "jobs",
            Self::Template => "templates",
            Self::Queue => "queues",
        }
    }

    /// Every other word that means the kind.
    const fn aliases(self) -> &'static [&'static str] {
        match self {
            Self::Node => &["no", "nc", "nodeconfig", "nodeconfigs"],
            Self::Job => &["sj", "sandboxjob", "sandboxjobs"],
            Self::Template => &["jt", "jobtemplate", "jobtemplates"],
            Self::Queue => &["q"],
        }
    }

    /// Whether objects of the kind live in a namespace.
    pub(crate) const fn is_namespaced(self) -> bool {
        match self {
            Self::Job | Self::Template => true,
            Self::Node | Self::Queue => false,
        }
    }

    /// All kinds.
    pub(crate) const ALL: [Self; 4] = [Self::Node, Self::Job, Self::Template, Self::Queue];

    /// The kind that a word means, in any case.
    pub(crate) fn from_word(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        Self::ALL.into_iter().find(|kind| {
            kind.word() == word || kind.plural() == word || kind.aliases().contains(&word.as_str())
        })
    }
}

/// What a command line points at: a kind, or one object of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The kind.
    pub(crate) kind: Kind,
    /// The object's name; `None` for the kind as a whole.
    pub(crate) name: Option<String>,
}

/// Reads `KIND` or `KIND/NAME`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TargetParser;

impl TypedValueParser for TargetParser {
    type Value = Target;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Target, clap::Error> {
        let text = value.to_string_lossy();
        let (word, name) = match text.split_once('/') {
            Some((word, name)) => (word, Some(name)),
            None => (text.as_ref(), None),
        };
        match (Kind::from_word(word), name) {
            (Some(kind), None) => Ok(Target { kind, name: None }),
            (Some(kind), Some(name)) if !name.is_empty() => Ok(Target { kind, name: Some(name.to_owned()) }),
            (Some(_), Some(_)) | (None, _) => Err(unknown_kind(command, arg, &text)),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(
            Kind::ALL
                .into_iter()
                .map(|kind| PossibleValue::new(kind.plural()).alias(kind.word()).aliases(kind.aliases())),
        ))
    }
}

/// The error of a word that is no kind, with the nearest kind where one is near.
fn unknown_kind(command: &clap::Command, arg: Option<&clap::Arg>, text: &str) -> clap::Error {
    let mut error = clap::Error::new(ErrorKind::InvalidValue).with_cmd(command);
    if let Some(arg) = arg {
        error.insert(ContextKind::InvalidArg, ContextValue::String(arg.to_string()));
    }
    error.insert(ContextKind::InvalidValue, ContextValue::String(text.to_owned()));
    error.insert(
        ContextKind::ValidValue,
        ContextValue::Strings(Kind::ALL.iter().map(|kind| kind.plural().to_owned()).collect()),
    );
    let word = text.split('/').next().unwrap_or(text).to_ascii_lowercase();
    let nearest = Kind::ALL
        .iter()
        .map(|kind| (strsim::jaro_winkler(kind.plural(), &word), kind.plural()))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((similarity, plural)) = nearest
        && similarity > 0.7
    {
        error.insert(ContextKind::SuggestedValue, ContextValue::String(plural.to_owned()));
    }
    error
}

/// Why words on the command line do not point at objects.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// A kind with neither a slash nor names after it, where objects must be named.
    #[error("`{}` needs a name: write `{} NAME` or `{}/NAME`", .0.word(), .0.word(), .0.word())]
    NoName(Kind),
    /// Names of two sorts.
    #[error(
        "`{0}` names a kind although names of another one came before: write `KIND/NAME` for each object"
    )]
    Mixed(String),
    /// A word that must be `KIND/NAME` and is not.
    #[error("`{0}` does not point at an object: write `KIND/NAME`, such as `job/hello`")]
    NotATarget(String),
    /// The kind is known, but the verb is only for another one.
    #[error("`{text}` is not a {expected}")]
    WrongKind {
        /// What was written.
        text: String,
        /// The only kind that makes sense.
        expected: &'static str,
    },
}

/// The objects that `KIND NAME…` or `KIND/NAME…` point at; just a kind yields that kind without a name.
pub(crate) fn targets(first: &Target, rest: &[String]) -> Result<Vec<Target>, Error> {
    match &first.name {
        None if rest.is_empty() => Ok(vec![first.clone()]),
        None => rest
            .iter()
            .map(|name| match name.split_once('/') {
                Some(_) => Err(Error::Mixed(name.clone())),
                None if name.is_empty() => Err(Error::NoName(first.kind)),
                None => Ok(Target { kind: first.kind, name: Some(name.clone()) }),
            })
            .collect(),
        Some(_) => std::iter::once(Ok(first.clone())).chain(rest.iter().map(|text| target(text))).collect(),
    }
}

/// The object that `KIND/NAME` points at.
pub(crate) fn target(text: &str) -> Result<Target, Error> {
    let refused = || Error::NotATarget(text.to_owned());
    let (word, name) = text.split_once('/').ok_or_else(refused)?;
    let kind = Kind::from_word(word).ok_or_else(refused)?;
    if name.is_empty() { Err(refused()) } else { Ok(Target { kind, name: Some(name.to_owned()) }) }
}

/// The name of the job that `NAME` or `job/NAME` points at.
pub(crate) fn job_name(text: &str) -> Result<&str, Error> {
    name_of(Kind::Job, text)
}

/// The name of the node that `NAME` or `node/NAME` points at.
pub(crate) fn node_name(text: &str) -> Result<&str, Error> {
    name_of(Kind::Node, text)
}

fn name_of(kind: Kind, text: &str) -> Result<&str, Error> {
    match text.split_once('/') {
        None if !text.is_empty() => Ok(text),
        Some((word, name)) if Kind::from_word(word) == Some(kind) && !name.is_empty() => Ok(name),
        Some(_) | None => Err(Error::WrongKind { text: text.to_owned(), expected: kind.word() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alias_means_its_kind_and_no_word_means_two() {
        let words = [
            ("node", Kind::Node),
            ("nodes", Kind::Node),
            ("no", Kind::Node),
            ("nc", Kind::Node),
            ("NodeConfig", Kind::Node),
            ("job", Kind::Job),
            ("jobs", Kind::Job),
            ("sj", Kind::Job),
            ("SandboxJob", Kind::Job),
            ("template", Kind::Template),
            ("jt", Kind::Template),
            ("queue", Kind::Queue),
            ("q", Kind::Queue),
        ];
        for (word, kind) in words {
            assert_eq!(Kind::from_word(word), Some(kind), "{word}");
        }
        let mut all: Vec<&str> = Kind::ALL
            .iter()
            .flat_map(|kind| [kind.word(), kind.plural()].into_iter().chain(kind.aliases().iter().copied()))
            .collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn objects_are_named_after_the_kind_or_behind_a_slash() {
        let jobs = Target { kind: Kind::Job, name: None };
        let a = Target { kind: Kind::Job, name: Some("a".into()) };
        let b = Target { kind: Kind::Job, name: Some("b".into()) };
        let node = Target { kind: Kind::Node, name: Some("n".into()) };
        assert_eq!(targets(&jobs, &[]), Ok(vec![jobs.clone()]));
        assert_eq!(targets(&jobs, &["a".into(), "b".into()]), Ok(vec![a.clone(), b]));
        assert_eq!(targets(&a, &["no/n".into()]), Ok(vec![a.clone(), node]));
        assert_eq!(targets(&jobs, &["node/n".into()]), Err(Error::Mixed("node/n".into())));
        assert_eq!(targets(&a, &["b".into()]), Err(Error::NotATarget("b".into())));
    }

    #[test]
    fn a_job_may_be_named_with_or_without_its_kind() {
        assert_eq!(job_name("hello"), Ok("hello"));
        assert_eq!(job_name("sj/hello"), Ok("hello"));
        assert!(job_name("node/hello").is_err());
        assert!(job_name("job/").is_err());
        assert!(job_name("").is_err());
        assert_eq!(
            targets(&Target { kind: Kind::Job, name: None }, &[String::new()]),
            Err(Error::NoName(Kind::Job))
        );
    }
}
