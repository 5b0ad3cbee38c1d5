/** A stream of items: a bounded number in flight, reconnects, and one result for every item. */

import { create } from "@bufbuild/protobuf";

import { AlignserveError, errorOf, finderIn } from "./errors.js";
import {
  DeliveryOrder,
  StreamInferRequestSchema,
  type Embedding,
  type StreamInferRequest,
  type StreamInferResponse,
} from "./gen/alignserve/v1/align_service_pb.js";
import type { InferStream } from "./grpc.js";
import type { ImageInput } from "./images.js";
import { InFlight } from "./in_flight.js";
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
  type QueryTerm,
  type TextOptions,
  type Tokenization,
} from "./messages.js";
import { sleep, type Repeats } from "./retry.js";
import { readVector, type Format, type Vector } from "./vectors.js";

/** An item of a stream. Its `id` is the caller's: any value, not sent, and not necessarily unique. */
export type StreamItem<Id = unknown> = { readonly id: Id } & (
  | ({ readonly kind: "image"; readonly image: ImageInput } & EmbeddingOptions<Format>)
  | ({ readonly kind: "text"; readonly text: string } & EmbeddingOptions<Format> & TextOptions)
  | ({ readonly kind: "classify"; readonly image: ImageInput; readonly labels: readonly string[] } & ClassifyOptions)
  | ({ readonly kind: "compare"; readonly image: ImageInput; readonly text: string } & TextOptions)
  | ({ readonly kind: "query"; readonly terms: readonly QueryTerm[] } & EmbeddingOptions<Format> & TextOptions)
);

/** The result of one item: what its kind returns, or why it failed. */
export type StreamResult<Id = unknown> = { readonly id: Id } & (
  | {
      readonly kind: "embedding";
      readonly embedding: Vector<"float32">;
      /** How the text was tokenized, for `text` items. */
      readonly tokenization?: Tokenization | undefined;
    }
  | { readonly kind: "int8"; readonly embedding: Vector<"int8"> }
  | { readonly kind: "binary"; readonly embedding: Vector<"binary"> }
  | { readonly kind: "classifications"; readonly classifications: Classification[] }
  | { readonly kind: "comparison"; readonly comparison: Comparison }
  | { readonly kind: "error"; readonly error: AlignserveError }
);

export interface StreamSettings {
  /** Maximum number of items that were read and whose results were not taken yet. Default 32. */
  readonly window?: number | undefined;
  /** Yields results in the order of the items; otherwise a slow item does not delay the others. */
  readonly ordered?: boolean | undefined;
  /** Called before the stream is opened again, with the reason. */
  readonly onReconnect?: ((reason: AlignserveError) => void) | undefined;
}

interface Entry<Id> {
  readonly item: StreamItem<Id>;
  readonly message: StreamInferRequest;
}

type Items<Id> = Iterable<StreamItem<Id>> | AsyncIterable<StreamItem<Id>>;

const MAX_STATUS_WAIT_MS = 5000;

/** Runs one stream; `open` opens a connection for it. */
export class Stream<Id> {
  readonly #open: () => InferStream;
  readonly #items: Items<Id>;
  readonly #settings: StreamSettings;
  readonly #repeats: Repeats;
  readonly #deadline: number;
  readonly #inFlight: InFlight<Entry<Id>, StreamResult<Id>>;
  readonly #changed = new Changes();
  readonly #ended = new AbortController();
  #answers = 0;
  #failure: { error: unknown } | undefined; // of the connection, which gives no more results
  #sourceFailure: { error: unknown } | undefined; // of the caller's items

  constructor(open: () => InferStream, items: Items<Id>, settings: StreamSettings, repeats: Repeats, deadline: number) {
    this.#open = open;
    this.#items = items;
    this.#settings = settings;
    this.#repeats = repeats;
    this.#deadline = deadline;
    this.#inFlight = new InFlight(settings.window ?? 32, settings.ordered ?? false);
  }

  /**
   * Yields a result for every item. Leaving the loop, or aborting the signal, cancels the stream.
   *
   * @throws AlignserveError if the stream broke and could not be opened again.
   */
  async *results(signal?: AbortSignal): AsyncGenerator<StreamResult<Id>, void, undefined> {
    const onAbort = () => this.#fail(signal?.reason);
    signal?.addEventListener("abort", onAbort, { once: true });
    try {
      signal?.throwIfAborted();
      void this.#feed();
      const received = this.#receive();
      for (let result; (result = await this.#next());) yield result;
      // The server's status, so that a stream whose items are all answered does not count as cancelled.
      await Promise.race([received, sleep(MAX_STATUS_WAIT_MS, this.#ended.signal)]);
    } finally {
      signal?.removeEventListener("abort", onAbort);
      this.#ended.abort();
      this.#changed.notify();
    }
    if (this.#sourceFailure) throw this.#sourceFailure.error;
  }

  async #next(): Promise<StreamResult<Id> | undefined> {
    for (;;) {
      const result = this.#inFlight.take();
      if (result) {
        this.#changed.notify();
        return result;
      }
      if (this.#inFlight.isDone) return undefined;
      if (this.#failure) throw this.#failure.error;
      await this.#changed.next();
    }
  }

  #fail(error: unknown): void {
    this.#failure ??= { error };
    this.#ended.abort();
    this.#changed.notify();
  }

  async #feed(): Promise<void> {
    try {
      for await (const item of this.#items) {
        this.#inFlight.enter({ item, message: messageOf(item, this.#inFlight.nextSequence) });
        this.#changed.notify();
        while (!this.#inFlight.hasRoom && !this.#ended.signal.aborted) await this.#changed.next();
        if (this.#ended.signal.aborted) return;
      }
    } catch (error) {
      this.#sourceFailure = { error }; // thrown after the results of the items before it
    }
    this.#inFlight.isComplete = true;
    this.#changed.notify();
  }

  async #receive(): Promise<void> {
    try {
      let attempts = 0;
      while (await this.#hasWork()) {
        const answers = this.#answers;
        const error = await this.#runConnection();
        if (!error) continue;
        attempts = this.#answers === answers ? attempts + 1 : 1;
        await sleep(this.#repeats.reconnectDelayMs(error, attempts, this.#deadline), this.#ended.signal);
        this.#settings.onReconnect?.(error);
      }
    } catch (error) {
      this.#fail(error); // no effect if the stream has ended
    }
  }

  async #hasWork(): Promise<boolean> {
    const { signal } = this.#ended;
    while (!signal.aborted && !this.#inFlight.hasUnanswered && !this.#inFlight.isComplete) await this.#changed.next();
    return !signal.aborted && this.#inFlight.hasUnanswered;
  }

  /** Sends and receives until the connection ends. Returns why, if items are left that another one could answer. */
  async #runConnection(): Promise<AlignserveError | undefined> {
    const over = new AbortController();
    const call = this.#open();
    const cancel = () => call.cancel();
    this.#ended.signal.addEventListener("abort", cancel, { once: true });
    const sending = this.#send(call, over.signal);
    try {
      for await (const response of call.responses) {
        const unavailable = this.#answer(response);
        if (unavailable) return unavailable;
      }
      return this.#inFlight.hasUnanswered
        ? new AlignserveError("UNAVAILABLE", "the server ended the stream early")
        : undefined;
    } catch (error) {
      if (error instanceof AlignserveError) return error;
      throw error;
    } finally {
      this.#ended.signal.removeEventListener("abort", cancel);
      over.abort();
      this.#changed.notify();
      call.cancel(); // no effect on a call that has ended
      await sending;
    }
  }

  async #send(call: InferStream, over: AbortSignal): Promise<void> {
    const deliveryOrder = this.#settings.ordered ? DeliveryOrder.AS_REQUESTED : DeliveryOrder.AS_COMPLETED;
    await call.write(create(StreamInferRequestSchema, { streamOptions: { deliveryOrder } }));
    for (let sent = -1; !over.aborted;) {
      const unsent = this.#inFlight.nextUnsent(sent);
      if (unsent) {
        sent = unsent[0];
        await call.write(unsent[1].message);
      } else if (this.#inFlight.isComplete) {
        return call.end();
      } else {
        await this.#changed.next();
      }
    }
  }

  /** Records a response. Returns its error if the server cannot answer any item now, and they must be sent again. */
  #answer(response: StreamInferResponse): AlignserveError | undefined {
    const sequence = Number(response.correlationId);
    const entry = this.#inFlight.unanswered(sequence);
    if (!entry) return undefined;
    const result = resultOf(entry.item, response);
    if (result.kind === "error" && result.error.code === "UNAVAILABLE") return result.error;
    this.#inFlight.answer(sequence, result);
    this.#answers++;
    this.#changed.notify();
    return undefined;
  }
}

/** Wakes all that wait for a change. */
class Changes {
  #waiting: (() => void)[] = [];

  next(): Promise<void> {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  notify(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const wake of waiting) wake();
  }
}

function messageOf(item: StreamItem, sequence: number): StreamInferRequest {
  return create(StreamInferRequestSchema, { correlationId: String(sequence), request: requestOf(item) });
}

function requestOf(item: StreamItem): StreamInferRequest["request"] {
  switch (item.kind) {
    case "image":
      return { case: "embedImage", value: embedImageRequest([item.image], item) };
    case "text":
      return { case: "embedText", value: embedTextRequest([item.text], item) };
    case "classify":
      return { case: "classify", value: classifyRequest([item.image], item.labels, item) };
    case "compare":
      return { case: "compare", value: compareRequest([item], item) };
    case "query":
      return { case: "embedQuery", value: embedQueryRequest([item.terms], item) };
    default:
      throw new TypeError(
        `an item's kind is image, text, classify, compare or query, not ${String((item as StreamItem).kind)}`,
      );
  }
}

function quantized<Id>(id: Id, embedding: Embedding, format: "int8" | "binary"): StreamResult<Id> {
  return format === "int8"
    ? { id, kind: format, embedding: readVector(embedding, format) }
    : { id, kind: format, embedding: readVector(embedding, format) };
}

function resultOf<Id>(item: StreamItem<Id>, { result }: StreamInferResponse): StreamResult<Id> {
  const { id } = item;
  switch (result.case) {
    case "error":
      return {
        id,
        kind: "error",
        error: errorOf(result.value.code, result.value.message, finderIn(result.value.details)),
      };
    case "embedImage":
    case "embedText":
    case "embedQuery": {
      const format = ("format" in item && item.format) || "float32";
      const [embedding] = result.value.embeddings;
      const [tokenization] = "tokenizations" in result.value ? result.value.tokenizations : [];
      if (!embedding) break;
      if (format === "int8" || format === "binary") return quantized(id, embedding, format);
      const vector = readVector(embedding, format);
      return { id, kind: "embedding", embedding: vector, ...(tokenization && { tokenization: plain(tokenization) }) };
    }
    case "classify": {
      const [first] = result.value.results;
      if (!first) break;
      return { id, kind: "classifications", classifications: classificationsOf(first) };
    }
    case "compare": {
      const [comparison] = result.value.comparisons;
      if (!comparison) break;
      return { id, kind: "comparison", comparison: plain(comparison) };
    }
  }
  const error = new AlignserveError("INTERNAL", "the server sent an unknown kind of result; update alignserve");
  return { id, kind: "error", error };
}
