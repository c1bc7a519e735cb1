//! Lists of jobs.

use windlass_crds::JobPhase;
use windlass_store::{Cursor, InvalidCursor, JobFilter, JobRow, Page, Store};

use crate::fixtures::{at, claim, claimed, finish, job, register};

async fn page(
    store: &Store,
    filter: &JobFilter,
    limit: u32,
    cursor: Option<Cursor>,
) -> (Vec<JobRow>, Option<Cursor>) {
    store.list_jobs(filter.clone(), Page { limit, cursor }).await.unwrap()
}

async fn names(store: &Store, filter: JobFilter) -> Vec<String> {
    let (jobs, more) = page(store, &filter, 100, None).await;
    assert_eq!(more, None);
    jobs.into_iter().map(|job| job.name).collect()
}

pub(crate) async fn lists_are_newest_first_and_pages_neither_repeat_nor_skip(store: Store) {
    let jobs = (0..25).map(|n| job(&format!("job-{n:02}")).build()).collect();
    store.create_jobs(at(0), jobs).await.unwrap();
    let mut seen = Vec::new();
    let mut cursor = None;
    loop {
        let (jobs, next) = page(&store, &JobFilter::default(), 10, cursor).await;
        seen.extend(jobs.into_iter().map(|job| job.name));
        if next.is_none() {
            break;
        }
        cursor = next;
    }
    let wanted: Vec<String> = (0..25).rev().map(|n| format!("job-{n:02}")).collect();
    assert_eq!(seen, wanted);
    let (jobs, more) = page(&store, &JobFilter::default(), 25, None).await;
    assert_eq!((jobs.len(), more), (25, None), "a full last page says that it is the last");
}

pub(crate) async fn a_cursor_stays_where_it_is_while_jobs_are_created_and_deleted(store: Store) {
    let mut rows = Vec::new();
    for n in 0..6 {
        rows.push(job(&format!("old-{n}")).create(&store, at(n)).await);
    }
    let (first, cursor) = page(&store, &JobFilter::default(), 2, None).await;
    assert_eq!(first.iter().map(|job| job.name.as_str()).collect::<Vec<_>>(), ["old-5", "old-4"]);
    job("new").create(&store, at(10)).await;
    store.delete_job(at(10), &rows[4].uid, None).await.unwrap();
    store.delete_job(at(10), &rows[2].uid, None).await.unwrap();
    let (rest, cursor) = page(&store, &JobFilter::default(), 10, cursor).await;
    assert_eq!(rest.iter().map(|job| job.name.as_str()).collect::<Vec<_>>(), ["old-3", "old-1", "old-0"]);
    assert_eq!(cursor, None);
}

pub(crate) async fn filters_narrow_by_everything_they_name(store: Store) {
    job("web-1").queue("a").label("app", "web").label("tier", "1").create(&store, at(0)).await;
    job("web-2").queue("b").label("app", "web").create(&store, at(10)).await;
    job("db-1").queue("a").label("app", "db").namespace("other").create(&store, at(20)).await;
    let empty = JobFilter::default;
    let label = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    for (filter, wanted) in [
        (JobFilter { namespace: Some("other".into()), ..empty() }, vec!["db-1"]),
        (JobFilter { queue: Some("a".into()), ..empty() }, vec!["db-1", "web-1"]),
        (JobFilter { label_equals: label(&[("app", "web")]), ..empty() }, vec!["web-2", "web-1"]),
        (JobFilter { label_equals: label(&[("app", "web"), ("tier", "1")]), ..empty() }, vec!["web-1"]),
        (JobFilter { label_equals: label(&[("app", "none")]), ..empty() }, vec![]),
        (JobFilter { name_prefix: Some("web-".into()), ..empty() }, vec!["web-2", "web-1"]),
        (JobFilter { name_prefix: Some("%".into()), ..empty() }, vec![]),
        (JobFilter { created_after: Some(at(10)), ..empty() }, vec!["db-1", "web-2"]),
        (JobFilter { created_before: Some(at(10)), ..empty() }, vec!["web-1"]),
        (JobFilter { queue: Some("a".into()), namespace: Some("default".into()), ..empty() }, vec!["web-1"]),
        (JobFilter { phases: vec![JobPhase::Running], ..empty() }, vec![]),
    ] {
        assert_eq!(names(&store, filter.clone()).await, wanted, "{filter:?}");
    }
}

pub(crate) async fn several_phases_are_merged_in_order(store: Store) {
    let first = claimed(&store, "n", "done", at(0)).await;
    finish(&store, &first, at(1)).await;
    job("waits-1").create(&store, at(2)).await;
    job("held").priority(900).create(&store, at(3)).await;
    job("waits-2").create(&store, at(4)).await;
    assert_eq!(claim("n").max(1).names(&store, at(5)).await, ["held"]);
    let phases = vec![JobPhase::Succeeded, JobPhase::Queued, JobPhase::Queued];
    let filter = JobFilter { phases, ..JobFilter::default() };
    assert_eq!(names(&store, filter.clone()).await, ["waits-2", "waits-1", "done"]);
    let (jobs, cursor) = page(&store, &filter, 2, None).await;
    assert_eq!(jobs.len(), 2);
    let (jobs, cursor) = page(&store, &filter, 2, cursor).await;
    assert_eq!(jobs.iter().map(|job| job.name.as_str()).collect::<Vec<_>>(), ["done"]);
    assert_eq!(cursor, None);
}

pub(crate) async fn a_cursor_survives_as_text_and_nonsense_is_refused(store: Store) {
    for n in 0..3 {
        job(&format!("job-{n}")).create(&store, at(0)).await;
    }
    let (_, cursor) = page(&store, &JobFilter::default(), 2, None).await;
    let text = cursor.unwrap().to_string();
    let (jobs, _) = page(&store, &JobFilter::default(), 2, Some(text.parse().unwrap())).await;
    assert_eq!(jobs[0].name, "job-0");
    for nonsense in ["", "j", "j-1", "j+1", "xyz", "jxyz", "jffffffffffffffffff"] {
        assert_eq!(nonsense.parse::<Cursor>(), Err(InvalidCursor), "{nonsense}");
    }
}

pub(crate) async fn jobs_by_uid_come_in_the_order_asked_for(store: Store) {
    register(&store, &["n"]).await;
    let a = job("a").create(&store, at(0)).await;
    let b = job("b").create(&store, at(0)).await;
    let uids = [b.uid.clone(), "unknown".to_owned(), a.uid.clone()];
    assert_eq!(store.get_jobs(&uids).await.unwrap(), [b, a]);
    assert_eq!(store.get_jobs(&[]).await.unwrap(), []);
}
