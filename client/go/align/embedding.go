package align

import (
	"encoding/binary"
	"math"
	"math/bits"

	"github.com/alignserve/alignserve/client/go/alignpb"
)

// Vector is an embedding in float32, of length 1 unless [Unnormalized] is given.
// Vectors are comparable only within one fingerprint of [Client.ModelInfo].
type Vector []float32

// Dot returns the dot product, which is the cosine similarity of vectors of
// length 1. It panics if other is shorter.
func (v Vector) Dot(other Vector) float64 {
	sum := 0.0
	for position, value := range v {
		sum += float64(value) * float64(other[position])
	}
	return sum
}

// Cosine returns the cosine similarity, from -1 to 1, of vectors of any length.
// It panics if other has fewer elements.
func (v Vector) Cosine(other Vector) float64 {
	return v.Dot(other) / math.Sqrt(v.Dot(v)*other.Dot(other))
}

// Format is the encoding of embeddings on the wire.
type Format alignpb.EmbeddingFormat

const (
	// Float32 is the default: packed, 4 bytes a number.
	Float32 = Format(alignpb.EmbeddingFormat_EMBEDDING_FORMAT_PACKED_FLOAT32)
	// Float16 keeps about three decimal digits in half of the bytes.
	Float16 = Format(alignpb.EmbeddingFormat_EMBEDDING_FORMAT_PACKED_FLOAT16)
	// Int8 has a quarter of the bytes, for vector stores that accept it.
	Int8 = Format(alignpb.EmbeddingFormat_EMBEDDING_FORMAT_PACKED_INT8)
	// Binary has the signs only, to find candidates with [Hamming].
	Binary = Format(alignpb.EmbeddingFormat_EMBEDDING_FORMAT_PACKED_BINARY)
	// FloatList is the unpacked form that JSON uses.
	FloatList = Format(alignpb.EmbeddingFormat_EMBEDDING_FORMAT_FLOAT_LIST)
)

// Embedding is the embedding of an image, a text or a query.
type Embedding struct {
	// Vector has the numbers, decoded from any format; nil with [Binary].
	Vector Vector
	// Int8 has the elements divided by Int8Scale; nil with other formats. Cosine
	// similarity needs no scale.
	Int8 []int8
	// Int8Scale multiplies Int8 to restore the elements.
	Int8Scale float32
	// Binary has a bit for each element, the first one highest; nil with other
	// formats.
	Binary []byte
}

// Tokenization is how the server tokenized a text.
type Tokenization struct {
	// TokenCount includes special tokens.
	TokenCount int
	// Truncated is whether the text was too long and was truncated.
	Truncated bool
	// UnknownTokenCount is the number of tokens that replace words missing from
	// the vocabulary. They are all the same to the model.
	UnknownTokenCount int
}

// TextEmbedding is the embedding of a text, and how it was tokenized.
type TextEmbedding struct {
	Embedding
	Tokenization
}

// Hamming returns the number of bits that differ: for embeddings at an angle a,
// about a / pi of all bits. It panics if b is shorter.
func Hamming(a, b []byte) int {
	count := 0
	for position, value := range a {
		count += bits.OnesCount8(value ^ b[position])
	}
	return count
}

func embeddingOf(message *alignpb.Embedding) Embedding {
	switch {
	case len(message.GetPackedFloat32()) > 0:
		return Embedding{Vector: unpackFloat32(message.GetPackedFloat32())}
	case len(message.GetPackedFloat16()) > 0:
		return Embedding{Vector: unpackFloat16(message.GetPackedFloat16())}
	case len(message.GetPackedInt8()) > 0:
		return int8Embedding(message.GetPackedInt8(), message.GetInt8Scale())
	case len(message.GetPackedBinary()) > 0:
		return Embedding{Binary: message.GetPackedBinary()}
	default:
		return Embedding{Vector: message.GetValues()}
	}
}

func embeddingsOf(messages []*alignpb.Embedding) []Embedding {
	embeddings := make([]Embedding, len(messages))
	for position, message := range messages {
		embeddings[position] = embeddingOf(message)
	}
	return embeddings
}

func tokenizationOf(message *alignpb.Tokenization) Tokenization {
	return Tokenization{
		TokenCount:        int(message.GetTokenCount()),
		Truncated:         message.GetTruncated(),
		UnknownTokenCount: int(message.GetUnknownTokenCount()),
	}
}

// unpackFloat32 copies, since the bytes of a message need not be aligned.
func unpackFloat32(packed []byte) Vector {
	vector := make(Vector, len(packed)/4)
	for position := range vector {
		vector[position] = math.Float32frombits(binary.LittleEndian.Uint32(packed[4*position:]))
	}
	return vector
}

func unpackFloat16(packed []byte) Vector {
	vector := make(Vector, len(packed)/2)
	for position := range vector {
		vector[position] = float16(binary.LittleEndian.Uint16(packed[2*position:]))
	}
	return vector
}

// float16 converts an IEEE 754 half, whose exponent is 5 bits with a bias of 15.
func float16(half uint16) float32 {
	exponent, fraction := int(half>>10&0x1f), float64(half&0x3ff)
	var value float64
	switch exponent {
	case 0: // zero and subnormal numbers
		value = math.Ldexp(fraction, -24)
	case 0x1f:
		value = math.Inf(1)
		if fraction != 0 {
			value = math.NaN()
		}
	default:
		value = math.Ldexp(fraction+1024, exponent-25)
	}
	if half>>15 == 1 {
		value = -value
	}
	return float32(value)
}

func int8Embedding(packed []byte, scale float32) Embedding {
	found := Embedding{Vector: make(Vector, len(packed)), Int8: make([]int8, len(packed)), Int8Scale: scale}
	for position, value := range packed {
		found.Int8[position] = int8(value)
		found.Vector[position] = float32(int8(value)) * scale
	}
	return found
}
