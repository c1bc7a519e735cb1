//! Amounts of cpu and bytes as Kubernetes writes them: an integer, or a string with a suffix.
//!
//! A value keeps its amount, not its spelling: `0.5` and `500m` are the same cpu and print alike.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An amount of cpu time per second, in thousandths of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cpu(u64);

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(u64);

/// Why a quantity was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is not a number with a known suffix.
    #[error("`{text}` is not an amount of {unit}: write {examples}")]
    Syntax {
        /// What was written.
        text: String,
        /// What the amount counts.
        unit: &'static str,
        /// Spellings that would have been accepted.
        examples: &'static str,
    },
    /// The amount does not fit into 64 bits, or is finer than the unit's smallest step.
    #[error("`{text}` is out of range for an amount of {unit}")]
    Range {
        /// What was written.
        text: String,
        /// What the amount counts.
        unit: &'static str,
    },
}

const CPU_EXAMPLES: &str = "`2`, `0.5` or `500m`";
const BYTES_EXAMPLES: &str = "`1073741824`, `512Mi`, `2Gi` or `1G`";

impl Cpu {
    /// An amount given in thousandths of a core.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// The amount in thousandths of a core.
    pub const fn millis(self) -> u64 {
        self.0
    }
}

impl Bytes {
    /// An amount given in bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// An amount given in mebibytes (2^20 bytes).
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib * 1024 * 1024)
    }

    /// The amount in bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Reads `digits[.digits]` as a fixed-point number scaled by `scale`, exactly.
fn fixed_point(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || !whole.bytes().all(|b| b.is_ascii_digit()) || fraction.len() > 9 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let mut total = u128::from(whole) * u128::from(scale);
    if number.contains('.') {
        if fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let numerator = u128::from(fraction.parse::<u64>().ok()?) * u128::from(scale);
        let denominator = 10u128.pow(u32::try_from(fraction.len()).ok()?);
        if numerator % denominator != 0 {
            return None;
        }
        total += numerator / denominator;
    }
    u64::try_from(total).ok()
}

/// Whether `number` has the outer form of a decimal number, so that a failure is one of range.
fn is_decimal(number: &str) -> bool {
    !number.is_empty()
        && number.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        && number.bytes().filter(|b| *b == b'.').count() <= 1
        && !number.starts_with('.')
        && !number.ends_with('.')
}

impl FromStr for Cpu {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (number, scale) = match text.strip_suffix('m') {
            Some(number) => (number, 1),
            None => (text, 1000),
        };
        if !is_decimal(number) {
            return Err(Error::Syntax { text: text.into(), unit: "cpu", examples: CPU_EXAMPLES });
        }
        fixed_point(number, scale).map(Self).ok_or(Error::Range { text: text.into(), unit: "cpu" })
    }
}

impl FromStr for Bytes {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        const SUFFIXES: [(&str, u64); 10] = [
            ("Ki", 1 << 10),
            ("Mi", 1 << 20),
            ("Gi", 1 << 30),
            ("Ti", 1 << 40),
            ("Pi", 1 << 50),
            ("k", 1_000),
            ("M", 1_000_000),
            ("G", 1_000_000_000),
            ("T", 1_000_000_000_000),
            ("P", 1_000_000_000_000_000),
        ];
        let (number, scale) = SUFFIXES
            .iter()
            .find_map(|(suffix, scale)| text.strip_suffix(suffix).map(|number| (number, *scale)))
            .unwrap_or((text, 1));
        if !is_decimal(number) {
            return Err(Error::Syntax { text: text.into(), unit: "bytes", examples: BYTES_EXAMPLES });
        }
        fixed_point(number, scale).map(Self).ok_or(Error::Range { text: text.into(), unit: "bytes" })
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) { write!(f, "{}", self.0 / 1000) } else { write!(f, "{}m", self.0) }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SUFFIXES: [(u64, &str); 4] =
            [(1 << 40, "Ti"), (1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")];
        let fitting = SUFFIXES.iter().find(|(scale, _)| self.0 >= *scale && self.0.is_multiple_of(*scale));
        match fitting {
            Some((scale, suffix)) => write!(f, "{}{suffix}", self.0 / scale),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Serde and schema for a quantity: written as a string, read from an integer, a float or a string.
macro_rules! int_or_string {
    ($type:ident, $name:literal, $expecting:literal, $from_int:expr, $pattern:literal, $description:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Quantity;

                impl Visitor<'_> for Quantity {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_u64<E: de::Error>(self, value: u64) -> Result<$type, E> {
                        let from_int: fn(u64) -> Option<u64> = $from_int;
                        from_int(value)
                            .map($type)
                            .ok_or_else(|| E::custom(Error::Range { text: value.to_string(), unit: $name }))
                    }

                    fn visit_i64<E: de::Error>(self, value: i64) -> Result<$type, E> {
                        u64::try_from(value)
                            .map_err(|_| E::custom(Error::Range { text: value.to_string(), unit: $name }))
                            .and_then(|value| self.visit_u64(value))
                    }

                    fn visit_f64<E: de::Error>(self, value: f64) -> Result<$type, E> {
                        value.to_string().parse().map_err(E::custom)
                    }

                    fn visit_str<E: de::Error>(self, value: &str) -> Result<$type, E> {
                        value.parse().map_err(E::custom)
                    }
                }

                deserializer.deserialize_any(Quantity)
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "description": $description,
                    "x-kubernetes-int-or-string": true,
                    "anyOf": [{"type": "integer"}, {"type": "string"}],
                    "format": $name,
                    "pattern": $pattern,
                })
            }
        }
    };
}

int_or_string!(
    Cpu,
    "cpu",
    "an amount of cpu such as `2`, `0.5` or `500m`",
    |cores| cores.checked_mul(1000),
    r"^[0-9]+(\.[0-9]{1,9})?m?$",
    "Amount of cpu: cores, or thousandths of a core with the suffix `m`."
);
int_or_string!(
    Bytes,
    "bytes",
    "an amount of bytes such as `1073741824`, `512Mi` or `1G`",
    Some,
    r"^[0-9]+(\.[0-9]{1,9})?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$",
    "Amount of bytes, with an optional binary (`Mi`) or decimal (`M`) suffix."
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_reads_cores_and_thousandths() {
        for (text, millis) in [("2", 2000), ("0.5", 500), ("500m", 500), ("1.25", 1250), ("0", 0)] {
            assert_eq!(text.parse::<Cpu>().unwrap().millis(), millis, "{text}");
        }
        assert_eq!(serde_json::from_str::<Cpu>("2").unwrap().millis(), 2000);
        assert_eq!(serde_json::from_str::<Cpu>("0.25").unwrap().millis(), 250);
    }

    #[test]
    fn bytes_read_binary_and_decimal_suffixes() {
        for (text, bytes) in [("1024", 1024), ("1Ki", 1024), ("1.5Gi", 1_610_612_736), ("2M", 2_000_000)] {
            assert_eq!(text.parse::<Bytes>().unwrap().get(), bytes, "{text}");
        }
    }

    #[test]
    fn printed_quantities_read_back_as_the_same_amount() {
        for millis in [0, 1, 250, 1000, 1500, 64_000] {
            let cpu = Cpu::from_millis(millis);
            assert_eq!(cpu.to_string().parse::<Cpu>().unwrap(), cpu);
        }
        for bytes in [0, 1, 1023, 1 << 20, (1 << 30) + 1, 3 << 40] {
            let bytes = Bytes::new(bytes);
            assert_eq!(bytes.to_string().parse::<Bytes>().unwrap(), bytes);
        }
    }

    #[test]
    fn nonsense_is_refused_with_examples() {
        let error = "12x".parse::<Bytes>().unwrap_err().to_string();
        assert_eq!(error, "`12x` is not an amount of bytes: write `1073741824`, `512Mi`, `2Gi` or `1G`");
        for text in ["", "-1", "1e3", "m", ".5", "5.", "1..2", "Mi", "0x10"] {
            assert!(text.parse::<Cpu>().is_err(), "{text}");
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        assert!(matches!("0.0001".parse::<Cpu>(), Err(Error::Range { .. })));
        assert!(matches!("99999999999999999999Pi".parse::<Bytes>(), Err(Error::Range { .. })));
        assert!(serde_json::from_str::<Cpu>("-2").unwrap_err().to_string().contains("out of range"));
    }
}
