//! Manifests: whatever is read, nothing panics; what is accepted is written and read again as the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use windlass_crds::manifest::{MAX_ERRORS, Object, parse_bytes, to_yaml};

/// An object without its status, which manifests do not carry.
fn without_status(object: &Object) -> serde_json::Value {
    let mut json = object.to_json().expect("what was read has a JSON form");
    if let Some(fields) = json.as_object_mut() {
        fields.remove("status");
    }
    json
}

fuzz_target!(|data: &[u8]| {
    let documents = match parse_bytes(data, "fuzz") {
        Ok(documents) => documents,
        Err(errors) => {
            assert!(!errors.is_empty() && errors.len() <= MAX_ERRORS);
            return;
        }
    };
    for document in documents {
        let text = to_yaml(&document.object).expect("what was read can be written");
        let again =
            parse_bytes(text.as_bytes(), "again").unwrap_or_else(|errors| panic!("{errors:?}\n{text}"));
        assert_eq!(again.len(), 1, "{text}");
        assert_eq!(without_status(&again[0].object), without_status(&document.object), "{text}");
    }
});
