/** Images as callers have them, and as requests carry them. */

import { create, type MessageInitShape } from "@bufbuild/protobuf";

import { ImageSchema, PixelsSchema } from "./gen/alignserve/v1/align_service_pb.js";

/** Decoded pixels: red, green and blue, a byte each, row by row from the top left. */
export interface RgbPixels {
  readonly width: number;
  readonly height: number;
  readonly data: Uint8Array;
}

/** Decoded pixels of a canvas: `ImageData`, or what else has the same fields. Alpha is dropped. */
export interface RgbaPixels {
  readonly width: number;
  readonly height: number;
  readonly data: Uint8ClampedArray;
}

/** The bytes of an image file, or decoded pixels. */
export type ImageInput = Uint8Array | ArrayBuffer | RgbPixels | RgbaPixels;

/** Returns the message for an image. */
export function imageMessage(image: ImageInput): MessageInitShape<typeof ImageSchema> {
  if (image instanceof Uint8Array) return { source: { case: "content", value: image } };
  if (isArrayBuffer(image)) return { source: { case: "content", value: new Uint8Array(image) } };
  if (typeof image !== "object" || image === null || !("data" in image)) {
    throw new TypeError("an image must be the bytes of a file, or pixels with width, height and data");
  }
  const { width, height, data } = image;
  const rgb = data instanceof Uint8ClampedArray ? withoutAlpha(data) : data;
  return { source: { case: "pixels", value: create(PixelsSchema, { width, height, data: rgb }) } };
}

// Not instanceof: an ArrayBuffer of another realm, such as a frame's or a test runner's, is one too.
function isArrayBuffer(value: unknown): value is ArrayBuffer {
  return Object.prototype.toString.call(value) === "[object ArrayBuffer]";
}

function withoutAlpha(rgba: Uint8ClampedArray): Uint8Array {
  const rgb = new Uint8Array((rgba.length >> 2) * 3);
  for (let from = 0, to = 0; to < rgb.length; from += 4, to += 3) {
    rgb[to] = rgba[from]!;
    rgb[to + 1] = rgba[from + 1]!;
    rgb[to + 2] = rgba[from + 2]!;
  }
  return rgb;
}
