//! Text to values that know where they were written.
//!
//! YAML 1.2 with the core schema, of which JSON is a part. Anchors, aliases and merge keys are followed within a
//! budget, so that a small file cannot stand for a large one. Everything is refused that another reader of YAML
//! would read differently: duplicate keys, keys that are no text, tags, numbers with leading zeros.

use std::collections::HashMap;
use std::fmt;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span, Tag};
use serde_json::Value;

use super::MAX_ERRORS;
use super::error::{Code, Error};
use super::path;
use crate::names::Quoted;

/// The most bytes that one document may have: what the API server of Kubernetes accepts by default.
pub const MAX_DOCUMENT: usize = 1536 * 1024;
/// The most values and keys that one document may have with its aliases followed.
pub const MAX_VALUES: usize = 100_000;
/// The most bytes of text that one document may have with its aliases followed.
pub const MAX_EXPANDED: usize = 4 * MAX_DOCUMENT;
/// How deeply lists and maps may be nested; the deepest manifest needs 9.
pub const MAX_DEPTH: usize = 64;

/// A place in a text, both counted from 1; 0 where a value was not written in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Mark {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) mark: Mark,
    pub(crate) data: Data,
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Data {
    Null,
    Boolean(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A number with its spelling.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Number {
    pub(crate) spelling: String,
    /// The whole number that it is, if it is one of at most 64 bits and a sign.
    pub(crate) whole: Option<i128>,
}

/// A key of a map, its place, and its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) mark: Mark,
    pub(crate) value: Node,
}

impl Node {
    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.data {
            Data::Map(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value),
            Data::Null | Data::Boolean(_) | Data::Number(_) | Data::Text(_) | Data::List(_) => None,
        }
    }

    /// The text, if it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.data {
            Data::Text(text) => Some(text),
            Data::Null | Data::Boolean(_) | Data::Number(_) | Data::List(_) | Data::Map(_) => None,
        }
    }

    /// The same value as JSON. Numbers beyond 64 bits become floating-point numbers.
    pub(crate) fn to_json(&self) -> Value {
        match &self.data {
            Data::Null => Value::Null,
            Data::Boolean(value) => Value::Bool(*value),
            Data::Number(number) => number.to_json(),
            Data::Text(text) => Value::String(text.clone()),
            Data::List(items) => items.iter().map(Self::to_json).collect(),
            Data::Map(entries) => Value::Object(
                entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json())).collect(),
            ),
        }
    }

    /// A JSON value as a tree without places.
    pub(crate) fn from_json(value: &Value) -> Self {
        let data = match value {
            Value::Null => Data::Null,
            Value::Bool(value) => Data::Boolean(*value),
            Value::Number(number) => Data::Number(Number {
                spelling: number.to_string(),
                whole: number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from)),
            }),
            Value::String(text) => Data::Text(text.clone()),
            Value::Array(items) => Data::List(items.iter().map(Self::from_json).collect()),
            Value::Object(map) => Data::Map(
                map.iter()
                    .map(|(key, value)| Entry {
                        key: key.clone(),
                        mark: Mark::default(),
                        value: Self::from_json(value),
                    })
                    .collect(),
            ),
        };
        Self { mark: Mark::default(), data }
    }
}

impl Number {
    fn to_json(&self) -> Value {
        let whole = self.whole.and_then(|whole| {
            u64::try_from(whole).map(Value::from).or_else(|_| i64::try_from(whole).map(Value::from)).ok()
        });
        whole.unwrap_or_else(|| self.spelling.parse::<f64>().map_or(Value::Null, Value::from))
    }
}

/// What a value is, in a message: `the text `yes``, `a list`.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.data {
            Data::Null => f.write_str("nothing"),
            Data::Boolean(value) => write!(f, "`{value}`"),
            Data::Number(number) => write!(f, "the number {}", Quoted(&number.spelling)),
            Data::Text(text) => write!(f, "the text {}", Quoted(text)),
            Data::List(_) => f.write_str("a list"),
            Data::Map(_) => f.write_str("a map"),
        }
    }
}

/// Reads every document of a text. Documents without content are left out; documents that cannot be read are in
/// the errors, and reading goes on at the next one.
pub(crate) fn read(text: &str, source: &str) -> (Vec<Node>, Vec<Error>) {
    let mut options =
        granit_parser::options! { flow_nesting_limit: MAX_DEPTH, block_nesting_limit: MAX_DEPTH };
    options.set_emit_comments(false);
    let mut parser = Parser::new_from_str_with_options(text, options);
    let mut documents = Vec::new();
    let mut errors = Vec::new();
    loop {
        let mut builder = Builder::new(source);
        let outcome = read_document(&mut parser, &mut builder);
        errors.append(&mut builder.duplicates);
        match outcome {
            Ok(Some(node)) => {
                if node.data != Data::Null {
                    documents.push(node);
                }
            }
            Ok(None) => break,
            Err(error) => {
                errors.push(*error);
                match parser.proceed_next_document() {
                    Ok(true) => {}
                    // What cannot be skipped over has been reported where it begins.
                    Ok(false) | Err(_) => break,
                }
            }
        }
    }
    (documents, errors)
}

type Events<'input> = Parser<'input, granit_parser::StrInput<'input>>;

/// Reads up to the end of the next document; `None` at the end of the text.
fn read_document(parser: &mut Events<'_>, builder: &mut Builder<'_>) -> Result<Option<Node>, Box<Error>> {
    let mut root = None;
    let mut start = None;
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| Box::new(scan_error(&error, builder.source)))?;
        let offset = |marker: granit_parser::Marker| marker.byte_offset().unwrap_or(marker.index());
        let start = *start.get_or_insert(offset(span.start));
        if offset(span.end).saturating_sub(start) > MAX_DOCUMENT {
            return Err(builder.refuse(
                mark(span),
                Code::TooLarge,
                format!("the document is larger than {MAX_DOCUMENT} bytes"),
                "upload large content and name it as an input",
            ));
        }
        match event {
            Event::DocumentEnd => {
                return Ok(Some(root.unwrap_or(Node { mark: mark(span), data: Data::Null })));
            }
            Event::StreamEnd => return Ok(None),
            event => {
                if let Some(node) = builder.event(event, span)? {
                    root = Some(node);
                }
            }
        }
    }
    Ok(None)
}

fn mark(span: Span) -> Mark {
    Mark { line: span.start.line(), column: span.start.col() + 1 }
}

fn scan_error(error: &ScanError, source: &str) -> Error {
    let hint = match error.kind() {
        ErrorKind::TabNotAllowed
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabInIndentation
        | ErrorKind::TabAtBlockScalarStart => Some("indent with spaces"),
        ErrorKind::MappingValueNotAllowed | ErrorKind::InvalidColonPlacement => {
            Some("quote a text that contains `: `, and check the indentation")
        }
        ErrorKind::UnclosedQuotedScalar => Some("close the quote"),
        ErrorKind::UnknownAnchor => Some("define the anchor with `&name` before its first `*name`"),
        ErrorKind::RecursionLimitExceeded => Some("nest less deeply"),
        _ => None,
    };
    Error {
        source: source.to_owned(),
        line: error.marker().line(),
        column: error.marker().col() + 1,
        field: String::new(),
        code: Code::Syntax,
        message: format!("not YAML: {}", error.info()),
        hint: hint.map(str::to_owned),
    }
}

/// Builds the tree of one document from its events.
struct Builder<'a> {
    source: &'a str,
    open: Vec<Open>,
    anchors: HashMap<usize, Measured>,
    /// Values and keys made so far, those kept for aliases included.
    values: usize,
    /// Bytes of text made so far, those kept for aliases included.
    bytes: usize,
    duplicates: Vec<Error>,
}

/// A list or map that has not ended.
struct Open {
    mark: Mark,
    anchor: usize,
    content: Content,
    size: Size,
}

enum Content {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, seen: HashMap<String, Mark>, key: Option<(String, Mark)>, merged: Vec<Node> },
}

/// What a value costs.
#[derive(Clone, Copy, Default)]
struct Size {
    values: usize,
    bytes: usize,
    depth: usize,
}

#[derive(Clone)]
struct Measured {
    node: Node,
    size: Size,
}

impl<'a> Builder<'a> {
    fn new(source: &'a str) -> Self {
        Self {
            source,
            open: Vec::new(),
            anchors: HashMap::new(),
            values: 0,
            bytes: 0,
            duplicates: Vec::new(),
        }
    }

    /// Takes an event; answers with the root when it is complete.
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<Option<Node>, Box<Error>> {
        let mark = mark(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let data = self.scalar(&text, style, tag.as_deref(), mark)?;
                let size = Size { values: 1, bytes: text.len(), depth: 0 };
                self.complete(Measured { node: Node { mark, data }, size }, size, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), "seq", mark)?;
                self.begin(Content::List(Vec::new()), mark, anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), "map", mark)?;
                let (entries, seen, merged) = (Vec::new(), HashMap::new(), Vec::new());
                self.begin(Content::Map { entries, seen, key: None, merged }, mark, anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => {
                let Some(mut copy) = self.anchors.get(&anchor).cloned() else {
                    return Err(self.refuse(
                        mark,
                        Code::Syntax,
                        "the alias contains itself",
                        "write the value out",
                    ));
                };
                // What is wrong with an aliased value is reported where it is used.
                copy.node.mark = mark;
                let cost = copy.size;
                self.complete(copy, cost, 0)
            }
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(..)
            | Event::DocumentEnd
            | Event::Anchor(..)
            | Event::UnresolvedAlias(_)
            | Event::Comment(..) => Ok(None),
            _ => Err(self.refuse(mark, Code::Syntax, "unknown YAML syntax", "write plain YAML 1.2 or JSON")),
        }
    }

    fn begin(&mut self, content: Content, mark: Mark, anchor: usize) -> Result<Option<Node>, Box<Error>> {
        if let Some(Open { content: Content::Map { key: None, .. }, .. }) = self.open.last() {
            return Err(self.refuse(mark, Code::Syntax, "a key must be a text", "write `key: value`"));
        }
        self.open.push(Open { mark, anchor, content, size: Size { values: 1, bytes: 0, depth: 1 } });
        Ok(None)
    }

    fn end(&mut self) -> Result<Option<Node>, Box<Error>> {
        let Some(Open { mark, anchor, content, size }) = self.open.pop() else {
            return Ok(None);
        };
        let data = match content {
            Content::List(items) => Data::List(items),
            Content::Map { mut entries, mut seen, key: _, merged } => {
                for source in merged {
                    let Data::Map(inherited) = source.data else { continue };
                    for entry in inherited {
                        if seen.insert(entry.key.clone(), entry.mark).is_none() {
                            entries.push(entry);
                        }
                    }
                }
                Data::Map(entries)
            }
        };
        // Its parts were charged when they were complete.
        let cost = Size { values: 1, ..Size::default() };
        self.complete(Measured { node: Node { mark, data }, size }, cost, anchor)
    }

    /// Puts a complete value where it belongs, after charging what it costs.
    fn complete(&mut self, value: Measured, cost: Size, anchor: usize) -> Result<Option<Node>, Box<Error>> {
        let Measured { node, size } = value;
        let mark = node.mark;
        self.charge(cost, mark)?;
        if size.depth > MAX_DEPTH {
            return Err(self.refuse(
                mark,
                Code::TooLarge,
                format!("lists and maps are nested more than {MAX_DEPTH} deep"),
                "nest less deeply",
            ));
        }
        if anchor != 0 {
            self.charge(size, mark)?;
            self.anchors.insert(anchor, Measured { node: node.clone(), size });
        }
        let Some((parent, outer)) = self.open.split_last_mut() else {
            return Ok(Some(node));
        };
        parent.size.values += size.values;
        parent.size.bytes += size.bytes;
        parent.size.depth = parent.size.depth.max(size.depth + 1);
        match &mut parent.content {
            Content::List(items) => items.push(node),
            Content::Map { key: key @ None, .. } => match key_text(&node) {
                Some(text) => *key = Some((text, mark)),
                None => {
                    let message = format!("a key must be a text, found {node}");
                    return Err(refuse(self.source, mark, Code::Syntax, message, "write `key: value`"));
                }
            },
            Content::Map { entries, seen, key, merged } => {
                let Some((key, key_mark)) = key.take() else { return Ok(None) };
                if key == "<<" {
                    match node.data {
                        Data::Map(_) => merged.push(node),
                        Data::List(items) if items.iter().all(|item| matches!(item.data, Data::Map(_))) => {
                            merged.extend(items);
                        }
                        Data::Null | Data::Boolean(_) | Data::Number(_) | Data::Text(_) | Data::List(_) => {
                            let message = "`<<` merges maps only";
                            return Err(refuse(
                                self.source,
                                mark,
                                Code::Syntax,
                                message,
                                "write `<<: *name` of a map",
                            ));
                        }
                    }
                } else if let Some(first) = seen.get(&key) {
                    if self.duplicates.len() >= MAX_ERRORS {
                        return Ok(None);
                    }
                    let message = format!("the key is given twice, first at line {}", first.line);
                    let mut field = path_of(outer);
                    path::push_key(&mut field, &key);
                    self.duplicates.push(Error {
                        source: self.source.to_owned(),
                        line: key_mark.line,
                        column: key_mark.column,
                        field,
                        code: Code::DuplicateKey,
                        message,
                        hint: Some("remove one of them".to_owned()),
                    });
                } else {
                    seen.insert(key.clone(), key_mark);
                    entries.push(Entry { key, mark: key_mark, value: node });
                }
            }
        }
        Ok(None)
    }

    fn charge(&mut self, cost: Size, mark: Mark) -> Result<(), Box<Error>> {
        self.values += cost.values;
        self.bytes += cost.bytes;
        let message = if self.values > MAX_VALUES {
            format!("the document has more than {MAX_VALUES} values, with its aliases followed")
        } else if self.bytes > MAX_EXPANDED {
            format!("the document has more than {MAX_EXPANDED} bytes of text, with its aliases followed")
        } else {
            return Ok(());
        };
        Err(self.refuse(mark, Code::TooLarge, message, "use fewer aliases, or upload large content"))
    }

    fn scalar(
        &self,
        text: &str,
        style: ScalarStyle,
        tag: Option<&Tag>,
        mark: Mark,
    ) -> Result<Data, Box<Error>> {
        let resolved = match style {
            ScalarStyle::Plain => resolve(text),
            ScalarStyle::SingleQuoted
            | ScalarStyle::DoubleQuoted
            | ScalarStyle::Literal
            | ScalarStyle::Folded => Data::Text(text.to_owned()),
        };
        let Some(tag) = tag else { return Ok(resolved) };
        match (tag.core_suffix(), &resolved) {
            (Some("str"), _) => Ok(Data::Text(text.to_owned())),
            (Some("null"), Data::Null)
            | (Some("bool"), Data::Boolean(_))
            | (Some("int"), Data::Number(Number { whole: Some(_), .. }))
            | (Some("float"), Data::Number(_)) => Ok(resolved),
            _ => Err(self.refuse_tag(tag, mark)),
        }
    }

    fn check_tag(&self, tag: Option<&Tag>, expected: &str, mark: Mark) -> Result<(), Box<Error>> {
        match tag {
            Some(tag) if tag.core_suffix() != Some(expected) => Err(self.refuse_tag(tag, mark)),
            Some(_) | None => Ok(()),
        }
    }

    fn refuse_tag(&self, tag: &Tag, mark: Mark) -> Box<Error> {
        let message = format!("the tag {} means nothing in a manifest", Quoted(&tag.original()));
        self.refuse(mark, Code::Syntax, message, "remove it")
    }

    fn refuse(&self, mark: Mark, code: Code, message: impl Into<String>, hint: &str) -> Box<Error> {
        refuse(self.source, mark, code, message, hint)
    }
}

fn refuse(source: &str, mark: Mark, code: Code, message: impl Into<String>, hint: &str) -> Box<Error> {
    Box::new(Error {
        source: source.to_owned(),
        line: mark.line,
        column: mark.column,
        field: String::new(),
        code,
        message: message.into(),
        hint: Some(hint.to_owned()),
    })
}

/// The path of the value that is being read inside these lists and maps.
fn path_of(open: &[Open]) -> String {
    let mut path = String::new();
    for value in open {
        match &value.content {
            Content::List(items) => path::push_index(&mut path, items.len()),
            Content::Map { key, .. } => {
                if let Some((key, _)) = key {
                    path::push_key(&mut path, key);
                }
            }
        }
    }
    path
}

/// A key as text: a number or word is spelled as it was written.
fn key_text(node: &Node) -> Option<String> {
    match &node.data {
        Data::Text(text) => Some(text.clone()),
        Data::Number(number) => Some(number.spelling.clone()),
        Data::Boolean(value) => Some(value.to_string()),
        Data::Null | Data::List(_) | Data::Map(_) => None,
    }
}

/// Gives a plain scalar its type by YAML's core schema. Numbers that readers disagree about stay text.
fn resolve(text: &str) -> Data {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Data::Null,
        "true" | "True" | "TRUE" => return Data::Boolean(true),
        "false" | "False" | "FALSE" => return Data::Boolean(false),
        _ => {}
    }
    let number = |whole| Data::Number(Number { spelling: text.to_owned(), whole });
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix) {
            return match u64::from_str_radix(digits, radix) {
                Ok(whole) if !digits.starts_with('+') => number(Some(i128::from(whole))),
                Ok(_) | Err(_) => Data::Text(text.to_owned()),
            };
        }
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let looks_like_number = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'))
        && digits.bytes().any(|b| b.is_ascii_digit());
    let has_leading_zero =
        digits.len() > 1 && digits.starts_with('0') && digits.as_bytes()[1].is_ascii_digit();
    if !looks_like_number || has_leading_zero {
        return Data::Text(text.to_owned());
    }
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        let whole = text
            .parse::<i128>()
            .ok()
            .filter(|whole| (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(whole));
        return number(whole);
    }
    match text.parse::<f64>() {
        Ok(float) if float.is_finite() => number(None),
        Ok(_) | Err(_) => Data::Text(text.to_owned()),
    }
}
