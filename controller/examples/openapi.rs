//! Writes the OpenAPI document to the file that is named, for `make generate`.

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let path = std::env::args_os().nth(1).context("name the file to write")?;
    let document = serde_json::to_string_pretty(&windlass_controller::rest::openapi::build())?;
    std::fs::write(&path, document + "\n").with_context(|| format!("could not write {}", path.display()))
}
