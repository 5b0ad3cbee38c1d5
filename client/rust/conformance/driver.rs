//! Speaks the line protocol of tests/conformance with this library.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alignserve::{
    Binary, Call, Classification, Client, Embeddings, Error, Float16, FloatList, Format, Image,
    Int8, Item, ItemResult, Outcome, QueryTerm, RetryPolicy, Vector,
};
use anyhow::{Context as _, anyhow};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::sleep;
use tokio_stream::StreamExt as _;

/// Why an operation has no answer: the library's error, or one of the driver's side.
enum Failure {
    Call(Error),
    Cancelled,
    Client(anyhow::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Call(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Client(error)
    }
}

type Answer = Result<Value, Failure>;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut client = None;
    while let Some(line) = lines.next_line().await? {
        let request = without_nulls(serde_json::from_str(&line)?);
        let mut answer = answer(&mut client, &request).await;
        answer["id"] = request["id"].clone();
        print(&answer)?;
    }
    Ok(())
}

async fn answer(client: &mut Option<Client>, request: &Value) -> Value {
    let result = match request["op"].as_str().unwrap_or_default() {
        "hello" => Ok(hello()),
        "connect" => connect(request).await.map(|connected| {
            *client = Some(connected);
            json!({})
        }),
        "close" => {
            *client = None;
            Ok(json!({}))
        }
        "stream" => return stream(client.as_ref().expect("connect comes first"), request).await,
        "repeat" => repeat(client.as_ref().expect("connect comes first"), request).await,
        _ => unary(client.as_ref().expect("connect comes first"), request).await,
    };
    match result {
        Ok(ok) => json!({"ok": ok}),
        Err(failure) => json!({"error": failure_json(&failure)}),
    }
}

fn hello() -> Value {
    let rustc = env!("CARGO_PKG_RUST_VERSION");
    let lock = include_str!("../Cargo.lock");
    let tonic = lock
        .split("name = \"tonic\"\nversion = \"")
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    json!({"language": "Rust", "library": "alignserve", "versions": {"rust (minimum)": rustc, "tonic": tonic}})
}

async fn connect(request: &Value) -> Result<Client, Failure> {
    let scheme = if request["tls_ca"].is_string() {
        "https"
    } else {
        "http"
    };
    let mut builder = Client::builder(format!("{scheme}://{}", text(&request["target"])));
    if let Some(path) = request["tls_ca"].as_str() {
        builder = builder.ca_certificate(read(path).await?);
    }
    if let Some(path) = request["tls_certificate"].as_str() {
        builder = builder.identity(read(path).await?, read(text(&request["tls_key"])).await?);
    }
    if let Some(key) = request["api_key"].as_str() {
        builder = builder.api_key(key);
    }
    if let Some(timeout) = seconds(&request["timeout_seconds"]) {
        builder = builder.timeout(timeout);
    }
    if let Some(bytes) = request["max_response_bytes"].as_u64() {
        builder = builder.max_response_bytes(usize::try_from(bytes).context("size")?);
    }
    if request["retry"] == false {
        builder = builder.retry(RetryPolicy::none());
    }
    for (name, value) in request["metadata"].as_object().into_iter().flatten() {
        builder = builder.metadata(name, text(value));
    }
    let interval = seconds(&request["keepalive_seconds"]);
    let timeout = seconds(&request["keepalive_timeout_seconds"]);
    if interval.is_some() || timeout.is_some() {
        let default = (Duration::from_secs(60), Duration::from_secs(10));
        builder = builder.keep_alive(interval.unwrap_or(default.0), timeout.unwrap_or(default.1));
    }
    builder
        .build()
        .map_err(|error| Failure::Client(error.into()))
}

/// Makes a call that embeds, in the format of the request, which decides on the type of the vectors.
macro_rules! embed_in_format {
    ($call:expr, $request:expr) => {
        match format($request)? {
            Format::FloatList => embed($call.format(FloatList), $request, floats).await,
            Format::Float32 => embed($call, $request, floats).await,
            Format::Float16 => embed($call.format(Float16), $request, floats).await,
            Format::Int8 => embed($call.format(Int8), $request, int8).await,
            Format::Binary => embed($call.format(Binary), $request, binary).await,
        }
    };
}

async fn unary(client: &Client, request: &Value) -> Answer {
    let normalize = request["normalize"] != false;
    match request["op"].as_str().unwrap_or_default() {
        "embed_image" => {
            let call = client
                .embed_images(images(&request["images"]).await?)
                .normalize(normalize);
            embed_in_format!(call, request)
        }
        "embed_text" => {
            let call = client
                .embed_texts(strings(&request["texts"]))
                .normalize(normalize);
            embed_in_format!(call.truncate(request["truncate"] == true), request)
        }
        "embed_query" => {
            let mut queries = Vec::new();
            for query in list(&request["queries"]) {
                queries.push(terms(&query["terms"]).await?);
            }
            let call = client.embed_queries(queries).normalize(normalize);
            embed_in_format!(call.truncate(request["truncate"] == true), request)
        }
        "classify" => {
            let call = client
                .classify(
                    images(&request["images"]).await?,
                    strings(&request["labels"]),
                )
                .prompt_templates(strings(&request["prompt_templates"]))
                .top_k(top_k(request)?);
            let results = finish(call, request).await?;
            let rows: Vec<_> = results.iter().map(|row| classifications(row)).collect();
            if request["summary"] == true {
                let firsts: Vec<_> = rows
                    .iter()
                    .map(|row| json!(row.first().into_iter().collect::<Vec<_>>()))
                    .collect();
                let counts: Vec<_> = rows.iter().map(Vec::len).collect();
                return Ok(json!({"results": firsts, "counts": counts}));
            }
            Ok(json!({"results": rows}))
        }
        "compare" => {
            let mut pairs = Vec::new();
            for pair in list(&request["pairs"]) {
                pairs.push((image(&pair["image"]).await?, text(&pair["text"])));
            }
            let found = finish(
                client.compare(pairs).truncate(request["truncate"] == true),
                request,
            )
            .await?;
            let rows: Vec<_> = found
                .comparisons
                .iter()
                .map(|each| json!({"similarity": each.similarity, "logit": each.logit}))
                .collect();
            Ok(json!({"comparisons": rows}))
        }
        "model_info" => {
            let info = finish(client.model_info(), request).await?;
            Ok(json!({
                "model_id": info.model_id, "model_revision": info.model_revision, "fingerprint": info.fingerprint,
                "runtime": info.runtime, "dtype": info.dtype, "device": info.device,
                "embedding_dimension": info.embedding_dimension, "temperature": info.temperature,
                "max_text_tokens": info.max_text_tokens, "max_client_batch_size": info.max_client_batch_size,
                "max_labels": info.max_labels, "max_prompt_templates": info.max_prompt_templates,
                "max_image_bytes": info.max_image_bytes, "max_image_pixels": info.max_image_pixels,
                "max_text_bytes": info.max_text_bytes, "max_request_bytes": info.max_request_bytes,
                "max_stream_in_flight": info.max_stream_in_flight, "image_formats": info.image_formats,
                "server_version": info.server_version, "min_cosine_similarity": info.min_cosine_similarity,
                "max_response_bytes": info.max_response_bytes,
            }))
        }
        "health" => Ok(json!({"ready": finish(client.is_ready(), request).await?})),
        other => Err(anyhow!("the operation {other:?} is unknown").into()),
    }
}

async fn embed<R, V>(call: Call<R>, request: &Value, value: impl Fn(&V) -> Value) -> Answer
where
    Call<R>: IntoFuture<Output = Result<Embeddings<V>, Error>>,
{
    let found = finish(call, request).await?;
    let tokenizations: Vec<_> = found
        .tokenizations
        .iter()
        .map(|each| {
            json!({"token_count": each.token_count, "truncated": each.truncated,
                   "unknown_token_count": each.unknown_token_count})
        })
        .collect();
    Ok(
        json!({"embeddings": found.vectors.iter().map(value).collect::<Vec<_>>(), "tokenizations": tokenizations}),
    )
}

/// Makes a call with the deadline of the request, and drops it when the request says so.
async fn finish<R, T>(mut call: Call<R>, request: &Value) -> Result<T, Failure>
where
    Call<R>: IntoFuture<Output = Result<T, Error>>,
{
    if let Some(timeout) = seconds(&request["timeout_seconds"]) {
        call = call.timeout(timeout);
    }
    let Some(milliseconds) = request["cancel_after_ms"].as_u64() else {
        return Ok(call.await?);
    };
    tokio::select! {
        answer = call.into_future() => Ok(answer?),
        () = sleep(Duration::from_millis(milliseconds)) => Err(Failure::Cancelled),
    }
}

async fn stream(client: &Client, request: &Value) -> Value {
    let items = match items(&request["items"]).await {
        Ok(items) => items,
        Err(failure) => return json!({"error": failure_json(&failure), "results": []}),
    };
    let reconnects = Arc::new(AtomicU64::new(0));
    let counter = reconnects.clone();
    let mut call = client
        .stream(tokio_stream::iter(items))
        .ordered(request["ordered"] == true)
        .on_reconnect(move |_| _ = counter.fetch_add(1, Ordering::Relaxed));
    if let Some(window) = request["window"].as_u64() {
        call = call.window(usize::try_from(window).unwrap_or(usize::MAX));
    }
    if let Some(timeout) = seconds(&request["timeout_seconds"]) {
        call = call.timeout(timeout);
    }
    let mut stream = call.results();
    let mut results = Vec::new();
    while request["cancel_after_items"].as_u64() != Some(results.len() as u64)
        && let Some(result) = stream.next().await
    {
        match result {
            Ok(result) => results.push(result_json(&result)),
            Err(error) => {
                return json!({"error": failure_json(&Failure::Call(error)), "results": results});
            }
        }
        let every = request["progress_every"].as_u64().unwrap_or_default();
        if (results.len() as u64).checked_rem(every) == Some(0) {
            print(&json!({"id": request["id"], "progress": results.len()}))
                .expect("standard output is open");
        }
    }
    drop(stream);
    json!({"ok": {"reconnects": reconnects.load(Ordering::Relaxed), "results": results}})
}

async fn repeat(client: &Client, request: &Value) -> Answer {
    let calls = request["calls"].as_u64().unwrap_or(1);
    let started = Arc::new(AtomicU64::new(0));
    let workers: Vec<_> = (0..request["concurrency"].as_u64().unwrap_or(1))
        .map(|_| {
            let (client, started, request) =
                (client.clone(), started.clone(), request["request"].clone());
            tokio::spawn(async move {
                let mut answers = Vec::new();
                while started.fetch_add(1, Ordering::Relaxed) < calls {
                    answers.push(
                        unary(&client, &request)
                            .await
                            .map_err(|failure| failure_json(&failure)),
                    );
                }
                answers
            })
        })
        .collect();
    let mut answered = 0;
    let mut errors = BTreeMap::new();
    for worker in workers {
        for answer in worker.await.context("a worker failed")? {
            match answer {
                Ok(_) => answered += 1,
                Err(error) => {
                    *errors
                        .entry((
                            text(&error["code"]).to_owned(),
                            text(&error["reason"]).to_owned(),
                        ))
                        .or_insert(0) += 1;
                }
            }
        }
    }
    let errors: Vec<_> = errors
        .into_iter()
        .map(|((code, reason), count)| json!({"code": code, "reason": reason, "count": count}))
        .collect();
    Ok(json!({"answered": answered, "errors": errors}))
}

async fn items(items: &Value) -> Result<Vec<Item<String>>, Failure> {
    let mut found = Vec::new();
    for item in list(items) {
        let id = text(&item["id"]).to_owned();
        let made = match text(&item["kind"]) {
            "image" => Item::image(id, image(&item["image"]).await?),
            "text" => Item::text(id, text(&item["text"])),
            "classify" => {
                Item::classify(id, image(&item["image"]).await?, strings(&item["labels"]))
            }
            "compare" => Item::compare(id, image(&item["image"]).await?, text(&item["text"])),
            "query" => Item::query(id, terms(&item["terms"]).await?),
            other => return Err(anyhow!("the kind {other:?} is unknown").into()),
        };
        found.push(
            made.format(format(item)?)
                .normalize(item["normalize"] != false)
                .truncate(item["truncate"] == true)
                .prompt_templates(strings(&item["prompt_templates"]))
                .top_k(top_k(item)?),
        );
    }
    Ok(found)
}

async fn images(images: &Value) -> Result<Vec<Image>, Failure> {
    let mut found = Vec::new();
    for each in list(images) {
        found.push(image(each).await?);
    }
    Ok(found)
}

async fn image(image: &Value) -> Result<Image, Failure> {
    if let Some(path) = image["path"].as_str() {
        return Ok(read(path).await?.into());
    }
    if let Some(content) = image["base64"].as_str() {
        return Ok(decoded(content)?.into());
    }
    let pixels = &image["pixels"];
    let size = |value: &Value| u32::try_from(value.as_u64().unwrap_or_default()).context("size");
    Ok(Image::rgb(
        size(&pixels["width"])?,
        size(&pixels["height"])?,
        decoded(text(&pixels["data"]))?,
    ))
}

async fn terms(terms: &Value) -> Result<Vec<QueryTerm>, Failure> {
    let mut found = Vec::new();
    for term in list(terms) {
        let made = match term["text"].as_str() {
            Some(text) => QueryTerm::of_text(text),
            None => QueryTerm::of_image(image(&term["image"]).await?),
        };
        #[allow(clippy::cast_possible_truncation)] // JSON has no float32
        found.push(match term["weight"].as_f64() {
            Some(weight) => made.weighted(weight as f32),
            None => made,
        });
    }
    Ok(found)
}

fn result_json(result: &ItemResult<String>) -> Value {
    let id = &result.id;
    match &result.outcome {
        Ok(Outcome::Embedding(Vector::Floats(values), _)) => json!({"id": id, "embedding": values}),
        Ok(Outcome::Embedding(Vector::Int8(vector), _)) => {
            json!({"id": id, "embedding": int8(vector)})
        }
        Ok(Outcome::Embedding(Vector::Binary(bits), _)) => {
            json!({"id": id, "embedding": binary(bits)})
        }
        Ok(Outcome::Classifications(found)) => {
            json!({"id": id, "classifications": classifications(found)})
        }
        Ok(Outcome::Comparison(found)) => {
            json!({"id": id, "similarity": found.similarity, "logit": found.logit})
        }
        Ok(_) => unreachable!("the driver knows all outcomes"),
        Err(error) => json!({"id": id, "error": error_json(error)}),
    }
}

fn failure_json(failure: &Failure) -> Value {
    let local = |code: &str, message: String| {
        json!({"code": code, "reason": "", "domain": null, "message": message, "fields": [],
               "retry_delay_seconds": null, "metadata": {}})
    };
    match failure {
        Failure::Call(error) => error_json(error),
        Failure::Cancelled => local("CANCELLED", "the future was dropped".into()),
        Failure::Client(error) => local("CLIENT", format!("{error:#}")),
    }
}

fn error_json(error: &Error) -> Value {
    let fields: Vec<_> = error
        .violations()
        .iter()
        .map(|each| json!({"field": each.field, "reason": each.reason, "description": each.description}))
        .collect();
    json!({
        "code": screaming_snake_cased(&format!("{:?}", error.code())),
        "reason": error.reason(),
        "domain": Some(error.domain()).filter(|domain| !domain.is_empty()),
        "message": error.message(),
        "fields": fields,
        "retry_delay_seconds": error.retry_delay().map(|delay| delay.as_secs_f64()),
        "metadata": error.metadata(),
    })
}

fn classifications(found: &[Classification]) -> Vec<Value> {
    found
        .iter()
        .map(|each| {
            json!({"label": each.label, "label_index": each.label_index, "score": each.score,
                   "similarity": each.similarity, "logit": each.logit})
        })
        .collect()
}

fn floats(values: &Vec<f32>) -> Value {
    json!(values)
}

fn int8(vector: &alignserve::Int8Vector) -> Value {
    json!({"values": vector.values, "scale": vector.scale})
}

fn binary(bits: &Vec<u8>) -> Value {
    json!(BASE64_STANDARD.encode(bits))
}

fn format(request: &Value) -> Result<Format, Failure> {
    Ok(match request["format"].as_str() {
        None | Some("float32") => Format::Float32,
        Some("float_list") => Format::FloatList,
        Some("float16") => Format::Float16,
        Some("int8") => Format::Int8,
        Some("binary") => Format::Binary,
        Some(other) => return Err(anyhow!("the format {other:?} is unknown").into()),
    })
}

fn top_k(request: &Value) -> Result<i32, Failure> {
    Ok(i32::try_from(request["top_k"].as_i64().unwrap_or_default()).context("top_k")?)
}

async fn read(path: &str) -> Result<Vec<u8>, Failure> {
    Ok(tokio::fs::read(path)
        .await
        .with_context(|| path.to_owned())?)
}

fn decoded(base64: &str) -> Result<Vec<u8>, Failure> {
    Ok(BASE64_STANDARD.decode(base64).context("base64")?)
}

fn seconds(value: &Value) -> Option<Duration> {
    value.as_f64().map(Duration::from_secs_f64)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn strings(value: &Value) -> Vec<String> {
    list(value).map(|each| text(each).to_owned()).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn screaming_snake_cased(name: &str) -> String {
    let mut found = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !found.is_empty() {
            found.push('_');
        }
        found.push(letter.to_ascii_uppercase());
    }
    found
}

/// Drops keys that are null, which are not given.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| (name, without_nulls(value)))
                .collect::<Map<_, _>>(),
        ),
        Value::Array(values) => values.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

fn print(value: &Value) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{value}")?;
    Ok(output.flush()?)
}
