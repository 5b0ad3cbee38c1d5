import assert from "node:assert/strict";
import { test } from "node:test";

import { InFlight } from "../src/in_flight.js";

function entered(ordered: boolean, ...names: string[]): InFlight<string, string> {
  const inFlight = new InFlight<string, string>(names.length, ordered);
  for (const name of names) inFlight.enter(name);
  return inFlight;
}

function* taken(inFlight: InFlight<string, string>): Generator<string> {
  for (let result; (result = inFlight.take()) !== undefined;) yield result;
}

test("results that are taken later keep the order of their answers", () => {
  const inFlight = entered(false, "a", "b", "c");

  for (const sequence of [2, 0, 1]) inFlight.answer(sequence, inFlight.unanswered(sequence)!);

  assert.deepEqual([...taken(inFlight)], ["c", "a", "b"]);
});

test("with order, results wait for those of earlier items", () => {
  const inFlight = entered(true, "a", "b", "c");

  inFlight.answer(2, "c");
  inFlight.answer(0, "a");
  const before = [...taken(inFlight)];
  inFlight.answer(1, "b");

  assert.deepEqual(before, ["a"]);
  assert.deepEqual([...taken(inFlight)], ["b", "c"]);
});

test("an item has its place until its result is taken", () => {
  const inFlight = entered(true, "a", "b");

  inFlight.answer(1, "b"); // waits for the first
  const full = !inFlight.hasRoom;
  inFlight.answer(0, "a");
  const stillFull = !inFlight.hasRoom;
  inFlight.take();

  assert.deepEqual([full, stillFull, inFlight.hasRoom], [true, true, true]);
});
