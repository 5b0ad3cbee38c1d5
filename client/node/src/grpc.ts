/** The gRPC connection. */

import * as grpc from "@grpc/grpc-js";
import {
  fromBinary,
  toBinary,
  type DescMessage,
  type DescMethod,
  type DescMethodUnary,
  type MessageShape,
} from "@bufbuild/protobuf";

import { AlignserveError, errorOf, finderIn, recoded } from "./errors.js";
import {
  AlignService,
  type StreamInferRequest,
  type StreamInferResponse,
} from "./gen/alignserve/v1/align_service_pb.js";
import { StatusSchema } from "./gen/google/rpc/status_pb.js";
import type { Attempt, Transport } from "./transport.js";

/** Certificates and keys, as PEM. */
export interface TlsOptions {
  /** Certificate authorities that are trusted instead of the well-known ones. */
  readonly ca?: string | Uint8Array | undefined;
  /** The client's certificate chain, if the server asks for one. */
  readonly certificate?: string | Uint8Array | undefined;
  /** The private key of `certificate`. */
  readonly key?: string | Uint8Array | undefined;
}

export interface ConnectionOptions {
  readonly tls?: TlsOptions | undefined;
  /** `true` sends everything unencrypted, keys too. */
  readonly plaintext?: boolean | undefined;
  /** Time between pings while a call is open. Servers refuse pings more often than every 10 seconds. Default 60 s. */
  readonly keepaliveMs?: number | undefined;
  /** Time after which an unanswered ping breaks the connection. Default 10 s. */
  readonly keepaliveTimeoutMs?: number | undefined;
}

/** An open `StreamInfer` call; its responses end with an `AlignserveError` if the call fails. */
export interface InferStream {
  /** Resolves when the message is written, or when the call has ended, which the responses report. */
  write(request: StreamInferRequest): Promise<void>;
  /** Says that there are no more requests. */
  end(): void;
  cancel(): void;
  readonly responses: AsyncIterable<StreamInferResponse>;
}

// This library repeats calls by itself: gRPC's retryPolicy reads neither RetryInfo nor the reason of a CANCELLED, and
// stops after some failures for all calls of the channel. gRPC still repeats what the server never saw.
const SERVICE_CONFIG = { methodConfig: [], loadBalancingConfig: [{ round_robin: {} }] };
const RETRY_BUFFER_BYTES = 20 << 20; // a request of the largest size; gRPC's default, 1 MiB, holds few pictures

export class GrpcTransport implements Transport {
  readonly #client: grpc.Client;
  #isClosed = false;

  constructor(target: string, options: ConnectionOptions, maxResponseBytes: number) {
    this.#client = new grpc.Client(target, credentialsOf(options), {
      "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
      "grpc.service_config_disable_resolution": 1, // no DNS TXT look-ups
      "grpc.max_receive_message_length": maxResponseBytes,
      "grpc.max_send_message_length": -1,
      "grpc.per_rpc_retry_buffer_size": RETRY_BUFFER_BYTES,
      "grpc.retry_buffer_size": 8 * RETRY_BUFFER_BYTES,
      "grpc.keepalive_time_ms": options.keepaliveMs ?? 60_000,
      "grpc.keepalive_timeout_ms": options.keepaliveTimeoutMs ?? 10_000,
      "grpc.initial_reconnect_backoff_ms": 100,
      "grpc.max_reconnect_backoff_ms": 5_000,
      ...(isLoopback(target) ? { "grpc.enable_http_proxy": 0 } : {}), // which a proxy cannot reach
    });
  }

  unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageShape<I>,
    attempt: Attempt,
  ): Promise<MessageShape<O>> {
    this.#checkOpen();
    const { signal } = attempt;
    return new Promise((resolve, reject) => {
      const call = this.#client.makeUnaryRequest(
        pathOf(method),
        serializer(method.input),
        deserializer(method.output),
        request,
        metadataOf(attempt),
        callOptions(attempt),
        (error, response) => {
          signal?.removeEventListener("abort", cancel);
          if (signal?.aborted) reject(signal.reason);
          else if (error) reject(errorOfCall(error));
          else resolve(response!); // gRPC gives one of the two
        },
      );
      const cancel = () => call.cancel();
      signal?.addEventListener("abort", cancel, { once: true });
    });
  }

  openStream(attempt: Attempt): InferStream {
    this.#checkOpen();
    const method = AlignService.method.streamInfer;
    const call = this.#client.makeBidiStreamRequest(
      pathOf(method),
      serializer(method.input),
      deserializer(method.output),
      metadataOf(attempt),
      callOptions(attempt),
    );
    call.on("error", () => {}); // a call that is cancelled after its responses were left reports it to nobody else
    return {
      write: (request) =>
        new Promise((resolve) => {
          call.once("close", resolve);
          call.write(request, () => {
            call.off("close", resolve);
            resolve();
          });
        }),
      end: () => call.end(),
      cancel: () => call.cancel(),
      responses: responsesOf(call),
    };
  }

  close(): void {
    this.#isClosed = true;
    this.#client.close();
  }

  #checkOpen(): void {
    if (this.#isClosed) throw new AlignserveError("CANCELLED", "the client is closed");
  }
}

async function* responsesOf(
  call: grpc.ClientDuplexStream<StreamInferRequest, StreamInferResponse>,
): AsyncGenerator<StreamInferResponse> {
  try {
    for await (const response of call) yield response as StreamInferResponse;
  } catch (error) {
    throw isServiceError(error) ? errorOfStream(error) : error;
  }
}

/** Returns the error of a call that this side did not cancel. */
function errorOfCall(error: grpc.ServiceError): AlignserveError {
  const [packed] = error.metadata?.get("grpc-status-details-bin") ?? [];
  const found = errorOf(
    error.code,
    error.details,
    finderIn(packed instanceof Buffer ? detailsIn(packed, error.code) : []),
    error,
  );
  // A stopping server, or a proxy, cancels its unanswered calls without a reason, as if the connection had broken.
  return found.code === "CANCELLED" && !found.reason ? recoded(found, "UNAVAILABLE") : found;
}

function errorOfStream(error: grpc.ServiceError): AlignserveError {
  const found = errorOfCall(error);
  // The server gives a reason with each INTERNAL. Without one, a proxy has reset the stream of a server that died.
  return found.code === "INTERNAL" && !found.reason ? recoded(found, "UNAVAILABLE") : found;
}

function detailsIn(packed: Buffer, code: number) {
  try {
    const status = fromBinary(StatusSchema, packed);
    return status.code === code ? status.details : []; // a proxy may have ended the call with its own status
  } catch {
    return [];
  }
}

function isServiceError(error: unknown): error is grpc.ServiceError {
  return error instanceof Error && "code" in error && "details" in error;
}

function credentialsOf({ tls, plaintext }: ConnectionOptions): grpc.ChannelCredentials {
  if (plaintext) {
    if (tls) throw new TypeError("plaintext and tls exclude each other");
    return grpc.credentials.createInsecure();
  }
  return grpc.credentials.createSsl(pem(tls?.ca), pem(tls?.key), pem(tls?.certificate));
}

function pem(value: string | Uint8Array | undefined): Buffer | null {
  return value === undefined ? null : Buffer.from(value as Uint8Array);
}

function isLoopback(target: string): boolean {
  return /^(dns:\/\/\/|ipv4:)?(localhost|127(\.\d+){3})(:\d+)?$|^(ipv6:)?\[::1\](:\d+)?$/.test(target);
}

function pathOf(method: DescMethod): string {
  return `/${method.parent.typeName}/${method.name}`;
}

function serializer<T extends DescMessage>(schema: T): (message: MessageShape<T>) => Buffer {
  return (message) => {
    const bytes = toBinary(schema, message);
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength); // a view, no copy
  };
}

function deserializer<T extends DescMessage>(schema: T): (bytes: Buffer) => MessageShape<T> {
  return (bytes) => fromBinary(schema, bytes);
}

function metadataOf(attempt: Attempt): grpc.Metadata {
  const metadata = new grpc.Metadata();
  for (const [name, value] of attempt.headers) metadata.set(name, value);
  return metadata;
}

function callOptions(attempt: Attempt): grpc.CallOptions {
  return { deadline: attempt.deadline }; // gRPC takes infinity as none
}
