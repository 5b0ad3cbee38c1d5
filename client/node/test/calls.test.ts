import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";

import { ServerCredentials, status } from "@grpc/grpc-js";

import { AlignserveError, Client, type ClientOptions } from "../src/index.js";
import { ScriptedServer } from "./server.js";

let server: ScriptedServer;
const clients: Client[] = [];

function connect(options: ClientOptions = {}): Client {
  const client = new Client(server.target, { plaintext: true, retry: { initialBackoffMs: 1 }, ...options });
  clients.push(client);
  return client;
}

async function failure(call: Promise<unknown>): Promise<AlignserveError> {
  const error = await call.then(
    () => assert.fail("the call succeeded"),
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof AlignserveError, String(error));
  return error;
}

beforeEach(async () => {
  server = await ScriptedServer.start();
});
afterEach(() => {
  clients.splice(0).forEach((client) => client.close());
  server.stop();
});

test("a closed client cancels its calls", async () => {
  const client = connect();
  client.close();

  assert.equal((await failure(client.embedTexts(["a cat"]))).code, "CANCELLED");
});

describe("requests", () => {
  test("the key, the priority and the size of answers are sent as metadata", async () => {
    const client = connect({
      apiKey: "as_key\n",
      priority: "bulk",
      maxResponseBytes: 5_000_000,
      headers: { "X-Team": "a" },
    });

    await client.embedTexts(["a cat"], { headers: { "x-call": "b" } });

    const { metadata } = server.received[0]!;
    assert.deepEqual(metadata.get("authorization"), ["Bearer as_key"]);
    assert.deepEqual(metadata.get("alignserve-priority"), ["bulk"]);
    assert.deepEqual(metadata.get("alignserve-max-response-bytes"), ["5000000"]);
    assert.deepEqual(metadata.get("x-team"), ["a"]);
    assert.deepEqual(metadata.get("x-call"), ["b"]);
  });

  test("images are files, RGB pixels, or RGBA pixels without their alpha", async () => {
    await connect().embedImages([
      Uint8Array.of(1, 2),
      new Uint8Array([3]).buffer,
      { width: 1, height: 1, data: Uint8Array.of(4, 5, 6) },
      { width: 1, height: 2, data: Uint8ClampedArray.of(1, 2, 3, 255, 4, 5, 6, 0) },
    ]);

    const sources = server.received[0]!.request.images.map(({ source }: any) => source);
    assert.deepEqual([...sources[0].value], [1, 2]);
    assert.deepEqual([...sources[1].value], [3]);
    assert.deepEqual([...sources[2].value.data], [4, 5, 6]);
    assert.deepEqual([...sources[3].value.data], [1, 2, 3, 4, 5, 6]);
    assert.deepEqual([sources[3].value.height, sources[3].value.width], [2, 1]);
  });

  test("a term without a weight is sent without one", async () => {
    await connect().embedQueries([[{ image: Uint8Array.of(1) }, { text: "red", weight: -0.5 }]]);

    const { terms } = server.received[0]!.request.queries[0];
    assert.deepEqual(
      terms.map(({ weight }: any) => weight),
      [undefined, -0.5],
    );
  });

  test("64-bit limits are numbers", async () => {
    const info = await connect().modelInfo();

    assert.equal(info.maxImageBytes, 10 << 20);
    assert.equal(info.modelId, "scripted");
  });

  test("health says whether the service is serving", async () => {
    assert.equal(await connect().isReady(), true);
    assert.equal(server.received[0]!.request.service, "alignserve.v1.AlignService");
  });

  test("an empty key is refused without showing it", () => {
    assert.throws(
      () => connect({ apiKey: "sécret" }),
      (error: Error) => !error.message.includes("cret"),
    );
  });
});

describe("errors", () => {
  test("details of a status become fields of the error", async () => {
    server.failures.push({
      code: status.INVALID_ARGUMENT,
      reason: "IMAGE_UNREADABLE",
      message: "images[0]: not an image",
      field: "images[0].content",
      metadata: { error_id: "e1" },
    });

    const error = await failure(connect().embedImages([Uint8Array.of(1)]));

    assert.equal(error.code, "INVALID_ARGUMENT");
    assert.equal(error.reason, "IMAGE_UNREADABLE");
    assert.equal(error.domain, "alignserve.v1");
    assert.equal(error.message, "images[0]: not an image");
    assert.equal(error.errorId, "e1");
    assert.deepEqual(error.violations, [
      { field: "images[0].content", description: "wrong", reason: "IMAGE_UNREADABLE" },
    ]);
    assert.equal(error.retryDelayMs, undefined);
  });

  test("an answer above the limit is RESOURCE_EXHAUSTED, and not repeated", async () => {
    server.onUnary = (_, respond) => respond({ embeddings: [{ packedFloat32: new Uint8Array(100_000) }] });

    const error = await failure(connect({ maxResponseBytes: 10_000 }).embedTexts(["a"]));

    assert.equal(error.code, "RESOURCE_EXHAUSTED");
    assert.equal(error.reason, "");
    assert.equal(server.received.length, 1);
  });

  test("an answer above 4 MiB is read by default", async () => {
    server.onUnary = (_, respond) => respond({ embeddings: [{ packedFloat32: new Uint8Array(8 << 20) }] });

    const { embeddings } = await connect().embedTexts(["a"]);

    assert.equal(embeddings[0]!.length, 2 << 20);
  });
});

describe("repeats", () => {
  const unavailable = { code: status.UNAVAILABLE };

  test("UNAVAILABLE is repeated, also with a large picture", async () => {
    server.failures.push(unavailable, { ...unavailable, reason: "MODEL_LOADING", retryDelayMs: 1 });

    await connect().embedImages([new Uint8Array(5 << 20)]);

    assert.equal(server.received.length, 3);
  });

  test("UNAVAILABLE is repeated at most maxAttempts - 1 times", async () => {
    server.failures.push(...Array(9).fill(unavailable));

    const error = await failure(connect({ retry: { maxAttempts: 3, initialBackoffMs: 1 } }).embedTexts(["a"]));

    assert.equal(error.code, "UNAVAILABLE");
    assert.equal(server.received.length, 3);
  });

  test("a CANCELLED that the caller did not cause is repeated", async () => {
    server.failures.push({ code: status.CANCELLED });

    await connect().embedTexts(["a"]);

    assert.equal(server.received.length, 2);
  });

  test("a full server's delay is waited for", async () => {
    server.failures.push({ code: status.RESOURCE_EXHAUSTED, reason: "QUEUE_FULL", retryDelayMs: 50 });
    const start = performance.now();

    await connect().embedTexts(["a"]);

    assert.ok(performance.now() - start >= 49);
    assert.equal(server.received.length, 2);
  });

  for (const [name, failed] of Object.entries({
    "a delay beyond the deadline": { code: status.RESOURCE_EXHAUSTED, reason: "QUOTA_EXCEEDED", retryDelayMs: 900 },
    WOULD_MISS_DEADLINE: { code: status.RESOURCE_EXHAUSTED, reason: "WOULD_MISS_DEADLINE", retryDelayMs: 1 },
    "RESOURCE_EXHAUSTED without a delay": { code: status.RESOURCE_EXHAUSTED },
    INVALID_ARGUMENT: { code: status.INVALID_ARGUMENT, reason: "TEXT_EMPTY" },
  })) {
    test(`${name} is not waited for`, async () => {
      server.failures.push(failed);

      const error = await failure(connect({ timeoutMs: 800 }).embedTexts(["a"]));

      assert.equal(error.reason, failed.reason ?? "");
      assert.equal(server.received.length, 1);
    });
  }

  test("retry: false repeats nothing", async () => {
    server.failures.push({ code: status.UNAVAILABLE, reason: "SHUTTING_DOWN", retryDelayMs: 1 });

    const error = await failure(connect({ retry: false }).embedTexts(["a"]));

    assert.equal(error.reason, "SHUTTING_DOWN");
  });
});

describe("ends", () => {
  test("an aborted signal cancels the call with its reason", async () => {
    const controller = new AbortController();
    server.onUnary = () => controller.abort(new Error("enough"));

    await assert.rejects(connect().embedTexts(["a"], { signal: controller.signal }), /enough/);
  });

  test("an aborted signal ends the wait between attempts", async () => {
    const controller = new AbortController();
    server.failures.push({ code: status.RESOURCE_EXHAUSTED, reason: "QUEUE_FULL", retryDelayMs: 20_000 });
    const call = connect().embedTexts(["a"], { signal: controller.signal });
    setTimeout(() => controller.abort(), 50);

    await assert.rejects(call, { name: "AbortError" });
  });

  test("a deadline ends a call that is not answered", async () => {
    server.onUnary = () => {};

    const error = await failure(connect().embedTexts(["a"], { timeoutMs: 50 }));

    assert.equal(error.code, "DEADLINE_EXCEEDED");
  });
});

test("calls are spread over the addresses of a target", async () => {
  const other = await ScriptedServer.start();
  const client = new Client(`ipv4:${server.target},${other.target}`, { plaintext: true });
  clients.push(client);

  // Calls go to the servers that are connected, so the other may join late.
  while (server.received.length === 0 || other.received.length === 0) await client.embedTexts(["a"]);

  other.stop();
});

describe("TLS", () => {
  let folder: string;
  const read = (name: string) => readFileSync(join(folder, name));

  before(() => {
    folder = mkdtempSync(join(tmpdir(), "alignserve-"));
    const openssl = (...args: string[]) => execFileSync("openssl", args, { cwd: folder, stdio: "ignore" });
    const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    openssl("req", "-x509", ...key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test ca", "-days", "2");
    for (const name of ["server", "client"]) {
      writeFileSync(join(folder, "extensions"), "subjectAltName=IP:127.0.0.1");
      openssl("req", "-new", ...key, "-keyout", `${name}.key`, "-out", `${name}.csr`, "-subj", `/CN=${name}`);
      openssl(
        ...["x509", "-req", "-in", `${name}.csr`, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"],
        ...["-out", `${name}.pem`, "-days", "2", "-extfile", "extensions"],
      );
    }
  });
  after(() => rmSync(folder, { recursive: true }));

  beforeEach(async () => {
    server.stop();
    const pair = { private_key: read("server.key"), cert_chain: read("server.pem") };
    server = await ScriptedServer.start(ServerCredentials.createSsl(read("ca.pem"), [pair], true));
  });

  test("a private authority and a client's certificate are used", async () => {
    const tls = { ca: read("ca.pem"), certificate: read("client.pem"), key: read("client.key") };

    const { embeddings } = await connect({ plaintext: false, tls }).embedTexts(["a"]);

    assert.equal(embeddings.length, 1);
  });

  test("a server of an unknown authority is not trusted", async () => {
    const error = await failure(connect({ plaintext: false, retry: false }).embedTexts(["a"], { timeoutMs: 5000 }));

    assert.equal(error.code, "UNAVAILABLE");
    assert.equal(server.received.length, 0);
  });

  test("a connection is encrypted unless plaintext is asked for", () => {
    assert.throws(() => connect({ plaintext: true, tls: { ca: read("ca.pem") } }), TypeError);
  });
});
