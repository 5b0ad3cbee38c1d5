// Joins the parts of the page.

import { call, useKey } from "./calls.js";
import { setUpClassify } from "./classify.js";
import { byId, showError } from "./elements.js";
import { watchLive } from "./live.js";
import { setUpSearch } from "./search.js";

const tabs = [byId("tab-classify"), byId("tab-search")];
const panels = [byId("classify"), byId("search")];
const takers = [setUpClassify(modelInfo), setUpSearch(modelInfo)];

let info = null;

/** Returns the response of GetModelInfo, from its first success on without a call. */
async function modelInfo() {
  if (!info) {
    info = await call("GetModelInfo", {});
    byId("model").textContent = `${info.modelId} · ${info.embeddingDimension} dimensions · ${info.device}`;
  }
  return info;
}

function open(chosen, focus = false) {
  for (const [position, tab] of tabs.entries()) {
    const isOpen = position === chosen;
    tab.setAttribute("aria-selected", String(isOpen));
    tab.tabIndex = isOpen ? 0 : -1;
    panels[position].hidden = !isOpen;
  }
  if (focus) tabs[chosen].focus();
}

const opened = () => panels.findIndex((panel) => !panel.hidden);

for (const [position, tab] of tabs.entries()) {
  tab.addEventListener("click", () => open(position));
  tab.addEventListener("keydown", ({ key }) => {
    const moves = { ArrowRight: position + 1, ArrowLeft: position - 1, Home: 0, End: tabs.length - 1 };
    if (key in moves) open((moves[key] + tabs.length) % tabs.length, true);
  });
}

/** Opens the search with the words of a link such as `/#search=a+red+bag`; a fragment is not sent to the server. */
function followLink() {
  const words = new URLSearchParams(location.hash.slice(1)).get("search");
  if (words === null) return;
  byId("query").value = words;
  open(1);
}
window.addEventListener("hashchange", followLink);
followLink();

document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
  if (!files.length) return; // a text, for the field that has the focus
  event.preventDefault();
  takers[opened()](files);
});
// A picture dropped outside a zone would replace the page.
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());

const pollNow = watchLive((state) => {
  if (state === "serving") meetModel(false);
});

/** Reads what the server serves, which shows whether it accepts the key. */
async function meetModel(isNewKey) {
  const status = byId("key-status");
  info = null;
  try {
    await modelInfo();
    showError(byId("key-error"), null);
    status.textContent = isNewKey ? "The server accepts it." : "";
  } catch (error) {
    status.textContent = "";
    if (!isNewKey && !error.reason.startsWith("KEY_")) return; // the panels will tell
    byId("key-box").open = true;
    showError(byId("key-error"), error);
  }
}

byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  useKey(byId("key").value);
  byId("key").value = "";
  await meetModel(true);
  pollNow();
});
byId("forget-key").addEventListener("click", () => {
  useKey("");
  byId("key").value = "";
  byId("key-status").textContent = "Forgotten.";
  showError(byId("key-error"), null);
});
