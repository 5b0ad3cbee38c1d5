/** What the calls need of a connection: gRPC in Node, HTTP in browsers. */

import type { DescMessage, DescMethodUnary, MessageShape } from "@bufbuild/protobuf";

/** One attempt of a call. */
export interface Attempt {
  /** Time at which it must be over, in milliseconds since the epoch; may be infinite. */
  readonly deadline: number;
  readonly headers: ReadonlyMap<string, string>;
  readonly signal?: AbortSignal | undefined;
}

export interface Transport {
  /** Makes one attempt of a call. Rejects with an `AlignserveError`, or with the reason of an aborted signal. */
  unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageShape<I>,
    attempt: Attempt,
  ): Promise<MessageShape<O>>;
}
