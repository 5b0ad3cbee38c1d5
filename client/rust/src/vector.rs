//! Vectors: how they travel, how they are read, and how they are compared.

use crate::v1::{Embedding, EmbeddingFormat};

/// How embeddings travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Exact, 4 bytes per number.
    #[default]
    Float32,
    /// About three decimal digits, 2 bytes per number.
    Float16,
    /// Cosine similarity above 0.999 to the exact vector, 1 byte per number.
    Int8,
    /// The sign of each number, 1 bit; compare by [`hamming_distance`].
    Binary,
    /// Exact, as a protobuf list; slower to read than `Float32`.
    FloatList,
}

impl Format {
    pub(crate) fn wire(self) -> EmbeddingFormat {
        match self {
            Self::Float32 => EmbeddingFormat::PackedFloat32,
            Self::Float16 => EmbeddingFormat::PackedFloat16,
            Self::Int8 => EmbeddingFormat::PackedInt8,
            Self::Binary => EmbeddingFormat::PackedBinary,
            Self::FloatList => EmbeddingFormat::FloatList,
        }
    }

    pub(crate) fn read(self, embedding: Embedding) -> Vector {
        match self {
            Self::Float32 => Vector::Floats(read_float32(&embedding.packed_float32)),
            Self::Float16 => Vector::Floats(read_float16(&embedding.packed_float16)),
            Self::Int8 => Vector::Int8(Int8Vector {
                values: embedding
                    .packed_int8
                    .iter()
                    .map(|&byte| byte.cast_signed())
                    .collect(),
                scale: embedding.int8_scale,
            }),
            Self::Binary => Vector::Binary(embedding.packed_binary.to_vec()),
            Self::FloatList => Vector::Floats(embedding.values),
        }
    }
}

/// A vector in a byte per number: `values[i] * scale` restores number `i`.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8Vector {
    /// From -127 to 127.
    pub values: Vec<i8>,
    /// Factor of all values.
    pub scale: f32,
}

/// A vector in the format that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Vector {
    /// Of [`Format::Float32`], [`Format::Float16`] and [`Format::FloatList`].
    Floats(Vec<f32>),
    /// Of [`Format::Int8`].
    Int8(Int8Vector),
    /// Of [`Format::Binary`]: packed bits, the first number in the highest bit of the first byte.
    Binary(Vec<u8>),
}

/// A [`Format`] that is known when the program is compiled, and with it the type of the vectors.
pub trait Encoding: Copy + Send + Sync + 'static {
    /// The type of a vector.
    type Vector: Send;
    /// The format.
    const FORMAT: Format;

    /// Reads a vector of this format.
    #[doc(hidden)]
    fn read(embedding: Embedding) -> Self::Vector;
}

macro_rules! encoding {
    ($name:ident, $variant:ident($vector:ty)) => {
        #[doc = concat!("[`Format::", stringify!($name), "`].")]
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl Encoding for $name {
            type Vector = $vector;
            const FORMAT: Format = Format::$name;

            fn read(embedding: Embedding) -> Self::Vector {
                match Self::FORMAT.read(embedding) {
                    Vector::$variant(vector) => vector,
                    _ => unreachable!("a format is read into one kind of vector"),
                }
            }
        }
    };
}

encoding!(Float32, Floats(Vec<f32>));
encoding!(Float16, Floats(Vec<f32>));
encoding!(FloatList, Floats(Vec<f32>));
encoding!(Int8, Int8(Int8Vector));
encoding!(Binary, Binary(Vec<u8>));

/// Returns the cosine similarity of two vectors, from -1 to 1.
///
/// # Panics
///
/// If they have different lengths.
#[must_use]
pub fn cosine_similarity(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(
        a.len(),
        b.len(),
        "vectors of different lengths cannot be compared"
    );
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(p, q)| p * q).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Returns the number of bits that differ between two binary vectors.
///
/// # Panics
///
/// If they have different lengths.
#[must_use]
pub fn hamming_distance(a: &[u8], b: &[u8]) -> u32 {
    assert_eq!(
        a.len(),
        b.len(),
        "vectors of different lengths cannot be compared"
    );
    a.iter().zip(b).map(|(x, y)| (x ^ y).count_ones()).sum()
}

// Not a cast of the slice: a field of a message starts at any address, and another machine has another byte order.
fn read_float32(bytes: &[u8]) -> Vec<f32> {
    let (chunks, _) = bytes.as_chunks();
    chunks
        .iter()
        .map(|&chunk| f32::from_le_bytes(chunk))
        .collect()
}

fn read_float16(bytes: &[u8]) -> Vec<f32> {
    let (chunks, _) = bytes.as_chunks();
    chunks
        .iter()
        .map(|&chunk| half_to_float(u16::from_le_bytes(chunk)))
        .collect()
}

fn half_to_float(bits: u16) -> f32 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let exponent = (bits >> 10) & 0x1f;
    let fraction = f32::from(bits & 0x3ff);
    match exponent {
        0 => sign * fraction * (-24_f32).exp2(),
        31 if fraction == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1.0 + fraction / 1024.0) * (f32::from(exponent) - 15.0).exp2(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_read_from_any_offset() {
        for offset in 0..8 {
            let mut message = vec![7; offset];
            message.extend([1.5_f32, -2.0].iter().flat_map(|value| value.to_le_bytes()));

            assert_eq!(read_float32(&message[offset..]), [1.5, -2.0]);
        }
    }

    #[test]
    fn half_precision_floats_keep_their_values() {
        let cases: [(u16, f32); 8] = [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x0001, 2_f32.powi(-24)),
            (0x03ff, 1023.0 * 2_f32.powi(-24)),
            (0x7bff, 65504.0),
            (0x8000, -0.0),
            (0x7c00, f32::INFINITY),
            (0xfc00, f32::NEG_INFINITY),
        ];
        for (bits, value) in cases {
            assert_eq!(read_float16(&bits.to_le_bytes()), [value]);
        }
        assert!(half_to_float(0x7e00).is_nan());
    }

    #[test]
    fn cosine_similarity_ignores_lengths() {
        assert!((cosine_similarity(&[2.0, 0.0], &[5.0, 0.0]) - 1.0).abs() < 1e-6);
        assert!(cosine_similarity(&[0.0, 9.0], &[4.0, 0.0]).abs() < 1e-6);
    }

    #[test]
    fn hamming_distance_counts_bits() {
        assert_eq!(hamming_distance(&[0xff, 0x01], &[0x0f, 0x03]), 5);
    }
}
