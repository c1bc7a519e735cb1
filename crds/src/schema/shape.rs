//! The shape of a manifest: one model behind the reader, `explain`, the JSON Schemas and the custom resources.
//!
//! A shape is read from what schemars derives from the types, and knows only forms that Kubernetes calls
//! structural. A type that cannot be said in them fails here, in every test, and not on somebody's cluster.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use regex::Regex;
use serde_json::{Map, Value};

/// What a value may be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shape {
    /// What it means, as paragraphs.
    pub(crate) description: String,
    /// Whether `null` says that there is no value.
    pub(crate) nullable: bool,
    /// The value of a field that is not written.
    pub(crate) default: Option<Value>,
    /// Its type and bounds.
    pub(crate) form: Form,
}

/// A type with its bounds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Form {
    /// Anything at all.
    Any,
    /// `true` or `false`.
    Boolean,
    /// A whole number. The range is that of the Rust type where the field names none.
    Integer { range: RangeInclusive<i128> },
    /// A number.
    Number,
    /// Text.
    Text { length: Bounds, pattern: Option<Pattern>, format: Option<Format> },
    /// A whole number or a text that is read in the same way.
    IntOrString { pattern: String, format: Format, range: Option<RangeInclusive<i128>> },
    /// One of these words, each with its meaning.
    Word(Vec<(String, String)>),
    /// A list.
    List { items: Box<Shape>, length: Bounds },
    /// A map with free keys.
    Map { values: Box<Shape>, length: Bounds },
    /// A map with known fields.
    Object { fields: BTreeMap<String, Field> },
}

/// A field of an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Field {
    /// What its value may be.
    pub(crate) shape: Shape,
    /// Whether it must be written.
    pub(crate) required: bool,
}

/// How long a text, a list or a map may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Bounds {
    /// The least length.
    pub(crate) min: Option<u64>,
    /// The greatest length.
    pub(crate) max: Option<u64>,
}

/// What a text must match as a whole.
#[derive(Debug, Clone)]
pub(crate) struct Pattern(Regex);

/// What a text means beyond its characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// A [`crate::Cpu`].
    Cpu,
    /// A [`crate::Bytes`].
    Bytes,
    /// A [`crate::Span`].
    Span,
    /// A [`crate::Priority`].
    Priority,
    /// A time of RFC 3339.
    DateTime,
    /// A [`crate::EgressRule`].
    Egress,
}

/// Why a schema is not a shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the schema at `{at}` cannot be said in structural form: {reason}")]
pub(crate) struct Error {
    at: String,
    reason: String,
}

impl Shape {
    /// Reads a schema without references, as schemars makes it.
    pub(crate) fn read(schema: &Value) -> Result<Self, Error> {
        read(schema, "")
    }

    /// The shape behind a field of an object.
    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        match &self.form {
            Form::Object { fields } => fields.get(name),
            Form::Any
            | Form::Boolean
            | Form::Integer { .. }
            | Form::Number
            | Form::Text { .. }
            | Form::IntOrString { .. }
            | Form::Word(_)
            | Form::List { .. }
            | Form::Map { .. } => None,
        }
    }
}

impl Pattern {
    /// The pattern as it is written in a schema.
    pub(crate) fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether a text matches.
    pub(crate) fn accepts(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Format {
    /// Whether a text is accepted; the error says what would be.
    pub(crate) fn check(self, text: &str) -> Result<(), String> {
        match self {
            Self::Cpu => text.parse::<crate::Cpu>().map(drop).map_err(|error| error.to_string()),
            Self::Bytes => text.parse::<crate::Bytes>().map(drop).map_err(|error| error.to_string()),
            Self::Span => text.parse::<crate::Span>().map(drop).map_err(|error| error.to_string()),
            Self::Priority => text.parse::<crate::Priority>().map(drop).map_err(|error| error.to_string()),
            Self::Egress => text.parse::<crate::EgressRule>().map(drop).map_err(|error| error.to_string()),
            Self::DateTime => text.parse::<jiff::Timestamp>().map(drop).map_err(|_| {
                format!("{} is not a time: write `2026-01-31T12:00:00Z`", crate::names::Quoted(text))
            }),
        }
    }

    /// The word that people read.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Bytes => "bytes",
            Self::Span => "length of time",
            Self::Priority => "priority",
            Self::DateTime => "time",
            Self::Egress => "rule for egress",
        }
    }

    fn read(text: &str) -> Option<Self> {
        match text {
            "cpu" => Some(Self::Cpu),
            "bytes" => Some(Self::Bytes),
            "span" => Some(Self::Span),
            "priority" => Some(Self::Priority),
            "date-time" => Some(Self::DateTime),
            "egress" => Some(Self::Egress),
            _ => None,
        }
    }
}

fn read(schema: &Value, at: &str) -> Result<Shape, Error> {
    let refuse = |reason: &str| Error { at: at.to_owned(), reason: reason.to_owned() };
    let Value::Object(schema) = schema else {
        return Err(refuse("it is not an object"));
    };
    let text = |key: &str| schema.get(key).and_then(Value::as_str);

    // `Option<T>` of a type that is not a plain one: `anyOf` of the type and null.
    if let (Some(Value::Array(choices)), None) = (schema.get("anyOf"), schema.get(INT_OR_STRING)) {
        let [inner, null] = choices.as_slice() else {
            return Err(refuse("`anyOf` is only known for optional values"));
        };
        if null.get("type") != Some(&Value::from("null")) {
            return Err(refuse("`anyOf` is only known for optional values"));
        }
        let mut shape = read(inner, at)?;
        shape.nullable = true;
        if let Some(own) = text("description") {
            shape.description = paragraphs(own);
        }
        return Ok(shape);
    }

    let (type_name, nullable) = match schema.get("type") {
        None => (None, false),
        Some(Value::String(name)) => (Some(name.as_str()), false),
        Some(Value::Array(names)) => match names.as_slice() {
            [Value::String(name), Value::String(null)] if null == "null" => (Some(name.as_str()), true),
            _ => return Err(refuse("several types at once")),
        },
        Some(_) => return Err(refuse("`type` is not a word")),
    };

    let form = if schema.get(INT_OR_STRING) == Some(&Value::Bool(true)) {
        Form::IntOrString {
            pattern: text("pattern").ok_or_else(|| refuse("no pattern"))?.to_owned(),
            format: text("format").and_then(Format::read).ok_or_else(|| refuse("no known format"))?,
            range: match (whole(schema, "minimum"), whole(schema, "maximum")) {
                (Some(least), Some(most)) => Some(least..=most),
                _ => None,
            },
        }
    } else if let Some(Value::Array(words)) = schema.get("oneOf").or_else(|| schema.get("enum")) {
        Form::Word(read_words(words).ok_or_else(|| refuse("`oneOf` is only known for words"))?)
    } else {
        match type_name {
            Some("boolean") => Form::Boolean,
            Some("number") => Form::Number,
            Some("integer") => {
                Form::Integer { range: integer_range(schema).ok_or_else(|| refuse("no format"))? }
            }
            Some("string") => Form::Text {
                length: bounds(schema, "minLength", "maxLength"),
                pattern: match text("pattern") {
                    None => None,
                    Some(pattern) => {
                        Some(Pattern(Regex::new(pattern).map_err(|error| refuse(&error.to_string()))?))
                    }
                },
                format: match text("format") {
                    None => None,
                    Some(name) => Some(Format::read(name).ok_or_else(|| refuse("unknown format"))?),
                },
            },
            Some("array") => Form::List {
                items: Box::new(read(
                    schema.get("items").ok_or_else(|| refuse("no `items`"))?,
                    &format!("{at}[]"),
                )?),
                length: bounds(schema, "minItems", "maxItems"),
            },
            Some("object") => read_object(schema, at)?,
            None if schema.get(PRESERVE) == Some(&Value::Bool(true)) => Form::Any,
            _ => return Err(refuse("no known type")),
        }
    };
    Ok(Shape {
        description: text("description").map(paragraphs).unwrap_or_default(),
        nullable,
        default: schema.get("default").cloned(),
        form,
    })
}

fn read_object(schema: &Map<String, Value>, at: &str) -> Result<Form, Error> {
    if let Some(Value::Object(properties)) = schema.get("properties") {
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let fields = properties
            .iter()
            .map(|(name, schema)| {
                let shape = read(schema, &format!("{at}.{name}"))?;
                Ok((name.clone(), Field { shape, required: required.contains(&name.as_str()) }))
            })
            .collect::<Result<_, Error>>()?;
        return Ok(Form::Object { fields });
    }
    match schema.get("additionalProperties") {
        Some(values) => Ok(Form::Map {
            values: Box::new(read(values, &format!("{at}{{}}"))?),
            length: bounds(schema, "minProperties", "maxProperties"),
        }),
        None => Ok(Form::Any),
    }
}

fn read_words(words: &[Value]) -> Option<Vec<(String, String)>> {
    let mut read = Vec::new();
    for word in words {
        let meaning = word.get("description").and_then(Value::as_str).map(paragraphs).unwrap_or_default();
        match (word, word.get("const"), word.get("enum")) {
            (Value::String(word), _, _) | (_, Some(Value::String(word)), _) => {
                read.push((word.clone(), meaning));
            }
            (_, None, Some(Value::Array(plain))) => {
                for word in plain {
                    read.push((word.as_str()?.to_owned(), meaning.clone()));
                }
            }
            _ => return None,
        }
    }
    Some(read)
}

fn integer_range(schema: &Map<String, Value>) -> Option<RangeInclusive<i128>> {
    let (least, most) = match schema.get("format").and_then(Value::as_str)? {
        "uint16" => (0, i128::from(u16::MAX)),
        "uint32" => (0, i128::from(u32::MAX)),
        "uint64" => (0, i128::from(u64::MAX)),
        "int32" => (i128::from(i32::MIN), i128::from(i32::MAX)),
        "int64" => (i128::from(i64::MIN), i128::from(i64::MAX)),
        _ => return None,
    };
    Some(whole(schema, "minimum").unwrap_or(least)..=whole(schema, "maximum").unwrap_or(most))
}

fn whole(schema: &Map<String, Value>, key: &str) -> Option<i128> {
    let value = schema.get(key)?;
    value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from))
}

fn bounds(schema: &Map<String, Value>, min: &str, max: &str) -> Bounds {
    Bounds { min: schema.get(min).and_then(Value::as_u64), max: schema.get(max).and_then(Value::as_u64) }
}

/// Joins the lines of each paragraph of a doc comment.
fn paragraphs(text: &str) -> String {
    text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n\n")
}

pub(super) const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
pub(super) const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
