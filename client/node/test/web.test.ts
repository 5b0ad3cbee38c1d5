import assert from "node:assert/strict";
import { createServer, type IncomingHttpHeaders, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { buffer } from "node:stream/consumers";
import { afterEach, beforeEach, test } from "node:test";

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";

import { EmbedTextRequestSchema, EmbedTextResponseSchema } from "../src/gen/alignserve/v1/align_service_pb.js";
import { ErrorInfoSchema } from "../src/gen/google/rpc/error_details_pb.js";
import { AlignserveError, Client } from "../src/web.js";
import { floats } from "./server.js";

// The Connect protocol, as the server's HTTP port speaks it: one failure each, then answers.
let failures: { status: number; body: object }[] = [];
let received: { path: string; headers: IncomingHttpHeaders; texts: string[] }[] = [];
let server: Server;
let baseUrl: string;

beforeEach(async () => {
  [failures, received] = [[], []];
  server = createServer(async (request, response) => {
    const { texts } = fromBinary(EmbedTextRequestSchema, await buffer(request));
    received.push({ path: request.url!, headers: request.headers, texts });
    const failure = failures.shift();
    if (failure) {
      response.writeHead(failure.status, { "content-type": "application/json" }).end(JSON.stringify(failure.body));
      return;
    }
    const answer = create(EmbedTextResponseSchema, { embeddings: texts.map(() => ({ packedFloat32: floats(1, 2) })) });
    response.writeHead(200, { "content-type": "application/proto" }).end(toBinary(EmbedTextResponseSchema, answer));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterEach(() => {
  server.close();
  server.closeAllConnections();
});

test("a call goes over HTTP with the key and the deadline", async () => {
  const { embeddings } = await new Client(baseUrl, { apiKey: "as_key" }).embedTexts(["a cat"]);

  assert.deepEqual([...embeddings[0]!], [1, 2]);
  const { path, headers, texts } = received[0]!;
  assert.equal(path, "/alignserve.v1.AlignService/EmbedText");
  assert.equal(headers.authorization, "Bearer as_key");
  assert.ok(Number(headers["connect-timeout-ms"]) <= 30_000);
  assert.deepEqual(texts, ["a cat"]);
});

test("details become fields of the error", async () => {
  const info = create(ErrorInfoSchema, { reason: "KEY_MISSING", domain: "alignserve.v1" });
  const value = Buffer.from(toBinary(ErrorInfoSchema, info)).toString("base64");
  const details = [{ type: "google.rpc.ErrorInfo", value }];
  failures.push({ status: 401, body: { code: "unauthenticated", message: "no key", details } });

  await assert.rejects(new Client(baseUrl).embedTexts(["a"]), (error) => {
    assert.ok(error instanceof AlignserveError);
    assert.deepEqual([error.code, error.reason, error.message], ["UNAUTHENTICATED", "KEY_MISSING", "no key"]);
    return true;
  });
});

test("UNAVAILABLE is repeated", async () => {
  failures.push({ status: 503, body: { code: "unavailable" } });

  await new Client(baseUrl, { retry: { initialBackoffMs: 1 } }).embedTexts(["a"]);

  assert.equal(received.length, 2);
});

test("a server that cannot be reached is UNAVAILABLE", async () => {
  const client = new Client("http://127.0.0.1:1", { retry: false });

  await assert.rejects(client.embedTexts(["a"]), { code: "UNAVAILABLE" });
});

test("an aborted signal cancels the call with its reason", async () => {
  const signal = AbortSignal.abort(new Error("enough"));

  await assert.rejects(new Client(baseUrl).embedTexts(["a"], { signal }), /enough/);
});
