// The server's own page in Chromium, used by clicks, keys, the clipboard and touch.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import axe from "axe-core";
import { choose, launch, photo, said, search } from "./browser.mjs";

const { ALIGNSERVE_HTTP, ALIGNSERVE_TLS_HTTP, ALIGNSERVE_KEY, ALIGNSERVE_GOLDEN } = process.env;
const GOLDEN = JSON.parse(readFileSync(ALIGNSERVE_GOLDEN, "utf8"));
const PHONE = { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true };

const print = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
const complaints = []; // of the browser: errors, breaches of the policy, calls of other servers

const browser = await launch();

/** Runs a check on a page of its own; `options` are those of its browser context. */
async function check(name, options, act) {
  const context = await browser.newContext({ reducedMotion: "reduce", ...options });
  context.setDefaultTimeout(15_000);
  const page = await context.newPage();
  const { url = ALIGNSERVE_HTTP, expected = /(?!)/ } = options;
  const complain = (text) => expected.test(text) || complaints.push(`${name}: ${text}`);
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && complain(message.text()));
  page.on("pageerror", (error) => complain(String(error)));
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !/^(blob|data):/.test(request.url())) complain(`called ${request.url()}`);
  });
  try {
    await page.goto(`${url}/`);
    print({ check: name, ok: true, detail: (await act(page, context)) ?? "" });
  } catch (error) {
    print({ check: name, ok: false, detail: String(error.message).slice(0, 600) });
  } finally {
    await context.close();
  }
}

/** Returns the rows of the table, best label first. */
async function results(page) {
  const rows = await page.locator("#classify-results tbody tr").all();
  return Promise.all(
    rows.map(async (row) => ({
      label: await row.getByRole("rowheader").innerText(),
      score: parseFloat((await row.getByRole("cell").nth(0).innerText()).replace("< ", "")) / 100,
      similarity: parseFloat((await row.getByRole("cell").nth(1).innerText()).replace("\u2212", "-")),
    })),
  );
}

async function classify(page, name) {
  await choose(page, page.getByText("Choose a picture"), photo(name));
  await said(page, "classify", "Best label");
  return results(page);
}

/** Makes a `DataTransfer` with a file in the page. */
function transfer(page, name, type = "image/jpeg", content = readFileSync(photo(name)).toString("base64")) {
  return page.evaluateHandle(
    (file) => {
      const transferred = new DataTransfer();
      const bytes = Uint8Array.from(atob(file.content), (character) => character.charCodeAt(0));
      transferred.items.add(new File([bytes], file.name, { type: file.type }));
      return transferred;
    },
    { name, type, content },
  );
}

/** Fails if axe finds anything, in the page as it is now. */
async function assertAccessible(page) {
  await page.evaluate(axe.source);
  const { violations, passes } = await page.evaluate(() => globalThis.axe.run());
  const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
  assert.deepEqual(found, []);
  return passes.length;
}

function product(a, b) {
  return a.reduce((sum, value, position) => sum + value * b[position], 0);
}

/** A BMP file, which is not compressed, of one gray. */
function bitmap(width, height) {
  const stride = Math.ceil((width * 3) / 4) * 4;
  const content = Buffer.alloc(54 + stride * height, 90).fill(0, 0, 54);
  content.write("BM");
  content.writeUInt32LE(content.length, 2);
  content.writeUInt32LE(54, 10);
  content.writeUInt32LE(40, 14);
  content.writeInt32LE(width, 18);
  content.writeInt32LE(height, 22);
  content.writeUInt16LE(1, 26);
  content.writeUInt16LE(24, 28);
  return content;
}

print({
  client: "the page in Chromium",
  versions: { chromium: browser.version(), "axe-core": axe.version },
});

await check("a chosen photo is classified", {}, async (page) => {
  await page.getByRole("textbox", { name: "Labels" }).fill("cat\ncoffee, rocket");
  await page.getByLabel("Prompt").fill("a photo of a {label}");
  const rows = await classify(page, "cat.jpg");
  const scores = GOLDEN.classify["cat.jpg"];
  const ranked = ["cat", "coffee", "rocket"].sort((one, other) => scores[other] - scores[one]);
  assert.deepEqual(rows.map(({ label }) => label), ranked);
  assert.ok(Math.abs(rows[0].score - GOLDEN.classify["cat.jpg"].cat) < 0.001, `score ${rows[0].score}`);
  assert.ok(rows[0].similarity > 0.2 && rows[2].similarity < 0.1, `similarities ${JSON.stringify(rows)}`);
  await page.locator("#classify-picture").waitFor();
  return `cat: score ${rows[0].score.toFixed(3)}, similarity ${rows[0].similarity}`;
});

await check("other labels are scored again", {}, async (page) => {
  await classify(page, "coffee.jpg");
  await page.getByRole("textbox", { name: "Labels" }).fill("an espresso, a cup of tea");
  await page.getByLabel("Prompt").fill("");
  await page.getByRole("button", { name: "Classify", exact: true }).click();
  await page.getByRole("rowheader", { name: "an espresso" }).waitFor();
  const total = (await results(page)).reduce((sum, { score }) => sum + score, 0);
  assert.ok(Math.abs(total - 1) < 0.002, `scores add up to ${total}`);
});

const CLIPBOARD = { permissions: ["clipboard-read", "clipboard-write"] };
await check("a pasted photo is classified", CLIPBOARD, async (page) => {
  await page.evaluate(
    async (content) => {
      const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
      const image = await createImageBitmap(new Blob([bytes]));
      const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
      canvas.getContext("2d").drawImage(image, 0, 0);
      const png = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
      await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
    },
    readFileSync(photo("rocket.jpg")).toString("base64"),
  );
  await page.keyboard.press("Control+V");
  await said(page, "classify", "Best label: a rocket");
});

await check("a dropped photo is classified", {}, async (page) => {
  const dataTransfer = await transfer(page, "coffee.jpg");
  await page.dispatchEvent("#classify-drop", "dragover", { dataTransfer });
  await page.dispatchEvent("#classify-drop", "drop", { dataTransfer });
  await said(page, "classify", "Best label: a cup of coffee");
});

await check("pictures are sorted by words", {}, async (page) => {
  await search(page, "a rocket at night");
  const first = page.locator("#search-results li").first();
  const [name, fit] = [await first.locator(".name").innerText(), await first.locator(".fit").innerText()];
  const expected = product(GOLDEN.images["rocket.jpg"], GOLDEN.texts["a rocket at night"]);
  assert.equal(name, "rocket.jpg");
  assert.ok(Math.abs(parseFloat(fit.replace("similarity", "")) - expected) < 0.001, `${fit}, not ${expected}`);
  await page.getByLabel("Describe").fill("a cup of coffee");
  await page.keyboard.press("Enter");
  await said(page, "search", "coffee.jpg");
  await page.getByRole("button", { name: "Remove all" }).click();
  await said(page, "search", "Add some pictures");
  return `rocket.jpg: similarity ${expected.toFixed(3)}`;
});

const REFUSED = { expected: /400 \(Bad Request\)/ }; // the browser reports each as an error of its own
await check("a refusal is shown with its reason and field", REFUSED, async (page) => {
  await classify(page, "cat.jpg");
  await page.getByLabel("Prompt").fill("a photo of a cat");
  await page.getByRole("button", { name: "Classify", exact: true }).click();
  const error = page.locator("#classify-error");
  await error.getByText("The prompt is not valid.").waitFor();
  await assertAccessible(page);
  return error.locator(".reason").innerText();
});

await check("a file that is not a picture is refused in words", REFUSED, async (page) => {
  const dataTransfer = await transfer(page, "notes.png", "image/png", btoa("no picture"));
  await page.dispatchEvent("#classify-drop", "drop", { dataTransfer });
  await page.getByText("The server cannot read this picture.").waitFor();
});

await check("a picture above the limits is scaled down", {}, async (page) => {
  const large = { name: "large.bmp", mimeType: "image/bmp", buffer: bitmap(2400, 1800) };
  await choose(page, page.getByText("Choose a picture"), large);
  await said(page, "classify", "Best label");
  const note = await page.locator("#classify-note").innerText();
  assert.match(note, /sent a smaller copy of large.bmp: it has 12.4 MiB and 2400 × 1800 pixels/);
  return note;
});

const KEYED = { url: ALIGNSERVE_TLS_HTTP, ignoreHTTPSErrors: true, expected: /401 \(Unauthorized\)/ };
await check("a key is asked for, checked, and kept in this tab only", KEYED, async (page, context) => {
  const urls = [];
  page.on("request", (request) => urls.push(request.url()));
  await page.getByText("This server asks for an API key.").first().waitFor();
  await page.getByRole("textbox", { name: "API key" }).fill("wrong-key-000");
  await page.getByRole("button", { name: "Use key" }).click();
  await page.locator("#key-error").getByText("does not accept this API key").waitFor();
  await assertAccessible(page);
  const reason = await page.locator("#key-error .reason").innerText();

  await page.getByRole("textbox", { name: "API key" }).fill(ALIGNSERVE_KEY);
  await page.keyboard.press("Enter");
  await page.getByText("The server accepts it.").waitFor();
  await classify(page, "cat.jpg");
  await page.reload();
  await page.locator("#model").filter({ hasText: "mini" }).waitFor();

  assert.ok(!urls.some((url) => url.includes(ALIGNSERVE_KEY)), "the key is in a URL");
  const kept = await page.evaluate(() => JSON.stringify([{ ...localStorage }, document.cookie]));
  assert.equal(kept, '[{},""]');
  const other = await context.newPage();
  await other.goto(`${ALIGNSERVE_TLS_HTTP}/`);
  await other.getByText("This server asks for an API key.").first().waitFor();
  return reason;
});

await check("live figures follow the calls", {}, async (page) => {
  await page.locator("#state").filter({ hasText: "ready" }).waitFor();
  await classify(page, "cat.jpg");
  await page.locator("#live-latency").filter({ hasText: "s" }).waitFor();
  await page.locator("#live-rate").filter({ hasText: /^\d/ }).waitFor();
  return `latency ${await page.locator("#live-latency").innerText()}`;
});

await check("a server that is gone is named so", { expected: /ERR_CONNECTION_REFUSED/ }, async (page, context) => {
  await page.locator("#state").filter({ hasText: "ready" }).waitFor();
  await context.route(/stats|readyz|AlignService/, (route) => route.abort("connectionrefused"));
  await page.locator("#state").filter({ hasText: "not reachable" }).waitFor();
  await choose(page, page.getByText("Choose a picture"), photo("cat.jpg"));
  await page.getByText("The server cannot be reached.").first().waitFor();
});

await check("a server that loads or shuts down is named so", {}, async (page, context) => {
  let state = "loading";
  await context.route("**/stats.json", async (route) => {
    const response = await route.fetch();
    await route.fulfill({ response, json: { ...(await response.json()), state } });
  });
  await page.locator("#state").filter({ hasText: "loading the model" }).waitFor();
  state = "draining";
  await page.locator("#state").filter({ hasText: "shutting down" }).waitFor();
});

await check("the keyboard is enough", {}, async (page) => {
  const focused = () => page.evaluate(() => document.activeElement.id);
  const tabTo = async (id) => {
    for (let presses = 0; presses < 20 && (await focused()) !== id; presses += 1) await page.keyboard.press("Tab");
    assert.equal(await focused(), id);
    const { outlined } = await page.evaluate(() => {
      const shown = [document.activeElement, document.activeElement.nextElementSibling];
      return { outlined: shown.some((one) => one && getComputedStyle(one).outlineStyle === "solid") };
    });
    assert.ok(outlined, `the focus on ${id} is not visible`);
  };
  page.on("filechooser", () => {}); // so that the browser hands over even the first one
  await tabTo("classify-file");
  const [chooser] = await Promise.all([page.waitForEvent("filechooser"), page.keyboard.press("Space")]);
  await chooser.setFiles(photo("rocket.jpg"));
  await said(page, "classify", "Best label: a rocket");
  await tabTo("labels");
  await page.keyboard.press("Control+A");
  await page.keyboard.type("a dog, a launch pad");
  await page.keyboard.press("Control+Enter");
  await said(page, "classify", "Best label: a launch pad");

  await page.keyboard.press("Shift+Tab");
  await page.locator("#tab-classify").focus();
  await page.keyboard.press("ArrowRight");
  assert.equal(await focused(), "tab-search");
  await tabTo("query");
  await tabTo("search-files");
  const [many] = await Promise.all([page.waitForEvent("filechooser"), page.keyboard.press("Space")]);
  await many.setFiles([photo("cat.jpg"), photo("coffee.jpg")]);
  await said(page, "search", "2 pictures ready");
});

await check("a phone of 360 pixels shows all of it", PHONE, async (page) => {
  await page.getByText("Take a photo").first().waitFor();
  assert.equal(await page.locator("#classify-camera").getAttribute("capture"), "environment");
  await classify(page, "cat.jpg");
  await assertAccessible(page);
  await search(page, "a cat");
  const passes = await assertAccessible(page);
  const widths = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
  assert.deepEqual(widths, [360, 360]);
  const small = await page.evaluate(() =>
    [...document.querySelectorAll("button, .button, summary, input:not([type=file]), textarea")]
      .map((target) => [target.id || target.textContent.trim(), target.getBoundingClientRect()])
      .filter(([, box]) => box.height > 0 && box.height < 44)
      .map(([name]) => name),
  );
  assert.deepEqual(small, []);
  return `axe: ${passes} rules`;
});

for (const colorScheme of ["light", "dark"]) {
  await check(`axe finds nothing, ${colorScheme}`, { colorScheme }, async (page) => {
    await classify(page, "astronaut.jpg");
    const passes = await assertAccessible(page);
    await search(page, "a cup of coffee");
    await assertAccessible(page);
    await page.locator("summary").click();
    await assertAccessible(page);
    const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    assert.equal(ground, colorScheme === "light" ? "rgb(246, 247, 249)" : "rgb(18, 21, 27)");
    return `${passes} rules`;
  });
}

await check("a link opens the search with its words", {}, async (page) => {
  await page.goto(`${ALIGNSERVE_HTTP}/#search=${encodeURIComponent("<b>a cup</b> & more")}`);
  await page.getByRole("tabpanel", { name: "Search" }).waitFor();
  assert.equal(await page.getByLabel("Describe what you look for").inputValue(), "<b>a cup</b> & more");
});

await check("nothing moves for those who ask for that", {}, async (page) => {
  await classify(page, "cat.jpg");
  const animation = await page.locator(".fill").first().evaluate((bar) => getComputedStyle(bar).animationName);
  assert.equal(animation, "none");
});

await browser.close();
print({
  check: "no errors, no breach of the content security policy, no call of another server",
  ok: complaints.length === 0,
  detail: complaints.join("; ").slice(0, 1000),
});
