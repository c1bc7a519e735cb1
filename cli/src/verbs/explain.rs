//! `windlass explain`: what a kind or a field is.

use windlass_crds::explain::{ExplainedField, Explanation, explain};
use windlass_crds::schema::Kind;

use super::Context;
use crate::exit::Exit;
use crate::failure::{Failure, Report};

/// The width of the text where standard output is no terminal.
const WIDTH: usize = 100;

/// Describe a kind of manifest, or one of its fields.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The kind, and the path of a field below it, such as `job` or `job.spec.steps.command`.
    #[arg(value_name = "KIND[.FIELD…]")]
    path: String,
}

pub(crate) fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let path = args.path.replace('/', ".");
    let explanation = explain(&path).ok_or_else(|| unknown(&path))?;
    let width = context.console.width().unwrap_or(WIDTH);
    context.console.data(&text(&explanation, width))?;
    Ok(Exit::Success)
}

/// What is wrong with a path: the longest part of it that is known, and what is known below.
fn unknown(path: &str) -> Failure {
    let segments: Vec<&str> = path.split('.').collect();
    let known = (1..segments.len()).rev().find_map(|count| {
        let prefix = segments[..count].join(".");
        explain(&prefix).map(|explanation| (prefix, segments[count], explanation))
    });
    let Some((prefix, word, explanation)) = known else {
        let kinds: Vec<&str> = Kind::all().map(Kind::name).collect();
        return Report::new(Exit::Failed, format!("there is no kind of manifest `{}`", segments[0]))
            .hint(format!("the kinds are {}", kinds.join(", ")))
            .into();
    };
    let names: Vec<&str> = explanation.fields.iter().map(|field| field.name.as_str()).collect();
    let report = Report::new(Exit::Failed, format!("`{prefix}` has no field `{word}`"));
    let nearest = names
        .iter()
        .map(|name| (strsim::jaro_winkler(name, word), *name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(similarity, _)| *similarity > 0.75);
    match (nearest, names.is_empty()) {
        (Some((_, name)), _) => report.hint(format!("did you mean `{prefix}.{name}`?")),
        (None, true) => report.detail("it has no fields"),
        (None, false) => report.hint(format!("its fields are {}", names.join(", "))),
    }
    .into()
}

/// An explanation as text.
fn text(explanation: &Explanation, width: usize) -> String {
    const BOLD: anstyle::Style = anstyle::Style::new().bold();
    let Explanation { kind, path, value_type, description, required, default, words, fields } = explanation;
    let name = if path.is_empty() { kind.name().to_owned() } else { format!("{kind}.{path}") };
    let mut text = format!("{BOLD}{name}{BOLD:#}  {value_type}");
    if *required && !path.is_empty() {
        text.push_str(", required");
    }
    if let Some(default) = default {
        text.push_str(&format!(", default `{default}`"));
    }
    text.push('\n');
    push_wrapped(&mut text, description, 2, width);
    if !words.is_empty() {
        text.push_str(&format!("\n{BOLD}Values{BOLD:#}\n"));
        for (word, meaning) in words {
            text.push_str(&format!("  {BOLD}{word}{BOLD:#}\n"));
            push_wrapped(&mut text, meaning, 4, width);
        }
    }
    if !fields.is_empty() {
        text.push_str(&format!("\n{BOLD}Fields{BOLD:#}\n"));
        for ExplainedField { name, value_type, description, required } in fields {
            let required = if *required { ", required" } else { "" };
            text.push_str(&format!("  {BOLD}{name}{BOLD:#}  {value_type}{required}\n"));
            push_wrapped(&mut text, description, 4, width);
        }
    }
    text
}

/// Adds a text in lines of at most `width` cells, each after `indent` spaces. Its own line breaks stay.
fn push_wrapped(to: &mut String, text: &str, indent: usize, width: usize) {
    use unicode_width::UnicodeWidthStr as _;
    let margin = " ".repeat(indent);
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            if !line.is_empty() && indent + line.width() + 1 + word.width() > width {
                to.push_str(&format!("{margin}{line}\n"));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        if !line.is_empty() {
            to.push_str(&format!("{margin}{line}\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(path: &str, width: usize) -> String {
        anstream::adapter::strip_str(&text(&explain(path).unwrap(), width)).to_string()
    }

    #[test]
    fn a_field_is_explained_with_type_default_and_meaning() {
        insta::assert_snapshot!(plain("job.spec.queue", 80), @r"
        SandboxJob.spec.queue  text, at most 63 characters, default `default`
          The queue that the job waits in.
        ");
        insta::assert_snapshot!(plain("job.spec.retry", 60), @r"
        SandboxJob.spec.retry  object
          What happens when an attempt fails or its node is lost.

        Fields
          backoff  object
            How long the job waits before it is tried again.
          failures  whole number from 0 to 100
            How often the job is run again after a step has failed
            or the job has timed out.
          lostAttempts  whole number from 1 to 100
            How many attempts may be lost with their node before the
            job fails as `AttemptsExhausted`. An attempt that never
            started, or was lost while the controller was down, does
            not count.
        ");
        insta::assert_snapshot!(plain("job.spec.sandbox.network", 80), @r"
        SandboxJob.spec.sandbox.network  word, default `None`
          What the steps can reach.

        Values
          None
            Nothing: there is no interface but loopback.
          Restricted
            Only what the rules of `egress` name, through a proxy.
          Open
            The runtime's normal network; the node's policy must permit it.
        ");
    }

    #[test]
    fn a_wrong_path_names_the_nearest_right_one() {
        let report = |path: &str| match unknown(path) {
            Failure::Report(report) => anstream::adapter::strip_str(&report.to_string()).to_string(),
            Failure::OutputClosed => unreachable!("nothing is written"),
        };
        insta::assert_snapshot!(report("job.spec.que"), @r"
        error: `job.spec` has no field `que`
        hint: did you mean `job.spec.queue`?
        ");
        insta::assert_snapshot!(report("queue"), @r"
        error: there is no kind of manifest `queue`
        hint: the kinds are NodeConfig, SandboxJob, JobTemplate
        ");
        insta::assert_snapshot!(report("job.spec.queue.name"), @r"
        error: `job.spec.queue` has no field `name`
          it has no fields
        ");
    }
}
