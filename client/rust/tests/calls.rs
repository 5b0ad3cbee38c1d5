//! Unary calls: requests, errors, repeats and TLS.

mod common;

use std::time::{Duration, Instant};

use alignserve::{Client, Code, Error, Image, Priority, QueryTerm, RetryPolicy};
use common::{Failure, Running, start};
use tonic::transport::server::ServerTlsConfig;
use tonic::transport::{Certificate, Identity};

fn client(server: &Running) -> Client {
    Client::builder(server.url())
        .retry(quick())
        .build()
        .unwrap()
}

fn quick() -> RetryPolicy {
    RetryPolicy {
        initial_backoff: Duration::from_millis(1),
        ..RetryPolicy::default()
    }
}

#[tokio::test]
async fn key_priority_and_size_of_answers_are_sent_as_metadata() {
    let server = start();
    let client = Client::builder(server.url())
        .api_key("as_key\n")
        .max_response_bytes(5_000_000)
        .metadata("X-Team", "a")
        .build()
        .unwrap();

    client
        .embed_texts(["a cat"])
        .priority(Priority::Bulk)
        .await
        .unwrap();

    let metadata = server.script.lock().unwrap().metadata[0].clone();
    assert_eq!(metadata.get("authorization").unwrap(), "Bearer as_key");
    assert_eq!(metadata.get("alignserve-priority").unwrap(), "bulk");
    assert_eq!(
        metadata.get("alignserve-max-response-bytes").unwrap(),
        "5000000"
    );
    assert_eq!(metadata.get("x-team").unwrap(), "a");
    assert!(metadata.contains_key("grpc-timeout"));
}

#[tokio::test]
async fn a_key_that_cannot_be_sent_is_refused_without_showing_it() {
    let error = Client::builder("http://127.0.0.1:1")
        .api_key("sécret\0")
        .build()
        .unwrap_err();

    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(!error.to_string().contains("cret"));
}

#[tokio::test]
async fn images_are_files_or_pixels() {
    use alignserve::v1::image::Source;

    let server = start();

    client(&server)
        .embed_images([Image::from(vec![1, 2]), Image::rgb(1, 2, vec![0; 6])])
        .await
        .unwrap();

    let images = server.script.lock().unwrap().images.clone();
    assert!(matches!(&images[0].source, Some(Source::Content(content)) if content[..] == [1, 2]));
    assert!(
        matches!(&images[1].source, Some(Source::Pixels(pixels)) if (pixels.width, pixels.height) == (1, 2))
    );
}

#[tokio::test]
async fn a_term_without_a_weight_is_sent_without_one() {
    let server = start();
    let terms = [
        QueryTerm::of_image(vec![1]),
        QueryTerm::of_text("red").weighted(-0.5),
    ];

    client(&server).embed_queries([terms]).await.unwrap();

    let queries = server.script.lock().unwrap().queries.clone();
    assert_eq!(
        queries[0]
            .terms
            .iter()
            .map(|term| term.weight)
            .collect::<Vec<_>>(),
        [None, Some(-0.5)]
    );
}

#[tokio::test]
async fn details_of_a_status_become_parts_of_the_error() {
    let server = start();
    server.fail([Failure {
        field: "images[0].content",
        error_id: "e1",
        ..Failure::new(Code::InvalidArgument, "IMAGE_UNREADABLE")
    }]);

    let error = client(&server).embed_images([vec![1]]).await.unwrap_err();

    assert_eq!(error.code(), Code::InvalidArgument);
    assert_eq!(
        (error.reason(), error.domain()),
        ("IMAGE_UNREADABLE", "alignserve.v1")
    );
    assert_eq!(error.message(), "failed by the test");
    assert_eq!(error.error_id(), Some("e1"));
    assert_eq!(error.violations()[0].field, "images[0].content");
    assert_eq!(error.violations()[0].reason, "IMAGE_UNREADABLE");
    assert_eq!(error.retry_delay(), None);
    assert_eq!(
        error.to_string(),
        "failed by the test [InvalidArgument IMAGE_UNREADABLE e1]"
    );
}

#[tokio::test]
async fn an_answer_above_4_mib_is_read_by_default() {
    let server = start();
    server.script.lock().unwrap().answer_bytes = 8 << 20;

    let found = client(&server).embed_texts(["a"]).await.unwrap();

    assert_eq!(found.vectors[0].len(), 2 << 20);
}

#[tokio::test]
async fn an_answer_above_the_limit_is_out_of_range_and_not_repeated() {
    let server = start();
    server.script.lock().unwrap().answer_bytes = 100_000;
    let client = Client::builder(server.url())
        .max_response_bytes(10_000)
        .build()
        .unwrap();

    let error = client.embed_texts(["a"]).await.unwrap_err();

    assert_eq!(error.code(), Code::OutOfRange);
    assert_eq!(server.calls(), 1);
}

#[tokio::test]
async fn unavailable_is_repeated_with_large_pictures_too() {
    let server = start();
    server.fail([
        Failure::new(Code::Unavailable, ""),
        Failure::after_ms(Code::Unavailable, "MODEL_LOADING", 1),
    ]);

    client(&server)
        .embed_images([vec![0; 5 << 20]])
        .await
        .unwrap();

    assert_eq!(server.calls(), 3);
}

#[tokio::test]
async fn unavailable_is_repeated_at_most_max_attempts_times() {
    let server = start();
    server.fail(vec![Failure::new(Code::Unavailable, ""); 9]);
    let policy = RetryPolicy {
        max_attempts: 3,
        ..quick()
    };
    let client = Client::builder(server.url()).retry(policy).build().unwrap();

    let error = client.embed_texts(["a"]).await.unwrap_err();

    assert_eq!(error.code(), Code::Unavailable);
    assert_eq!(server.calls(), 3);
}

#[tokio::test]
async fn a_cancelled_that_the_caller_did_not_cause_is_repeated() {
    let server = start();
    server.fail([Failure::new(Code::Cancelled, "")]);

    client(&server).embed_texts(["a"]).await.unwrap();

    assert_eq!(server.calls(), 2);
}

#[tokio::test]
async fn the_delay_of_a_full_server_is_waited_for() {
    let server = start();
    server.fail([Failure::after_ms(Code::ResourceExhausted, "QUEUE_FULL", 50)]);
    let start = Instant::now();

    client(&server).embed_texts(["a"]).await.unwrap();

    assert!(start.elapsed() >= Duration::from_millis(50));
}

#[tokio::test]
async fn what_cannot_succeed_in_time_is_not_waited_for() {
    for failure in [
        Failure::after_ms(Code::ResourceExhausted, "QUOTA_EXCEEDED", 9000),
        Failure::after_ms(Code::ResourceExhausted, "WOULD_MISS_DEADLINE", 1),
        Failure::new(Code::ResourceExhausted, ""),
        Failure::new(Code::InvalidArgument, "TEXT_EMPTY"),
    ] {
        let server = start();
        server.fail([failure.clone()]);

        let error = client(&server)
            .embed_texts(["a"])
            .timeout(Duration::from_secs(5))
            .await
            .unwrap_err();

        assert_eq!(error.reason(), failure.reason);
        assert_eq!(server.calls(), 1);
    }
}

#[tokio::test]
async fn the_policy_none_repeats_nothing() {
    let server = start();
    server.fail([Failure::after_ms(Code::Unavailable, "SHUTTING_DOWN", 1)]);
    let client = Client::builder(server.url())
        .retry(RetryPolicy::none())
        .build()
        .unwrap();

    let error = client.embed_texts(["a"]).await.unwrap_err();

    assert_eq!(error.reason(), "SHUTTING_DOWN");
}

#[tokio::test]
async fn a_deadline_ends_a_call_that_is_not_answered() {
    let server = start();
    server.script.lock().unwrap().hangs = true;

    let error = client(&server)
        .model_info()
        .timeout(Duration::from_millis(50))
        .await
        .unwrap_err();

    assert_eq!(error.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let client = Client::builder("http://127.0.0.1:1")
        .retry(RetryPolicy::none())
        .build()
        .unwrap();

    assert_eq!(
        client.is_ready().await.unwrap_err().code(),
        Code::Unavailable
    );
}

#[tokio::test]
async fn calls_are_spread_over_servers() {
    let (first, second) = (start(), start());
    let client = Client::builder(first.url())
        .address(second.url())
        .retry(quick())
        .build()
        .unwrap();

    // Calls go to the servers that are connected, so the second may join late.
    while first.calls() == 0 || second.calls() == 0 {
        client.embed_texts(["a"]).await.unwrap();
    }
}

#[tokio::test]
async fn an_address_says_whether_the_connection_is_encrypted() {
    for address in ["127.0.0.1:50051", "ftp://127.0.0.1", "http://"] {
        assert_eq!(
            Client::new(address).unwrap_err().code(),
            Code::InvalidArgument,
            "{address}"
        );
    }
    let error = Client::builder("http://127.0.0.1:1")
        .ca_certificate("")
        .build()
        .unwrap_err();
    assert!(error.message().contains("https"));
}

mod tls {
    use super::*;

    struct Authority(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>);

    impl Authority {
        fn new() -> Self {
            let mut parameters = rcgen::CertificateParams::default();
            parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            Self(
                rcgen::CertifiedIssuer::self_signed(
                    parameters,
                    rcgen::KeyPair::generate().unwrap(),
                )
                .unwrap(),
            )
        }

        fn sign(&self, name: &str) -> (String, String) {
            let key = rcgen::KeyPair::generate().unwrap();
            let parameters = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
            (
                parameters.signed_by(&key, &self.0).unwrap().pem(),
                key.serialize_pem(),
            )
        }
    }

    fn secure(authority: &Authority) -> Running {
        let (certificate, key) = authority.sign("127.0.0.1");
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(certificate, key))
            .client_ca_root(Certificate::from_pem(authority.0.pem()));
        common::start_with(Some(tls), std::sync::Arc::new(|_, _, _| Box::pin(async {})))
    }

    async fn call(builder: alignserve::Builder) -> Result<usize, Error> {
        let client = builder.retry(RetryPolicy::none()).build()?;
        Ok(client.embed_texts(["a"]).await?.vectors.len())
    }

    #[tokio::test]
    async fn a_private_authority_and_a_client_certificate_are_used() {
        let authority = Authority::new();
        let server = secure(&authority);
        let (certificate, key) = authority.sign("client");
        let url = format!("https://{}", server.address);

        let found = call(
            Client::builder(url)
                .ca_certificate(authority.0.pem())
                .identity(certificate, key),
        )
        .await;

        assert_eq!(found.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_server_of_another_authority_is_not_trusted() {
        let server = secure(&Authority::new());
        let url = format!("https://{}", server.address);

        let error = call(Client::builder(url).ca_certificate(Authority::new().0.pem()))
            .await
            .unwrap_err();

        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.message().contains("certificate"), "{error}");
    }
}
