//! Finds the pictures of a folder that fit a text, and names what they show.
//!
//! ```sh
//! cargo run --example search -- http://127.0.0.1:50051 photos "a cup of coffee" cat dog coffee
//! ```
//!
//! `ALIGNSERVE_API_KEY` is sent if it is set, and `ALIGNSERVE_ROOT_CERTIFICATES` names the PEM file of a private authority.

use std::env;
use std::path::{Path, PathBuf};

use alignserve::{Client, Image, Item, Outcome, Vector, cosine_similarity};
use tokio_stream::StreamExt as _;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = env::args().skip(1);
    let address = arguments
        .next()
        .unwrap_or_else(|| "http://127.0.0.1:50051".to_owned());
    let folder = PathBuf::from(arguments.next().unwrap_or_else(|| "photos".to_owned()));
    let text = arguments
        .next()
        .unwrap_or_else(|| "a cup of coffee".to_owned());
    let labels: Vec<_> = arguments.collect();

    let client = connect(address)?;
    let pictures = pictures(&folder)?;
    compare_two(&client, &pictures, &text, labels).await?;
    search_all(&client, pictures, &text).await
}

fn connect(address: String) -> anyhow::Result<Client> {
    let mut builder = Client::builder(address);
    if let Ok(key) = env::var("ALIGNSERVE_API_KEY") {
        builder = builder.api_key(&key);
    }
    if let Ok(path) = env::var("ALIGNSERVE_ROOT_CERTIFICATES") {
        builder = builder.ca_certificate(std::fs::read(path)?);
    }
    Ok(builder.build()?)
}

/// Two pictures and a text in one space, and the labels of the pictures.
async fn compare_two(
    client: &Client,
    pictures: &[PathBuf],
    text: &str,
    labels: Vec<String>,
) -> anyhow::Result<()> {
    let mut images = Vec::new();
    for path in pictures.iter().take(2) {
        images.push(Image::from(tokio::fs::read(path).await?));
    }

    let found = client.embed_images(images.clone()).await?;
    let texts = client.embed_texts([text]).await?;
    for (path, vector) in pictures.iter().zip(&found.vectors) {
        println!(
            "{} and {text:?}: {:.4}",
            path.display(),
            cosine_similarity(vector, &texts.vectors[0])
        );
    }

    if labels.is_empty() {
        return Ok(());
    }
    let results = client
        .classify(images, labels)
        .prompt_templates(["a photo of a {label}"])
        .await?;
    for (path, classifications) in pictures.iter().zip(results) {
        let best = &classifications[0];
        println!(
            "{}: {}, score {:.4}, similarity {:.4}",
            path.display(),
            best.label,
            best.score,
            best.similarity
        );
    }
    Ok(())
}

/// All pictures over one stream; files are read as their turn comes.
async fn search_all(client: &Client, pictures: Vec<PathBuf>, text: &str) -> anyhow::Result<()> {
    let texts = client.embed_texts([text]).await?;
    let items = tokio_stream::iter(pictures).then(async |path| {
        // A file that cannot be read is sent empty, and refused as an item.
        let content = tokio::fs::read(&path).await.unwrap_or_default();
        Item::image(path, content)
    });

    let mut found = Vec::new();
    let mut results = client.stream(items).results();
    while let Some(result) = results.next().await {
        let result = result?;
        match result.outcome {
            Ok(Outcome::Embedding(Vector::Floats(vector), _)) => {
                found.push((cosine_similarity(&vector, &texts.vectors[0]), result.id));
            }
            Ok(_) => {}
            Err(error) => eprintln!("{}: {error}", result.id.display()),
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (cosine, path) in found.iter().take(5) {
        println!("{cosine:.4} {}", path.display());
    }
    Ok(())
}

fn pictures(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    const SUFFIXES: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "bmp"];
    let mut found = Vec::new();
    for entry in folder.read_dir()? {
        let path = entry?.path();
        if path.extension().is_some_and(|suffix| {
            SUFFIXES
                .iter()
                .any(|each| suffix.eq_ignore_ascii_case(each))
        }) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
