// Runs in the browser: calls the server from a page of another origin, and returns what came of each check.

import { createClient, Code, ConnectError } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";
import { AlignService, EmbeddingFormat } from "./gen/alignserve/v1/align_service_pb.js";
import { BadRequestSchema, ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";

const TOLERANCE = 1e-4;

globalThis.run = async ({ url, golden, photo }) => {
  const transports = {
    "Connect, JSON": createConnectTransport({ baseUrl: url }),
    "Connect, binary": createConnectTransport({ baseUrl: url, useBinaryFormat: true }),
    "Connect, GET": createConnectTransport({ baseUrl: url, useHttpGet: true }),
    "gRPC-Web": createGrpcWebTransport({ baseUrl: url }),
  };
  const results = [];
  const check = async (name, body) => {
    try {
      results.push({ check: name, ok: true, detail: await body() });
    } catch (error) {
      results.push({ check: name, ok: false, detail: `${error}` });
    }
  };
  const image = Uint8Array.from(atob(photo), (character) => character.charCodeAt(0));
  for (const [name, transport] of Object.entries(transports)) {
    const client = createClient(AlignService, transport);
    await check(`${name}: embeds a text`, async () => {
      const { embeddings } = await client.embedText({ texts: ["a cat"] });
      return agrees(embeddings[0].values, golden.texts["a cat"]);
    });
    await check(`${name}: shows code, reason and field of an error`, async () => {
      const error = await client.embedText({ texts: [" "] }).then(() => undefined, ConnectError.from);
      equal(error?.code, Code.InvalidArgument);
      equal(error.findDetails(ErrorInfoSchema)[0]?.reason, "TEXT_EMPTY");
      equal(error.findDetails(BadRequestSchema)[0]?.fieldViolations[0]?.field, "texts[0]");
      return "INVALID_ARGUMENT, TEXT_EMPTY, texts[0]";
    });
    if (name === "Connect, GET") continue; // a picture does not fit into an address
    await check(`${name}: embeds an image in packed floats`, async () => {
      const { embeddings } = await client.embedImage({
        images: [{ source: { case: "content", value: image } }],
        embeddingOptions: { format: EmbeddingFormat.PACKED_FLOAT32 },
      });
      const packed = embeddings[0].packedFloat32;
      const view = new DataView(packed.buffer, packed.byteOffset, packed.byteLength);
      const values = Array.from({ length: packed.length / 4 }, (_, at) => view.getFloat32(4 * at, true));
      return agrees(values, golden.images["cat.jpg"]);
    });
    await check(`${name}: classifies an image`, async () => {
      const { results } = await client.classify({
        images: [{ source: { case: "content", value: image } }],
        labels: ["cat", "coffee", "rocket"],
        promptTemplates: ["a photo of a {label}"],
      });
      const [best] = results[0].classifications;
      equal(best.label, "cat");
      return `${best.label} ${best.score.toFixed(4)}`;
    });
  }
  const client = createClient(AlignService, transports["Connect, JSON"]);
  await check("Connect, JSON: a deadline that has passed ends the call", async () => {
    const request = { images: [{ source: { case: "content", value: image } }] };
    const error = await client.embedImage(request, { timeoutMs: 1 }).then(() => undefined, ConnectError.from);
    equal(error?.code, Code.DeadlineExceeded);
    return "DEADLINE_EXCEEDED";
  });
  await check("Connect, JSON: 20 calls at once are answered", async () => {
    const answers = await Promise.all(
      Array.from({ length: 20 }, (_, number) => client.embedText({ texts: [`text ${number}`] })),
    );
    equal(answers.every(({ embeddings }) => embeddings[0].values.length === 512), true);
    return "20 answers";
  });
  return results;
};

function agrees(values, golden) {
  equal(values.length, golden.length);
  const worst = Math.max(...values.map((value, at) => Math.abs(value - golden[at])));
  if (!(worst <= TOLERANCE)) throw new Error(`differs by ${worst}`);
  return `${values.length} numbers, within ${worst.toExponential(0)}`;
}

function equal(actual, expected) {
  if (actual !== expected) throw new Error(`${actual} is not ${expected}`);
}
