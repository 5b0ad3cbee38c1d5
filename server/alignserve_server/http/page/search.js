// Sorts pictures by how well they fit a text. The browser keeps the embeddings and compares them itself.

import { CallError, call } from "./calls.js";
import { asSimilarity, byId, element, showError, similarityBar } from "./elements.js";
import { base64, fitted, watchForPictures } from "./pictures.js";

const CALLS_AT_ONCE = 4; // the server batches them
const PACKED = { format: "EMBEDDING_FORMAT_PACKED_FLOAT32" };

/** Sets the panel up; returns what takes pasted pictures. `modelInfo` returns the response of GetModelInfo. */
export function setUpSearch(modelInfo) {
  const status = byId("search-status");
  let pictures = []; // {name, url, embedding, error}
  let query = null; // {text, embedding}
  let fingerprint = ""; // of the model that made the embeddings

  async function take(files) {
    showError(byId("search-error"), null);
    byId("search-note").textContent = "";
    let info;
    try {
      info = await currentModel();
    } catch (error) {
      showError(byId("search-error"), error);
      return;
    }
    const added = files.map((file) => ({ name: file.name || "picture", url: "", file }));
    pictures.push(...added);
    const waiting = [...added];
    const work = async () => {
      for (let picture = waiting.shift(); picture; picture = waiting.shift()) {
        await embed(picture, info);
        show();
      }
    };
    show();
    await Promise.all(Array.from({ length: CALLS_AT_ONCE }, work));
  }

  /** Returns the response of GetModelInfo; drops embeddings of another model, which cannot be compared with its own. */
  async function currentModel() {
    const info = await modelInfo();
    if (fingerprint && fingerprint !== info.fingerprint) {
      query = null;
      removeAll();
      byId("search-note").textContent = "The server has another model now: add the pictures again.";
    }
    fingerprint = info.fingerprint;
    return info;
  }

  function removeAll() {
    for (const picture of pictures) URL.revokeObjectURL(picture.url);
    pictures = [];
    show();
  }

  async function embed(picture, info) {
    try {
      const { blob, note, isVisible } = await fitted(picture.file, info);
      if (note) byId("search-note").textContent = note;
      if (isVisible) picture.url = URL.createObjectURL(blob);
      const request = { images: [{ content: await base64(blob) }], embeddingOptions: PACKED };
      picture.embedding = unpacked((await call("EmbedImage", request)).embeddings[0]);
    } catch (error) {
      picture.error = error;
      showError(byId("search-error"), new CallError(error.reason, `${picture.name}: ${error.message}`, error.fields));
    }
    delete picture.file;
  }

  async function search() {
    const text = byId("query").value;
    showError(byId("search-error"), null);
    status.textContent = "Searching …";
    try {
      await currentModel();
      const response = await call("EmbedText", { texts: [text], embeddingOptions: PACKED });
      query = { text, embedding: unpacked(response.embeddings[0]) };
      show();
    } catch (error) {
      query = null;
      show();
      showError(byId("search-error"), error);
    }
  }

  function show() {
    for (const picture of pictures) {
      picture.similarity = query && picture.embedding ? product(query.embedding, picture.embedding) : null;
    }
    const shown = query ? [...pictures].sort((a, b) => (b.similarity ?? -2) - (a.similarity ?? -2)) : pictures;
    byId("search-results").replaceChildren(...shown.map(entry));
    byId("search-results").classList.toggle("ranked", query !== null);
    byId("search-clear").hidden = pictures.length === 0;
    status.textContent = summary(shown);
  }

  function summary(shown) {
    const missing = pictures.filter((picture) => !picture.embedding && !picture.error).length;
    if (missing) return `Reading ${missing} of ${pictures.length} pictures …`;
    if (!pictures.length) return query ? "Add some pictures to search." : "";
    const ready = pictures.filter((picture) => picture.embedding).length;
    if (!query) return `${ready} ${ready === 1 ? "picture" : "pictures"} ready to search.`;
    if (!ready) return "No picture could be read.";
    return `Best for “${query.text}”: ${shown[0].name}, with a similarity of ${asSimilarity(shown[0].similarity)}.`;
  }

  byId("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  byId("search-clear").addEventListener("click", () => {
    removeAll();
    byId("search-files").focus();
  });
  watchForPictures(byId("search-drop"), [byId("search-files"), byId("search-camera")], take);
  return take;
}

function entry(picture) {
  const caption = element("p", { className: "name" }, picture.name);
  const image = picture.url
    ? element("img", { src: picture.url, alt: "" }) // its name is written below it
    : element("div", { className: "blank" });
  const made = element("li", {}, image, caption);
  if (picture.error) made.append(element("p", { className: "note" }, picture.error.title ?? "It could not be read."));
  else if (!picture.embedding) made.append(element("p", { className: "note" }, "reading …"));
  else if (picture.similarity !== null) {
    made.append(
      element(
        "p",
        { className: "fit" },
        element("span", { className: "hidden" }, "similarity "),
        asSimilarity(picture.similarity),
        similarityBar(picture.similarity),
      ),
    );
  }
  return made;
}

function unpacked(embedding) {
  const bytes = Uint8Array.from(atob(embedding.packedFloat32), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer); // little-endian, whatever this machine is
  return Float32Array.from({ length: bytes.length / 4 }, (_, position) => view.getFloat32(4 * position, true));
}

function product(a, b) {
  return a.reduce((sum, value, position) => sum + value * b[position], 0);
}
