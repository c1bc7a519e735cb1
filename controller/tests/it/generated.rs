//! Files that are made from the types are current.

#[test]
fn the_openapi_document_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    let made = serde_json::to_string_pretty(&windlass_controller::rest::openapi::build()).unwrap() + "\n";
    assert!(committed == made, "controller/openapi.json is out of date: run `make generate`");
}
