//! Names and labels as Kubernetes writes them, so that a manifest means the same with and without a cluster.
//!
//! Every check answers with the reason why a text is refused, worded so that it follows the text itself.

use std::fmt;

/// Why a name, a label's key or a label's value was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing was written.
    #[error("must not be empty")]
    Empty,
    /// The text is too long.
    #[error("is longer than {limit} characters")]
    TooLong {
        /// The most characters that are accepted.
        limit: usize,
    },
    /// A part of the text has a character that it may not have, or has it in the wrong place.
    #[error("must be {form}")]
    Form {
        /// What would have been accepted.
        form: &'static str,
    },
}

const LABEL: &str = "lower-case letters, digits and `-`, starting and ending with a letter or digit";
const SUBDOMAIN: &str =
    "lower-case letters, digits, `-` and `.`, each part starting and ending with a letter or digit";
const LABEL_VALUE: &str = "letters, digits, `-`, `_` and `.`, starting and ending with a letter or digit";
const LABEL_KEY: &str = "a name of letters, digits, `-`, `_` and `.`, optionally after a DNS name and `/`";
const ENVIRONMENT: &str = "letters, digits and `_`, not starting with a digit";
const SECRET_KEY: &str = "letters, digits, `-`, `_` and `.`";

/// The most characters of a DNS label, a label's value, and a label key's name.
pub const LABEL_MAX: usize = 63;
/// The most characters of a DNS subdomain.
pub const SUBDOMAIN_MAX: usize = 253;

/// Checks a DNS label of RFC 1123: namespaces, queues and steps.
pub fn check_label(text: &str) -> Result<(), Error> {
    check_length(text, LABEL_MAX)?;
    check_form(is_dns_label(text), LABEL)
}

/// Checks a DNS subdomain of RFC 1123: names of objects.
pub fn check_subdomain(text: &str) -> Result<(), Error> {
    check_length(text, SUBDOMAIN_MAX)?;
    check_form(text.split('.').all(is_dns_label), SUBDOMAIN)
}

/// Checks the key of a label: an optional DNS name and `/`, then a name.
pub fn check_label_key(text: &str) -> Result<(), Error> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    if let Some(prefix) = prefix {
        check_length(prefix, SUBDOMAIN_MAX)?;
        check_form(prefix.split('.').all(is_dns_label), LABEL_KEY)?;
    }
    check_length(name, LABEL_MAX)?;
    check_form(is_label_name(name), LABEL_KEY)
}

/// Checks the value of a label; the empty value is one.
pub fn check_label_value(text: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Ok(());
    }
    check_length(text, LABEL_MAX)?;
    check_form(is_label_name(text), LABEL_VALUE)
}

/// Checks the name of an environment variable.
pub fn check_environment_name(text: &str) -> Result<(), Error> {
    // The kernel has no limit of its own; 255 is what shells and manifests are used with.
    check_length(text, 255)?;
    let first = !text.starts_with(|c: char| c.is_ascii_digit());
    check_form(first && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), ENVIRONMENT)
}

/// Checks the key of a value in a Secret.
pub fn check_secret_key(text: &str) -> Result<(), Error> {
    check_length(text, SUBDOMAIN_MAX)?;
    let form = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    check_form(form, SECRET_KEY)
}

fn check_length(text: &str, limit: usize) -> Result<(), Error> {
    if text.is_empty() {
        Err(Error::Empty)
    } else if text.chars().count() > limit {
        Err(Error::TooLong { limit })
    } else {
        Ok(())
    }
}

fn check_form(holds: bool, form: &'static str) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Form { form }) }
}

fn is_dns_label(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_label_name(text: &str) -> bool {
    let ends = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(ends)
        && text.ends_with(ends)
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// A text from a manifest inside a message: in backticks, on one line, and never longer than a line.
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 60;
        f.write_str("`")?;
        for c in self.0.chars().take(SHOWN) {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        f.write_str(if self.0.chars().nth(SHOWN).is_some() { "…`" } else { "`" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_rfc_1123() {
        for good in ["a", "web-1", "0"] {
            assert_eq!(check_label(good), Ok(()), "{good}");
            assert_eq!(check_subdomain(good), Ok(()), "{good}");
        }
        assert_eq!(check_subdomain("rack-1.example.org"), Ok(()));
        for bad in ["A", "-a", "a-", "a_b", "ä", "a b", "a\0"] {
            assert_eq!(check_label(bad), Err(Error::Form { form: LABEL }), "{bad}");
            assert_eq!(check_subdomain(bad), Err(Error::Form { form: SUBDOMAIN }), "{bad}");
        }
        for bad in ["a..b", ".a", "a."] {
            assert_eq!(check_subdomain(bad), Err(Error::Form { form: SUBDOMAIN }), "{bad}");
        }
        assert_eq!(check_label(""), Err(Error::Empty));
        assert_eq!(check_label(&"a".repeat(64)), Err(Error::TooLong { limit: 63 }));
        assert_eq!(check_subdomain(&"a".repeat(254)), Err(Error::TooLong { limit: 253 }));
    }

    #[test]
    fn label_keys_may_have_a_dns_prefix() {
        for good in ["a", "windlass.dev/Arch", "x_y.z-1"] {
            assert_eq!(check_label_key(good), Ok(()), "{good}");
        }
        for bad in ["/a", "a/", "a/b/c", "Upper.case/a", "_a", "a_", "", "ä"] {
            assert!(check_label_key(bad).is_err(), "{bad}");
        }
        assert!(check_label_key(&format!("{}/a", "p".repeat(254))).is_err());
        assert!(check_label_key(&"k".repeat(64)).is_err());
    }

    #[test]
    fn label_values_may_be_empty() {
        for good in ["", "1", "a.b_c-D"] {
            assert_eq!(check_label_value(good), Ok(()), "{good}");
        }
        for bad in ["-", "a b", "ä", ".a", "a/b"] {
            assert!(check_label_value(bad).is_err(), "{bad}");
        }
        assert!(check_label_value(&"v".repeat(64)).is_err());
    }

    #[test]
    fn environment_names_are_those_of_shells() {
        for good in ["A", "_a1", "path"] {
            assert_eq!(check_environment_name(good), Ok(()), "{good}");
        }
        for bad in ["", "1A", "A-B", "A=B", "A B", "Ä", "A\0"] {
            assert!(check_environment_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn quoted_texts_stay_on_one_line() {
        assert_eq!(Quoted("a\nb\0").to_string(), "`a\\nb\\u{0}`");
        assert_eq!(Quoted(&"x".repeat(100)).to_string(), format!("`{}…`", "x".repeat(60)));
    }
}
