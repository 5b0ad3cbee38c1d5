// Small pieces of the page.

export const byId = (id) => document.getElementById(id);

/** Makes an element with properties and children; texts are never read as HTML. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Shows an error in words, with its reason and fields; without one, hides the place for it. */
export function showError(place, error) {
  place.hidden = !error;
  if (!error) {
    place.replaceChildren();
    return;
  }
  const known = [error.reason, ...(error.fields ?? [])].filter(Boolean).join(" · ");
  place.replaceChildren(
    element("strong", {}, error.title ?? "Something went wrong."),
    element("p", {}, error.message),
    ...(known ? [element("p", { className: "reason" }, known)] : []),
  );
}

/** A bar from 0 to 1. */
export function scoreBar(score) {
  const fill = element("span", { className: "fill" });
  fill.style.inlineSize = `${100 * score}%`;
  return bar("score", fill);
}

/** A bar from -0.5 to 0.5 that starts in the middle: between a picture and a text, more is rare. */
export function similarityBar(similarity) {
  const fill = element("span", { className: similarity < 0 ? "fill below" : "fill" });
  const length = Math.min(50, 100 * Math.abs(similarity));
  fill.style.inlineSize = `${length}%`;
  fill.style.insetInlineStart = `${similarity < 0 ? 50 - length : 50}%`;
  return bar("similarity", fill);
}

export const asScore = (score) => (score > 0 && score < 0.001 ? "< 0.1\u00a0%" : `${(100 * score).toFixed(1)}\u00a0%`);

export const asSimilarity = (similarity) => similarity.toFixed(3).replace("-", "\u2212");

function bar(kind, fill) {
  const made = element("span", { className: `bar ${kind}` }, fill);
  made.setAttribute("aria-hidden", "true"); // the number next to it says the same
  return made;
}
