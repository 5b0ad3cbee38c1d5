//! A stream of items: a bounded number in flight, reconnects, and one result for every item.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use async_stream::try_stream;
use futures_core::Stream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;

use crate::client::{CallOptions, is_expired};
use crate::in_flight::InFlight;
use crate::v1::{
    ClassifyRequest, CompareRequest, ComposedQuery, DeliveryOrder, EmbedImageRequest,
    EmbedQueryRequest, EmbedTextRequest, Embedding, EmbeddingOptions, ImageTextPair,
    StreamInferRequest, StreamInferResponse, StreamOptions, stream_infer_request::Request,
    stream_infer_response::Result as Response,
};
use crate::{
    Classification, Client, Comparison, Error, Format, Image, Priority, QueryTerm, Tokenization,
    Vector,
};

type BoxStream<T> = Pin<Box<dyn Stream<Item = T> + Send>>;
type OnReconnect = Box<dyn FnMut(&Error) + Send>;

const DEFAULT_WINDOW: usize = 32;
const MAX_STATUS_WAIT: Duration = Duration::from_secs(5);

/// An item of a stream. Its `id` is the caller's: any value, not sent, and not necessarily unique.
#[derive(Debug, Clone)]
#[must_use]
pub struct Item<Id> {
    id: Id,
    format: Format,
    request: Request,
}

impl<Id> Item<Id> {
    /// Returns an image to embed.
    pub fn image(id: Id, image: impl Into<Image>) -> Self {
        let images = vec![image.into().0];
        Self::new(
            id,
            Request::EmbedImage(EmbedImageRequest {
                images,
                ..Default::default()
            }),
        )
        .format(Format::Float32)
    }

    /// Returns a text to embed.
    pub fn text(id: Id, text: impl Into<String>) -> Self {
        let texts = vec![text.into()];
        Self::new(
            id,
            Request::EmbedText(EmbedTextRequest {
                texts,
                ..Default::default()
            }),
        )
        .format(Format::Float32)
    }

    /// Returns an image to score against labels.
    pub fn classify<T: Into<String>>(
        id: Id,
        image: impl Into<Image>,
        labels: impl IntoIterator<Item = T>,
    ) -> Self {
        let (images, labels) = (
            vec![image.into().0],
            labels.into_iter().map(Into::into).collect(),
        );
        Self::new(
            id,
            Request::Classify(ClassifyRequest {
                images,
                labels,
                ..Default::default()
            }),
        )
    }

    /// Returns an image and a text to compare.
    pub fn compare(id: Id, image: impl Into<Image>, text: impl Into<String>) -> Self {
        let pairs = vec![ImageTextPair {
            image: Some(image.into().0),
            text: text.into(),
        }];
        Self::new(
            id,
            Request::Compare(CompareRequest {
                pairs,
                ..Default::default()
            }),
        )
    }

    /// Returns a composed query to embed.
    pub fn query(id: Id, terms: impl IntoIterator<Item = QueryTerm>) -> Self {
        let queries = vec![ComposedQuery {
            terms: terms.into_iter().collect(),
        }];
        Self::new(
            id,
            Request::EmbedQuery(EmbedQueryRequest {
                queries,
                ..Default::default()
            }),
        )
        .format(Format::Float32)
    }

    /// Sets how the embedding travels. No effect on items without one.
    pub fn format(mut self, format: Format) -> Self {
        self.format = format;
        if let Some(options) = self.embedding_options() {
            options.set_format(format.wire());
        }
        self
    }

    /// `false` returns the model's output without scaling it to length 1. No effect on items without an embedding.
    pub fn normalize(mut self, normalize: bool) -> Self {
        if let Some(options) = self.embedding_options() {
            options.skip_normalization = !normalize;
        }
        self
    }

    /// Cuts a text that is too long, instead of failing. No effect on items without a text.
    pub fn truncate(mut self, truncate: bool) -> Self {
        match &mut self.request {
            Request::EmbedText(request) => request.truncate = truncate,
            Request::Compare(request) => request.truncate = truncate,
            Request::EmbedQuery(request) => request.truncate = truncate,
            Request::EmbedImage(_) | Request::Classify(_) => {}
        }
        self
    }

    /// Sets prompts that embed each label. No effect on items without labels.
    pub fn prompt_templates<T: Into<String>>(
        mut self,
        templates: impl IntoIterator<Item = T>,
    ) -> Self {
        if let Request::Classify(request) = &mut self.request {
            request.prompt_templates = templates.into_iter().map(Into::into).collect();
        }
        self
    }

    /// Sets the maximum number of classifications; 0, the default, for all. No effect on items without labels.
    pub fn top_k(mut self, top_k: i32) -> Self {
        if let Request::Classify(request) = &mut self.request {
            request.top_k = top_k;
        }
        self
    }

    fn new(id: Id, request: Request) -> Self {
        Self {
            id,
            format: Format::default(),
            request,
        }
    }

    fn embedding_options(&mut self) -> Option<&mut EmbeddingOptions> {
        let options = match &mut self.request {
            Request::EmbedImage(request) => &mut request.embedding_options,
            Request::EmbedText(request) => &mut request.embedding_options,
            Request::EmbedQuery(request) => &mut request.embedding_options,
            Request::Classify(_) | Request::Compare(_) => return None,
        };
        Some(options.get_or_insert_default())
    }
}

/// The result of one item.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ItemResult<Id> {
    /// The item's id.
    pub id: Id,
    /// What its kind returns, or why it failed.
    pub outcome: Result<Outcome, Error>,
}

/// What an item returns.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Outcome {
    /// Of images, texts and queries; with how the text was tokenized, for a text.
    Embedding(Vector, Option<Tokenization>),
    /// Of images with labels, best first.
    Classifications(Vec<Classification>),
    /// Of an image with a text.
    Comparison(Comparison),
}

/// A stream with its settings, from [`Client::stream`].
#[must_use = "a stream starts when its results are polled"]
pub struct StreamCall<Id> {
    client: Client,
    items: BoxStream<Item<Id>>,
    window: usize,
    ordered: bool,
    options: CallOptions,
    on_reconnect: OnReconnect,
}

impl<Id> fmt::Debug for StreamCall<Id> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("StreamCall")
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

impl<Id: Send + 'static> StreamCall<Id> {
    pub(crate) fn new(client: &Client, items: BoxStream<Item<Id>>) -> Self {
        Self {
            client: client.clone(),
            items,
            window: DEFAULT_WINDOW,
            ordered: false,
            options: CallOptions::default(),
            on_reconnect: Box::new(|_| {}),
        }
    }

    /// Sets the maximum number of items that were read and whose results were not taken yet, instead of 32.
    pub fn window(mut self, window: usize) -> Self {
        self.window = window;
        self
    }

    /// Yields results in the order of the items; otherwise a slow item does not delay the others.
    pub fn ordered(mut self, ordered: bool) -> Self {
        self.ordered = ordered;
        self
    }

    /// Sets the deadline of the whole stream, which has none otherwise.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(timeout);
        self
    }

    /// Sets the priority of the stream.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.options.priority = Some(priority);
        self
    }

    /// Calls a function before the stream is opened again, with the reason.
    pub fn on_reconnect(mut self, function: impl FnMut(&Error) + Send + 'static) -> Self {
        self.on_reconnect = Box::new(function);
        self
    }

    /// Returns a result for every item. An error is the last: the stream broke and could not be opened again.
    #[must_use]
    pub fn results(self) -> Pin<Box<dyn Stream<Item = Result<ItemResult<Id>, Error>> + Send>> {
        Box::pin(self.run())
    }

    fn run(mut self) -> impl Stream<Item = Result<ItemResult<Id>, Error>> {
        let deadline = self.options.timeout.map(|timeout| Instant::now() + timeout);
        try_stream! {
            let mut in_flight = InFlight::new(self.window, self.ordered);
            let mut connection: Option<Connection> = None;
            let mut attempts = 0; // since the last answer
            loop {
                while let Some(result) = in_flight.take() {
                    yield result;
                }
                if in_flight.is_done() {
                    break;
                }
                if connection.is_none() && in_flight.has_unanswered() {
                    connection = Some(Connection::open(&self.client, self.ordered, deadline, self.options.priority));
                }
                if let Some(connection) = &mut connection {
                    connection.send_unsent(&in_flight);
                }
                let event = tokio::select! {
                    item = self.items.next(), if in_flight.has_room() && !in_flight.is_complete => Event::Item(item),
                    answer = next_answer(&mut connection) => Event::Answer(answer),
                    () = expiry(deadline) => Event::Expired,
                };
                let broken = match event {
                    Event::Item(Some(item)) => {
                        in_flight.enter(|sequence| Pending::new(item, sequence));
                        None
                    }
                    Event::Item(None) => {
                        in_flight.is_complete = true;
                        None
                    }
                    Event::Answer(Ok(response)) => {
                        if record(&mut in_flight, response) {
                            attempts = 0;
                        }
                        None
                    }
                    Event::Answer(Err(error)) => Some(error),
                    Event::Expired => Err(Error::deadline_exceeded())?,
                };
                if let Some(error) = broken {
                    connection = None; // which cancels the call, if it is still open
                    attempts += 1;
                    let reason = error.clone();
                    sleep(self.client.retry().reconnect_pause(error, attempts, deadline)?).await;
                    (self.on_reconnect)(&reason);
                }
            }
            if let Some(connection) = connection {
                connection.close().await;
            }
        }
    }
}

enum Event<Id> {
    Item(Option<Item<Id>>),
    Answer(Result<StreamInferResponse, Error>),
    Expired,
}

/// An item that was read, and its message, which is kept until it is answered.
struct Pending<Id> {
    id: Id,
    format: Format,
    message: StreamInferRequest,
}

impl<Id> Pending<Id> {
    fn new(item: Item<Id>, sequence: u64) -> Self {
        let message = StreamInferRequest {
            correlation_id: sequence.to_string(),
            request: Some(item.request),
            stream_options: None,
        };
        Self {
            id: item.id,
            format: item.format,
            message,
        }
    }
}

/// One open call. Dropping it cancels the call.
struct Connection {
    requests: Option<mpsc::UnboundedSender<StreamInferRequest>>, // bounded by the window; none when all are sent
    next_sequence: u64,
    responses: BoxStream<Result<StreamInferResponse, Error>>,
}

impl Connection {
    fn open(
        client: &Client,
        ordered: bool,
        deadline: Option<Instant>,
        priority: Option<Priority>,
    ) -> Self {
        let (requests, outbound) = mpsc::unbounded_channel();
        let order = if ordered {
            DeliveryOrder::AsRequested
        } else {
            DeliveryOrder::AsCompleted
        };
        let stream_options = Some(StreamOptions {
            delivery_order: order.into(),
        });
        // Fails only if the receiver is gone, which the responses report.
        let _ = requests.send(StreamInferRequest {
            stream_options,
            ..Default::default()
        });
        let request = client.request(UnboundedReceiverStream::new(outbound), deadline, priority);
        let mut stub = client.stub();
        let responses = try_stream! {
            // Resolves with the first answer, so that items must be sent meanwhile.
            let mut responses = stub.stream_infer(request).await.map_err(error_of_stream)?.into_inner();
            while let Some(response) = responses.message().await.map_err(error_of_stream)? {
                yield response;
            }
        };
        Self {
            requests: Some(requests),
            next_sequence: 0,
            responses: Box::pin(responses),
        }
    }

    fn send_unsent<Id, Answer>(&mut self, in_flight: &InFlight<Pending<Id>, Answer>) {
        let Some(requests) = &self.requests else {
            return;
        };
        while let Some((sequence, pending)) = in_flight.next_unsent(self.next_sequence) {
            self.next_sequence = sequence + 1;
            let _ = requests.send(pending.message.clone()); // pictures are shared, not copied
        }
        if in_flight.is_complete {
            self.requests = None;
        }
    }

    /// Waits for the server's status, so that a stream whose items are all answered does not count as cancelled.
    async fn close(mut self) {
        self.requests = None;
        let _ = timeout(MAX_STATUS_WAIT, self.responses.next()).await;
    }
}

/// Waits for an answer, or for the end of the call as an error. Waits for ever without a connection.
async fn next_answer(connection: &mut Option<Connection>) -> Result<StreamInferResponse, Error> {
    let Some(connection) = connection else {
        return std::future::pending().await;
    };
    match connection.responses.next().await {
        Some(response) => response.and_then(unless_unavailable),
        None => Err(Error::new(
            Code::Unavailable,
            "the server ended the stream early",
        )),
    }
}

async fn expiry(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn error_of_stream(status: tonic::Status) -> Error {
    if is_expired(&status) {
        Error::deadline_exceeded()
    } else {
        Error::of_stream(status)
    }
}

/// Fails on an item's UNAVAILABLE: the server cannot answer any item now, so they are sent again.
fn unless_unavailable(response: StreamInferResponse) -> Result<StreamInferResponse, Error> {
    match &response.result {
        Some(Response::Error(status)) if Code::from(status.code) == Code::Unavailable => {
            Err(Error::of_item(status))
        }
        _ => Ok(response),
    }
}

/// Records an answer. Returns whether an item was waiting for it.
fn record<Id>(
    in_flight: &mut InFlight<Pending<Id>, ItemResult<Id>>,
    response: StreamInferResponse,
) -> bool {
    let Ok(sequence) = response.correlation_id.parse() else {
        return false;
    };
    if in_flight.unanswered(sequence).is_none() {
        return false;
    }
    in_flight.answer(sequence, |Pending { id, format, .. }| ItemResult {
        id,
        outcome: outcome(response.result, format),
    });
    true
}

fn outcome(result: Option<Response>, format: Format) -> Result<Outcome, Error> {
    let vector = |embeddings: Vec<Embedding>| {
        embeddings
            .into_iter()
            .next()
            .map(|embedding| format.read(embedding))
    };
    let outcome = match result {
        Some(Response::Error(status)) => return Err(Error::of_item(&status)),
        Some(Response::EmbedImage(response)) => {
            vector(response.embeddings).map(|v| Outcome::Embedding(v, None))
        }
        Some(Response::EmbedQuery(response)) => {
            vector(response.embeddings).map(|v| Outcome::Embedding(v, None))
        }
        Some(Response::EmbedText(response)) => vector(response.embeddings)
            .map(|v| Outcome::Embedding(v, response.tokenizations.into_iter().next())),
        Some(Response::Classify(response)) => response
            .results
            .into_iter()
            .next()
            .map(|result| Outcome::Classifications(result.classifications)),
        Some(Response::Compare(response)) => response
            .comparisons
            .into_iter()
            .next()
            .map(Outcome::Comparison),
        None => None,
    };
    outcome.ok_or_else(|| {
        Error::new(
            Code::Internal,
            "the server sent an unknown kind of result; update alignserve",
        )
    })
}
