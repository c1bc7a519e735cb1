//! A job's priority inside its queue: a word or a number.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Priority from 0 to 1000; higher is claimed first. The words `low`, `normal` and `high` stand for 250, 500
/// and 750.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u16);

/// Why a priority was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a priority: write `high`, `normal`, `low` or a number from 0 to 1000")]
pub struct Error {
    /// What was written.
    pub text: String,
}

impl Priority {
    /// Claimed after everything else of the same queue.
    pub const LOW: Self = Self(250);
    /// What a job has that says nothing.
    pub const NORMAL: Self = Self(500);
    /// Claimed before jobs that say nothing.
    pub const HIGH: Self = Self(750);
    /// The largest priority.
    pub const MAX: u16 = 1000;

    /// The priority with this number; `None` above 1000.
    pub const fn new(value: u16) -> Option<Self> {
        if value <= Self::MAX { Some(Self(value)) } else { None }
    }

    /// The priority as a number from 0 to 1000.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::NORMAL
    }
}

impl FromStr for Priority {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "low" => Ok(Self::LOW),
            "normal" => Ok(Self::NORMAL),
            "high" => Ok(Self::HIGH),
            number => number.parse().ok().and_then(Self::new).ok_or_else(|| Error { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::LOW => f.write_str("low"),
            Self::NORMAL => f.write_str("normal"),
            Self::HIGH => f.write_str("high"),
            Self(number) => write!(f, "{number}"),
        }
    }
}

impl Serialize for Priority {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::LOW | Self::NORMAL | Self::HIGH => serializer.collect_str(self),
            Self(number) => serializer.serialize_u16(number),
        }
    }
}

impl<'de> Deserialize<'de> for Priority {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Word;

        impl Visitor<'_> for Word {
            type Value = Priority;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`high`, `normal`, `low` or a number from 0 to 1000")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Priority, E> {
                self.visit_str(&value.to_string())
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Priority, E> {
                self.visit_str(&value.to_string())
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Priority, E> {
                value.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Word)
    }
}

impl JsonSchema for Priority {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Priority".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Priority inside the queue: `high`, `normal`, `low`, or a number from 0 to 1000 (higher runs sooner).",
            "x-kubernetes-int-or-string": true,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "format": "priority",
            "pattern": "^(high|normal|low|[0-9]{1,3}|1000)$",
            "minimum": 0,
            "maximum": 1000,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_numbers_are_one_scale() {
        assert!(Priority::HIGH > Priority::NORMAL && Priority::NORMAL > Priority::LOW);
        assert_eq!(serde_json::from_str::<Priority>("\"high\"").unwrap(), Priority::HIGH);
        assert_eq!(serde_json::from_str::<Priority>("500").unwrap(), Priority::NORMAL);
        assert_eq!(serde_json::to_string(&Priority::new(700).unwrap()).unwrap(), "700");
    }

    #[test]
    fn numbers_outside_the_scale_are_refused() {
        for text in ["1001", "-1", "\"urgent\"", "\"\""] {
            let error = serde_json::from_str::<Priority>(text).unwrap_err().to_string();
            assert!(error.contains("a number from 0 to 1000"), "{error}");
        }
    }
}
