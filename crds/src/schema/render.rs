//! Writes shapes as JSON Schema and as structural schemas of Kubernetes.

use serde_json::{Map, Value, json};

use super::shape::{Bounds, Form, Format, INT_OR_STRING, PRESERVE, Pattern, Shape};

/// The JSON Schema of a shape.
pub(super) fn json_schema(shape: &Shape) -> Value {
    let mut schema = common(shape);
    match &shape.form {
        Form::Any => {}
        Form::Boolean => set(&mut schema, "type", "boolean"),
        Form::Number => set(&mut schema, "type", "number"),
        Form::Integer { range } => {
            set(&mut schema, "type", "integer");
            integer_bounds(&mut schema, *range.start(), *range.end());
        }
        Form::Text { length, pattern, format } => {
            set(&mut schema, "type", "string");
            text(&mut schema, *length, pattern.as_ref(), *format);
        }
        Form::IntOrString { pattern, format, range } => {
            // A fraction of a core needs no quotes in a file, where Kubernetes asks for them.
            let number = if *format == Format::Cpu { "number" } else { "integer" };
            let mut number = json!({"type": number, "minimum": 0});
            if let (Some(range), Value::Object(number)) = (range, &mut number) {
                integer_bounds(number, *range.start(), *range.end());
            }
            schema.insert("anyOf".into(), json!([number, {"type": "string", "pattern": pattern}]));
        }
        Form::Word(words) => {
            let words = words.iter().map(|(word, meaning)| {
                if meaning.is_empty() {
                    json!({"const": word})
                } else {
                    json!({"const": word, "description": meaning})
                }
            });
            schema.insert("oneOf".into(), words.collect());
        }
        Form::List { items, length } => {
            set(&mut schema, "type", "array");
            schema.insert("items".into(), json_schema(items));
            limits(&mut schema, *length, "minItems", "maxItems");
        }
        Form::Map { values, length } => {
            set(&mut schema, "type", "object");
            schema.insert("additionalProperties".into(), json_schema(values));
            limits(&mut schema, *length, "minProperties", "maxProperties");
        }
        Form::Object { fields } => {
            set(&mut schema, "type", "object");
            let properties: Map<String, Value> =
                fields.iter().map(|(name, field)| (name.clone(), json_schema(&field.shape))).collect();
            schema.insert("properties".into(), properties.into());
            schema.insert("additionalProperties".into(), false.into());
            required(&mut schema, shape);
        }
    }
    if shape.nullable {
        let description = schema.remove("description");
        let mut nullable = Map::new();
        nullable.insert("anyOf".into(), json!([schema, {"type": "null"}]));
        nullable.extend(description.map(|description| ("description".to_owned(), description)));
        schema = nullable;
    }
    Value::Object(schema)
}

/// The structural schema of a shape, as Kubernetes 1.20 and newer accept it in a custom resource definition.
pub(super) fn structural(shape: &Shape) -> Value {
    let mut schema = common(shape);
    if schema.get("default") == Some(&Value::from("")) {
        // It says nothing more than a field that is not there, and some API servers of 1.20 take it for null.
        schema.remove("default");
    }
    match &shape.form {
        Form::Any => {
            schema.insert(PRESERVE.into(), true.into());
        }
        Form::Boolean => set(&mut schema, "type", "boolean"),
        Form::Number => set(&mut schema, "type", "number"),
        Form::Integer { range } => {
            set(&mut schema, "type", "integer");
            set(&mut schema, "format", "int64");
            integer_bounds(&mut schema, *range.start(), *range.end());
        }
        Form::Text { length, pattern, format } => {
            set(&mut schema, "type", "string");
            text(&mut schema, *length, pattern.as_ref(), *format);
        }
        Form::IntOrString { pattern, range, .. } => {
            schema.insert(INT_OR_STRING.into(), true.into());
            schema.insert("anyOf".into(), json!([{"type": "integer"}, {"type": "string"}]));
            set(&mut schema, "pattern", pattern);
            match range {
                Some(range) => integer_bounds(&mut schema, *range.start(), *range.end()),
                None => set_number(&mut schema, "minimum", 0),
            }
        }
        Form::Word(words) => {
            set(&mut schema, "type", "string");
            schema.insert("enum".into(), words.iter().map(|(word, _)| Value::from(word.as_str())).collect());
            let meanings: Vec<String> = words
                .iter()
                .filter(|(_, meaning)| !meaning.is_empty())
                .map(|(word, meaning)| format!("- `{word}`: {meaning}"))
                .collect();
            if !meanings.is_empty() {
                set(&mut schema, "description", &format!("{}\n\n{}", shape.description, meanings.join("\n")));
            }
        }
        Form::List { items, length } => {
            set(&mut schema, "type", "array");
            schema.insert("items".into(), structural(items));
            limits(&mut schema, *length, "minItems", "maxItems");
        }
        Form::Map { values, length } => {
            set(&mut schema, "type", "object");
            schema.insert("additionalProperties".into(), structural(values));
            limits(&mut schema, *length, "minProperties", "maxProperties");
        }
        Form::Object { fields } => {
            set(&mut schema, "type", "object");
            let properties: Map<String, Value> =
                fields.iter().map(|(name, field)| (name.clone(), structural(&field.shape))).collect();
            schema.insert("properties".into(), properties.into());
            required(&mut schema, shape);
        }
    }
    if shape.nullable {
        schema.insert("nullable".into(), true.into());
    }
    Value::Object(schema)
}

/// The same value with the keys of every map in order, whatever order the map type keeps.
pub(super) fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.into_iter().collect();
            entries.sort_by(|(left, _), (right, _)| left.cmp(right));
            Value::Object(entries.into_iter().map(|(key, value)| (key, sorted(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

fn common(shape: &Shape) -> Map<String, Value> {
    let mut schema = Map::new();
    if !shape.description.is_empty() {
        set(&mut schema, "description", &shape.description);
    }
    if let Some(default) = &shape.default {
        schema.insert("default".into(), sorted(default.clone()));
    }
    schema
}

fn required(schema: &mut Map<String, Value>, shape: &Shape) {
    let Form::Object { fields } = &shape.form else { return };
    let names: Vec<Value> =
        fields.iter().filter(|(_, field)| field.required).map(|(name, _)| name.as_str().into()).collect();
    if !names.is_empty() {
        schema.insert("required".into(), names.into());
    }
}

fn text(schema: &mut Map<String, Value>, length: Bounds, pattern: Option<&Pattern>, format: Option<Format>) {
    limits(schema, length, "minLength", "maxLength");
    if let Some(pattern) = pattern {
        set(schema, "pattern", pattern.as_str());
    }
    match format {
        Some(Format::DateTime) => set(schema, "format", "date-time"),
        // Words of our own, which other tools would warn of.
        Some(Format::Cpu | Format::Bytes | Format::Span | Format::Priority | Format::Egress) | None => {}
    }
}

fn limits(schema: &mut Map<String, Value>, bounds: Bounds, min: &str, max: &str) {
    for (key, bound) in [(min, bounds.min), (max, bounds.max)] {
        if let Some(bound) = bound {
            schema.insert(key.into(), bound.into());
        }
    }
}

/// Writes the ends of a range that are narrower than 64 bits; the others go without saying.
fn integer_bounds(schema: &mut Map<String, Value>, least: i128, most: i128) {
    if least != i128::from(i64::MIN) {
        set_number(schema, "minimum", least);
    }
    if most < i128::from(i64::MAX) {
        set_number(schema, "maximum", most);
    }
}

fn set(schema: &mut Map<String, Value>, key: &str, value: &str) {
    schema.insert(key.to_owned(), value.into());
}

fn set_number(schema: &mut Map<String, Value>, key: &str, value: i128) {
    if let Ok(value) = i64::try_from(value) {
        schema.insert(key.to_owned(), value.into());
    }
}
