//! Streams: order, reconnects, the window, and their end.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alignserve::{Client, Code, Error, Item, ItemResult, Outcome, RetryPolicy, Vector};
use common::{Failure, Running, answer_to, echo, failure_of, next_item, start, start_stream};
use tokio::sync::Notify;
use tokio_stream::{Stream, StreamExt as _};

fn client(server: &Running) -> Client {
    let retry = RetryPolicy {
        initial_backoff: Duration::from_millis(1),
        ..RetryPolicy::default()
    };
    Client::builder(server.url()).retry(retry).build().unwrap()
}

fn texts(count: usize) -> impl Stream<Item = Item<usize>> {
    tokio_stream::iter((0..count).map(|id| Item::text(id, id.to_string())))
}

/// The ids of results with the first numbers of their vectors.
fn answers(results: &[ItemResult<usize>]) -> Vec<(usize, f32)> {
    results
        .iter()
        .map(|result| match &result.outcome {
            Ok(Outcome::Embedding(Vector::Floats(values), _)) => (result.id, values[0]),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[allow(clippy::cast_precision_loss)]
fn each_its_own(count: usize) -> Vec<(usize, f32)> {
    (0..count).map(|id| (id, id as f32)).collect()
}

async fn collected(
    results: impl Stream<Item = Result<ItemResult<usize>, Error>>,
) -> Result<Vec<ItemResult<usize>>, Error> {
    results.collect().await
}

#[tokio::test]
async fn every_item_gets_its_own_result() {
    let server = start();

    let mut results = collected(client(&server).stream(texts(100)).results())
        .await
        .unwrap();

    results.sort_by_key(|result| result.id);
    assert_eq!(answers(&results), each_its_own(100));
}

#[tokio::test]
async fn results_come_in_the_order_of_the_items_if_asked_for() {
    let server = start_stream(async |_, mut requests, answers| {
        loop {
            let mut waiting = Vec::new();
            while waiting.len() < 4 {
                let Some(request) = next_item(&mut requests).await else {
                    return;
                };
                waiting.push(request);
            }
            for request in waiting.iter().rev() {
                let _ = answers.send(Ok(answer_to(request)));
            }
        }
    });

    let results = collected(
        client(&server)
            .stream(texts(8))
            .window(4)
            .ordered(true)
            .results(),
    )
    .await
    .unwrap();

    assert_eq!(answers(&results), each_its_own(8));
}

#[tokio::test]
async fn unanswered_items_are_sent_again() {
    for failure in [
        Failure::after_ms(Code::Unavailable, "SHUTTING_DOWN", 1),
        Failure::new(Code::Unavailable, ""),
        Failure::new(Code::Cancelled, ""),
        Failure::new(Code::Internal, ""), // a stream reset by a proxy
    ] {
        let server = start_stream(move |connection, mut requests, answers| {
            let failure = failure.clone();
            async move {
                if connection == 3 {
                    return echo(requests, answers).await;
                }
                for count in 1..=8 {
                    let Some(request) = next_item(&mut requests).await else {
                        return;
                    };
                    if count <= 5 {
                        let _ = answers.send(Ok(answer_to(&request)));
                    }
                }
                let _ = answers.send(Err(failure.status()));
            }
        });
        let reasons = Arc::new(Mutex::new(Vec::new()));
        let seen = reasons.clone();

        let call = client(&server).stream(texts(40)).window(8);
        let call = call.on_reconnect(move |error| seen.lock().unwrap().push(error.code()));
        let mut results = collected(call.results()).await.unwrap();

        results.sort_by_key(|result| result.id);
        assert_eq!(answers(&results), each_its_own(40));
        assert_eq!(*reasons.lock().unwrap(), [Code::Unavailable; 2]);
    }
}

#[tokio::test]
async fn an_item_that_fails_does_not_affect_the_others() {
    let server = start_stream(async |_, mut requests, answers| {
        let mut count = 0;
        while let Some(request) = next_item(&mut requests).await {
            count += 1;
            let failure = Failure::new(Code::InvalidArgument, "TEXT_EMPTY");
            let _ = answers.send(Ok(if count == 2 {
                failure_of(&request, &failure)
            } else {
                answer_to(&request)
            }));
        }
    });

    let results = collected(client(&server).stream(texts(3)).ordered(true).results())
        .await
        .unwrap();

    assert!(results[0].outcome.is_ok() && results[2].outcome.is_ok());
    assert_eq!(
        results[1].outcome.as_ref().unwrap_err().reason(),
        "TEXT_EMPTY"
    );
}

#[tokio::test]
async fn at_most_a_window_of_items_is_read_ahead() {
    let server = start();
    let read = Arc::new(AtomicUsize::new(0));
    let counter = read.clone();
    let items = texts(1000).map(move |item| {
        counter.fetch_add(1, Ordering::Relaxed);
        item
    });

    let mut results = client(&server).stream(items).window(5).results();

    for taken in 1..=50 {
        results.next().await.unwrap().unwrap();
        assert!(read.load(Ordering::Relaxed) <= taken + 5);
    }
}

#[tokio::test]
async fn dropping_the_results_cancels_the_stream() {
    let cancelled = Arc::new(Notify::new());
    let notify = cancelled.clone();
    let server = start_stream(move |_, mut requests, answers| {
        let notify = notify.clone();
        async move {
            let request = next_item(&mut requests).await.unwrap();
            let _ = answers.send(Ok(answer_to(&request)));
            answers.closed().await;
            notify.notify_one();
        }
    });
    let mut results = client(&server).stream(texts(1000)).results();
    results.next().await.unwrap().unwrap();

    drop(results);

    cancelled.notified().await;
}

#[tokio::test]
async fn a_stream_that_is_never_answered_fails_after_some_attempts() {
    let server = start_stream(async |_, _, answers| {
        let _ = answers.send(Err(Failure::new(Code::Unavailable, "").status()));
    });
    let retry = RetryPolicy {
        max_stream_attempts: 3,
        initial_backoff: Duration::from_millis(1),
        ..RetryPolicy::default()
    };
    let client = Client::builder(server.url()).retry(retry).build().unwrap();

    let error = collected(client.stream(texts(1)).results())
        .await
        .unwrap_err();

    assert_eq!(error.code(), Code::Unavailable);
    assert_eq!(server.script.lock().unwrap().streams, 3);
}

#[tokio::test]
async fn a_stream_that_the_server_refuses_fails_at_once() {
    let server = start_stream(async |_, _, answers| {
        let _ = answers.send(Err(
            Failure::new(Code::Unauthenticated, "KEY_MISSING").status()
        ));
    });

    let error = collected(client(&server).stream(texts(1)).results())
        .await
        .unwrap_err();

    assert_eq!(
        (error.code(), error.reason()),
        (Code::Unauthenticated, "KEY_MISSING")
    );
    assert_eq!(server.script.lock().unwrap().streams, 1);
}

#[tokio::test]
async fn the_deadline_applies_to_the_whole_stream() {
    let server = start_stream(async |_, _requests, answers| answers.closed().await);

    let call = client(&server)
        .stream(texts(1))
        .timeout(Duration::from_millis(50));
    let error = collected(call.results()).await.unwrap_err();

    assert_eq!(error.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn no_items_no_results() {
    let server = start();

    assert!(
        collected(client(&server).stream(texts(0)).results())
            .await
            .unwrap()
            .is_empty()
    );
}
