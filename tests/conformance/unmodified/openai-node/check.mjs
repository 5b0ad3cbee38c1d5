// OpenAI's Node client: texts and images, the model's name and errors.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import OpenAI from "openai";
import { VERSION } from "openai/version";

const golden = JSON.parse(readFileSync(process.env.ALIGNSERVE_GOLDEN, "utf8"));
const photo = readFileSync(join(process.env.ALIGNSERVE_PHOTOS, "cat.jpg")).toString("base64");
const client = new OpenAI({ baseURL: `${process.env.ALIGNSERVE_HTTP}/v1`, apiKey: "unused" });
const model = (await client.models.list()).data[0].id;

function print(line) {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

async function check(name, run) {
  try {
    print({ check: name, ok: true, detail: await run() });
  } catch (error) {
    print({ check: name, ok: false, detail: String(error).slice(0, 300) });
  }
}

function compared(found, expected) {
  found.forEach((vector, item) =>
    vector.forEach((value, index) => {
      if (!(Math.abs(value - expected[item][index]) <= 1e-4)) throw new Error(`${item}[${index}] is ${value}`);
    }),
  );
  return `${found.length} of ${found[0].length} numbers, as expected`;
}

async function embedded(input, options = {}) {
  const answer = await client.embeddings.create({ model, input, ...options });
  return answer.data.map((each) => each.embedding);
}

async function refusal(call) {
  try {
    await call();
  } catch (error) {
    if (error instanceof OpenAI.APIError) return error;
    throw error;
  }
  throw new Error("not refused");
}

print({ client: "openai (Node)", versions: { openai: VERSION, node: process.versions.node } });
const texts = ["a cat", "a cup of coffee"];
const expected = texts.map((text) => golden.texts[text]);
await check("texts, base64 by default", async () => compared(await embedded(texts), expected));
await check("texts as floats", async () => compared(await embedded(texts, { encoding_format: "float" }), expected));
await check("texts and images in one call", async () =>
  compared(await embedded(["a cat", `data:image/jpeg;base64,${photo}`]), [
    golden.texts["a cat"],
    golden.images["cat.jpg"],
  ]),
);
await check("an error names the input", async () => {
  const error = await refusal(() => embedded(["a cat", " "]));
  if (error.status !== 400 || error.param !== "input[1]") throw error;
  return `${error.status} ${error.code} at ${error.param}`;
});
await check("another model is not found", async () => {
  const error = await refusal(() => embedded("a cat", { model: "text-embedding-3-small" }));
  if (error.code !== "model_not_found") throw error;
  return error.message;
});
