/** Client of alignserve for browsers, over the server's HTTP port. */

import { createConnectTransport, type ConnectTransportOptions } from "@connectrpc/connect-web";
import { Code as ConnectCode, ConnectError, type Transport as ConnectTransport } from "@connectrpc/connect";
import type { DescMessage, DescMethodUnary, MessageShape } from "@bufbuild/protobuf";

import { Calls, type CallDefaults } from "./calls.js";
import { AlignserveError, errorOf } from "./errors.js";
import type { Attempt, Transport } from "./transport.js";

export type { CallDefaults, CallOptions, Priority } from "./calls.js";
export { AlignserveError, type Code, type FieldViolation } from "./errors.js";
export type { ImageInput, RgbaPixels, RgbPixels } from "./images.js";
export type {
  Classification,
  ClassifyOptions,
  Comparison,
  EmbeddingOptions,
  ImageTextPair,
  ModelInfo,
  QueryTerm,
  TextOptions,
  Tokenization,
} from "./messages.js";
export type { RetryPolicy } from "./retry.js";
export { cosineSimilarity, hammingDistance, type Format, type Int8Vector, type Vector } from "./vectors.js";

export interface ClientOptions extends CallDefaults {
  /** Used instead of the global `fetch`. */
  readonly fetch?: typeof globalThis.fetch | undefined;
}

/** The unary calls over HTTP. Browsers cannot stream requests, so there is no `stream`: make several calls at once. */
export class Client extends Calls {
  /** @param baseUrl Of the server's HTTP port, such as `https://align.example.com`. */
  constructor(baseUrl: string, options: ClientOptions = {}) {
    super(
      new HttpTransport({ baseUrl, useBinaryFormat: true, ...(options.fetch && { fetch: options.fetch }) }),
      options,
    );
  }
}

class HttpTransport implements Transport {
  readonly #transport: ConnectTransport;

  constructor(options: ConnectTransportOptions) {
    this.#transport = createConnectTransport(options);
  }

  async unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageShape<I>,
    { deadline, headers, signal }: Attempt,
  ): Promise<MessageShape<O>> {
    const timeoutMs = deadline === Infinity ? undefined : Math.max(1, Math.ceil(deadline - Date.now()));
    try {
      const response = await this.#transport.unary(method, signal, timeoutMs, [...headers], request as never);
      return response.message;
    } catch (error) {
      signal?.throwIfAborted();
      throw errorOfHttp(error);
    }
  }
}

function errorOfHttp(error: unknown): AlignserveError {
  const found = ConnectError.from(error);
  // fetch says TypeError, and no more, if there is no connection or the other origin allows no calls.
  const isBroken = found.code === ConnectCode.Unknown && found.cause instanceof TypeError;
  const code = isBroken ? ConnectCode.Unavailable : found.code;
  return errorOf(code, found.rawMessage, (schema) => found.findDetails(schema)[0], error);
}
