/** A server for tests, on a free local port: real gRPC, and answers by script. */

import { create, fromBinary, toBinary, type DescMethod } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";
import * as grpc from "@grpc/grpc-js";

import {
  AlignService,
  StreamInferResponseSchema,
  type StreamInferRequest,
  type StreamInferResponse,
} from "../src/gen/alignserve/v1/align_service_pb.js";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../src/gen/google/rpc/error_details_pb.js";
import { StatusSchema } from "../src/gen/google/rpc/status_pb.js";
import { Health } from "../src/gen/grpc/health/v1/health_pb.js";

export interface Failure {
  code: grpc.status;
  reason?: string;
  message?: string;
  retryDelayMs?: number;
  field?: string;
  metadata?: Record<string, string>;
}

export type StreamCall = grpc.ServerDuplexStream<StreamInferRequest, StreamInferResponse>;

interface Received {
  method: string;
  request: any; // eslint-disable-line @typescript-eslint/no-explicit-any -- tests read the fields that they sent
  metadata: grpc.Metadata;
}

/** Answers texts and images with vectors of two numbers, unless `failures` has entries: each fails one call. */
export class ScriptedServer {
  readonly received: Received[] = [];
  readonly failures: Failure[] = [];
  /** Called with each call instead of an answer, if set. */
  onUnary: ((received: Received, respond: (response: object) => void) => void) | undefined;
  onStream: (call: StreamCall, connection: number) => void = echo;
  connections = 0;
  readonly #server: grpc.Server;

  private constructor(
    server: grpc.Server,
    readonly target: string,
  ) {
    this.#server = server;
  }

  static async start(credentials = grpc.ServerCredentials.createInsecure()): Promise<ScriptedServer> {
    const server = new grpc.Server({ "grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1 });
    const port = await new Promise<number>((resolve, reject) =>
      server.bindAsync("127.0.0.1:0", credentials, (error, bound) => (error ? reject(error) : resolve(bound))),
    );
    const scripted = new ScriptedServer(server, `127.0.0.1:${port}`);
    for (const service of [AlignService, Health]) {
      const methods = service.methods as DescMethod[];
      server.addService(
        Object.fromEntries(methods.map((method) => [method.name, definition(method)])),
        Object.fromEntries(methods.map((method) => [method.name, scripted.#handler(method)])),
      );
    }
    return scripted;
  }

  stop(): void {
    this.#server.forceShutdown();
  }

  #handler(method: DescMethod): grpc.UntypedHandleCall {
    if (method.methodKind === "bidi_streaming") {
      return (call: StreamCall) => {
        const failure = this.failures.shift();
        if (failure) call.emit("error", statusOf(failure));
        else this.onStream(call, ++this.connections);
      };
    }
    const unary: grpc.handleUnaryCall<unknown, unknown> = (call, done) => {
      const received = { method: method.name, request: call.request, metadata: call.metadata };
      this.received.push(received);
      const failure = this.failures.shift();
      if (failure) return done(statusOf(failure));
      const respond = (response: object) => done(null, create(method.output, response as never));
      if (this.onUnary) this.onUnary(received, respond);
      else respond(answerTo(received));
    };
    return unary;
  }
}

/** Answers each item of a stream with its own id. */
export function echo(call: StreamCall): void {
  call.on("data", (request: StreamInferRequest) => {
    if (request.request.case) call.write(responseTo(request));
  });
  call.on("end", () => call.end());
}

/** Returns the answer to an item: the number in its text is the first number of the vector. */
export function responseTo(request: StreamInferRequest): StreamInferResponse {
  const text = request.request.case === "embedText" ? request.request.value.texts[0]! : "0";
  return create(StreamInferResponseSchema, {
    correlationId: request.correlationId,
    result: {
      case: "embedText",
      value: { embeddings: [{ packedFloat32: floats(Number(text), 1) }], tokenizations: [{ tokenCount: 3 }] },
    },
  });
}

/** Returns the answer to an item that fails. */
export function failureOf(request: StreamInferRequest, failure: Failure): StreamInferResponse {
  return create(StreamInferResponseSchema, {
    correlationId: request.correlationId,
    result: { case: "error", value: fromBinary(StatusSchema, statusBytes(failure)) },
  });
}

/** Returns the status of a failure, with its details in the trailer. */
export function statusOf(failure: Failure): grpc.ServerErrorResponse & { metadata: grpc.Metadata } {
  const metadata = new grpc.Metadata();
  if (failure.reason) metadata.set("grpc-status-details-bin", Buffer.from(statusBytes(failure)));
  const details = failure.message ?? "failed by the test";
  return { name: "Error", message: details, code: failure.code, details, metadata };
}

export function floats(...values: number[]): Uint8Array {
  return new Uint8Array(Float32Array.from(values).buffer);
}

function statusBytes({ code, reason, message, retryDelayMs, field, metadata }: Failure): Uint8Array {
  const details = [
    anyPack(
      ErrorInfoSchema,
      create(ErrorInfoSchema, { reason: reason!, domain: "alignserve.v1", metadata: metadata ?? {} }),
    ),
  ];
  if (field) {
    const fieldViolations = [{ field, description: "wrong", reason: reason! }];
    details.push(anyPack(BadRequestSchema, create(BadRequestSchema, { fieldViolations })));
  }
  if (retryDelayMs !== undefined) {
    const retryDelay = { seconds: BigInt(Math.floor(retryDelayMs / 1000)), nanos: (retryDelayMs % 1000) * 1e6 };
    details.push(anyPack(RetryInfoSchema, create(RetryInfoSchema, { retryDelay })));
  }
  return toBinary(StatusSchema, create(StatusSchema, { code, message: message ?? "failed by the test", details }));
}

function answerTo({ method, request }: Received): object {
  switch (method) {
    case "EmbedImage":
      return { embeddings: request.images.map(() => ({ packedFloat32: floats(1, 0) })) };
    case "EmbedText":
      return {
        embeddings: request.texts.map(() => ({ packedFloat32: floats(0.6, 0.8) })),
        tokenizations: request.texts.map(() => ({ tokenCount: 3 })),
      };
    case "GetModelInfo":
      return { modelId: "scripted", maxImageBytes: 10n << 20n };
    case "Check":
      return { status: 1 };
    default:
      return {};
  }
}

function definition(method: DescMethod): grpc.MethodDefinition<object, object> {
  return {
    path: `/${method.parent.typeName}/${method.name}`,
    requestStream: method.methodKind === "bidi_streaming",
    responseStream: method.methodKind === "bidi_streaming",
    requestSerialize: () => Buffer.of(),
    requestDeserialize: (bytes) => fromBinary(method.input, bytes),
    responseSerialize: (message) => Buffer.from(toBinary(method.output, message as never)),
    responseDeserialize: () => ({}),
  };
}
