//! Reads features and runs their scenarios, one after the other.

use std::path::PathBuf;

use gherkin::{Feature, GherkinEnv, Scenario};

use super::steps::STEPS;
use super::world::World;

/// A step that is known.
pub(super) struct Known {
    /// The sentence, with `{}` for each value.
    pub(super) sentence: &'static str,
    /// What it does.
    pub(super) perform: fn(&mut World, &[&str]),
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("features")
}

fn read(name: &str) -> Feature {
    let path = folder().join(format!("{name}.feature"));
    Feature::parse_path(&path, GherkinEnv::default())
        .unwrap_or_else(|error| panic!("{name}.feature: {error}"))
}

/// The names of all features.
pub(super) fn features() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).expect("the features are there");
    let names = entries.map(|entry| entry.expect("an entry").path());
    names
        .filter(|path| path.extension().is_some_and(|extension| extension == "feature"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect()
}

/// Runs all scenarios of a feature.
#[expect(clippy::print_stdout, reason = "a scenario that fails is found by the sentences before it")]
pub(super) fn run(name: &str) {
    let feature = read(name);
    let mut run = 0;
    for scenario in scenarios(&feature) {
        println!("Scenario: {}", scenario.title);
        let mut world = World::default();
        for sentence in &scenario.sentences {
            println!("  {sentence}");
            let (known, values) = find(sentence);
            (known.perform)(&mut world, &values);
        }
        world.end();
        run += 1;
    }
    assert!(run > 0, "{name}.feature has scenarios");
}

/// Sentences of steps that no feature says.
pub(super) fn unused(features: &[String]) -> Vec<&'static str> {
    let said: Vec<String> = features
        .iter()
        .flat_map(|name| scenarios(&read(name)))
        .flat_map(|scenario| scenario.sentences)
        .collect();
    STEPS
        .iter()
        .map(|known| known.sentence)
        .filter(|sentence| !said.iter().any(|said| values(sentence, said).is_some()))
        .collect()
}

/// The step that a sentence means.
fn find(sentence: &str) -> (&'static Known, Vec<&str>) {
    let mut found: Vec<_> =
        STEPS.iter().filter_map(|known| Some((known, values(known.sentence, sentence)?))).collect();
    assert!(!found.is_empty(), "no step says: {sentence}");
    // Of two that fit, the one that says more in its own words is meant.
    found.sort_by_key(|(known, _)| std::cmp::Reverse(known.sentence.len()));
    found.remove(0)
}

/// The values of a sentence, if it is this one.
fn values<'s>(sentence: &str, said: &'s str) -> Option<Vec<&'s str>> {
    let mut pieces = sentence.split("{}");
    let mut rest = said.strip_prefix(pieces.next()?)?;
    let mut values = Vec::new();
    let mut pieces = pieces.peekable();
    while let Some(piece) = pieces.next() {
        // The last piece is the end of the sentence.
        let at = if pieces.peek().is_none() {
            rest.len()
                .checked_sub(piece.len())
                .filter(|at| rest.is_char_boundary(*at) && rest[*at..] == *piece)?
        } else {
            rest.find(piece)?
        };
        values.push(&rest[..at]);
        rest = &rest[at + piece.len()..];
    }
    rest.is_empty().then_some(values)
}

/// A scenario with its values in place.
struct Concrete {
    title: String,
    sentences: Vec<String>,
}

/// All scenarios of a feature; an outline is one for each of its examples.
fn scenarios(feature: &Feature) -> Vec<Concrete> {
    let before: Vec<String> = feature
        .background
        .iter()
        .flat_map(|background| &background.steps)
        .map(|step| step.value.clone())
        .collect();
    feature.scenarios.iter().flat_map(|scenario| concrete(scenario, &before)).collect()
}

fn concrete(scenario: &Scenario, before: &[String]) -> Vec<Concrete> {
    let sentences: Vec<String> =
        before.iter().cloned().chain(scenario.steps.iter().map(|step| step.value.clone())).collect();
    let tables = scenario.examples.iter().filter_map(|examples| examples.table.as_ref());
    let mut all = Vec::new();
    for table in tables {
        let (names, rows) = table.rows.split_first().expect("a table of examples has a row of names");
        for row in rows {
            let fill = |text: &str| {
                names
                    .iter()
                    .zip(row)
                    .fold(text.to_owned(), |text, (name, value)| text.replace(&format!("<{name}>"), value))
            };
            let title = format!("{} ({})", scenario.name, row.join(", "));
            all.push(Concrete { title, sentences: sentences.iter().map(|text| fill(text)).collect() });
        }
    }
    if all.is_empty() {
        all.push(Concrete { title: scenario.name.clone(), sentences });
    }
    all
}

#[test]
fn values_are_what_stands_in_the_places() {
    assert_eq!(values("node {} has {}", "node \"a b\" has 2"), Some(vec!["\"a b\"", "2"]));
    assert_eq!(values("node {} has {} cores", "node x has 2 cores"), Some(vec!["x", "2"]));
    assert_eq!(values("node {} has {} cores", "node x has 2"), None);
    assert_eq!(values("all is well", "all is well"), Some(vec![]));
    assert_eq!(values("all is well", "all is well now"), None);
}
