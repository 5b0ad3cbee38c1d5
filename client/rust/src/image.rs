//! Images as callers have them, and as requests carry them.

use prost::bytes::Bytes;

use crate::v1::{self, Pixels, image::Source};

/// An image: the bytes of a file, or decoded pixels. A clone shares them.
#[derive(Debug, Clone)]
pub struct Image(pub(crate) v1::Image);

impl Image {
    /// Returns the image with these pixels: red, green and blue, a byte each, row by row from the top left.
    ///
    /// The server refuses pixels whose number does not fit.
    #[must_use]
    pub fn rgb(width: u32, height: u32, data: impl Into<Bytes>) -> Self {
        // A size above the range is refused by the server, since no data fits it.
        let size = |value| i32::try_from(value).unwrap_or(i32::MAX);
        let pixels = Pixels {
            width: size(width),
            height: size(height),
            data: data.into(),
        };
        Self(v1::Image {
            source: Some(Source::Pixels(pixels)),
        })
    }
}

impl From<Bytes> for Image {
    fn from(content: Bytes) -> Self {
        Self(v1::Image {
            source: Some(Source::Content(content)),
        })
    }
}

impl From<Vec<u8>> for Image {
    fn from(content: Vec<u8>) -> Self {
        Bytes::from(content).into()
    }
}

impl From<&[u8]> for Image {
    fn from(content: &[u8]) -> Self {
        Bytes::copy_from_slice(content).into()
    }
}

#[cfg(feature = "image")]
impl From<image::RgbImage> for Image {
    fn from(image: image::RgbImage) -> Self {
        Self::rgb(image.width(), image.height(), image.into_raw())
    }
}

#[cfg(feature = "image")]
impl From<image::DynamicImage> for Image {
    fn from(image: image::DynamicImage) -> Self {
        image.into_rgb8().into()
    }
}
