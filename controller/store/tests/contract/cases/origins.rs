//! What is declared by objects of other systems.

use windlass_store::{Binding, Error, Origin, OriginKind, OriginOutcome, Store};

use crate::fixtures::{at, job, reread};

fn object(uid: &str) -> Origin {
    Origin { cluster: "c1".to_owned(), object: uid.to_owned() }
}

pub(crate) async fn an_object_gets_one_job_however_often_it_is_seen(store: Store) {
    let made = store.create_job_of(at(0), object("o1"), job("a").build()).await.unwrap();
    let OriginOutcome::Created(row) = made else { panic!("{made:?}") };
    let again = job("a").uid("another").build();
    assert_eq!(
        store.create_job_of(at(1), object("o1"), again).await.unwrap(),
        OriginOutcome::Known(row.clone())
    );
    let origin = store.origin_of(&row.uid).await.unwrap().unwrap();
    assert_eq!((&origin.origin, origin.kind, origin.released), (&object("o1"), OriginKind::Job, false));
    assert_eq!(store.find_origin(&object("o1")).await.unwrap(), Some(origin.clone()));
    assert_eq!(store.origins("c1", OriginKind::Job).await.unwrap(), [origin]);
    assert_eq!(store.origins("c1", OriginKind::Node).await.unwrap(), []);
    assert_eq!(store.origins("c2", OriginKind::Job).await.unwrap(), []);
}

pub(crate) async fn an_object_whose_job_was_deleted_is_not_run_again(store: Store) {
    let made = store.create_job_of(at(0), object("o1"), job("a").build()).await.unwrap();
    let OriginOutcome::Created(row) = made else { panic!("{made:?}") };
    store.delete_job(at(1), &row.uid, None).await.unwrap();
    let again = || store.create_job_of(at(2), object("o1"), job("a").uid("another").build());
    assert_eq!(again().await.unwrap(), OriginOutcome::Ended);
    // Another object of the same name is another job.
    let other = store.create_job_of(at(3), object("o2"), job("a").uid("other").build()).await.unwrap();
    assert!(matches!(other, OriginOutcome::Created(_)), "{other:?}");
    assert!(store.forget_origin(&object("o1")).await.unwrap());
    assert!(!store.forget_origin(&object("o1")).await.unwrap());
    assert!(matches!(again().await.unwrap(), OriginOutcome::NameTaken(_)));
}

pub(crate) async fn an_object_whose_name_is_taken_is_not_remembered(store: Store) {
    let native = job("a").create(&store, at(0)).await;
    let made = store.create_job_of(at(1), object("o1"), job("a").uid("another").build()).await.unwrap();
    assert_eq!(made, OriginOutcome::NameTaken(native.clone()));
    assert_eq!(store.find_origin(&object("o1")).await.unwrap(), None);
    store.delete_job(at(2), &native.uid, None).await.unwrap();
    let made = store.create_job_of(at(3), object("o1"), job("a").uid("another").build()).await.unwrap();
    assert!(matches!(made, OriginOutcome::Created(_)), "{made:?}");
}

pub(crate) async fn what_was_released_belongs_to_its_object_again_when_it_is_seen(store: Store) {
    let made = store.create_job_of(at(0), object("o1"), job("a").build()).await.unwrap();
    let OriginOutcome::Created(row) = made else { panic!("{made:?}") };
    let is_released = async || store.origin_of(&row.uid).await.unwrap().unwrap().released;
    assert!(store.release_origin(&object("o1")).await.unwrap());
    assert!(!store.release_origin(&object("o1")).await.unwrap());
    assert!(is_released().await);
    let seen = store.create_job_of(at(1), object("o1"), job("a").uid("another").build()).await.unwrap();
    assert_eq!(seen, OriginOutcome::Known(reread(&store, &row.uid).await));
    assert!(!is_released().await);
    store.release_origin(&object("o1")).await.unwrap();
    let bound = store.bind_origin(object("o1"), OriginKind::Job, &row.uid).await.unwrap();
    assert_eq!(bound, Binding::Bound);
    assert!(!is_released().await);
}

pub(crate) async fn one_subject_belongs_to_one_object(store: Store) {
    let bind = |object: Origin, subject: &'static str| store.bind_origin(object, OriginKind::Node, subject);
    assert_eq!(bind(object("o1"), "n1").await.unwrap(), Binding::Bound);
    assert_eq!(bind(object("o1"), "n1").await.unwrap(), Binding::Bound);
    let taken = bind(object("o2"), "n1").await.unwrap();
    assert!(matches!(&taken, Binding::Taken(row) if row.origin == object("o1")), "{taken:?}");
    let taken = bind(object("o1"), "n2").await.unwrap();
    assert!(matches!(&taken, Binding::Taken(row) if row.subject == "n1"), "{taken:?}");
    assert_eq!(store.find_origin(&object("o2")).await.unwrap(), None);
}

pub(crate) async fn an_object_with_an_impossible_job_leaves_nothing(store: Store) {
    let refused = store.create_job_of(at(0), object("o1"), job("a").input("sha256:none").build()).await;
    assert!(matches!(refused, Err(Error::NotFound { object: "input", .. })), "{refused:?}");
    assert_eq!(store.find_origin(&object("o1")).await.unwrap(), None);
}
