//! The table of the chart's values, made from the comments in its `values.yaml`.
//!
//! A value is explained by the comment that begins with `# -- ` above it. Maps without one are only the way to their values.

/// The line that the table follows in the README, and the one that follows it.
const MARKS: [&str; 2] = ["<!-- values: `make generate` writes what follows -->", "<!-- end of values -->"];

/// Why there is no table.
#[derive(Debug, PartialEq, Eq)]
pub enum Error {
    /// The README has no place for it.
    NoPlace,
    /// A value is not explained.
    Unexplained {
        /// Its path.
        path: String,
    },
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoPlace => write!(f, "the README lacks the line `{}` or `{}`", MARKS[0], MARKS[1]),
            Self::Unexplained { path } => write!(f, "{path} needs a comment `# -- …` above it"),
        }
    }
}

impl std::error::Error for Error {}

/// A README with the table of these values in its place.
///
/// # Errors
/// As [`Error`] says.
pub fn into_readme(readme: &str, values: &str) -> Result<String, Error> {
    let (before, rest) = readme.split_once(MARKS[0]).ok_or(Error::NoPlace)?;
    let (_, after) = rest.split_once(MARKS[1]).ok_or(Error::NoPlace)?;
    Ok(format!("{before}{}\n\n{}\n{}{after}", MARKS[0], table(values)?, MARKS[1]))
}

/// The table of all values that are explained.
fn table(values: &str) -> Result<String, Error> {
    let mut table = String::from("| Value | Default | |\n| --- | --- | --- |\n");
    // The keys that lead to the line, each with its indentation.
    let mut path: Vec<(usize, &str)> = Vec::new();
    let mut comment: Option<String> = None;
    let lines: Vec<&str> = values.lines().collect();
    let mut index = 0;
    while let Some(line) = lines.get(index) {
        index += 1;
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if let Some(more) = text.strip_prefix('#') {
            match (more.trim_start().strip_prefix("-- "), &mut comment) {
                (Some(begun), _) => comment = Some(begun.to_owned()),
                (None, Some(comment)) => *comment = format!("{comment} {}", more.trim()),
                (None, None) => {}
            }
            continue;
        }
        let Some((key, value)) = text.split_once(':') else {
            continue;
        };
        path.retain(|(outer, _)| *outer < indent);
        path.push((indent, key));
        let dotted = path.iter().map(|(_, key)| *key).collect::<Vec<_>>().join(".");
        // What is deeper is this value, where it is explained as a whole.
        let deeper = lines[index..].iter().take_while(|line| {
            let inner = line.trim_start();
            inner.is_empty() || line.len() - inner.len() > indent
        });
        let deeper: Vec<&str> = deeper.copied().filter(|line| !line.trim().is_empty()).collect();
        match comment.take() {
            Some(explained) => {
                let value = value.trim();
                let default = if value.is_empty() && !deeper.is_empty() {
                    index += lines[index..]
                        .iter()
                        .position(|line| line == deeper.last().unwrap_or(&""))
                        .map_or(0, |last| last + 1);
                    "see values.yaml"
                } else {
                    value
                };
                let default = default.replace('|', "\\|");
                table
                    .push_str(&format!("| `{dotted}` | `{default}` | {} |\n", explained.replace('|', "\\|")));
            }
            None if value.trim().is_empty() => {}
            None => return Err(Error::Unexplained { path: dotted }),
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_told_by_their_paths_and_those_without_a_word_are_refused() {
        let values = "# -- One.\na: 1\n\nb:\n  # -- Two,\n  # and more.\n  c: \"\"\n  # -- All.\n  d:\n    e: 1\n    f: 2\ng:\n  # -- Last.\n  h: []\n";
        let table = table(values).unwrap();
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| `a` | `1` | One. |",
                "| `b.c` | `\"\"` | Two, and more. |",
                "| `b.d` | `see values.yaml` | All. |",
                "| `g.h` | `[]` | Last. |"
            ]
        );
        assert_eq!(super::table("a: 1\n").unwrap_err(), Error::Unexplained { path: "a".into() });
        assert_eq!(into_readme("none", "").unwrap_err(), Error::NoPlace);
    }
}
