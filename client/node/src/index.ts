/** Client of alignserve for Node.js, over gRPC. */

import { Calls, DEFAULT_MAX_RESPONSE_BYTES, type CallDefaults, type CallOptions } from "./calls.js";
import { Health, HealthCheckResponse_ServingStatus as ServingStatus } from "./gen/grpc/health/v1/health_pb.js";
import { GrpcTransport, type ConnectionOptions } from "./grpc.js";
import { Stream, type StreamItem, type StreamResult, type StreamSettings } from "./stream.js";

export type { CallDefaults, CallOptions, Priority } from "./calls.js";
export { AlignserveError, type Code, type FieldViolation } from "./errors.js";
export type { ConnectionOptions, TlsOptions } from "./grpc.js";
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
export type { StreamItem, StreamResult, StreamSettings } from "./stream.js";
export {
  cosineSimilarity,
  hammingDistance,
  readFloat16,
  readFloat32,
  type Format,
  type Int8Vector,
  type Vector,
} from "./vectors.js";

export type ClientOptions = ConnectionOptions & CallDefaults;

const SERVICE = "alignserve.v1.AlignService";

/**
 * A client of one target. It connects with its first call, may be used for many calls at once, and reconnects by itself.
 *
 * ```ts
 * const client = new Client("align.example.com:443", { apiKey });
 * ```
 */
export class Client extends Calls {
  readonly #transport: GrpcTransport;

  /**
   * @param target `HOST:PORT`, or a target of gRPC, such as `dns:///align:50051`, whose addresses share the calls.
   * @param options Encrypted and with the well-known authorities unless they say otherwise.
   */
  constructor(target: string, options: ClientOptions = {}) {
    const transport = new GrpcTransport(target, options, options.maxResponseBytes ?? DEFAULT_MAX_RESPONSE_BYTES);
    super(transport, options);
    this.#transport = transport;
  }

  /** Returns whether the server answers calls now: not while it loads the model, or stops. */
  async isReady(options: CallOptions = {}): Promise<boolean> {
    const { status } = await this.call(Health.method.check, { service: SERVICE }, options);
    return status === ServingStatus.SERVING;
  }

  /**
   * Runs any mix of items over one stream, and yields a result for each: the place for folders, data sets and live feeds.
   *
   * An item that fails does not affect the others. If the connection breaks or the server ends the stream, it is opened
   * again and the unanswered items are sent again: none is lost, and none is answered twice. `items` are read as their
   * results are taken, so they may be endless. `timeoutMs` is the deadline of the whole stream; by default it has none.
   */
  stream<Id>(
    items: Iterable<StreamItem<Id>> | AsyncIterable<StreamItem<Id>>,
    options: StreamSettings & CallOptions = {},
  ): AsyncGenerator<StreamResult<Id>, void, undefined> {
    const attempt = this.attemptOf(options, options.timeoutMs ?? Infinity);
    const stream = new Stream(
      () => this.#transport.openStream(attempt),
      items,
      options,
      this.repeats,
      attempt.deadline,
    );
    return stream.results(options.signal);
  }

  /** Closes the connections, when the calls that use them have ended. */
  close(): void {
    this.#transport.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
