/** Requests from callers' values, and callers' values from responses; shared by unary calls and streams. */

import { create, type MessageInitShape } from "@bufbuild/protobuf";

import {
  ClassifyRequestSchema,
  CompareRequestSchema,
  EmbedImageRequestSchema,
  EmbedQueryRequestSchema,
  EmbedTextRequestSchema,
  type Classification as ClassificationMessage,
  type ClassificationResult,
  type ClassifyRequest,
  type CompareRequest,
  type Comparison as ComparisonMessage,
  type EmbeddingOptionsSchema,
  type EmbedImageRequest,
  type EmbedQueryRequest,
  type EmbedTextRequest,
  type GetModelInfoResponse,
  type Tokenization as TokenizationMessage,
} from "./gen/alignserve/v1/align_service_pb.js";
import { imageMessage, type ImageInput } from "./images.js";
import { wireFormat, type Format } from "./vectors.js";

/** A message without protobuf's own fields, and with its 64-bit integers as numbers. */
export type Plain<T> = {
  readonly [K in keyof T as K extends `$${string}` ? never : K]: T[K] extends bigint ? number : T[K];
};

/** A label and how well it matches an image; `score` is relative to the other labels, `similarity` is not. */
export type Classification = Plain<ClassificationMessage>;
/** How well a text matches an image. */
export type Comparison = Plain<ComparisonMessage>;
/** How a text was tokenized. */
export type Tokenization = Plain<TokenizationMessage>;
/** The model being served, and the limits that apply to requests. */
export type ModelInfo = Plain<GetModelInfoResponse>;

export interface EmbeddingOptions<F extends Format> {
  /** How embeddings travel. Default `float32`. */
  readonly format?: F | undefined;
  /** `false` returns the model's output without scaling it to length 1. */
  readonly normalize?: boolean | undefined;
}

export interface TextOptions {
  /** Cuts texts that are too long, instead of failing. */
  readonly truncate?: boolean | undefined;
}

export interface ClassifyOptions {
  /** Prompts that embed each label, such as `a photo of a {label}`; several are averaged. */
  readonly promptTemplates?: readonly string[] | undefined;
  /** Maximum number of classifications per image; 0, the default, for all. */
  readonly topK?: number | undefined;
}

/** An image, and a text that may describe it. */
export interface ImageTextPair {
  readonly image: ImageInput;
  readonly text: string;
}

/** A part of a composed query: an image or a text, and its weight (1 if not given; below 0 to move away from it). */
export type QueryTerm = ({ readonly image: ImageInput } | { readonly text: string }) & {
  readonly weight?: number | undefined;
};

export function embedImageRequest(images: readonly ImageInput[], options: EmbeddingOptions<Format>): EmbedImageRequest {
  return create(EmbedImageRequestSchema, {
    images: images.map(imageMessage),
    embeddingOptions: embeddingOptions(options),
  });
}

export function embedTextRequest(
  texts: readonly string[],
  options: EmbeddingOptions<Format> & TextOptions,
): EmbedTextRequest {
  return create(EmbedTextRequestSchema, {
    texts: [...texts],
    embeddingOptions: embeddingOptions(options),
    truncate: options.truncate ?? false,
  });
}

export function classifyRequest(
  images: readonly ImageInput[],
  labels: readonly string[],
  options: ClassifyOptions,
): ClassifyRequest {
  return create(ClassifyRequestSchema, {
    images: images.map(imageMessage),
    labels: [...labels],
    promptTemplates: [...(options.promptTemplates ?? [])],
    topK: options.topK ?? 0,
  });
}

export function compareRequest(pairs: readonly ImageTextPair[], options: TextOptions): CompareRequest {
  return create(CompareRequestSchema, {
    pairs: pairs.map(({ image, text }) => ({ image: imageMessage(image), text })),
    truncate: options.truncate ?? false,
  });
}

export function embedQueryRequest(
  queries: readonly (readonly QueryTerm[])[],
  options: EmbeddingOptions<Format> & TextOptions,
): EmbedQueryRequest {
  return create(EmbedQueryRequestSchema, {
    queries: queries.map((terms) => ({
      terms: terms.map((term) => ({
        input:
          "image" in term
            ? { case: "image" as const, value: imageMessage(term.image) }
            : { case: "text" as const, value: term.text },
        ...(term.weight === undefined ? {} : { weight: term.weight }),
      })),
    })),
    embeddingOptions: embeddingOptions(options),
    truncate: options.truncate ?? false,
  });
}

/** Returns the classifications of one image, best first. */
export function classificationsOf(result: ClassificationResult): Classification[] {
  return result.classifications.map(plain);
}

/** Returns a message's own fields. */
export function plain<T extends object>(message: T): Plain<T> {
  const fields = Object.entries(message).filter(([name]) => !name.startsWith("$"));
  return Object.fromEntries(
    fields.map(([name, value]) => [name, typeof value === "bigint" ? Number(value) : value]),
  ) as Plain<T>;
}

function embeddingOptions(options: EmbeddingOptions<Format>): MessageInitShape<typeof EmbeddingOptionsSchema> {
  return { format: wireFormat(options.format ?? "float32"), skipNormalization: options.normalize === false };
}
