//! The unary calls: a [`Call`] has options, and is made when it is awaited.

use std::marker::PhantomData;
use std::pin::Pin;
use std::time::Duration;

use tonic::{Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::client::CallOptions;
use crate::v1::{
    self, Classification, ClassifyRequest, ClassifyResponse, CompareRequest, CompareResponse,
    Comparison, ComposedQuery, EmbedImageRequest, EmbedImageResponse, EmbedQueryRequest,
    EmbedQueryResponse, EmbedTextRequest, EmbedTextResponse, EmbeddingOptions, GetModelInfoRequest,
    ImageTextPair, QueryTerm, Tokenization, query_term::Input,
};
use crate::vector::{Encoding, Float32};
use crate::{Client, Error, Image, ModelInfo, Priority};

const SERVICE: &str = "alignserve.v1.AlignService";

/// A call that is made when it is awaited. Dropping the future cancels it.
#[derive(Debug)]
#[must_use = "a call is made when it is awaited"]
pub struct Call<R> {
    client: Client,
    rpc: R,
    options: CallOptions,
}

impl<R> Call<R> {
    pub(crate) fn new(client: &Client, rpc: R) -> Self {
        Self {
            client: client.clone(),
            rpc,
            options: CallOptions::default(),
        }
    }

    /// Sets the deadline of this call over all its attempts.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(timeout);
        self
    }

    /// Sets the priority of this call.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.options.priority = Some(priority);
        self
    }

    fn map<S>(self, change: impl FnOnce(R) -> S) -> Call<S> {
        Call {
            client: self.client,
            rpc: change(self.rpc),
            options: self.options,
        }
    }
}

impl<M: EmbedMessage, E: Encoding> Call<Embed<M, E>> {
    /// Sets how embeddings travel, and with it the type of the vectors.
    pub fn format<F: Encoding>(self, _: F) -> Call<Embed<M, F>> {
        self.map(|mut rpc| {
            rpc.message.embedding_options().set_format(F::FORMAT.wire());
            Embed::new(rpc.message)
        })
    }

    /// `false` returns the model's output without scaling it to length 1.
    pub fn normalize(self, normalize: bool) -> Self {
        self.map(|mut rpc| {
            rpc.message.embedding_options().skip_normalization = !normalize;
            rpc
        })
    }
}

impl<R: ReadsTexts> Call<R> {
    /// Cuts texts that are too long, instead of failing.
    pub fn truncate(self, truncate: bool) -> Self {
        self.map(|mut rpc| {
            *rpc.truncate() = truncate;
            rpc
        })
    }
}

impl Call<Classify> {
    /// Sets prompts that embed each label, such as `a photo of a {label}`; several are averaged.
    pub fn prompt_templates<T: Into<String>>(self, templates: impl IntoIterator<Item = T>) -> Self {
        self.map(|mut rpc| {
            rpc.0.prompt_templates = templates.into_iter().map(Into::into).collect();
            rpc
        })
    }

    /// Sets the maximum number of classifications per image; 0, the default, for all.
    pub fn top_k(self, top_k: i32) -> Self {
        self.map(|mut rpc| {
            rpc.0.top_k = top_k;
            rpc
        })
    }
}

impl<R: Rpc> IntoFuture for Call<R> {
    type Output = Result<R::Answer, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.client.call(self.rpc, self.options))
    }
}

/// A unary method.
pub trait Rpc: Send + 'static {
    type Request: Clone + Send + Sync + 'static;
    type Response: Send;
    type Answer: Send;

    fn into_request(self) -> Self::Request;

    fn send(
        client: &Client,
        request: Request<Self::Request>,
    ) -> impl Future<Output = Result<Response<Self::Response>, Status>> + Send + 'static;

    fn answer(response: Self::Response) -> Self::Answer;
}

/// An rpc with texts that may be too long.
pub trait ReadsTexts {
    fn truncate(&mut self) -> &mut bool;
}

/// Vectors, in the order of the inputs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Embeddings<V> {
    /// A vector for each input.
    pub vectors: Vec<V>,
    /// How each text was tokenized; empty for images and queries.
    pub tokenizations: Vec<Tokenization>,
}

/// Comparisons, in the order of the pairs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Comparisons {
    /// A comparison for each pair.
    pub comparisons: Vec<Comparison>,
    /// How the text of each pair was tokenized.
    pub tokenizations: Vec<Tokenization>,
}

/// A call that embeds; `E` is the format of the vectors.
#[derive(Debug)]
pub struct Embed<M, E> {
    message: M,
    encoding: PhantomData<E>,
}

/// Embeds images.
pub type EmbedImages<E = Float32> = Embed<EmbedImageRequest, E>;
/// Embeds texts.
pub type EmbedTexts<E = Float32> = Embed<EmbedTextRequest, E>;
/// Embeds composed queries.
pub type EmbedQueries<E = Float32> = Embed<EmbedQueryRequest, E>;

impl<M, E> Embed<M, E> {
    fn new(message: M) -> Self {
        Self {
            message,
            encoding: PhantomData,
        }
    }
}

impl EmbedImages {
    pub(crate) fn of<I: Into<Image>>(images: impl IntoIterator<Item = I>) -> Self {
        let embedding_options = Some(default_options());
        Self::new(EmbedImageRequest {
            images: messages(images),
            embedding_options,
            ..Default::default()
        })
    }
}

impl EmbedTexts {
    pub(crate) fn of<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        let texts = texts.into_iter().map(Into::into).collect();
        Self::new(EmbedTextRequest {
            texts,
            embedding_options: Some(default_options()),
            ..Default::default()
        })
    }
}

impl EmbedQueries {
    pub(crate) fn of<Q: IntoIterator<Item = QueryTerm>>(
        queries: impl IntoIterator<Item = Q>,
    ) -> Self {
        let queries = queries
            .into_iter()
            .map(|terms| ComposedQuery {
                terms: terms.into_iter().collect(),
            })
            .collect();
        Self::new(EmbedQueryRequest {
            queries,
            embedding_options: Some(default_options()),
            ..Default::default()
        })
    }
}

impl<E> ReadsTexts for EmbedTexts<E> {
    fn truncate(&mut self) -> &mut bool {
        &mut self.message.truncate
    }
}

impl<E> ReadsTexts for EmbedQueries<E> {
    fn truncate(&mut self) -> &mut bool {
        &mut self.message.truncate
    }
}

/// A request whose answer has embeddings.
pub trait EmbedMessage: Clone + Send + Sync + 'static {
    type Response: Send;

    fn embedding_options(&mut self) -> &mut EmbeddingOptions;

    fn send(
        self_: Request<Self>,
        client: &Client,
    ) -> impl Future<Output = Result<Response<Self::Response>, Status>> + Send + 'static;

    fn parts(response: Self::Response) -> (Vec<v1::Embedding>, Vec<Tokenization>);
}

macro_rules! embed_message {
    ($request:ty, $response:ty, $method:ident, |$answer:ident| $tokenizations:expr) => {
        impl EmbedMessage for $request {
            type Response = $response;

            fn embedding_options(&mut self) -> &mut EmbeddingOptions {
                self.embedding_options.get_or_insert_default()
            }

            fn send(
                request: Request<Self>,
                client: &Client,
            ) -> impl Future<Output = Result<Response<Self::Response>, Status>> + Send + 'static
            {
                let mut stub = client.stub();
                async move { stub.$method(request).await }
            }

            fn parts($answer: Self::Response) -> (Vec<v1::Embedding>, Vec<Tokenization>) {
                ($answer.embeddings, $tokenizations)
            }
        }
    };
}

embed_message!(
    EmbedImageRequest,
    EmbedImageResponse,
    embed_image,
    |response| Vec::new()
);
embed_message!(
    EmbedTextRequest,
    EmbedTextResponse,
    embed_text,
    |response| response.tokenizations
);
embed_message!(
    EmbedQueryRequest,
    EmbedQueryResponse,
    embed_query,
    |response| Vec::new()
);

impl<M: EmbedMessage, E: Encoding> Rpc for Embed<M, E> {
    type Request = M;
    type Response = M::Response;
    type Answer = Embeddings<E::Vector>;

    fn into_request(self) -> M {
        self.message
    }

    fn send(
        client: &Client,
        request: Request<M>,
    ) -> impl Future<Output = Result<Response<Self::Response>, Status>> + Send + 'static {
        M::send(request, client)
    }

    fn answer(response: M::Response) -> Self::Answer {
        let (embeddings, tokenizations) = M::parts(response);
        Embeddings {
            vectors: embeddings.into_iter().map(E::read).collect(),
            tokenizations,
        }
    }
}

/// Scores images against labels.
#[derive(Debug)]
pub struct Classify(ClassifyRequest);

impl Classify {
    pub(crate) fn of<I: Into<Image>, T: Into<String>>(
        images: impl IntoIterator<Item = I>,
        labels: impl IntoIterator<Item = T>,
    ) -> Self {
        let labels = labels.into_iter().map(Into::into).collect();
        Self(ClassifyRequest {
            images: messages(images),
            labels,
            ..Default::default()
        })
    }
}

impl Rpc for Classify {
    type Request = ClassifyRequest;
    type Response = ClassifyResponse;
    type Answer = Vec<Vec<Classification>>;

    fn into_request(self) -> Self::Request {
        self.0
    }

    fn send(
        client: &Client,
        request: Request<Self::Request>,
    ) -> impl Future<Output = Result<Response<Self::Response>, Status>> + Send + 'static {
        let mut stub = client.stub();
        async move { stub.classify(request).await }
    }

    fn answer(response: Self::Response) -> Self::Answer {
        response
            .results
            .into_iter()
            .map(|result| result.classifications)
            .collect()
    }
}

/// Compares images with texts.
#[derive(Debug)]
pub struct Compare(CompareRequest);

impl Compare {
    pub(crate) fn of<I: Into<Image>, T: Into<String>>(
        pairs: impl IntoIterator<Item = (I, T)>,
    ) -> Self {
        let pair = |(image, text): (I, T)| ImageTextPair {
            image: Some(image.into().0),
            text: text.into(),
        };
        Self(CompareRequest {
            pairs: pairs.into_iter().map(pair).collect(),
            ..Default::default()
        })
    }
}

impl ReadsTexts for Compare {
    fn truncate(&mut self) -> &mut bool {
        &mut self.0.truncate
    }
}

impl Rpc for Compare {
    type Request = CompareRequest;
    type Response = CompareResponse;
    type Answer = Comparisons;

    fn into_request(self) -> Self::Request {
        self.0
    }

    fn send(
        client: &Client,
        request: Request<Self::Request>,
    ) -> impl Future<Output = Result<Response<Self::Response>, Status>> + Send + 'static {
        let mut stub = client.stub();
        async move { stub.compare(request).await }
    }

    fn answer(response: Self::Response) -> Self::Answer {
        Comparisons {
            comparisons: response.comparisons,
            tokenizations: response.tokenizations,
        }
    }
}

/// Asks for the model and its limits.
#[derive(Debug)]
pub struct GetModelInfo;

impl Rpc for GetModelInfo {
    type Request = GetModelInfoRequest;
    type Response = ModelInfo;
    type Answer = ModelInfo;

    fn into_request(self) -> Self::Request {
        GetModelInfoRequest {}
    }

    fn send(
        client: &Client,
        request: Request<Self::Request>,
    ) -> impl Future<Output = Result<Response<Self::Response>, Status>> + Send + 'static {
        let mut stub = client.stub();
        async move { stub.get_model_info(request).await }
    }

    fn answer(response: ModelInfo) -> ModelInfo {
        response
    }
}

/// Asks whether the server answers calls.
#[derive(Debug)]
pub struct IsReady;

impl Rpc for IsReady {
    type Request = HealthCheckRequest;
    type Response = tonic_health::pb::HealthCheckResponse;
    type Answer = bool;

    fn into_request(self) -> Self::Request {
        HealthCheckRequest {
            service: SERVICE.to_owned(),
        }
    }

    fn send(
        client: &Client,
        request: Request<Self::Request>,
    ) -> impl Future<Output = Result<Response<Self::Response>, Status>> + Send + 'static {
        let mut stub = HealthClient::new(client.channel());
        async move { stub.check(request).await }
    }

    fn answer(response: Self::Response) -> bool {
        response.status() == ServingStatus::Serving
    }
}

impl QueryTerm {
    /// Returns a term with an image.
    pub fn of_image(image: impl Into<Image>) -> Self {
        Self {
            input: Some(Input::Image(image.into().0)),
            weight: None,
        }
    }

    /// Returns a term with a text.
    pub fn of_text(text: impl Into<String>) -> Self {
        Self {
            input: Some(Input::Text(text.into())),
            weight: None,
        }
    }

    /// Sets the term's weight, which is 1 otherwise. Below 0, the query moves away from the term.
    #[must_use]
    pub fn weighted(mut self, weight: f32) -> Self {
        self.weight = Some(weight);
        self
    }
}

fn messages<I: Into<Image>>(images: impl IntoIterator<Item = I>) -> Vec<v1::Image> {
    images.into_iter().map(|image| image.into().0).collect()
}

fn default_options() -> EmbeddingOptions {
    EmbeddingOptions {
        format: Float32::FORMAT.wire().into(),
        ..Default::default()
    }
}
