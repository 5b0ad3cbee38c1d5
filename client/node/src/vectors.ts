/** Vectors: how they travel, how they are read, and how they are compared. */

import { EmbeddingFormat, type Embedding } from "./gen/alignserve/v1/align_service_pb.js";

/**
 * How embeddings travel.
 *
 * - `float32`: exact, 4 bytes per number.
 * - `float16`: about three decimal digits, 2 bytes.
 * - `int8`: cosine similarity above 0.999 to the exact vector, 1 byte.
 * - `binary`: the sign of each number, 1 bit; compare by {@link hammingDistance}.
 * - `float_list`: exact, a protobuf list, slower to read than `float32`.
 */
export type Format = "float32" | "float16" | "int8" | "binary" | "float_list";

/** A vector in a byte per number: `values[i] * scale` restores number `i`. */
export interface Int8Vector {
  readonly values: Int8Array<ArrayBuffer>;
  readonly scale: number;
}

/** The vector that a format is read into. */
export type Vector<F extends Format = "float32"> = F extends "int8"
  ? Int8Vector
  : F extends "binary"
    ? Uint8Array<ArrayBuffer>
    : Float32Array<ArrayBuffer>;

const WIRE_FORMATS: Readonly<Record<Format, EmbeddingFormat>> = {
  float_list: EmbeddingFormat.FLOAT_LIST,
  float32: EmbeddingFormat.PACKED_FLOAT32,
  float16: EmbeddingFormat.PACKED_FLOAT16,
  int8: EmbeddingFormat.PACKED_INT8,
  binary: EmbeddingFormat.PACKED_BINARY,
};

/** Returns the format's value in a request. */
export function wireFormat(format: Format): EmbeddingFormat {
  const value = WIRE_FORMATS[format];
  if (value === undefined) {
    throw new TypeError(`format ${JSON.stringify(format)} is unknown; use ${Object.keys(WIRE_FORMATS).join(", ")}`);
  }
  return value;
}

/** Reads an embedding that was requested in a format. The result shares no memory with the response. */
export function readVector<F extends Format>(embedding: Embedding, format: F): Vector<F> {
  return read(embedding, format) as Vector<F>;
}

function read(embedding: Embedding, format: Format): Float32Array | Int8Vector | Uint8Array {
  switch (format) {
    case "float_list":
      return Float32Array.from(embedding.values);
    case "float32":
      return readFloat32(embedding.packedFloat32);
    case "float16":
      return readFloat16(embedding.packedFloat16);
    case "int8":
      return { values: new Int8Array(new Uint8Array(embedding.packedInt8).buffer), scale: embedding.int8Scale };
    case "binary":
      return new Uint8Array(embedding.packedBinary);
  }
}

/**
 * Reads little-endian single-precision floats from bytes at any offset.
 *
 * A `Float32Array` cannot view a field of a message: the field starts anywhere, and a view must start at a multiple of 4.
 */
export function readFloat32(bytes: Uint8Array): Float32Array<ArrayBuffer> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const values = new Float32Array(bytes.byteLength >> 2);
  for (let index = 0; index < values.length; index++) values[index] = view.getFloat32(4 * index, true);
  return values;
}

/** Reads little-endian half-precision floats from bytes at any offset. */
export function readFloat16(bytes: Uint8Array): Float32Array<ArrayBuffer> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const values = new Float32Array(bytes.byteLength >> 1);
  for (let index = 0; index < values.length; index++) values[index] = halfToNumber(view.getUint16(2 * index, true));
  return values;
}

/** Returns the cosine similarity of two vectors of the same length, from -1 to 1. */
export function cosineSimilarity(a: Float32Array | Int8Array, b: Float32Array | Int8Array): number {
  if (a.length !== b.length) throw new RangeError(`vectors of ${a.length} and ${b.length} numbers cannot be compared`);
  let dot = 0;
  let squaresOfA = 0;
  let squaresOfB = 0;
  for (let index = 0; index < a.length; index++) {
    const [x, y] = [a[index]!, b[index]!];
    dot += x * y;
    squaresOfA += x * x;
    squaresOfB += y * y;
  }
  return dot / Math.sqrt(squaresOfA * squaresOfB);
}

/** Returns the number of bits that differ between two `binary` vectors. */
export function hammingDistance(a: Uint8Array, b: Uint8Array): number {
  if (a.length !== b.length) throw new RangeError(`vectors of ${a.length} and ${b.length} bytes cannot be compared`);
  let distance = 0;
  for (let index = 0; index < a.length; index++) {
    for (let bits = a[index]! ^ b[index]!; bits; bits &= bits - 1) distance++;
  }
  return distance;
}

function halfToNumber(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
