// Scores a picture against labels.

import { call } from "./calls.js";
import { asScore, asSimilarity, byId, element, scoreBar, showError, similarityBar } from "./elements.js";
import { base64, fitted, watchForPictures } from "./pictures.js";

const SHOWN_LABELS = 50;

/** Sets the panel up; returns what takes pasted pictures. `modelInfo` returns the response of GetModelInfo. */
export function setUpClassify(modelInfo) {
  const picture = byId("classify-picture");
  const status = byId("classify-status");
  let blob = null;
  let running = new AbortController();

  async function take([file]) {
    showError(byId("classify-error"), null);
    try {
      const taken = await fitted(file, await modelInfo());
      blob = taken.blob;
      byId("classify-note").textContent = taken.note;
      show(taken);
      await classify();
    } catch (error) {
      fail(error);
    }
  }

  function show(taken) {
    URL.revokeObjectURL(picture.src);
    picture.hidden = !taken.isVisible;
    if (taken.isVisible) picture.src = URL.createObjectURL(taken.blob);
    else picture.removeAttribute("src");
    picture.alt = `The picture to classify: ${taken.name}`;
  }

  async function classify() {
    if (!blob) {
      status.textContent = "Choose a picture first.";
      byId("classify-file").focus();
      return;
    }
    running.abort();
    running = new AbortController();
    showError(byId("classify-error"), null);
    status.textContent = "Classifying …";
    const template = byId("template").value.trim();
    const started = performance.now();
    try {
      const response = await call(
        "Classify",
        {
          images: [{ content: await base64(blob) }],
          labels: labelsIn(byId("labels").value),
          promptTemplates: template ? [template] : [],
          topK: SHOWN_LABELS,
        },
        running.signal,
      );
      showResults(response.results[0].classifications, performance.now() - started);
    } catch (error) {
      fail(error);
    }
  }

  function showResults(classifications, milliseconds) {
    const [best] = classifications;
    const rows = classifications.map(({ label, score, similarity }) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, label),
        element("td", {}, asScore(score), scoreBar(score)),
        element("td", {}, asSimilarity(similarity), similarityBar(similarity)),
      ),
    );
    byId("classify-results").querySelector("tbody").replaceChildren(...rows);
    byId("classify-results").hidden = false;
    status.textContent =
      `Best label: ${best.label}, with a score of ${asScore(best.score)} and a similarity of ` +
      `${asSimilarity(best.similarity)}. Answered in ${Math.round(milliseconds)} ms.`;
  }

  function fail(error) {
    if (error.name === "AbortError") return; // a newer call has taken its place
    status.textContent = "";
    byId("classify-results").hidden = true;
    showError(byId("classify-error"), error);
  }

  byId("classify-form").addEventListener("submit", (event) => {
    event.preventDefault();
    classify();
  });
  byId("labels").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("classify-form").requestSubmit();
  });
  watchForPictures(byId("classify-drop"), [byId("classify-file"), byId("classify-camera")], take);
  return take;
}

function labelsIn(text) {
  return text
    .split(/[\n,]/)
    .map((label) => label.trim())
    .filter(Boolean);
}
