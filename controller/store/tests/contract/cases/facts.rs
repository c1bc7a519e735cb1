//! What nodes tell of their hosts.

use windlass_store::{LiveAttempts, NewFacts, Store};

use crate::fixtures::{at, facts, register};

fn new(epoch: u64, sequence: u64, seconds: i64) -> NewFacts {
    NewFacts { epoch, sequence, facts: facts("n", seconds) }
}

pub(crate) async fn the_last_facts_of_a_node_are_kept_once_and_go_with_it(store: Store) {
    register(&store, &["n", "other"]).await;
    // What waited at the node comes later than what is newer.
    store.record_facts(at(100), "n", vec![new(7, 2, 50), new(7, 1, 40)]).await.unwrap();
    store.record_facts(at(101), "n", vec![new(7, 1, 40), new(6, 9, 30)]).await.unwrap();
    let kept = store.node_facts("n", 10).await.unwrap();
    let times: Vec<_> = kept.iter().map(|row| row.facts.collected_at).collect();
    assert_eq!(times, [at(50), at(40), at(30)]);
    assert_eq!((kept[0].received_at, kept[2].received_at), (at(100), at(101)));
    assert_eq!(kept[0].facts, facts("n", 50));
    assert_eq!(store.node_facts("n", 1).await.unwrap().len(), 1);
    assert!(store.node_facts("other", 10).await.unwrap().is_empty());
    let many = (1..=80).map(|number| new(8, number, 100 + i64::try_from(number).unwrap())).collect();
    store.record_facts(at(200), "n", many).await.unwrap();
    let kept = store.node_facts("n", 1000).await.unwrap();
    assert_eq!((kept.len(), kept[49].facts.collected_at), (50, at(131)), "only the last are kept");
    store.delete_node(at(201), "n", LiveAttempts::Refuse, None).await.unwrap();
    assert!(store.node_facts("n", 10).await.unwrap().is_empty());
    // A report that was on its way when the node went is no error.
    store.record_facts(at(202), "n", vec![new(8, 81, 190)]).await.unwrap();
    assert!(store.node_facts("n", 10).await.unwrap().is_empty());
}
