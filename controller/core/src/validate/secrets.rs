//! Which secrets a step is given, and as what.

use std::collections::BTreeMap;

use windlass_crds::SecretUse;
use windlass_crds::names::{self, Quoted};

use super::findings::Findings;
use super::{RESERVED_ENVIRONMENT, paths};

/// Where a step finds its files with secrets.
const SECRETS_FOLDER: &str = "/run/windlass/secrets";

/// Checks the secrets of one step, whose plain environment is `env`.
pub(super) fn check(
    secrets: &[SecretUse],
    env: &BTreeMap<String, String>,
    at: &str,
    findings: &mut Findings,
) {
    let mut variables: BTreeMap<&str, String> = BTreeMap::new();
    let mut files: BTreeMap<Vec<&str>, String> = BTreeMap::new();
    for (index, secret) in secrets.iter().enumerate() {
        let field = format!("{at}[{index}]");
        let SecretUse { name, key: _, env: variable, file } = secret;
        if let Err(error) = names::check_subdomain(name) {
            findings.refuse(format!("{field}.name"), format!("{} {error}", Quoted(name)));
        }
        match (variable, file) {
            (None, None) => findings.refuse(&field, "leads nowhere; write one of `env` and `file`"),
            (Some(_), Some(_)) => {
                let message =
                    format!("stands beside {field}.env; write one of them, or name the secret a second time");
                findings.refuse(format!("{field}.file"), message);
            }
            (Some(_), None) | (None, Some(_)) => {}
        }
        if let Some(variable) = variable {
            let at = format!("{field}.env");
            if let Err(error) = names::check_environment_name(variable) {
                findings.refuse(&at, format!("the name {} {error}", Quoted(variable)));
            } else if variable.starts_with(RESERVED_ENVIRONMENT) {
                let message = format!(
                    "`{variable}` is reserved: choose a name that does not begin with `{RESERVED_ENVIRONMENT}`"
                );
                findings.refuse(&at, message);
            } else if env.contains_key(variable) {
                findings.refuse(&at, format!("`{variable}` is set by the step's `env` too; remove one"));
            }
            if let Some(other) = variables.insert(variable, at.clone()) {
                findings.refuse(at, format!("`{variable}` is also the name at {other}; choose another"));
            }
        }
        if let Some(file) = file {
            let at = format!("{field}.file");
            let parts: Vec<&str> = paths::parts(file).collect();
            let too_long = parts.iter().any(|part| part.len() > paths::MAX_PART);
            let outside = file.starts_with('/') || parts.contains(&"..");
            if parts.is_empty() || too_long || outside || file.contains('\0') {
                let message = format!(
                    "{} is no place for a file; write a path below {SECRETS_FOLDER}, such as `token` or `tls/key.pem`",
                    Quoted(file)
                );
                findings.refuse(at, message);
            } else if let Some(other) = files.insert(parts, at.clone()) {
                findings.refuse(at, format!("{} is also the path at {other}; choose another", Quoted(file)));
            }
        }
    }
    for (parts, field) in &files {
        let above = (1..parts.len()).find_map(|length| files.get(&parts[..length]));
        if let Some(other) = above {
            findings.refuse(field, format!("{} lies below the file at {other}", Quoted(&parts.join("/"))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, env: Option<&str>, file: Option<&str>) -> SecretUse {
        let text = |text: &str| text.to_owned();
        SecretUse { name: text(name), key: text("k"), env: env.map(text), file: file.map(text) }
    }

    fn found(secrets: &[SecretUse]) -> Vec<String> {
        let mut findings = Findings::default();
        let env = [("TAKEN".to_owned(), "x".to_owned())].into();
        check(secrets, &env, "s", &mut findings);
        findings.finish().into_iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    #[test]
    fn secrets_that_break_no_rule_are_accepted() {
        let secrets = [
            secret("a", Some("A"), None),
            secret("a", None, Some("a")),
            secret("b.c", None, Some("b/a")),
            secret("b.c", None, Some("b/./c")),
        ];
        assert_eq!(found(&secrets), [""; 0]);
    }

    #[test]
    fn every_rule_names_the_field_and_the_fix() {
        for (secrets, expected) in [
            (vec![secret("A_b", Some("A"), None)], "s[0].name: `A_b` must be lower-case letters"),
            (vec![secret("a", None, None)], "s[0]: leads nowhere; write one of `env` and `file`"),
            (vec![secret("a", Some("A"), Some("a"))], "s[0].file: stands beside s[0].env"),
            (vec![secret("a", Some("1A"), None)], "s[0].env: the name `1A` must be letters"),
            (vec![secret("a", Some("WINDLASS_A"), None)], "s[0].env: `WINDLASS_A` is reserved"),
            (vec![secret("a", Some("TAKEN"), None)], "s[0].env: `TAKEN` is set by the step's `env` too"),
            (
                vec![secret("a", Some("A"), None), secret("b", Some("A"), None)],
                "s[1].env: `A` is also the name at s[0].env",
            ),
            (vec![secret("a", None, Some("/etc/x"))], "s[0].file: `/etc/x` is no place for a file"),
            (vec![secret("a", None, Some("b/../../x"))], "s[0].file: `b/../../x` is no place for a file"),
            (vec![secret("a", None, Some("."))], "s[0].file: `.` is no place for a file"),
            (
                vec![secret("a", None, Some("x/a")), secret("b", None, Some("x//a"))],
                "s[1].file: `x//a` is also the path at s[0].file",
            ),
            (
                vec![secret("a", None, Some("x/a")), secret("b", None, Some("x"))],
                "s[0].file: `x/a` lies below the file at s[1].file",
            ),
        ] {
            let found = found(&secrets);
            assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?} is not {expected:?}");
        }
    }
}
