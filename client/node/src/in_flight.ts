/** The items of a stream that were read and whose results were not taken yet; they outlive a broken connection. */

/** Holds at most `window` items, each from when it is read until its result is taken. */
export class InFlight<Request, Result> {
  /** Whether no more items will be read. */
  isComplete = false;
  readonly #window: number;
  readonly #ordered: boolean;
  // By sequence number, in the order of reading. Requests are kept, so that they can be sent again.
  readonly #unanswered = new Map<number, Request>();
  readonly #early = new Map<number, Result>(); // with order: those that wait for an earlier item's
  readonly #results: Result[] = []; // to be taken
  #nextSequence = 0;
  #nextResult = 0; // with order: the item whose result comes next

  constructor(window: number, ordered: boolean) {
    if (!(window >= 1)) throw new RangeError(`window is ${window}; at least one item must be in flight`);
    this.#window = window;
    this.#ordered = ordered;
  }

  get hasRoom(): boolean {
    return this.#size < this.#window;
  }

  /** Whether an item must be sent, or sent again. */
  get hasUnanswered(): boolean {
    return this.#unanswered.size > 0;
  }

  /** Whether every item was read and answered, and its result taken. */
  get isDone(): boolean {
    return this.isComplete && this.#size === 0;
  }

  /** The number that the next item gets. */
  get nextSequence(): number {
    return this.#nextSequence;
  }

  get #size(): number {
    return this.#unanswered.size + this.#early.size + this.#results.length;
  }

  /** Adds an item. */
  enter(request: Request): void {
    this.#unanswered.set(this.#nextSequence++, request);
  }

  /** Returns the first unanswered request numbered above `after`, which is -1 for a new connection. */
  nextUnsent(after: number): [sequence: number, request: Request] | undefined {
    for (const [sequence, request] of this.#unanswered) {
      if (sequence > after) return [sequence, request];
    }
    return undefined;
  }

  /** Returns the unanswered request with a number. */
  unanswered(sequence: number): Request | undefined {
    return this.#unanswered.get(sequence);
  }

  /** Records the result of an unanswered item. */
  answer(sequence: number, result: Result): void {
    this.#unanswered.delete(sequence);
    if (!this.#ordered) {
      this.#results.push(result);
      return;
    }
    this.#early.set(sequence, result);
    for (let ready; (ready = this.#early.get(this.#nextResult)) !== undefined; this.#nextResult++) {
      this.#early.delete(this.#nextResult);
      this.#results.push(ready);
    }
  }

  /** Removes and returns the next result, if one is ready. */
  take(): Result | undefined {
    return this.#results.shift();
  }
}
