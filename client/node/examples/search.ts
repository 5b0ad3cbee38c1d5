/**
 * Finds the pictures of a folder that fit a text, and names what they show.
 *
 *     npm run example -- 127.0.0.1:50051 photos "a cup of coffee" cat dog coffee
 *
 * ALIGNSERVE_ROOT_CERTIFICATES names a PEM file and turns TLS on; ALIGNSERVE_API_KEY is sent if it is set.
 */

import { readFile, readdir } from "node:fs/promises";
import { join } from "node:path";

import { AlignserveError, Client, cosineSimilarity, type StreamItem } from "alignserve";

const [target = "127.0.0.1:50051", folder = "photos", text = "a cup of coffee", ...labels] = process.argv.slice(2);

const { ALIGNSERVE_API_KEY: apiKey, ALIGNSERVE_ROOT_CERTIFICATES: ca } = process.env;
const client = new Client(target, { apiKey, ...(ca ? { tls: { ca: await readFile(ca) } } : { plaintext: true }) });
try {
  await compareTwo();
  await searchAll();
} catch (error) {
  if (!(error instanceof AlignserveError)) throw error;
  console.error(`${error.code} ${error.reason}: ${error.message}`); // printed whole, it shows gRPC's metadata as well
  process.exitCode = 1;
} finally {
  client.close();
}

/** Two pictures and a text in one space, and the labels of the first picture. */
async function compareTwo(): Promise<void> {
  const names = (await pictures()).slice(0, 2);
  const files = await Promise.all(names.map((name) => readFile(join(folder, name))));

  const [images, texts] = await Promise.all([client.embedImages(files), client.embedTexts([text])]);
  for (const [index, name] of names.entries()) {
    const cosine = cosineSimilarity(images.embeddings[index]!, texts.embeddings[0]!);
    console.log(`${name} and "${text}": ${cosine.toFixed(4)}`);
  }

  if (labels.length === 0) return;
  const { results } = await client.classify(files, labels, { promptTemplates: ["a photo of a {label}"] });
  for (const [index, name] of names.entries()) {
    const best = results[index]![0]!;
    console.log(`${name}: ${best.label}, score ${best.score.toFixed(4)}, similarity ${best.similarity.toFixed(4)}`);
  }
}

/** All pictures over one stream; files are read as their turn comes. */
async function searchAll(): Promise<void> {
  const { embeddings } = await client.embedTexts([text]);
  const found: { name: string; cosine: number }[] = [];
  for await (const result of client.stream(items())) {
    if (result.kind === "embedding") {
      found.push({ name: result.id, cosine: cosineSimilarity(result.embedding, embeddings[0]!) });
    } else if (result.kind === "error") {
      console.error(`${result.id}: ${result.error.reason}: ${result.error.message}`);
    }
  }
  found.sort((a, b) => b.cosine - a.cosine);
  for (const { name, cosine } of found.slice(0, 5)) console.log(`${cosine.toFixed(4)} ${name}`);
}

async function* items(): AsyncGenerator<StreamItem<string>> {
  for (const name of await pictures()) yield { id: name, kind: "image", image: await readFile(join(folder, name)) };
}

async function pictures(): Promise<string[]> {
  return (await readdir(folder)).filter((name) => /\.(jpe?g|png|webp|gif|bmp)$/i.test(name)).sort();
}
