// Takes the screenshots of the documentation: node screenshots.mjs FOLDER

import path from "node:path";
import { choose, launch, photo, said, search } from "./browser.mjs";

const [folder] = process.argv.slice(2);
const PHONE = { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true };
const DESK = { viewport: { width: 1040, height: 900 } };

const browser = await launch();

async function shoot(name, options, act) {
  const page = await browser.newPage({ reducedMotion: "reduce", ...options });
  await page.goto(`${process.env.ALIGNSERVE_HTTP}/`);
  await act(page);
  await page.locator("#live-rate").filter({ hasText: /^[\d.]+$/ }).waitFor();
  await page.evaluate(() => document.activeElement.blur());
  await page.mouse.move(0, 0);
  await page.screenshot({ path: path.join(folder, `${name}.png`), fullPage: true });
  await page.close();
}

async function classify(page, name, labels) {
  await page.getByRole("textbox", { name: "Labels" }).fill(labels);
  await choose(page, page.getByText("Choose a picture"), photo(name));
  await said(page, "classify", "Best label");
}

await shoot("page-light", { ...DESK, colorScheme: "light" }, (page) => classify(page, "coffee.jpg", "an espresso, a cup of tea, a bowl of soup, a cat, a rocket"));
await shoot("page-dark", { ...DESK, colorScheme: "dark" }, (page) => search(page, "a cup of coffee"));
await shoot("page-phone", { ...PHONE, colorScheme: "light" }, (page) => classify(page, "cat.jpg", "a cat, a dog, a tiger, a cup of coffee"));
await browser.close();
