/** When a failed call is repeated, and after how long. */

import { AlignserveError } from "./errors.js";

/** How a client repeats calls. All calls are free of side effects, so a repeat is always safe. */
export interface RetryPolicy {
  /** Attempts of a unary call that fails with `UNAVAILABLE`, including the first; 1 turns all repeats off. Default 5. */
  readonly maxAttempts?: number;
  /** Consecutive attempts of a stream without any answer. Default 10. */
  readonly maxStreamAttempts?: number;
  /** Pause before the first repeat. Default 100 ms. */
  readonly initialBackoffMs?: number;
  /** Longest pause, unless the server asks for a longer one. Default 5000 ms. */
  readonly maxBackoffMs?: number;
}

const DEFAULTS: Required<RetryPolicy> = {
  maxAttempts: 5,
  maxStreamAttempts: 10,
  initialBackoffMs: 100,
  maxBackoffMs: 5000,
};
const JITTER = 0.25; // largest random addition, as a share of the pause, so that clients do not repeat in step

/** Decides on the repeats of calls. */
export class Repeats {
  readonly #policy: Required<RetryPolicy>;

  constructor(policy: RetryPolicy | false = {}) {
    const once = { maxAttempts: 1, maxStreamAttempts: 1 };
    this.#policy = { ...DEFAULTS, ...(policy === false ? once : policy) };
    if (!(this.#policy.maxAttempts >= 1 && this.#policy.maxStreamAttempts >= 1)) {
      throw new RangeError("maxAttempts and maxStreamAttempts must be at least 1");
    }
  }

  /**
   * Makes attempts until one succeeds, must not be repeated, or its repeat would miss the deadline.
   *
   * A full server's delay is obeyed as often as the deadline allows; `UNAVAILABLE` is repeated `maxAttempts` times.
   */
  async run<T>(attempt: () => Promise<T>, deadline: number, signal?: AbortSignal): Promise<T> {
    for (let attempts = 1, breaks = 1; ; attempts++) {
      try {
        return await attempt();
      } catch (error) {
        if (!(error instanceof AlignserveError) || this.#policy.maxAttempts === 1) throw error;
        if (error.code === "UNAVAILABLE" && error.reason !== "SHUTTING_DOWN") breaks++;
        if (!isWorthRepeating(error) || breaks > this.#policy.maxAttempts) throw error;
        const delay = this.#delayMs(error, attempts);
        if (Date.now() + delay >= deadline) throw error;
        await sleep(delay, signal);
      }
    }
  }

  /**
   * Returns the pause before a broken stream is opened again, in milliseconds.
   *
   * @param attempts Attempts since the last answer.
   * @throws `error` if the stream must not be opened again, `DEADLINE_EXCEEDED` if there is no time to.
   */
  reconnectDelayMs(error: AlignserveError, attempts: number, deadline: number): number {
    if (error.code !== "UNAVAILABLE" || attempts >= this.#policy.maxStreamAttempts) throw error;
    const delay = this.#delayMs(error, attempts);
    if (Date.now() + delay >= deadline) {
      throw new AlignserveError("DEADLINE_EXCEEDED", "the deadline of the stream has passed", { cause: error });
    }
    return delay;
  }

  #delayMs(error: AlignserveError, attempts: number): number {
    const { initialBackoffMs, maxBackoffMs } = this.#policy;
    const backoff = Math.min(initialBackoffMs * 2 ** Math.min(attempts - 1, 30), maxBackoffMs);
    return Math.max(backoff, error.retryDelayMs ?? 0) * (1 + JITTER * Math.random());
  }
}

function isWorthRepeating(error: AlignserveError): boolean {
  if (error.code === "UNAVAILABLE") return true;
  // Waiting brings the deadline closer. Without a delay it is the limit of a proxy or of a message's size.
  return (
    error.code === "RESOURCE_EXHAUSTED" && error.retryDelayMs !== undefined && error.reason !== "WOULD_MISS_DEADLINE"
  );
}

/** Waits, or rejects with the signal's reason as soon as it aborts. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const onAbort = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", onAbort);
      resolve();
    }, ms);
    signal?.addEventListener("abort", onAbort, { once: true });
  });
}
