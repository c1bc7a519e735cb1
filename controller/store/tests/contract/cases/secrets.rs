//! Secrets: what is kept is what was sealed, and nothing is half set.

use windlass_store::{PutSecret, SealedValue, SecretValueRow, Store};

use crate::fixtures::at;

fn sealed(entry: &str, key_id: &str, content: &[u8]) -> SealedValue {
    SealedValue {
        entry: entry.to_owned(),
        key_id: key_id.to_owned(),
        wrapped_key: [b"wrapped-", content].concat(),
        sealed: content.to_vec(),
        size: content.len() as u64,
    }
}

async fn put(store: &Store, second: i64, name: &str, values: Vec<SealedValue>) -> PutSecret {
    store.put_secret(at(second), ("default", name), values, 3).await.unwrap()
}

fn entries(rows: &[SecretValueRow]) -> Vec<(&str, &[u8])> {
    rows.iter().map(|row| (row.value.entry.as_str(), row.value.sealed.as_slice())).collect()
}

pub(crate) async fn values_read_back_and_setting_one_leaves_the_others(store: Store) {
    let all = vec![sealed("b", "k1", b"\x00\xff"), sealed("a", "k1", b"two")];
    assert_eq!(put(&store, 0, "s", all).await, PutSecret::Created);
    assert_eq!(put(&store, 5, "s", vec![sealed("a", "k1", b"three")]).await, PutSecret::Updated);
    assert_eq!(put(&store, 6, "t", vec![sealed("a", "k1", b"other")]).await, PutSecret::Created);
    let rows = store.secret_values("default", "s").await.unwrap();
    assert_eq!(entries(&rows), [("a", b"three".as_slice()), ("b", b"\x00\xff")]);
    assert_eq!(rows[0].value, sealed("a", "k1", b"three"));
    assert!(rows[0].version > rows[1].version);
    assert_eq!(store.secret_values("other", "s").await.unwrap(), []);
}

pub(crate) async fn lists_tell_of_values_without_them(store: Store) {
    put(&store, 0, "s", vec![sealed("a", "k1", b"one"), sealed("b", "k1", b"two")]).await;
    put(&store, 9, "s", vec![sealed("b", "k2", b"three")]).await;
    store.put_secret(at(1), ("other", "s"), vec![sealed("c", "k1", b"x")], 3).await.unwrap();
    let told = |rows: Vec<windlass_store::SecretEntryRow>| {
        let tell = |row: windlass_store::SecretEntryRow| {
            assert!(row.created_at <= row.updated_at);
            format!("{}/{}/{} {} {}", row.namespace, row.name, row.entry, row.size, row.key_id)
        };
        rows.into_iter().map(tell).collect::<Vec<_>>()
    };
    let all = told(store.list_secrets(None, None).await.unwrap());
    assert_eq!(all, ["default/s/a 3 k1", "default/s/b 5 k2", "other/s/c 1 k1"]);
    let rows = store.list_secrets(Some("default"), Some("s")).await.unwrap();
    assert_eq!((rows[1].created_at, rows[1].updated_at), (at(0), at(9)));
    assert_eq!(told(store.list_secrets(Some("other"), None).await.unwrap()), ["other/s/c 1 k1"]);
}

pub(crate) async fn a_secret_with_too_many_keys_is_left_as_it_was(store: Store) {
    put(&store, 0, "s", vec![sealed("a", "k1", b"1"), sealed("b", "k1", b"2")]).await;
    let more = vec![sealed("a", "k1", b"new"), sealed("c", "k1", b"3"), sealed("d", "k1", b"4")];
    assert_eq!(put(&store, 1, "s", more).await, PutSecret::TooManyKeys(4));
    let rows = store.secret_values("default", "s").await.unwrap();
    assert_eq!(entries(&rows), [("a", b"1".as_slice()), ("b", b"2")]);
}

pub(crate) async fn a_secret_is_gone_with_its_last_key(store: Store) {
    put(&store, 0, "s", vec![sealed("a", "k1", b"1"), sealed("b", "k1", b"2")]).await;
    assert_eq!(store.delete_secret("default", "s", Some("z")).await.unwrap(), 0);
    assert_eq!(store.delete_secret("default", "s", Some("a")).await.unwrap(), 1);
    assert_eq!(store.delete_secret("default", "s", None).await.unwrap(), 1);
    assert_eq!(store.delete_secret("default", "s", None).await.unwrap(), 0);
    assert_eq!(store.list_secrets(None, None).await.unwrap(), []);
    assert_eq!(put(&store, 1, "s", vec![sealed("a", "k1", b"1")]).await, PutSecret::Created);
}

pub(crate) async fn keys_are_wrapped_anew_unless_the_value_has_changed(store: Store) {
    put(&store, 0, "s", vec![sealed("a", "old", b"1"), sealed("b", "old", b"2")]).await;
    put(&store, 0, "t", vec![sealed("a", "new", b"3")]).await;
    let keys =
        |list: &[(&str, u64)]| list.iter().map(|(id, uses)| ((*id).to_owned(), *uses)).collect::<Vec<_>>();
    assert_eq!(store.secret_keys().await.unwrap(), keys(&[("new", 1), ("old", 2)]));
    let mut rows = store.secrets_under_other_keys("new", 10).await.unwrap();
    assert_eq!(entries(&rows), [("a", b"1".as_slice()), ("b", b"2")]);
    assert_eq!(store.secrets_under_other_keys("new", 1).await.unwrap().len(), 1);
    // Somebody sets `b` meanwhile.
    put(&store, 1, "s", vec![sealed("b", "old", b"changed")]).await;
    for row in &mut rows {
        row.value.key_id = "new".to_owned();
        row.value.wrapped_key = b"again".to_vec();
    }
    assert_eq!(store.rewrap_secrets(rows).await.unwrap(), 1);
    let rows = store.secret_values("default", "s").await.unwrap();
    assert_eq!(entries(&rows), [("a", b"1".as_slice()), ("b", b"changed")]);
    assert_eq!(
        (rows[0].value.key_id.as_str(), rows[0].value.wrapped_key.as_slice()),
        ("new", b"again".as_slice())
    );
    assert_eq!(rows[1].value, sealed("b", "old", b"changed"));
    assert_eq!(store.discard_secrets("old").await.unwrap(), 1);
    assert_eq!(store.secret_keys().await.unwrap(), keys(&[("new", 2)]));
}
