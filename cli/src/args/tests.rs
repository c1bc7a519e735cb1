use super::*;

#[test]
fn the_command_line_is_consistent() {
    Args::command().debug_assert();
}

/// The whole help of a verb, as wide as it gets.
fn help(mut command: clap::Command, path: &[&str]) -> String {
    command = command.term_width(100);
    command.build();
    let mut found = &mut command;
    for word in path {
        found = found.find_subcommand_mut(word).expect("the verb exists");
    }
    found.render_long_help().to_string()
}

#[test]
fn the_help_of_every_verb_is_as_it_was_reviewed() {
    insta::assert_snapshot!("help", help(Args::command(), &[]));
    let command = Args::command();
    for verb in command.get_subcommands().map(clap::Command::get_name) {
        // The settings of the controller and of the agent belong to their crates.
        if !matches!(verb, "controller" | "agent") {
            insta::assert_snapshot!(format!("help_{verb}"), help(Args::command(), &[verb]));
        }
    }
    insta::assert_snapshot!("help_set_queue", help(Args::command(), &["set", "queue"]));
    for action in ["create", "list", "revoke"] {
        insta::assert_snapshot!(
            format!("help_join-token_{action}"),
            help(Args::command(), &["join-token", action])
        );
    }
    for action in ["set", "list", "delete", "rotate", "new-key"] {
        insta::assert_snapshot!(format!("help_secret_{action}"), help(Args::command(), &["secret", action]));
    }
    insta::assert_snapshot!("help_identity_create", help(Args::command(), &["identity", "create"]));
    for action in ["start", "status"] {
        insta::assert_snapshot!(
            format!("help_rollout_{action}"),
            help(Args::command(), &["rollout", action])
        );
    }
}

#[test]
fn every_help_text_is_made_of_whole_sentences() {
    fn check(command: &clap::Command, wrong: &mut Vec<String>) {
        let mut judge = |what: String, text: Option<&clap::builder::StyledStr>| {
            let text = text.map(ToString::to_string).unwrap_or_default();
            // A default or a list of values that clap adds comes after the text.
            if !text.starts_with(|c: char| c.is_uppercase() || c == '`') || text.ends_with([',', ':', ' ']) {
                wrong.push(format!("{what}: {text:?}"));
            }
        };
        judge(command.get_name().to_owned(), command.get_about());
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            judge(format!("{} {}", command.get_name(), argument.get_id()), argument.get_help());
        }
        command.get_subcommands().for_each(|command| check(command, wrong));
    }
    let mut wrong = Vec::new();
    check(&Args::command(), &mut wrong);
    assert_eq!(wrong, Vec::<String>::new());
}

fn read(args: &[&str]) -> CommandLine {
    let matches = Args::command().try_get_matches_from(args).unwrap_or_else(|error| panic!("{error}"));
    CommandLine::from_matches(&matches).unwrap()
}

#[test]
fn flags_of_the_connection_are_taken_before_and_after_the_verb() {
    for args in [["windlass", "-n", "ci", "version"], ["windlass", "version", "-n", "ci"]] {
        let line = read(&args);
        let namespace = line.given.namespace.unwrap();
        assert_eq!((namespace.value.as_str(), namespace.origin), ("ci", Origin::Flag("--namespace")));
    }
}

#[test]
fn what_comes_after_the_command_of_a_job_is_the_jobs() {
    for args in [
        ["windlass", "run", "--cpu", "1", "--", "echo", "--help", "-n"],
        ["windlass", "run", "--cpu", "1", "echo", "--help", "-n", "--"],
    ] {
        assert!(matches!(read(&args).verb, Verb::Run(_)));
    }
}
