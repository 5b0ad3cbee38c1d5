//! A server for tests, on a free local port: real gRPC, and answers by script.

#![allow(dead_code)] // each test program uses a part

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alignserve::v1::align_service_server::{AlignService, AlignServiceServer};
use alignserve::v1::{self as pb, stream_infer_request, stream_infer_response};
use prost::Message as _;
use prost::bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::server::{Server, ServerTlsConfig, TcpIncoming};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

/// Why a call fails.
#[derive(Clone, Default)]
pub struct Failure {
    pub code: i32,
    pub reason: &'static str,
    pub retry_delay_ms: Option<u64>,
    pub field: &'static str,
    pub error_id: &'static str,
}

impl Failure {
    pub fn new(code: Code, reason: &'static str) -> Self {
        Self {
            code: code.into(),
            reason,
            ..Self::default()
        }
    }

    pub fn after_ms(code: Code, reason: &'static str, delay: u64) -> Self {
        Self {
            retry_delay_ms: Some(delay),
            ..Self::new(code, reason)
        }
    }

    pub fn proto(&self) -> tonic_types::Status {
        let mut details = ErrorDetails::new();
        if !self.reason.is_empty() {
            let metadata = [("error_id".to_owned(), self.error_id.to_owned())];
            details.set_error_info(self.reason, "alignserve.v1", metadata);
        }
        if !self.field.is_empty() {
            let mut violation = FieldViolation::new(self.field, "wrong");
            self.reason.clone_into(&mut violation.reason);
            details.set_bad_request(vec![violation]);
        }
        if let Some(delay) = self.retry_delay_ms {
            details.set_retry_info(Some(Duration::from_millis(delay)));
        }
        let status =
            Status::with_error_details(Code::from(self.code), "failed by the test", details);
        tonic_types::Status::decode(status.details()).unwrap()
    }

    pub fn status(&self) -> Status {
        let proto = self.proto();
        Status::with_details(
            Code::from(self.code),
            proto.message.clone(),
            proto.encode_to_vec().into(),
        )
    }
}

/// Handles one stream: reads requests, and sends responses or the status that ends it.
pub type OnStream = dyn Fn(
        usize,
        Streaming<pb::StreamInferRequest>,
        StreamSender,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>>
    + Send
    + Sync;
pub type StreamSender = mpsc::UnboundedSender<Result<pb::StreamInferResponse, Status>>;

#[derive(Default)]
pub struct Script {
    pub failures: VecDeque<Failure>, // each fails one unary call
    pub hangs: bool,
    pub answer_bytes: usize, // of the one vector of EmbedText, if above 0
    pub methods: Vec<&'static str>,
    pub metadata: Vec<MetadataMap>,
    pub images: Vec<pb::Image>,
    pub queries: Vec<pb::ComposedQuery>,
    pub streams: usize,
}

#[derive(Clone)]
pub struct Scripted {
    pub script: Arc<Mutex<Script>>,
    on_stream: Arc<OnStream>,
}

/// A running server; it stops when it is dropped.
pub struct Running {
    pub address: SocketAddr,
    pub script: Arc<Mutex<Script>>,
    _stop: oneshot::Sender<()>,
}

impl Running {
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn fail(&self, failures: impl IntoIterator<Item = Failure>) {
        self.script.lock().unwrap().failures.extend(failures);
    }

    pub fn calls(&self) -> usize {
        self.script.lock().unwrap().methods.len()
    }
}

pub fn start() -> Running {
    start_with(
        None,
        Arc::new(|_, requests, answers| Box::pin(echo(requests, answers))),
    )
}

pub fn start_stream<F>(
    on_stream: impl Fn(usize, Streaming<pb::StreamInferRequest>, StreamSender) -> F
    + Send
    + Sync
    + 'static,
) -> Running
where
    F: Future<Output = ()> + Send + 'static,
{
    start_with(
        None,
        Arc::new(move |connection, requests, answers| {
            Box::pin(on_stream(connection, requests, answers))
        }),
    )
}

pub fn start_with(tls: Option<ServerTlsConfig>, on_stream: Arc<OnStream>) -> Running {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = incoming.local_addr().unwrap();
    let script = Arc::new(Mutex::new(Script::default()));
    let (stop, stopped) = oneshot::channel::<()>();
    let service = AlignServiceServer::new(Scripted {
        script: script.clone(),
        on_stream,
    })
    .max_decoding_message_size(usize::MAX)
    .max_encoding_message_size(usize::MAX);
    let mut server = Server::builder();
    if let Some(tls) = tls {
        server = server.tls_config(tls).unwrap();
    }
    let serving = server.add_service(service).serve_with_incoming(incoming);
    tokio::spawn(async move {
        tokio::select! {
            _ = serving => {}
            _ = stopped => {}
        }
    });
    Running {
        address,
        script,
        _stop: stop,
    }
}

/// Answers each item of a stream with its own number.
pub async fn echo(mut requests: Streaming<pb::StreamInferRequest>, answers: StreamSender) {
    while let Ok(Some(request)) = requests.message().await {
        if request.request.is_some() {
            let _ = answers.send(Ok(answer_to(&request)));
        }
    }
}

/// Returns the next item of a stream.
pub async fn next_item(
    requests: &mut Streaming<pb::StreamInferRequest>,
) -> Option<pb::StreamInferRequest> {
    loop {
        let request = requests.message().await.ok()??;
        if request.request.is_some() {
            return Some(request);
        }
    }
}

/// Returns the answer to an item: the number in its text is the first number of the vector.
pub fn answer_to(request: &pb::StreamInferRequest) -> pb::StreamInferResponse {
    let Some(stream_infer_request::Request::EmbedText(text)) = &request.request else {
        panic!("not a text")
    };
    let response = pb::EmbedTextResponse {
        embeddings: vec![embedding(&[text.texts[0].parse().unwrap(), 1.0])],
        ..Default::default()
    };
    pb::StreamInferResponse {
        correlation_id: request.correlation_id.clone(),
        result: Some(stream_infer_response::Result::EmbedText(response)),
    }
}

/// Returns the answer to an item that fails.
pub fn failure_of(request: &pb::StreamInferRequest, failure: &Failure) -> pb::StreamInferResponse {
    pb::StreamInferResponse {
        correlation_id: request.correlation_id.clone(),
        result: Some(stream_infer_response::Result::Error(failure.proto())),
    }
}

pub fn embedding(values: &[f32]) -> pb::Embedding {
    let packed: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    pb::Embedding {
        packed_float32: packed.into(),
        ..Default::default()
    }
}

impl Scripted {
    async fn receive(&self, method: &'static str, metadata: &MetadataMap) -> Result<(), Status> {
        let (failure, hangs) = {
            let mut script = self.script.lock().unwrap();
            script.methods.push(method);
            script.metadata.push(metadata.clone());
            (script.failures.pop_front(), script.hangs)
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        failure.map_or(Ok(()), |failure| Err(failure.status()))
    }
}

#[tonic::async_trait]
impl AlignService for Scripted {
    async fn embed_image(
        &self,
        request: Request<pb::EmbedImageRequest>,
    ) -> Result<Response<pb::EmbedImageResponse>, Status> {
        self.receive("EmbedImage", request.metadata()).await?;
        let images = request.into_inner().images;
        let embeddings = images.iter().map(|_| embedding(&[1.0, 0.0])).collect();
        self.script.lock().unwrap().images = images;
        Ok(Response::new(pb::EmbedImageResponse {
            embeddings,
            ..Default::default()
        }))
    }

    async fn embed_text(
        &self,
        request: Request<pb::EmbedTextRequest>,
    ) -> Result<Response<pb::EmbedTextResponse>, Status> {
        self.receive("EmbedText", request.metadata()).await?;
        let answer_bytes = self.script.lock().unwrap().answer_bytes;
        let mut vector = embedding(&[0.6, 0.8]);
        if answer_bytes > 0 {
            vector.packed_float32 = Bytes::from(vec![0; answer_bytes]);
        }
        let embeddings = vec![vector; request.get_ref().texts.len()];
        Ok(Response::new(pb::EmbedTextResponse {
            embeddings,
            ..Default::default()
        }))
    }

    async fn classify(
        &self,
        request: Request<pb::ClassifyRequest>,
    ) -> Result<Response<pb::ClassifyResponse>, Status> {
        self.receive("Classify", request.metadata()).await?;
        Ok(Response::new(pb::ClassifyResponse::default()))
    }

    async fn compare(
        &self,
        request: Request<pb::CompareRequest>,
    ) -> Result<Response<pb::CompareResponse>, Status> {
        self.receive("Compare", request.metadata()).await?;
        Ok(Response::new(pb::CompareResponse::default()))
    }

    async fn embed_query(
        &self,
        request: Request<pb::EmbedQueryRequest>,
    ) -> Result<Response<pb::EmbedQueryResponse>, Status> {
        self.receive("EmbedQuery", request.metadata()).await?;
        self.script.lock().unwrap().queries = request.into_inner().queries;
        Ok(Response::new(pb::EmbedQueryResponse::default()))
    }

    async fn get_model_info(
        &self,
        request: Request<pb::GetModelInfoRequest>,
    ) -> Result<Response<pb::GetModelInfoResponse>, Status> {
        self.receive("GetModelInfo", request.metadata()).await?;
        Ok(Response::new(pb::GetModelInfoResponse {
            model_id: "scripted".into(),
            ..Default::default()
        }))
    }

    type StreamInferStream = UnboundedReceiverStream<Result<pb::StreamInferResponse, Status>>;

    async fn stream_infer(
        &self,
        request: Request<Streaming<pb::StreamInferRequest>>,
    ) -> Result<Response<Self::StreamInferStream>, Status> {
        let connection = {
            let mut script = self.script.lock().unwrap();
            script.streams += 1;
            script.streams
        };
        let (answers, outbound) = mpsc::unbounded_channel();
        tokio::spawn((self.on_stream)(connection, request.into_inner(), answers));
        Ok(Response::new(UnboundedReceiverStream::new(outbound)))
    }
}
