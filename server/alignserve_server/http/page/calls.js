// Calls the server's API as any other client does: JSON over HTTP, in the Connect protocol.

const SERVICE = "/alignserve.v1.AlignService/";
const TIMEOUT_MS = 30_000;
const STORED = "alignserve-api-key";

const TITLES = {
  KEY_MISSING: "This server asks for an API key.",
  KEY_INVALID: "The server does not accept this API key.",
  SCOPE_MISSING: "This API key does not permit that.",
  QUOTA_EXCEEDED: "This API key has used up its quota for the moment.",
  QUEUE_FULL: "The server has all the work that it can hold.",
  WOULD_MISS_DEADLINE: "The server is too busy to answer in time.",
  MODEL_LOADING: "The model is still loading.",
  MODEL_STALLED: "The model is stuck.",
  SHUTTING_DOWN: "The server is shutting down.",
  IMAGE_UNREADABLE: "The server cannot read this picture.",
  IMAGE_TOO_LARGE: "This picture is too large for the server.",
  REQUEST_TOO_LARGE: "This is too large for the server.",
  TEXT_EMPTY: "There is a text without words.",
  TEXT_TOO_LONG: "A text is too long for the model.",
  LABELS_INVALID: "The labels are not valid.",
  TEMPLATE_INVALID: "The prompt is not valid.",
  REQUEST_EMPTY: "Something is missing.",
  INFERENCE_FAILED: "The model failed on this.",
  UNREACHABLE: "The server cannot be reached.",
};

// Where the server's own words are for programs.
const MESSAGES = { KEY_MISSING: "Enter one under “API key”. The operator of the server can give you one." };

let key = stored();

/** Why a call failed: `reason` is for programs, `message` for people, `fields` are the invalid ones. */
export class CallError extends Error {
  constructor(reason, message, fields = []) {
    super(message);
    this.reason = reason;
    this.fields = fields;
  }

  get title() {
    return TITLES[this.reason] ?? "The server refused the call.";
  }
}

/** Sets the API key for the rest of this tab's life; an empty one forgets it. */
export function useKey(value) {
  key = value.trim();
  try {
    if (key) sessionStorage.setItem(STORED, key);
    else sessionStorage.removeItem(STORED);
  } catch {
    // Storage is blocked: the key lasts until the page is reloaded.
  }
}

/** Calls a unary method; returns its response, or throws a `CallError`. */
export async function call(method, message, signal) {
  const response = await request(SERVICE + method, {
    method: "POST",
    body: JSON.stringify(message),
    headers: { "content-type": "application/json", "connect-timeout-ms": String(TIMEOUT_MS) },
    signal,
  });
  return response.json();
}

/** Reads a document of the server, such as `/stats.json`. */
export async function read(path) {
  const response = await request(path, { cache: "no-store" });
  return response.json();
}

async function request(path, { headers = {}, ...options }) {
  const authorization = key ? { authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...authorization }, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallError("UNREACHABLE", "It may have stopped, or the connection is lost. Try again in a moment.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  if (body.error) return new CallError(body.error.reason, body.error.message);
  const details = (body.details ?? []).map((detail) => detail.debug ?? {});
  const reason = details.find((detail) => detail.reason)?.reason ?? body.code ?? `HTTP ${response.status}`;
  const fields = details.flatMap((detail) => detail.fieldViolations ?? []).map((violation) => violation.field);
  return new CallError(reason, MESSAGES[reason] ?? body.message ?? response.statusText, fields);
}

function stored() {
  try {
    return sessionStorage.getItem(STORED) ?? "";
  } catch {
    return "";
  }
}
