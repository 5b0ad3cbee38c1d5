import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { status } from "@grpc/grpc-js";

import type { StreamInferRequest } from "../src/gen/alignserve/v1/align_service_pb.js";
import { AlignserveError, Client, type StreamItem, type StreamResult } from "../src/index.js";
import { echo, failureOf, responseTo, ScriptedServer, statusOf, type StreamCall } from "./server.js";

let server: ScriptedServer;
let client: Client;

beforeEach(async () => {
  server = await ScriptedServer.start();
  client = new Client(server.target, { plaintext: true, retry: { initialBackoffMs: 1 } });
});
afterEach(() => {
  client.close();
  server.stop();
});

function* texts(count: number): Generator<StreamItem<number>> {
  for (let id = 0; id < count; id++) yield { id, kind: "text", text: String(id) };
}

function answersOf(results: StreamResult<number>[]): [id: number, first: number][] {
  return results.map((result) => {
    assert.equal(result.kind, "embedding");
    return [result.id, (result as { embedding: Float32Array }).embedding[0]!];
  });
}

function onItems(call: StreamCall, handle: (item: StreamInferRequest, count: number) => void): void {
  let count = 0;
  call.on("data", (request: StreamInferRequest) => {
    if (request.request.case) handle(request, ++count);
  });
}

const IDENTITY = (count: number) => Array.from({ length: count }, (_, id) => [id, id]);

test("every item gets its own result", async () => {
  const results = await collect(client.stream(texts(100)));

  assert.deepEqual(
    answersOf(results).sort(([a], [b]) => a - b),
    IDENTITY(100),
  );
});

test("results come in the order of the items if asked for", async () => {
  const waiting: StreamInferRequest[] = [];
  server.onStream = (call) =>
    onItems(call, (item) => {
      waiting.push(item);
      if (waiting.length === 4)
        waiting
          .splice(0)
          .reverse()
          .forEach((each) => call.write(responseTo(each)));
    });

  const results: StreamResult<number>[] = [];
  for await (const result of client.stream(texts(8), { ordered: true, window: 4 })) {
    results.push(result);
    if (results.length === 8) break;
  }

  assert.deepEqual(answersOf(results), IDENTITY(8));
});

for (const [name, failure] of Object.entries({
  SHUTTING_DOWN: { code: status.UNAVAILABLE, reason: "SHUTTING_DOWN", retryDelayMs: 1 },
  "a broken connection": { code: status.UNAVAILABLE },
  "a CANCELLED that nobody caused": { code: status.CANCELLED },
  "a stream reset by a proxy": { code: status.INTERNAL },
})) {
  test(`after ${name} the unanswered items are sent again`, async () => {
    server.onStream = (call, connection) => {
      if (connection === 3) return echo(call);
      onItems(call, (item, count) => {
        if (count <= 5) call.write(responseTo(item));
        else if (count === 8) call.emit("error", statusOf(failure));
      });
    };
    const reconnects: AlignserveError[] = [];

    const results = await collect(
      client.stream(texts(40), { window: 8, onReconnect: (reason) => reconnects.push(reason) }),
    );

    assert.deepEqual(
      answersOf(results).sort(([a], [b]) => a - b),
      IDENTITY(40),
    );
    assert.deepEqual(
      reconnects.map(({ code }) => code),
      ["UNAVAILABLE", "UNAVAILABLE"],
    );
  });
}

test("an item that fails does not affect the others", async () => {
  const failure = { code: status.INVALID_ARGUMENT, reason: "TEXT_EMPTY", field: "texts[0]" };
  server.onStream = (call) => {
    onItems(call, (item, count) => call.write(count === 2 ? failureOf(item, failure) : responseTo(item)));
    call.on("end", () => call.end());
  };

  const results = await collect(client.stream(texts(3), { ordered: true }));

  assert.deepEqual(
    results.map(({ kind }) => kind),
    ["embedding", "error", "embedding"],
  );
  assert.equal((results[1] as { error: AlignserveError }).error.reason, "TEXT_EMPTY");
});

test("at most a window of items is read ahead of the results that were taken", async () => {
  let read = 0;
  function* counted(): Generator<StreamItem<number>> {
    for (const item of texts(1000)) {
      read++;
      yield item;
    }
  }

  let taken = 0;
  for await (const _ of client.stream(counted(), { window: 5 })) {
    taken++;
    assert.ok(read <= taken + 5, `${read} were read, ${taken} taken`);
    if (taken === 50) break;
  }
});

test("leaving the loop cancels the stream", async () => {
  const cancelled = new Promise<void>((resolve) => {
    server.onStream = (call) => {
      onItems(call, (item) => call.write(responseTo(item)));
      call.on("cancelled", resolve);
    };
  });

  for await (const _ of client.stream(texts(1000))) break;

  await cancelled;
});

test("an aborted signal ends the stream with its reason", async () => {
  const controller = new AbortController();
  server.onStream = () => controller.abort(new Error("enough"));

  await assert.rejects(collect(client.stream(texts(3), { signal: controller.signal })), /enough/);
});

test("an error of the caller's items comes after the results of those before it", async () => {
  function* broken(): Generator<StreamItem<number>> {
    yield* texts(3);
    throw new Error("disk gone");
  }
  const results: StreamResult<number>[] = [];

  await assert.rejects(async () => {
    for await (const result of client.stream(broken())) results.push(result);
  }, /disk gone/);

  assert.equal(results.length, 3);
});

test("a stream that is never answered fails after some attempts", async () => {
  const patient = new Client(server.target, { plaintext: true, retry: { maxStreamAttempts: 3, initialBackoffMs: 1 } });
  server.onStream = (call) => call.emit("error", statusOf({ code: status.UNAVAILABLE }));

  await assert.rejects(collect(patient.stream(texts(1))), { code: "UNAVAILABLE" });

  assert.equal(server.connections, 3);
  patient.close();
});

test("a stream that the server refuses fails at once", async () => {
  server.onStream = (call) => call.emit("error", statusOf({ code: status.UNAUTHENTICATED, reason: "KEY_MISSING" }));

  await assert.rejects(collect(client.stream(texts(1))), { code: "UNAUTHENTICATED", reason: "KEY_MISSING" });

  assert.equal(server.connections, 1);
});

test("the deadline applies to the whole stream", async () => {
  server.onStream = () => {};

  await assert.rejects(collect(client.stream(texts(1), { timeoutMs: 50 })), { code: "DEADLINE_EXCEEDED" });
});

test("no items, no results", async () => {
  assert.deepEqual(await collect(client.stream([])), []);
});

async function collect<T>(results: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const result of results) all.push(result);
  return all;
}
