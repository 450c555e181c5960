// What the server is asked, in one place: keys, errors, streams.

let key = sessionStorage.getItem("key") ?? "";

/** An answer that is an error; its message is for people. */
export class Failure extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Fetches; asks for a key when one is missing and tries again. */
export async function call(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached.", 0);
  }
  if (response.ok) return response;
  const failure = await told(response);
  if (failure.status === 401 && (await askForKey())) return call(path, options);
  throw failure;
}

/** The error that a response tells of. */
async function told(response) {
  const body = await response.json().catch(() => ({}));
  const wait = response.headers.get("Retry-After");
  const again = response.status === 429 && wait ? ` Try again in ${wait} s.` : "";
  const message = body.error?.message || `The server answered ${response.status}.`;
  return new Failure(message[0].toUpperCase() + message.slice(1) + again, response.status, body.error?.code);
}

function askForKey() {
  const dialog = document.querySelector("#key");
  const input = dialog.querySelector("input");
  dialog.querySelector("#key-why").textContent = key
    ? "The server did not accept that key."
    : "The server was started with keys. Whoever runs it can give you one.";
  input.value = "";
  dialog.returnValue = "";
  dialog.querySelector("[type=button]").onclick = () => dialog.close();
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        if (dialog.returnValue === "use") sessionStorage.setItem("key", (key = input.value));
        resolve(dialog.returnValue === "use");
      },
      { once: true },
    );
  });
}

/** Sends JSON, returns JSON. */
export async function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return (await call(path, { method: "POST", headers, body: JSON.stringify(body), signal })).json();
}

export const get = async (path) => (await call(path)).json();

/** Streams a chat answer: yields pieces of text, returns the usage counts. */
export async function* chat(body, signal) {
  const response = await call("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  let usage;
  for await (const event of events(response.body)) {
    if (event === "[DONE]") return usage;
    const chunk = JSON.parse(event);
    if (chunk.error) throw new Failure(chunk.error.message, 200, chunk.error.code);
    usage = chunk.usage ?? usage;
    const text = chunk.choices[0]?.delta?.content;
    if (text) yield text;
  }
  throw new Failure("The answer broke off.", 0);
}

/** The data of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let { value, done } = await reader.read(); !done; { value, done } = await reader.read()) {
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) if (block.startsWith("data:")) yield block.slice(5).trim();
  }
}
