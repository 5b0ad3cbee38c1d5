//! The client: its connection, and the defaults of its calls.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Response, Status};

use crate::call::{
    Call, Classify, Compare, EmbedImages, EmbedQueries, EmbedTexts, GetModelInfo, IsReady, Rpc,
};
use crate::stream::{Item, StreamCall};
use crate::v1::align_service_client::AlignServiceClient;
use crate::{Error, Image, QueryTerm, RetryPolicy};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_MAX_RESPONSE_BYTES: usize = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How urgent a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// A user is waiting. The server's default.
    Interactive,
    /// Served when no interactive work is waiting, and at a low rate otherwise.
    Bulk,
}

/// A client of one service. A clone shares its connections, and all clones may make many calls at once.
#[derive(Debug, Clone)]
pub struct Client(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    channel: Channel,
    metadata: MetadataMap,
    timeout: Option<Duration>,
    max_response_bytes: usize,
    retry: RetryPolicy,
}

impl Client {
    /// Returns a client with default settings for `https://HOST:PORT`, or `http://HOST:PORT` without encryption.
    ///
    /// It connects with its first call, and must be made in a Tokio runtime.
    ///
    /// # Errors
    ///
    /// If the address is not such a URL.
    pub fn new(address: impl Into<String>) -> Result<Self, Error> {
        Self::builder(address).build()
    }

    /// Returns a builder for a client of `https://HOST:PORT`, or `http://HOST:PORT` without encryption.
    pub fn builder(address: impl Into<String>) -> Builder {
        Builder::new(address.into())
    }

    /// Embeds images, in order. All succeed, or the call fails and names those at fault.
    pub fn embed_images<I: Into<Image>>(
        &self,
        images: impl IntoIterator<Item = I>,
    ) -> Call<EmbedImages> {
        Call::new(self, EmbedImages::of(images))
    }

    /// Embeds texts, in order.
    pub fn embed_texts<T: Into<String>>(
        &self,
        texts: impl IntoIterator<Item = T>,
    ) -> Call<EmbedTexts> {
        Call::new(self, EmbedTexts::of(texts))
    }

    /// Scores images against labels. Returns a list for each image, best label first.
    pub fn classify<I: Into<Image>, T: Into<String>>(
        &self,
        images: impl IntoIterator<Item = I>,
        labels: impl IntoIterator<Item = T>,
    ) -> Call<Classify> {
        Call::new(self, Classify::of(images, labels))
    }

    /// Compares images with texts, pair by pair.
    pub fn compare<I: Into<Image>, T: Into<String>>(
        &self,
        pairs: impl IntoIterator<Item = (I, T)>,
    ) -> Call<Compare> {
        Call::new(self, Compare::of(pairs))
    }

    /// Embeds composed queries, each a list of weighted images and texts.
    pub fn embed_queries<Q>(&self, queries: impl IntoIterator<Item = Q>) -> Call<EmbedQueries>
    where
        Q: IntoIterator<Item = QueryTerm>,
    {
        Call::new(self, EmbedQueries::of(queries))
    }

    /// Returns the model being served, and the limits that apply to requests.
    pub fn model_info(&self) -> Call<GetModelInfo> {
        Call::new(self, GetModelInfo)
    }

    /// Returns whether the server answers calls now: not while it loads the model, or stops.
    pub fn is_ready(&self) -> Call<IsReady> {
        Call::new(self, IsReady)
    }

    /// Runs any mix of items over one stream: the place for folders, data sets and live feeds.
    ///
    /// An item that fails does not affect the others. If the connection breaks or the server ends the stream, it is
    /// opened again and the unanswered items are sent again: none is lost, and none is answered twice. Items are read as
    /// their results are taken, so they may be endless. Dropping the stream cancels it.
    pub fn stream<Id, S>(&self, items: S) -> StreamCall<Id>
    where
        Id: Send + 'static,
        S: futures_core::Stream<Item = Item<Id>> + Send + 'static,
    {
        StreamCall::new(self, Box::pin(items))
    }

    pub(crate) fn retry(&self) -> &RetryPolicy {
        &self.0.retry
    }

    pub(crate) fn channel(&self) -> Channel {
        self.0.channel.clone()
    }

    pub(crate) fn stub(&self) -> AlignServiceClient<Channel> {
        AlignServiceClient::new(self.channel()).max_decoding_message_size(self.0.max_response_bytes)
    }

    /// Makes a unary call, with repeats.
    pub(crate) async fn call<R: Rpc>(
        self,
        rpc: R,
        options: CallOptions,
    ) -> Result<R::Answer, Error> {
        let deadline = options
            .timeout
            .or(self.0.timeout)
            .map(|timeout| Instant::now() + timeout);
        let request = rpc.into_request();
        let attempt = || {
            let request = self.request(request.clone(), deadline, options.priority);
            within(deadline, R::send(&self, request))
        };
        let response = self.0.retry.run(deadline, attempt).await?;
        Ok(R::answer(response))
    }

    /// Returns a request with the client's metadata and the deadline.
    pub(crate) fn request<T>(
        &self,
        message: T,
        deadline: Option<Instant>,
        priority: Option<Priority>,
    ) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.0.metadata.clone();
        if let Some(priority) = priority {
            insert_priority(request.metadata_mut(), priority);
        }
        if let Some(deadline) = deadline {
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        request
    }
}

/// Options of one call, instead of the client's.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct CallOptions {
    pub(crate) timeout: Option<Duration>,
    pub(crate) priority: Option<Priority>,
}

/// Makes a [`Client`].
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    addresses: Vec<String>,
    ca_certificate: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
    metadata: Vec<(String, String)>,
    timeout: Option<Duration>,
    max_response_bytes: usize,
    retry: RetryPolicy,
    keep_alive_interval: Duration,
    keep_alive_timeout: Duration,
}

impl Builder {
    fn new(address: String) -> Self {
        Self {
            addresses: vec![address],
            ca_certificate: None,
            identity: None,
            metadata: Vec::new(),
            timeout: Some(DEFAULT_TIMEOUT),
            max_response_bytes: DEFAULT_MAX_RESPONSE_BYTES,
            retry: RetryPolicy::default(),
            keep_alive_interval: Duration::from_secs(60),
            keep_alive_timeout: Duration::from_secs(10),
        }
    }

    /// Adds another server of the same service; calls are spread over all that can be reached.
    ///
    /// tonic resolves a name to one address. A call waits, up to its deadline, until one of several can be reached.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.addresses.push(address.into());
        self
    }

    /// Trusts these certificate authorities, as PEM, instead of those of the system.
    pub fn ca_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca_certificate = Some(pem.into());
        self
    }

    /// Presents a certificate chain with its private key, as PEM, to servers that ask for one.
    pub fn identity(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// Sends an API key with every call. Blanks around it are dropped, since files end with a line break.
    pub fn api_key(self, key: &str) -> Self {
        let value = format!("Bearer {}", key.trim());
        self.metadata("authorization", value)
    }

    /// Sets the priority of calls that have none of their own.
    pub fn priority(self, priority: Priority) -> Self {
        self.metadata(PRIORITY, priority_name(priority))
    }

    /// Adds metadata to every call.
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.push((name.into(), value.into()));
        self
    }

    /// Sets the deadline of each call over all its attempts, instead of 30 seconds; `None` for none.
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// Sets the largest response message that is accepted, instead of 16 MiB, and tells the server.
    pub fn max_response_bytes(mut self, bytes: usize) -> Self {
        self.max_response_bytes = bytes;
        self
    }

    /// Sets when failed calls are repeated.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Sets the time between pings while a call is open, instead of a minute, and the time for their answers, instead of
    /// 10 seconds. Servers close connections that ping more often than every 10 seconds.
    pub fn keep_alive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.keep_alive_interval = interval;
        self.keep_alive_timeout = timeout;
        self
    }

    /// Returns the client, which connects with its first call. Must be called in a Tokio runtime.
    ///
    /// # Errors
    ///
    /// If an address is not `https://HOST:PORT` or `http://HOST:PORT`, if a certificate cannot be read or is given for
    /// `http://`, or if metadata has characters that metadata cannot have.
    pub fn build(self) -> Result<Client, Error> {
        let endpoints = self
            .addresses
            .iter()
            .map(|address| self.endpoint(address))
            .collect::<Result<Vec<_>, _>>()?;
        let channel = match endpoints.as_slice() {
            [endpoint] => endpoint.connect_lazy(),
            _ => Channel::balance_list(endpoints.into_iter()),
        };
        Ok(Client(Arc::new(Shared {
            channel,
            metadata: self.metadata_map()?,
            timeout: self.timeout,
            max_response_bytes: self.max_response_bytes,
            retry: self.retry,
        })))
    }

    fn endpoint(&self, address: &str) -> Result<Endpoint, Error> {
        let endpoint = Endpoint::from_shared(address.to_owned())
            .map_err(|_| {
                invalid(format!(
                    "{address:?} is not an address; use https://HOST:PORT or http://HOST:PORT"
                ))
            })?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(self.keep_alive_interval)
            .keep_alive_timeout(self.keep_alive_timeout);
        match endpoint.uri().scheme_str() {
            Some("https") => endpoint
                .tls_config(self.tls())
                .map_err(|error| invalid(format!("TLS: {error}"))),
            Some("http") if self.ca_certificate.is_none() && self.identity.is_none() => {
                Ok(endpoint)
            }
            Some("http") => Err(invalid(
                "certificates are for https://, and the address has http://".into(),
            )),
            _ => Err(invalid(format!(
                "{address:?} has no scheme; use https:// or, without encryption, http://"
            ))),
        }
    }

    fn tls(&self) -> ClientTlsConfig {
        let tls = match &self.ca_certificate {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        match &self.identity {
            Some((certificate, key)) => tls.identity(Identity::from_pem(certificate, key)),
            None => tls,
        }
    }

    fn metadata_map(&self) -> Result<MetadataMap, Error> {
        let mut metadata = MetadataMap::new();
        metadata.insert(
            "alignserve-max-response-bytes",
            self.max_response_bytes.into(),
        );
        for (name, value) in &self.metadata {
            let key: MetadataKey<Ascii> = name
                .to_lowercase()
                .parse()
                .map_err(|_| invalid(format!("{name:?} is not a name of metadata")))?;
            // The value may be secret.
            let mut value: MetadataValue<Ascii> = value.parse().map_err(|_| {
                invalid(format!(
                    "metadata {name:?} has characters that it cannot have"
                ))
            })?;
            value.set_sensitive(name == "authorization");
            metadata.insert(key, value);
        }
        Ok(metadata)
    }
}

const PRIORITY: &str = "alignserve-priority";

fn priority_name(priority: Priority) -> &'static str {
    match priority {
        Priority::Interactive => "interactive",
        Priority::Bulk => "bulk",
    }
}

fn insert_priority(metadata: &mut MetadataMap, priority: Priority) {
    metadata.insert(
        PRIORITY,
        MetadataValue::from_static(priority_name(priority)),
    );
}

fn invalid(message: String) -> Error {
    Error::new(Code::InvalidArgument, message)
}

/// Waits for one attempt until the deadline.
async fn within<T>(
    deadline: Option<Instant>,
    attempt: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Error> {
    let answer = match deadline {
        Some(deadline) => timeout_at(deadline, attempt)
            .await
            .map_err(|_| Error::deadline_exceeded())?,
        None => attempt.await,
    };
    answer.map(Response::into_inner).map_err(error_of_call)
}

/// Reads the status of a call. tonic's own timer, which runs beside ours, says CANCELLED.
pub(crate) fn error_of_call(status: Status) -> Error {
    if is_expired(&status) {
        Error::deadline_exceeded()
    } else {
        Error::of_call(status)
    }
}

/// Returns whether tonic's own timer ended a call.
pub(crate) fn is_expired(status: &Status) -> bool {
    status.code() == Code::Cancelled && status.message() == "Timeout expired"
}
