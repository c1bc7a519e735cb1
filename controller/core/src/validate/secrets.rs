//! Which secrets and settings a step is given, and as what.

use std::collections::BTreeMap;

use windlass_crds::names::{self, Quoted};
use windlass_crds::{ConfigMapUse, SecretUse};

use super::findings::Findings;
use super::{RESERVED_ENVIRONMENT, paths};

/// Where a step finds its files with secrets.
const SECRETS_FOLDER: &str = "/run/windlass/secrets";

/// Where the variables of a step come from, by their names.
pub(super) type Variables<'a> = BTreeMap<&'a str, String>;

/// Checks the secrets of one step, whose plain environment is `env`.
pub(super) fn check<'a>(
    secrets: &'a [SecretUse],
    env: &BTreeMap<String, String>,
    variables: &mut Variables<'a>,
    at: &str,
    findings: &mut Findings,
) {
    let mut files: BTreeMap<Vec<&str>, String> = BTreeMap::new();
    for (index, secret) in secrets.iter().enumerate() {
        let field = format!("{at}[{index}]");
        let SecretUse { name, key: _, env: variable, file } = secret;
        check_name(name, &field, findings);
        check_form(variable.is_some(), file.is_some(), "secret", &field, findings);
        if let Some(variable) = variable {
            check_variable(variable, env, variables, format!("{field}.env"), findings);
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

/// Checks what one step is given of ConfigMaps. Where their files lie is checked with the workspace.
pub(super) fn check_config_maps<'a>(
    config_maps: &'a [ConfigMapUse],
    env: &BTreeMap<String, String>,
    variables: &mut Variables<'a>,
    at: &str,
    findings: &mut Findings,
) {
    for (index, config_map) in config_maps.iter().enumerate() {
        let field = format!("{at}[{index}]");
        let ConfigMapUse { name, key: _, env: variable, file } = config_map;
        check_name(name, &field, findings);
        check_form(variable.is_some(), file.is_some(), "ConfigMap", &field, findings);
        if let Some(variable) = variable {
            check_variable(variable, env, variables, format!("{field}.env"), findings);
        }
    }
}

fn check_name(name: &str, field: &str, findings: &mut Findings) {
    if let Err(error) = names::check_subdomain(name) {
        findings.refuse(format!("{field}.name"), format!("{} {error}", Quoted(name)));
    }
}

fn check_form(variable: bool, file: bool, what: &str, field: &str, findings: &mut Findings) {
    if variable && file {
        let message =
            format!("stands beside {field}.env; write one of them, or name the {what} a second time");
        findings.refuse(format!("{field}.file"), message);
    } else if !variable && !file {
        findings.refuse(field, "leads nowhere; write one of `env` and `file`");
    }
}

fn check_variable<'a>(
    variable: &'a str,
    env: &BTreeMap<String, String>,
    variables: &mut Variables<'a>,
    at: String,
    findings: &mut Findings,
) {
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
        check(secrets, &env, &mut Variables::new(), "s", &mut findings);
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

    #[test]
    fn a_variable_comes_from_one_place() {
        let secrets = [secret("a", Some("A"), None)];
        let config_map = |env: Option<&str>, file: Option<&str>| {
            let text = |text: &str| text.to_owned();
            ConfigMapUse { name: text("c"), key: text("k"), env: env.map(text), file: file.map(text) }
        };
        let config_maps = [
            config_map(Some("A"), None),
            config_map(Some("TAKEN"), None),
            config_map(Some("WINDLASS_A"), None),
            config_map(None, None),
            config_map(Some("B"), Some("b")),
        ];
        let (mut findings, mut variables) = (Findings::default(), Variables::new());
        let env = [("TAKEN".to_owned(), "x".to_owned())].into();
        check(&secrets, &env, &mut variables, "s", &mut findings);
        check_config_maps(&config_maps, &env, &mut variables, "c", &mut findings);
        let found: Vec<_> =
            findings.finish().into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
        for (n, part) in [
            "c[0].env: `A` is also the name at s[0].env",
            "c[1].env: `TAKEN` is set by the step's `env` too",
            "c[2].env: `WINDLASS_A` is reserved",
            "c[3]: leads nowhere",
            "c[4].file: stands beside c[4].env; write one of them, or name the ConfigMap a second time",
        ]
        .into_iter()
        .enumerate()
        {
            assert!(found[n].starts_with(part), "{part}: {found:?}");
        }
        assert_eq!(found.len(), 5, "{found:?}");
    }
}
