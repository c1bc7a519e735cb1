use std::convert::Infallible;
use std::io;

use http::{Request, Response};
use kube::client::Body;
use serde_json::json;
use tower::service_fn;

use super::*;

/// What becomes of a question: an answer, an error of the transport, or silence.
enum Said {
    Answer(u16, String),
    Broken,
    Nothing,
}

type Asked = Arc<Mutex<Vec<String>>>;

/// A cluster that answers a question by the last part of its path, and what it was asked.
fn cluster(
    name: Option<&str>,
    answer: impl Fn(&str) -> Said + Clone + Send + 'static,
) -> (ClusterValues, Asked) {
    let asked = Asked::default();
    let seen = asked.clone();
    let service = service_fn(move |request: Request<Body>| {
        let of = request.uri().path().rsplit('/').next().expect("a path has parts").to_owned();
        seen.lock().unwrap().push(of.clone());
        let said = answer(&of);
        async move {
            match said {
                Said::Answer(status, text) => {
                    Ok(Response::builder().status(status).body(axum::body::Body::from(text)).unwrap())
                }
                Said::Broken => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
                Said::Nothing => std::future::pending().await,
            }
        }
    });
    (ClusterValues::new(Client::new(service, "default"), name.map(str::to_owned)), asked)
}

fn status(code: u16) -> Said {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "code": code});
    Said::Answer(code, status.to_string())
}

fn secret() -> Said {
    Said::Answer(200, json!({"data": {"k": STANDARD.encode("value")}}).to_string())
}

async fn read(values: &ClusterValues, name: &str) -> Result<Values, Lack> {
    values.read(Source::Secret, ("team", name)).await.map_err(|lacking| lacking.lack)
}

fn asked(asked: &Asked) -> Vec<String> {
    asked.lock().unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn an_answer_says_nothing_of_other_objects() {
    let unreadable = json!({"data": {"k": "no base64!"}}).to_string();
    let answers: [fn(String) -> Said; 5] = [
        |_| status(500),
        |_| status(429),
        |_| Said::Answer(502, "<html>".to_owned()),
        |_| Said::Answer(200, "<html>".to_owned()),
        |unreadable| Said::Answer(200, unreadable),
    ];
    for answer in answers {
        let unreadable = unreadable.clone();
        let (values, seen) = cluster(Some("c1"), move |of| match of {
            "bad" => answer(unreadable.clone()),
            _ => secret(),
        });
        assert_eq!(read(&values, "bad").await, Err(Lack::ClusterUnreachable));
        assert_eq!(read(&values, "good").await.unwrap()["k"], b"value");
        assert_eq!(read(&values, "bad").await, Err(Lack::ClusterUnreachable));
        assert_eq!(asked(&seen), ["bad", "good"], "what failed is remembered");
        tokio::time::advance(REMEMBER).await;
        read(&values, "bad").await.unwrap_err();
        assert_eq!(asked(&seen).len(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn silence_says_that_nothing_is_answered() {
    for silence in [|| Said::Nothing, || Said::Broken] {
        let (values, seen) = cluster(Some("c1"), move |of| if of == "bad" { silence() } else { secret() });
        assert_eq!(read(&values, "bad").await, Err(Lack::ClusterUnreachable));
        assert_eq!(read(&values, "good").await, Err(Lack::ClusterUnreachable));
        assert_eq!(asked(&seen), ["bad"]);
        tokio::time::advance(REMEMBER).await;
        assert!(read(&values, "good").await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_for_which_cluster_it_is_know_when_it_does_not_say() {
    let (values, seen) = cluster(None, |_| Said::Nothing);
    let began = Instant::now();
    let all = futures::future::join_all((0..8).map(|_| values.is("c1"))).await;
    assert!(all.iter().all(Result::is_err));
    assert_eq!(
        (began.elapsed().as_secs(), asked(&seen)),
        (REQUEST.as_secs(), vec!["kube-system".to_owned()])
    );
    assert_eq!(read(&values, "good").await, Err(Lack::ClusterUnreachable));

    // A refusal is remembered too, and keeps nobody from its objects.
    let (values, seen) = cluster(None, |of| if of == "kube-system" { status(403) } else { secret() });
    values.is("c1").await.unwrap_err();
    values.is("c1").await.unwrap_err();
    assert_eq!(asked(&seen), ["kube-system"]);
    assert!(read(&values, "good").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_reading_ends_in_time_and_when_the_controller_stops() {
    let stopping = CancellationToken::new();
    let reading = Reading::new(&stopping);
    let began = Instant::now();
    reading.within(std::future::pending::<Infallible>()).await.unwrap_err();
    // The longest question is over by then, and what it says of the server is known.
    assert!((REQUEST..REQUEST * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    let reading = Reading::new(&stopping);
    let (ended, ()) = tokio::join!(reading.within(std::future::pending::<Infallible>()), async {
        stopping.cancel();
    });
    assert!(ended.unwrap_err().message.contains("the controller stops"));
}
