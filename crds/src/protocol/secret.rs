//! Values of secrets on their way to the one attempt that names them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes that are shown nowhere: in base64 on the wire, and as their number to people.
#[derive(Clone, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Wraps bytes.
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes. Whoever asks for them sees to it that they go nowhere else.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.0.len())
    }
}

impl Serialize for SecretBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for SecretBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // Neither the text nor where it is wrong goes into the message.
        STANDARD.decode(text).map(Self).map_err(|_| serde::de::Error::custom("a secret is not base64"))
    }
}

/// A value that an attempt is given, or why it is not.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct SecretValue {
    /// The Secret in the job's namespace.
    pub name: String,
    /// The key in the Secret.
    pub key: String,
    /// The value in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<SecretBytes>,
    /// Why there is no value, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_survives_the_wire_and_is_shown_nowhere() {
        let value = SecretValue {
            name: "a".into(),
            key: "b".into(),
            value: Some(SecretBytes::new(vec![0, 255, b'x'])),
            problem: None,
        };
        let json = serde_json::to_string(&value).unwrap();
        assert_eq!(json, r#"{"name":"a","key":"b","value":"AP94"}"#);
        assert_eq!(serde_json::from_str::<SecretValue>(&json).unwrap(), value);
        assert!(format!("{value:?}").contains("3 bytes"), "{value:?}");
        let error = serde_json::from_str::<SecretBytes>("\"s3cret!\"").unwrap_err().to_string();
        assert!(!error.contains("s3cret"), "{error}");
    }
}
