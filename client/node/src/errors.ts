/** The one error type of this library, and how the details of a status are read. */

import type { Message } from "@bufbuild/protobuf";
import { anyUnpack, type Any } from "@bufbuild/protobuf/wkt";
import type { GenMessage } from "@bufbuild/protobuf/codegenv2";

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";

/** The names of gRPC's status codes, at their numbers. */
const CODES = [
  "OK",
  "CANCELLED",
  "UNKNOWN",
  "INVALID_ARGUMENT",
  "DEADLINE_EXCEEDED",
  "NOT_FOUND",
  "ALREADY_EXISTS",
  "PERMISSION_DENIED",
  "RESOURCE_EXHAUSTED",
  "FAILED_PRECONDITION",
  "ABORTED",
  "OUT_OF_RANGE",
  "UNIMPLEMENTED",
  "INTERNAL",
  "UNAVAILABLE",
  "DATA_LOSS",
  "UNAUTHENTICATED",
] as const;

/** The name of a gRPC status code. */
export type Code = (typeof CODES)[number];

/** A field of the request that is invalid. */
export interface FieldViolation {
  /** Path from the request, such as `images[3].content`. */
  readonly field: string;
  /** What is wrong with it, for people. */
  readonly description: string;
  /** Stable name of the fault, such as `IMAGE_UNREADABLE`; may be empty. */
  readonly reason: string;
}

interface Details {
  readonly reason?: string;
  readonly domain?: string;
  readonly metadata?: Readonly<Record<string, string>>;
  readonly violations?: readonly FieldViolation[];
  readonly retryDelayMs?: number | undefined;
  readonly cause?: unknown;
}

/** A call or an item of a stream failed. */
export class AlignserveError extends Error {
  override readonly name = "AlignserveError";
  /** Name of the gRPC status code. */
  readonly code: Code;
  /** Stable name of the cause, such as `QUEUE_FULL`, for programs. Empty if the server sent none. */
  readonly reason: string;
  /** `alignserve.v1` if alignserve itself refused the call; empty for gRPC's own errors. */
  readonly domain: string;
  /** `ErrorInfo.metadata`. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The fields at fault, for `INVALID_ARGUMENT`. */
  readonly violations: readonly FieldViolation[];
  /** How long the server asks to wait before a retry, in milliseconds. */
  readonly retryDelayMs: number | undefined;

  constructor(code: Code, message: string, details: Details = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.reason = details.reason ?? "";
    this.domain = details.domain ?? "";
    this.metadata = details.metadata ?? {};
    this.violations = details.violations ?? [];
    this.retryDelayMs = details.retryDelayMs;
  }

  /** Identifies the error in the server's log, for `INTERNAL`. */
  get errorId(): string | undefined {
    return this.metadata["error_id"];
  }
}

/** Returns the first detail of a kind, if an error has one. */
export type FindDetail = <T extends Message>(schema: GenMessage<T>) => T | undefined;

/** Returns the error for a status code, a message, and the details that `find` returns. */
export function errorOf(code: number, message: string, find: FindDetail, cause?: unknown): AlignserveError {
  const info = find(ErrorInfoSchema);
  const delay = find(RetryInfoSchema)?.retryDelay;
  const name = CODES[code] ?? "UNKNOWN";
  return new AlignserveError(name, message || name, {
    reason: info?.reason ?? "",
    domain: info?.domain ?? "",
    metadata: info?.metadata ?? {},
    violations: (find(BadRequestSchema)?.fieldViolations ?? []).map(({ field, description, reason }) => ({
      field,
      description,
      reason,
    })),
    retryDelayMs: delay && Number(delay.seconds) * 1000 + delay.nanos / 1e6,
    cause,
  });
}

/** Returns the same error under another code. */
export function recoded(error: AlignserveError, code: Code): AlignserveError {
  return new AlignserveError(code, error.message, { ...error, cause: error.cause });
}

/** Returns a finder in the details of a `google.rpc.Status`. */
export function finderIn(details: readonly Any[]): FindDetail {
  return (schema) => {
    for (const packed of details) {
      try {
        const unpacked = anyUnpack(packed, schema);
        if (unpacked) return unpacked;
      } catch {
        // A proxy's own detail under a known name: the code and the message still count.
      }
    }
    return undefined;
  };
}
