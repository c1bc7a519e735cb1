//! The forms that data is printed in.

pub(crate) mod human;
pub(crate) mod json;
pub(crate) mod name;
pub(crate) mod table;
pub(crate) mod yaml;

/// The form of a list or an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns, for people.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// `KIND/NAME`, one a line.
    Name,
}

/// The form of something that is not an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum PlainFormat {
    /// Text for people.
    #[default]
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}
