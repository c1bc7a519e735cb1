//! Guard rails of the node's rules on what steps name as programs and write in scripts.
//!
//! They keep people from mistakes and are no wall: `r\\m -r -f` passes, and so does a program that does the same. What
//! isolates is the sandbox.

use windlass_crds::protocol::SandboxRules;
use windlass_crds::sandbox_job::Step;

use super::policy::Refusal;

/// Checks a step.
///
/// # Errors
/// The rule that the step breaks, with the step and the words.
pub(super) fn check(step: &Step, rules: &SandboxRules) -> Result<(), Refusal> {
    let script = step.script.as_ref();
    let container = step.container.as_ref();
    let entrypoint = container.and_then(|container| container.entrypoint.as_ref());
    let program = script.map_or_else(
        || step.command.as_ref().or(entrypoint).and_then(|command| command.first()).map(String::as_str),
        |script| Some(script.interpreter.as_str()),
    );
    if let Some(program) = program.filter(|_| !rules.allowed_commands.is_empty()) {
        let allows = |allowed: &String| {
            allowed == program || (!allowed.contains('/') && program.rsplit('/').next() == Some(allowed))
        };
        if !rules.allowed_commands.iter().any(allows) {
            let allowed = rules.allowed_commands.join(", ");
            let message =
                format!("step `{}` names the program `{program}`, the node allows {allowed}", step.name);
            return Err(Refusal { rule: "policy.sandbox.allowed_commands", message });
        }
    }
    let texts = [
        ("command", step.command.as_ref().map(|command| command.join(" "))),
        ("entry point", entrypoint.map(|words| words.join(" "))),
        ("container's arguments", container.map(|container| container.args.join(" "))),
        ("script", script.map(|script| script.source.clone())),
        ("script's arguments", script.map(|script| script.args.join(" "))),
    ];
    for (what, text) in texts {
        let Some(text) = text else { continue };
        let text = text.to_lowercase();
        if let Some(blocked) = rules.blocked_commands.iter().find(|words| holds(&text, &words.to_lowercase()))
        {
            let message = format!(
                "the {what} of step `{}` holds `{blocked}`, which the node blocks; leave it out, or have it taken \
                 out of the NodeConfig",
                step.name
            );
            return Err(Refusal { rule: "policy.sandbox.blocked_commands", message });
        }
    }
    Ok(())
}

/// Whether a text holds words one after the other, with any white space between them, and not as part of longer words.
fn holds(text: &str, words: &str) -> bool {
    let words: Vec<&str> = words.split_whitespace().collect();
    let Some((first, others)) = words.split_first() else { return false };
    text.match_indices(first).any(|(at, _)| {
        let begins = text[..at].chars().next_back().is_none_or(|before| !is_of_word(before));
        let mut rest = &text[at + first.len()..];
        let follow = others.iter().all(|word| {
            let trimmed = rest.trim_start();
            let apart = trimmed.len() < rest.len();
            match trimmed.strip_prefix(word).filter(|_| apart) {
                Some(after) => {
                    rest = after;
                    true
                }
                None => false,
            }
        });
        begins && follow && rest.chars().next().is_none_or(|after| !is_of_word(after))
    })
}

/// Whether a character goes on with a word. A path does not: `/bin/dd` holds `dd`.
fn is_of_word(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '_' | '-' | '.')
}

#[cfg(test)]
mod tests {
    use windlass_crds::sandbox_job::Script;

    use super::*;

    /// The words of the guard rails that Windlass grew out of.
    const USUAL: [&str; 7] = ["rm -rf", "mkfs", "dd", "shutdown", "reboot", "poweroff", "init 0"];

    fn command(words: &[&str]) -> Step {
        let command = Some(words.iter().map(|word| (*word).to_owned()).collect());
        Step { name: "work".to_owned(), command, ..Step::default() }
    }

    fn script(interpreter: &str, source: &str) -> Step {
        let (interpreter, source) = (interpreter.to_owned(), source.to_owned());
        let script = Some(Script { interpreter, source, args: Vec::new() });
        Step { name: "work".to_owned(), script, ..Step::default() }
    }

    fn rules(blocked: &[&str], allowed: &[&str]) -> SandboxRules {
        let texts = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        SandboxRules {
            blocked_commands: texts(blocked),
            allowed_commands: texts(allowed),
            ..SandboxRules::default()
        }
    }

    #[test]
    fn blocked_words_are_found_in_any_case_and_spacing_and_only_as_whole_words() {
        let rules = rules(&USUAL, &[]);
        for source in [
            "cd /tmp; rm -rf build",
            "RM   -RF\t/",
            "rm \\\n -x; rm\n-rf",
            "if true; then /sbin/mkfs /dev/sda; fi",
            "(dd)",
            "echo x|dd of=y",
            "sudo Reboot",
            "init 0",
        ] {
            let refusal = check(&script("bash", source), &rules).unwrap_err();
            assert_eq!(refusal.rule, "policy.sandbox.blocked_commands", "{source}");
        }
        for source in
            ["add dd_x dd-y x.dd", "rm -rfv x", "rm -r", "mkfstab", "init 01", "reboots", "", "warm -rf"]
        {
            assert_eq!(check(&script("bash", source), &rules), Ok(()), "{source}");
        }
        assert!(check(&command(&["rm", "-rf", "x"]), &rules).is_err());
        assert_eq!(check(&command(&["rm", "-r", "x"]), &rules), Ok(()));
        let mut step = script("bash", "exec \"$@\"");
        step.script.as_mut().unwrap().args = vec!["shutdown".to_owned()];
        let refusal = check(&step, &rules).unwrap_err().to_string();
        assert!(refusal.contains("blocked_commands") && refusal.contains("`work`"), "{refusal}");
        assert!(refusal.contains("`shutdown`"), "{refusal}");
    }

    #[test]
    fn only_allowed_programs_and_interpreters_may_be_named() {
        let rules = rules(&[], &["bash", "/usr/bin/make"]);
        for step in [script("bash", "x"), command(&["/bin/bash", "-c", "x"]), command(&["/usr/bin/make"])] {
            assert_eq!(check(&step, &rules), Ok(()));
        }
        for step in [script("python", "x"), command(&["make"]), command(&["rebash"])] {
            let refusal = check(&step, &rules).unwrap_err();
            assert_eq!(refusal.rule, "policy.sandbox.allowed_commands");
            assert!(refusal.message.contains("bash, /usr/bin/make"), "{refusal}");
        }
    }
}
