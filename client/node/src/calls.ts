/** The unary calls, over any transport. */

import {
  create,
  type DescMessage,
  type DescMethodUnary,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";

import { AlignService } from "./gen/alignserve/v1/align_service_pb.js";
import type { ImageInput } from "./images.js";
import {
  classificationsOf,
  classifyRequest,
  compareRequest,
  embedImageRequest,
  embedQueryRequest,
  embedTextRequest,
  plain,
  type Classification,
  type ClassifyOptions,
  type Comparison,
  type EmbeddingOptions,
  type ImageTextPair,
  type ModelInfo,
  type QueryTerm,
  type TextOptions,
  type Tokenization,
} from "./messages.js";
import { Repeats, type RetryPolicy } from "./retry.js";
import type { Attempt, Transport } from "./transport.js";
import { readVector, type Format, type Vector } from "./vectors.js";

/** `interactive`: a user is waiting. `bulk`: served when no interactive work is waiting, and at a low rate otherwise. */
export type Priority = "interactive" | "bulk";

/** Defaults of a client's calls. */
export interface CallDefaults {
  /** Sent with every call, as `authorization: Bearer KEY`. */
  readonly apiKey?: string | undefined;
  /** Deadline of each call over all its attempts; `Infinity` for none. Default 30 seconds. */
  readonly timeoutMs?: number | undefined;
  readonly priority?: Priority | undefined;
  /** Largest response message that is accepted; the server is told. Default 16 MiB. */
  readonly maxResponseBytes?: number | undefined;
  /** When failed calls are repeated; `false` for never. */
  readonly retry?: RetryPolicy | false | undefined;
  /** More metadata, with lower-case names. */
  readonly headers?: Readonly<Record<string, string>> | undefined;
}

/** Options of one call, which override the client's. */
export interface CallOptions {
  readonly timeoutMs?: number | undefined;
  /** Cancels the call, which then rejects with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
  readonly priority?: Priority | undefined;
  readonly headers?: Readonly<Record<string, string>> | undefined;
}

export const DEFAULT_MAX_RESPONSE_BYTES = 16 << 20;
const DEFAULT_TIMEOUT_MS = 30_000;

/** The calls that every client has. */
export class Calls {
  protected readonly repeats: Repeats;
  readonly #transport: Transport;
  readonly #timeoutMs: number;
  readonly #headers: ReadonlyMap<string, string>;

  protected constructor(transport: Transport, defaults: CallDefaults) {
    this.#transport = transport;
    this.#timeoutMs = defaults.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    this.#headers = new Map([
      ["alignserve-max-response-bytes", String(defaults.maxResponseBytes ?? DEFAULT_MAX_RESPONSE_BYTES)],
      ...(defaults.apiKey === undefined ? [] : [["authorization", `Bearer ${validKey(defaults.apiKey)}`] as const]),
      ...headersOf(defaults),
    ]);
    this.repeats = new Repeats(defaults.retry);
  }

  /** Embeds images, in order. All succeed, or the call fails and names those at fault. */
  async embedImages<F extends Format = "float32">(
    images: readonly ImageInput[],
    options: EmbeddingOptions<F> & CallOptions = {},
  ): Promise<{ embeddings: Vector<F>[] }> {
    const response = await this.call(AlignService.method.embedImage, embedImageRequest(images, options), options);
    return { embeddings: response.embeddings.map((each) => readVector(each, formatOf(options))) };
  }

  /** Embeds texts, in order. */
  async embedTexts<F extends Format = "float32">(
    texts: readonly string[],
    options: EmbeddingOptions<F> & TextOptions & CallOptions = {},
  ): Promise<{ embeddings: Vector<F>[]; tokenizations: Tokenization[] }> {
    const response = await this.call(AlignService.method.embedText, embedTextRequest(texts, options), options);
    return {
      embeddings: response.embeddings.map((each) => readVector(each, formatOf(options))),
      tokenizations: response.tokenizations.map(plain),
    };
  }

  /** Scores images against labels. Returns a list for each image, best label first. */
  async classify(
    images: readonly ImageInput[],
    labels: readonly string[],
    options: ClassifyOptions & CallOptions = {},
  ): Promise<{ results: Classification[][] }> {
    const response = await this.call(AlignService.method.classify, classifyRequest(images, labels, options), options);
    return { results: response.results.map(classificationsOf) };
  }

  /** Compares images with texts, pair by pair. */
  async compare(
    pairs: readonly ImageTextPair[],
    options: TextOptions & CallOptions = {},
  ): Promise<{ comparisons: Comparison[]; tokenizations: Tokenization[] }> {
    const response = await this.call(AlignService.method.compare, compareRequest(pairs, options), options);
    return { comparisons: response.comparisons.map(plain), tokenizations: response.tokenizations.map(plain) };
  }

  /** Embeds composed queries, each a list of weighted images and texts. */
  async embedQueries<F extends Format = "float32">(
    queries: readonly (readonly QueryTerm[])[],
    options: EmbeddingOptions<F> & TextOptions & CallOptions = {},
  ): Promise<{ embeddings: Vector<F>[] }> {
    const response = await this.call(AlignService.method.embedQuery, embedQueryRequest(queries, options), options);
    return { embeddings: response.embeddings.map((each) => readVector(each, formatOf(options))) };
  }

  /** Returns the model being served, and the limits that apply to requests. */
  async modelInfo(options: CallOptions = {}): Promise<ModelInfo> {
    return plain(await this.call(AlignService.method.getModelInfo, {}, options));
  }

  /** Makes any unary call with a message of `alignserve/v1`, with this client's repeats and errors. */
  async call<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
    options: CallOptions = {},
  ): Promise<MessageShape<O>> {
    const attempt = this.attemptOf(options, options.timeoutMs ?? this.#timeoutMs);
    const message = create(method.input, request);
    return this.repeats.run(() => this.#transport.unary(method, message, attempt), attempt.deadline, attempt.signal);
  }

  protected attemptOf(options: CallOptions, timeoutMs: number): Attempt {
    options.signal?.throwIfAborted();
    return {
      deadline: Date.now() + timeoutMs,
      headers: new Map([...this.#headers, ...headersOf(options)]),
      signal: options.signal,
    };
  }
}

function formatOf<F extends Format>(options: EmbeddingOptions<F>): F {
  return options.format ?? ("float32" as F);
}

function headersOf({ headers = {}, priority }: CallOptions): [string, string][] {
  const priorities: [string, string][] = priority === undefined ? [] : [["alignserve-priority", priority]];
  return [
    ...priorities,
    ...Object.entries(headers).map(([name, value]): [string, string] => [name.toLowerCase(), value]),
  ];
}

function validKey(key: string): string {
  const trimmed = key.trim(); // files end with a line break
  // The message never contains the key.
  if (!/^[\x21-\x7e]+$/.test(trimmed)) throw new TypeError("the API key is empty, or has characters that no key has");
  return trimmed;
}
