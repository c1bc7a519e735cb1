//! Every example in the project is a manifest.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{Kind, parse, to_yaml};

#[test]
fn every_example_is_read_and_written_again_as_the_same_object() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut kinds = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let name = path.display().to_string();
        let documents = parse(&std::fs::read_to_string(&path).unwrap(), &name).unwrap_or_else(|errors| {
            panic!("{}", errors.iter().map(|e| format!("{e}\n")).collect::<String>())
        });
        assert!(!documents.is_empty(), "{name} has no manifest");
        for document in documents {
            let text = to_yaml(&document.object).unwrap();
            let again = parse(&text, &name).unwrap_or_else(|errors| panic!("{text}\n{errors:#?}"));
            assert_eq!(again[0].object, document.object, "{name}\n{text}");
            kinds.insert(document.object.kind());
        }
    }
    assert_eq!(kinds, Kind::all().collect(), "every kind has an example");
}
