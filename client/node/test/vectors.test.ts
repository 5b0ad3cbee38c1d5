import assert from "node:assert/strict";
import { test } from "node:test";

import { create } from "@bufbuild/protobuf";

import { EmbeddingSchema } from "../src/gen/alignserve/v1/align_service_pb.js";
import { cosineSimilarity, hammingDistance, readFloat16, readFloat32 } from "../src/index.js";
import { readVector } from "../src/vectors.js";
import { floats } from "./server.js";

test("floats are read from any offset", () => {
  for (let offset = 0; offset < 8; offset++) {
    const message = new Uint8Array(offset + 8);
    message.set(floats(1.5, -2), offset);

    const vector = readFloat32(message.subarray(offset));

    assert.deepEqual([...vector], [1.5, -2]);
  }
});

test("floats are read from a Buffer, whose slices share memory", () => {
  const vector = readFloat32(Buffer.concat([Buffer.of(7), floats(0.25)]).subarray(1));

  assert.deepEqual([...vector], [0.25]);
});

test("half-precision floats keep their values", () => {
  const bits = [0x3c00, 0xc000, 0x0001, 0x03ff, 0x7bff, 0x8000, 0x7c00, 0xfc00, 0x7e00];
  const message = Buffer.alloc(1 + 2 * bits.length);
  bits.forEach((value, index) => message.writeUInt16LE(value, 1 + 2 * index));

  const vector = readFloat16(message.subarray(1));

  const expected = [1, -2, 2 ** -24, 1023 * 2 ** -24, 65504, -0, Infinity, -Infinity, NaN];
  assert.deepEqual([...vector], [...Float32Array.from(expected)]);
});

test("int8 and binary vectors outlive the response", () => {
  const packed = Uint8Array.of(0x7f, 0x81);
  const embedding = create(EmbeddingSchema, { packedInt8: packed, int8Scale: 0.5, packedBinary: packed });

  const { values, scale } = readVector(embedding, "int8");
  const binary = readVector(embedding, "binary");
  packed.fill(0);

  assert.deepEqual([...values], [127, -127]);
  assert.equal(scale, 0.5);
  assert.deepEqual([...binary], [0x7f, 0x81]);
});

test("cosine similarity ignores lengths, and refuses other dimensions", () => {
  assert.equal(cosineSimilarity(Float32Array.of(2, 0), Float32Array.of(5, 0)), 1);
  assert.equal(cosineSimilarity(Int8Array.of(0, 9), Int8Array.of(4, 0)), 0);
  assert.throws(() => cosineSimilarity(Float32Array.of(1), Float32Array.of(1, 2)), RangeError);
});

test("the hamming distance counts bits", () => {
  assert.equal(hammingDistance(Uint8Array.of(0xff, 0x01), Uint8Array.of(0x0f, 0x03)), 5);
});
