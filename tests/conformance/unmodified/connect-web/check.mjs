// connect-web in Chromium: generates its code from the protos, bundles a page, and opens it in a browser.

import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import path from "node:path";
import { build } from "esbuild";
import { chromium } from "playwright-core";

const { ALIGNSERVE_HTTP, ALIGNSERVE_GOLDEN, ALIGNSERVE_PHOTOS, ALIGNSERVE_PROTOS } = process.env;
const CHROMIUM = "/usr/bin/chromium";

const print = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

function versionOf(name) {
  return JSON.parse(readFileSync(path.join("node_modules", name, "package.json"), "utf8")).version;
}

function generate() {
  writeFileSync(
    "buf.gen.yaml",
    "version: v2\nplugins:\n  - local: ./node_modules/.bin/protoc-gen-es\n    out: gen\n    opt: target=js\n",
  );
  execFileSync("node_modules/.bin/buf", ["generate", ALIGNSERVE_PROTOS], { stdio: ["ignore", 2, 2] });
}

async function bundled() {
  const { outputFiles } = await build({ entryPoints: ["page.js"], bundle: true, format: "esm", write: false });
  return outputFiles[0].text;
}

// A page of another origin than the server's: another port.
function served(script) {
  const server = createServer((request, response) => {
    const isScript = request.url === "/page.js";
    response.setHeader("content-type", isScript ? "text/javascript" : "text/html");
    response.end(isScript ? script : "<!doctype html><script type=module src=/page.js></script>");
  });
  return new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(server)));
}

generate();
const server = await served(await bundled());
const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] });
try {
  print({
    client: "connect-web in Chromium",
    versions: {
      chromium: browser.version(),
      "@connectrpc/connect-web": versionOf("@connectrpc/connect-web"),
      "@bufbuild/protobuf": versionOf("@bufbuild/protobuf"),
    },
  });
  const page = await browser.newPage();
  page.on("console", (message) => process.stderr.write(`${message.text()}\n`));
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  await page.waitForFunction("globalThis.run !== undefined");
  const given = {
    url: ALIGNSERVE_HTTP,
    golden: JSON.parse(readFileSync(ALIGNSERVE_GOLDEN, "utf8")),
    photo: readFileSync(path.join(ALIGNSERVE_PHOTOS, "cat.jpg")).toString("base64"),
  };
  for (const result of await page.evaluate((argument) => globalThis.run(argument), given)) print(result);
} finally {
  await browser.close();
  server.close();
}
