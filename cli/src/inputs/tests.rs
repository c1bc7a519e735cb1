use std::fs;

use super::*;

#[test]
fn a_destination_stays_inside_the_workspace() {
    let parse = |text: &str| text.parse::<InputArg>();
    assert_eq!(parse("./repo").unwrap(), InputArg { destination: None, path: "./repo".into() });
    assert_eq!(
        parse("data//./x=/tmp/no-such-thing").unwrap(),
        InputArg { destination: Some("data/x".into()), path: "/tmp/no-such-thing".into() }
    );
    assert_eq!(parse(".=x").unwrap().destination.as_deref(), Some("."));
    for text in ["/abs=x", "../up=x", "a/../b=x", "a\nb=x"] {
        assert!(matches!(parse(text), Err(Error::Destination { .. })), "{text}");
    }
    for text in ["", "=x", "a="] {
        assert!(matches!(parse(text), Err(Error::Syntax { .. })), "{text}");
    }
}

#[test]
fn a_path_with_an_equals_sign_is_a_path_where_it_exists() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a=b");
    fs::write(&path, "").unwrap();
    let arg: InputArg = path.to_str().unwrap().parse().unwrap();
    assert_eq!(arg, InputArg { destination: None, path });
}

#[test]
fn destinations_follow_from_what_is_placed() {
    let at = |destination: Option<&str>, path: &str, unpack| {
        destination_of(&InputArg { destination: destination.map(Into::into), path: path.into() }, unpack)
    };
    assert_eq!(at(None, "/some/folder", true), "input");
    assert_eq!(at(None, "/some/data.csv", false), "input/data.csv");
    assert_eq!(at(Some("data.csv"), "/some/other.csv", false), "data.csv");
    assert_eq!(at(None, "..", true), "input");
}
