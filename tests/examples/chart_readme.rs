//! Writes the table of values into the chart's README: `chart_readme FOLDER`, where FOLDER is the chart's.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: chart_readme FOLDER")?);
    let readme = folder.join("README.md");
    let values = std::fs::read_to_string(folder.join("values.yaml"))?;
    let made = windlass_tests::chart_values::into_readme(&std::fs::read_to_string(&readme)?, &values)?;
    Ok(std::fs::write(readme, made)?)
}
