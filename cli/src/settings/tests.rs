use super::*;

fn folders(folder: &Path) -> Folders {
    Folders {
        config: Some(folder.join("config")),
        data: Some(folder.join("data")),
        state: Some(folder.join("state")),
    }
}

fn write_config(folder: &Path, text: &str) {
    std::fs::create_dir_all(folder.join("config/windlass")).unwrap();
    std::fs::write(folder.join("config/windlass/config.yaml"), text).unwrap();
}

fn write_dev(folder: &Path) -> DevFile {
    let dev = DevFile {
        server: "https://127.0.0.1:1".into(),
        ca_file: "/dev/ca".into(),
        token_file: "/dev/token".into(),
        pid: 1,
    };
    dev.write(&DevFile::path(&folders(folder)).unwrap()).unwrap();
    dev
}

fn message(result: Result<Settings, Error>) -> String {
    match Failure::from(result.unwrap_err()) {
        Failure::Report(report) => anstream::adapter::strip_str(&report.to_string()).to_string(),
        Failure::OutputClosed => unreachable!("settings write nothing"),
    }
}

const CONFIG: &str =
    "server: https://file.example:1\ncaFile: ca.pem\ntokenFile: /abs/token\nnamespace: from-file\n";

#[test]
fn a_flag_wins_over_the_environment_and_both_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    write_config(folder.path(), CONFIG);
    write_dev(folder.path());
    let file = Origin::File(folder.path().join("config/windlass/config.yaml"));

    let settings = Settings::resolve(Given { folders: folders(folder.path()), ..Given::default() }).unwrap();
    assert_eq!(settings.server.unwrap().origin, file);
    let ca_file = settings.ca_file.unwrap();
    assert_eq!(ca_file.value, folder.path().join("config/windlass/ca.pem"));
    assert_eq!(ca_file.origin, file);
    assert_eq!(settings.token_file.unwrap().value, Path::new("/abs/token"));
    assert_eq!(settings.namespace, Resolved::new("from-file".to_owned(), file.clone()));

    let given = Given {
        server: Some(Resolved::new("https://env.example".into(), Origin::Environment("WINDLASS_SERVER"))),
        namespace: Some(Resolved::new("from-flag".into(), Origin::Flag("--namespace"))),
        folders: folders(folder.path()),
        ..Given::default()
    };
    let settings = Settings::resolve(given).unwrap();
    assert_eq!(settings.server.unwrap().value.as_str(), "https://env.example/");
    assert_eq!(settings.namespace.value, "from-flag");
    assert_eq!(settings.ca_file.unwrap().origin, file);
}

#[test]
fn a_running_dev_is_found_only_when_no_server_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let dev = write_dev(folder.path());
    let settings = Settings::resolve(Given { folders: folders(folder.path()), ..Given::default() }).unwrap();
    let server = settings.server.unwrap();
    assert_eq!(server.value.as_str(), "https://127.0.0.1:1/");
    assert!(matches!(server.origin, Origin::Dev(_)));
    assert_eq!(settings.token_file.unwrap().value, dev.token_file);
    assert_eq!(settings.namespace, Resolved::new("default".to_owned(), Origin::Default));

    let given = Given {
        server: Some(Resolved::new("https://other.example".into(), Origin::Flag("--server"))),
        folders: folders(folder.path()),
        ..Given::default()
    };
    let settings = Settings::resolve(given).unwrap();
    assert_eq!(
        (settings.ca_file, settings.token_file),
        (None, None),
        "the token of dev must not leave this machine"
    );
}

#[test]
fn nothing_at_all_is_not_an_error() {
    let settings = Settings::resolve(Given::default()).unwrap();
    assert_eq!(settings.server, None);
    assert_eq!(settings.namespace.value, "default");
}

#[test]
fn an_empty_file_says_nothing() {
    let folder = tempfile::tempdir().unwrap();
    write_config(folder.path(), "# nothing here yet\n");
    let settings = Settings::resolve(Given { folders: folders(folder.path()), ..Given::default() }).unwrap();
    assert_eq!(settings.server, None);
}

#[test]
fn a_wrong_field_of_the_file_is_named_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    write_config(folder.path(), "server: https://a\ntoken: secret\n");
    let text = message(Settings::resolve(Given { folders: folders(folder.path()), ..Given::default() }));
    assert!(text.contains("config.yaml is not a valid configuration file"), "{text}");
    assert!(text.contains("unknown field `token`"), "{text}");
    assert!(text.contains("line 2"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn a_file_that_was_named_must_exist() {
    let folder = tempfile::tempdir().unwrap();
    let given = Given {
        config_file: Some(Resolved::new(folder.path().join("none.yaml"), Origin::Flag("--config"))),
        ..Given::default()
    };
    assert!(message(Settings::resolve(given)).contains("none.yaml cannot be read"));
}

#[test]
fn a_wrong_server_is_refused_with_its_origin_and_the_reason() {
    let table = [
        ("example.com:1", "its scheme is not https"),
        ("ftp://example.com", "its scheme is not https"),
        ("http://example.com", "plain http would show the token"),
        ("https://user:secret@example.com", "it holds a user name or a password"),
        ("https://example.com/?a=b", "it holds a query"),
        ("nonsense", "relative URL without a base"),
    ];
    for (text, reason) in table {
        let given = Given {
            server: Some(Resolved::new(text.into(), Origin::Environment("WINDLASS_SERVER"))),
            ..Given::default()
        };
        let message = message(Settings::resolve(given));
        assert!(message.contains(reason) && message.contains("WINDLASS_SERVER"), "{text}: {message}");
        assert!(!message.contains("secret"), "{message}");
    }
    for text in ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "https://example.com/windlass"]
    {
        let given =
            Given { server: Some(Resolved::new(text.into(), Origin::Flag("--server"))), ..Given::default() };
        Settings::resolve(given).unwrap();
    }
}

#[test]
fn a_wrong_namespace_is_refused_with_the_rule() {
    for text in ["", "UPPER", "-a", "a-", "a/b", "a b", &"x".repeat(64)] {
        let given = Given {
            namespace: Some(Resolved::new(text.into(), Origin::Flag("--namespace"))),
            ..Given::default()
        };
        assert!(message(Settings::resolve(given)).contains("is not the name of a namespace"), "{text}");
    }
}
