/** Speaks the line protocol of tests/conformance with this library. */

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

import {
  AlignserveError,
  Client,
  type CallOptions,
  type Classification,
  type EmbeddingOptions,
  type Format,
  type ImageInput,
  type Int8Vector,
  type QueryTerm,
  type StreamItem,
  type StreamResult,
  type TextOptions,
} from "../src/index.js";

// The keys of a request are those of tests/conformance/PROTOCOL.md; null means not given.
type Json = any; // eslint-disable-line @typescript-eslint/no-explicit-any

let client: Client | undefined;

const operations: Record<string, (request: Json) => Promise<Json>> = {
  hello: async () => ({
    language: "Node",
    library: "alignserve",
    versions: { node: process.versions.node, "@grpc/grpc-js": versionOf("@grpc/grpc-js") },
  }),

  connect: async (request) => {
    client?.close();
    client = new Client(request.target, {
      ...(request.tls_ca
        ? {
            tls: {
              ca: await readFile(request.tls_ca),
              certificate: request.tls_certificate && (await readFile(request.tls_certificate)),
              key: request.tls_key && (await readFile(request.tls_key)),
            },
          }
        : { plaintext: true }),
      apiKey: request.api_key,
      timeoutMs: milliseconds(request.timeout_seconds),
      maxResponseBytes: request.max_response_bytes,
      retry: request.retry === false ? false : undefined,
      headers: request.metadata,
      keepaliveMs: milliseconds(request.keepalive_seconds),
      keepaliveTimeoutMs: milliseconds(request.keepalive_timeout_seconds),
    });
    return {};
  },

  close: async () => {
    client?.close();
    client = undefined;
    return {};
  },

  embed_image: async (request) => {
    const images = await Promise.all(request.images.map(imageOf));
    const { embeddings } = await client!.embedImages(images, { ...embeddingOptions(request), ...callOptions(request) });
    return { embeddings: embeddings.map(vectorJson) };
  },

  embed_text: async (request) => {
    const { embeddings, tokenizations } = await client!.embedTexts(request.texts, {
      ...embeddingOptions(request),
      ...callOptions(request),
    });
    return { embeddings: embeddings.map(vectorJson), tokenizations: tokenizations.map(snakeCased) };
  },

  embed_query: async (request) => {
    const queries = await Promise.all(request.queries.map(({ terms }: Json) => termsOf(terms)));
    const { embeddings } = await client!.embedQueries(queries, {
      ...embeddingOptions(request),
      ...callOptions(request),
    });
    return { embeddings: embeddings.map(vectorJson) };
  },

  classify: async (request) => {
    const { results } = await client!.classify(await Promise.all(request.images.map(imageOf)), request.labels, {
      promptTemplates: request.prompt_templates,
      topK: request.top_k,
      ...callOptions(request),
    });
    const rows = results.map(classificationsJson);
    return request.summary
      ? { results: rows.map((row) => row.slice(0, 1)), counts: rows.map((row) => row.length) }
      : { results: rows };
  },

  compare: async (request) => {
    const pairs = await Promise.all(
      request.pairs.map(async ({ image, text }: Json) => ({ image: await imageOf(image), text })),
    );
    const { comparisons } = await client!.compare(pairs, { truncate: request.truncate, ...callOptions(request) });
    return { comparisons };
  },

  model_info: async (request) => snakeCased(await client!.modelInfo(callOptions(request))),

  health: async (request) => ({ ready: await client!.isReady(callOptions(request)) }),

  stream: async (request) => {
    const results: Json[] = [];
    let reconnects = 0;
    const stream = client!.stream(itemsOf(request.items), {
      window: request.window,
      ordered: request.ordered,
      timeoutMs: milliseconds(request.timeout_seconds),
      onReconnect: () => reconnects++,
    });
    try {
      for await (const result of stream) {
        results.push(resultJson(result));
        if (request.progress_every && results.length % request.progress_every === 0) {
          print({ id: request.id, progress: results.length });
        }
        if (results.length === request.cancel_after_items) break;
      }
    } catch (error) {
      throw new StreamFailure(error, results);
    }
    return { reconnects, results };
  },

  repeat: async ({ calls, concurrency, request }) => {
    let [started, answered] = [0, 0];
    const errors = new Map<string, Json>();
    const worker = async () => {
      while (started++ < calls) {
        try {
          await operations[request.op]!(request);
          answered++;
        } catch (error) {
          const { code, reason } = errorJson(error);
          const entry = errors.get(`${code} ${reason}`) ?? { code, reason, count: 0 };
          errors.set(`${code} ${reason}`, { ...entry, count: entry.count + 1 });
        }
      }
    };
    await Promise.all(Array.from({ length: concurrency }, worker));
    return { answered, errors: [...errors.values()] };
  },
};

/** A stream that failed, with the results until then. */
class StreamFailure {
  constructor(
    readonly error: unknown,
    readonly results: Json[],
  ) {}
}

async function answer(request: Json): Promise<Json> {
  const operation = operations[request.op];
  if (!operation) return { unsupported: `operation ${request.op}` };
  try {
    return { ok: await operation(request) };
  } catch (error) {
    if (error instanceof StreamFailure) return { error: errorJson(error.error), results: error.results };
    return { error: errorJson(error) };
  }
}

function callOptions(request: Json): CallOptions {
  return {
    timeoutMs: milliseconds(request.timeout_seconds),
    // Not AbortSignal.timeout, whose reason is a TimeoutError and whose timer does not keep Node alive.
    signal: request.cancel_after_ms === undefined ? undefined : abortedAfter(request.cancel_after_ms),
  };
}

function abortedAfter(ms: number): AbortSignal {
  const controller = new AbortController();
  setTimeout(() => controller.abort(), ms);
  return controller.signal;
}

function embeddingOptions(request: Json): EmbeddingOptions<Format> & TextOptions {
  return { format: request.format, normalize: request.normalize, truncate: request.truncate };
}

async function imageOf(image: Json): Promise<ImageInput> {
  if (image.path) return readFile(image.path);
  if (image.base64 !== undefined) return Buffer.from(image.base64, "base64");
  return { ...image.pixels, data: Buffer.from(image.pixels.data, "base64") };
}

async function termsOf(terms: Json[]): Promise<QueryTerm[]> {
  return Promise.all(
    terms.map(async ({ image, text, weight }) => (image ? { image: await imageOf(image), weight } : { text, weight })),
  );
}

async function* itemsOf(items: Json[]): AsyncGenerator<StreamItem<string>> {
  for (const { image, terms, labels, text, kind, id, prompt_templates, top_k, ...options } of items) {
    yield {
      id,
      kind,
      ...embeddingOptions(options),
      ...(image && { image: await imageOf(image) }),
      ...(terms && { terms: await termsOf(terms) }),
      labels,
      text,
      promptTemplates: prompt_templates,
      topK: top_k,
    } as StreamItem<string>;
  }
}

function resultJson(result: StreamResult<string>): Json {
  const { id } = result;
  switch (result.kind) {
    case "embedding":
    case "int8":
    case "binary":
      return { id, embedding: vectorJson(result.embedding) };
    case "classifications":
      return { id, classifications: classificationsJson(result.classifications) };
    case "comparison":
      return { id, ...result.comparison };
    case "error":
      return { id, error: errorJson(result.error) };
  }
}

function vectorJson(vector: Float32Array | Int8Vector | Uint8Array): Json {
  if (vector instanceof Float32Array) return [...vector];
  if (vector instanceof Uint8Array) return Buffer.from(vector).toString("base64");
  return { values: [...vector.values], scale: vector.scale };
}

function classificationsJson(classifications: readonly Classification[]): Json[] {
  return classifications.map(snakeCased);
}

function errorJson(error: unknown): Json {
  if (!(error instanceof AlignserveError)) {
    const code = error instanceof Error && error.name === "AbortError" ? "CANCELLED" : "CLIENT";
    return {
      code,
      reason: "",
      domain: null,
      message: String(error),
      fields: [],
      retry_delay_seconds: null,
      metadata: {},
    };
  }
  return {
    code: error.code,
    reason: error.reason,
    domain: error.domain || null,
    message: error.message,
    fields: error.violations,
    retry_delay_seconds: error.retryDelayMs === undefined ? null : error.retryDelayMs / 1000,
    metadata: error.metadata,
  };
}

function snakeCased(value: object): Json {
  const snake = (name: string) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  return Object.fromEntries(Object.entries(value).map(([name, each]) => [snake(name), each]));
}

function milliseconds(seconds: number | undefined): number | undefined {
  return seconds === undefined ? undefined : seconds * 1000;
}

function versionOf(name: string): string {
  return createRequire(import.meta.url)(`${name}/package.json`).version;
}

function print(value: Json): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  const request = JSON.parse(line, (_, value) => value ?? undefined); // drops keys that are null
  print({ id: request.id, ...(await answer(request)) });
}
client?.close();
