/** The items of a stream that were read and whose results were not taken yet; they outlive a broken connection. */

interface Entry<Request, Result> {
  readonly request: Request | undefined; // kept until it is answered, so that it can be sent again
  readonly result: Result | undefined;
}

/** Holds at most `window` items, each from when it is read until its result is taken. */
export class InFlight<Request, Result> {
  /** Whether no more items will be read. */
  isComplete = false;
  readonly #window: number;
  readonly #ordered: boolean;
  readonly #entries = new Map<number, Entry<Request, Result>>(); // by sequence number, in the order of reading
  #nextSequence = 0;

  constructor(window: number, ordered: boolean) {
    if (!(window >= 1)) throw new RangeError(`window is ${window}; at least one item must be in flight`);
    this.#window = window;
    this.#ordered = ordered;
  }

  get hasRoom(): boolean {
    return this.#entries.size < this.#window;
  }

  /** Whether an item must be sent, or sent again. */
  get hasUnanswered(): boolean {
    return this.nextUnsent(-1) !== undefined;
  }

  /** Whether every item was read and answered, and its result taken. */
  get isDone(): boolean {
    return this.isComplete && this.#entries.size === 0;
  }

  /** The number that the next item gets. */
  get nextSequence(): number {
    return this.#nextSequence;
  }

  /** Adds an item. */
  enter(request: Request): void {
    this.#entries.set(this.#nextSequence++, { request, result: undefined });
  }

  /** Returns the first unanswered request numbered above `after`, which is -1 for a new connection. */
  nextUnsent(after: number): [sequence: number, request: Request] | undefined {
    for (const [sequence, { request }] of this.#entries) {
      if (sequence > after && request !== undefined) return [sequence, request];
    }
    return undefined;
  }

  /** Returns the unanswered request with a number. */
  unanswered(sequence: number): Request | undefined {
    return this.#entries.get(sequence)?.request;
  }

  /** Records the result of an unanswered item. */
  answer(sequence: number, result: Result): void {
    this.#entries.set(sequence, { request: undefined, result }); // keeps its place
  }

  /** Removes and returns the next result, if one is ready. */
  take(): Result | undefined {
    for (const [sequence, { result }] of this.#entries) {
      if (result !== undefined) {
        this.#entries.delete(sequence);
        return result;
      }
      if (this.#ordered) return undefined;
    }
    return undefined;
  }
}
