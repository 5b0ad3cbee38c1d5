// Shows the server's state, and its rate, queue, batch size and latency while the page is visible.

import { CallError, read } from "./calls.js";
import { byId } from "./elements.js";

const INTERVAL_MS = 2_000;
const INTERVAL_AFTER_ERROR_MS = 5_000;
const WINDOW_SECONDS = 11; // 10, and some tolerance
const WORDS = {
  loading: "loading the model",
  serving: "ready",
  stalled: "model is stuck",
  draining: "shutting down",
  unreachable: "not reachable",
};
const NOTE = "over the last 10 seconds, all callers";

/** Starts polling; calls `onState` with each new state. */
export function watchLive(onState) {
  const samples = new Map(); // by process: with several workers, answers come from any of them
  let timer = 0;
  let state = "";

  async function poll() {
    clearTimeout(timer);
    let pause = INTERVAL_MS;
    try {
      const sample = await read("/stats.json");
      enter(sample.state);
      byId("live-note").textContent = NOTE;
      const earlier = samples.get(sample.process) ?? [];
      const window = [...earlier, sample].filter(({ seconds }) => sample.seconds - seconds < WINDOW_SECONDS);
      samples.set(sample.process, window);
      show(window[0], sample);
    } catch (error) {
      if (!(error instanceof CallError)) throw error;
      pause = INTERVAL_AFTER_ERROR_MS;
      samples.clear();
      enter(error.reason === "UNREACHABLE" ? "unreachable" : await probe());
      byId("live-note").textContent = error.title;
    }
    if (document.visibilityState === "visible") timer = setTimeout(poll, pause);
  }

  function enter(next) {
    if (next === state) return;
    state = next;
    const shown = byId("state");
    shown.dataset.state = next;
    shown.textContent = WORDS[next] ?? next;
    onState(next);
  }

  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible") poll();
  });
  poll();
  return poll;
}

/** Returns the state from the probe, which needs no key. */
async function probe() {
  try {
    return (await (await fetch("/readyz", { cache: "no-store" })).text()).trim();
  } catch {
    return "unreachable";
  }
}

function show(before, now) {
  const seconds = now.seconds - before.seconds;
  const items = total(now.items) - total(before.items);
  const batches = total(now.batches) - total(before.batches);
  const batched = total(now.batched_items) - total(before.batched_items);
  const counts = now.call_seconds.counts.map((count, bucket) => count - before.call_seconds.counts[bucket]);
  const calls = counts.reduce((sum, count) => sum + count, 0);
  byId("live-rate").textContent = seconds ? rounded(items / seconds) : "–";
  byId("live-queue").textContent = String(total(now.queued));
  byId("live-batch").textContent = batches ? rounded(batched / batches) : "–";
  byId("live-latency").textContent = calls ? duration(quantile(0.5, counts, now.call_seconds.bounds)) : "–";
  byId("live-slow").textContent = calls
    ? `median; 95 % of calls within ${duration(quantile(0.95, counts, now.call_seconds.bounds))}`
    : "median";
}

const total = (byModality) => Object.values(byModality).reduce((sum, value) => sum + value, 0);

const rounded = (value) => (value && value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en"));

/** Estimates a quantile from counts in buckets, as Prometheus does: evenly spread in its bucket. */
function quantile(share, counts, bounds) {
  let left = share * counts.reduce((sum, count) => sum + count, 0);
  for (const [bucket, bound] of bounds.entries()) {
    if (left <= counts[bucket]) {
      const lower = bucket ? bounds[bucket - 1] : 0;
      return lower + (bound - lower) * (left / counts[bucket]);
    }
    left -= counts[bucket];
  }
  return bounds.at(-1);
}

function duration(seconds) {
  if (seconds >= 1) return `${seconds.toFixed(1)}\u00a0s`;
  return `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)}\u00a0ms`;
}
