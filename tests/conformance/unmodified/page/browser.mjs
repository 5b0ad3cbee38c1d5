// A browser with the server's page in it, and what a person does with it.

import path from "node:path";
import { chromium } from "playwright-core";

const { ALIGNSERVE_PHOTOS } = process.env;

export const launch = () => chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });

export const photo = (name) => path.join(ALIGNSERVE_PHOTOS, name);

/** Chooses files by a click and the browser's dialog. */
export async function choose(page, button, files) {
  const [chooser] = await Promise.all([page.waitForEvent("filechooser"), button.click()]);
  await chooser.setFiles(files);
}

/** Waits until the status of a panel has a text. */
export async function said(page, panel, text) {
  await page.locator(`#${panel}-status`).filter({ hasText: text }).waitFor();
}

/** Searches for words among all photos. */
export async function search(page, words) {
  await page.getByRole("tab", { name: "Search" }).click();
  const photos = ["astronaut.jpg", "cat.jpg", "coffee.jpg", "rocket.jpg"].map(photo);
  await choose(page, page.getByText("Choose pictures"), photos);
  await said(page, "search", "4 pictures ready");
  await page.getByLabel("Describe what you look for").fill(words);
  await page.getByRole("button", { name: "Search" }).click();
  await said(page, "search", "Best for");
}
