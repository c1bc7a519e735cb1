//! What is wrong with a manifest, and where.

use std::fmt;

use crate::protocol::FieldError;

/// One thing that is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What was read: a file's name, or a word such as `stdin`.
    pub source: String,
    /// The line in the whole of what was read, from 1; 0 where no place is known.
    pub line: usize,
    /// The column in characters, from 1; 0 where no place is known.
    pub column: usize,
    /// The path of the field, such as `spec.steps[0].script`; empty for the document itself.
    pub field: String,
    /// The kind of error.
    pub code: Code,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
}

/// The kind of an error in a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Code {
    /// The text is not UTF-8, or not YAML or JSON.
    Syntax,
    /// The document is too large or too deep.
    TooLarge,
    /// A key is given twice.
    DuplicateKey,
    /// The manifest is of no known kind or version, or not of the kind that is asked for.
    WrongKind,
    /// There is no such field.
    UnknownField,
    /// A field must be given.
    MissingField,
    /// A value has the wrong type.
    WrongType,
    /// A value has the right type and is not accepted.
    BadValue,
    /// There is no manifest, or more than one where one is asked for.
    WrongCount,
}

impl Error {
    /// The kind of error as a stable word.
    pub fn kind(&self) -> &'static str {
        self.code.into()
    }

    /// Whether the text itself could not be read, as opposed to what it says.
    pub const fn is_syntax(&self) -> bool {
        match self.code {
            Code::Syntax | Code::TooLarge | Code::DuplicateKey => true,
            Code::WrongKind
            | Code::UnknownField
            | Code::MissingField
            | Code::WrongType
            | Code::BadValue
            | Code::WrongCount => false,
        }
    }

    /// The same error for an answer over HTTP, where the place is of no use.
    pub fn to_field_error(&self) -> FieldError {
        let message = match &self.hint {
            Some(hint) => format!("{}; {hint}", self.message),
            None => self.message.clone(),
        };
        FieldError { field: self.field.clone(), message }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
