//! Client of [alignserve](https://github.com/alignserve/alignserve): embeds images and texts into one space, and
//! classifies images by labels.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use alignserve::{Client, Image, cosine_similarity};
//!
//! let client = Client::new("http://127.0.0.1:50051")?;
//! let cat = Image::from(std::fs::read("cat.jpg")?);
//!
//! let images = client.embed_images([cat.clone()]).await?;
//! let texts = client.embed_texts(["a cat"]).await?;
//! println!("{}", cosine_similarity(&images.vectors[0], &texts.vectors[0]));
//!
//! let labels = client.classify([cat], ["cat", "dog"]).await?;
//! println!("{:?}", labels[0][0]); // the best label of the first image
//! # Ok(())
//! # }
//! ```

mod call;
mod client;
mod error;
mod image;
mod in_flight;
mod retry;
mod stream;
mod vector;

pub use tonic::Code;
pub use tonic_types::FieldViolation;

pub use crate::call::{
    Call, Classify, Compare, Comparisons, EmbedImages, EmbedQueries, EmbedTexts, Embeddings,
};
pub use crate::client::{Builder, Client, Priority};
pub use crate::error::Error;
pub use crate::image::Image;
pub use crate::retry::RetryPolicy;
pub use crate::stream::{Item, ItemResult, Outcome, StreamCall};
pub use crate::vector::{
    Binary, Encoding, Float16, Float32, FloatList, Format, Int8, Int8Vector, Vector,
    cosine_similarity, hamming_distance,
};
pub use v1::{Classification, Comparison, QueryTerm, Tokenization};

/// The model being served, and the limits that apply to requests.
pub type ModelInfo = v1::GetModelInfoResponse;

/// The messages and stubs that are generated from the protos.
#[allow(missing_docs, clippy::pedantic, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("alignserve.v1");
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
