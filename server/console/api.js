// Talks to the server: one place for the key, for refusals, and for streams.

import { tab } from "./page.js";

const KEY = "fano-key";

/** Tells what the whole page has to know: `key` (one is needed), `lost` (the connection), `unready`. */
export const news = new EventTarget();

let key = tab.kept(KEY) ?? "";

export const hasKey = () => key !== "";

export function useKey(text) {
  key = text;
  tab.keep(KEY, text === "" ? null : text);
}

/** The server said no, and why. */
export class Refused extends Error {
  constructor(status, error, retryAfter) {
    super(error.message);
    this.status = status;
    this.code = error.code;
    this.progress = error.progress ?? null;
    this.retryAfter = retryAfter;
  }
}

/** Nobody answered, or the answer broke off. */
export class Lost extends Error {}

const tell = (name, detail) => news.dispatchEvent(new CustomEvent(name, { detail }));

const headers = (more) => (key === "" ? more : { ...more, Authorization: `Bearer ${key}` });

/** The JSON of a reply. Throws `Refused` and `Lost`; an `AbortError` passes. */
export async function request(method, path, body, signal) {
  const reply = await open(method, path, body, signal);
  try {
    return await reply.json();
  } catch (error) {
    throw broken(error);
  }
}

/** The events of a reply as `{name, data}`, as they come. Throws like `request`. */
export async function* events(method, path, body, signal) {
  const reply = await open(method, path, body, signal);
  const pieces = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await pieces.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parsed(block);
        if (event) yield event;
      }
    }
  } catch (error) {
    throw broken(error);
  } finally {
    pieces.cancel().catch(() => {});
  }
}

/** Send a file as a form; `sending(fraction)` while it goes. Throws like `request`. */
export function upload(path, file, sending) {
  return new Promise((resolve, reject) => {
    const call = new XMLHttpRequest(), used = key; // fetch does not tell how much was sent
    const form = new FormData();
    form.append("file", file, file.name);
    call.open("POST", path);
    for (const [name, value] of Object.entries(headers({}))) call.setRequestHeader(name, value);
    call.upload.onprogress = (event) => event.lengthComputable && sending(event.loaded / event.total);
    call.onerror = () => { tell("lost"); reject(new Lost("the connection was lost while the file was being sent")); };
    call.onload = () => {
      let body = null;
      try { body = JSON.parse(call.responseText); } catch { /* told below */ }
      if (call.status < 300 && body) resolve(body);
      else reject(refusal(call.status, body, call.getResponseHeader("Retry-After"), used));
    };
    call.send(form);
  });
}

/** How far the server is: `{status, reason}`; status `lost` where nobody answers. */
export async function readiness() {
  try {
    return await (await fetch("/readyz", { cache: "no-store" })).json();
  } catch {
    return { status: "lost", reason: "no connection to the server" };
  }
}

async function open(method, path, body, signal) {
  const sent = body === undefined ? {} : { "Content-Type": "application/json" }, used = key;
  let reply;
  try {
    reply = await fetch(path, { method, headers: headers(sent), body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    throw broken(error);
  }
  if (reply.ok) return reply;
  let said = null;
  try { said = await reply.json(); } catch { /* told by its status */ }
  throw refusal(reply.status, said, reply.headers.get("Retry-After"), used);
}

function refusal(status, body, retryAfter, used) {
  const error = body?.error ?? { message: `the server answered ${status} and no reason`, code: null };
  const refused = new Refused(status, error, retryAfter === null ? null : Number(retryAfter));
  if (status === 401 && used === key) tell("key", refused); // another one may have been typed meanwhile
  if (status === 503) tell("unready", refused);
  return refused;
}

function broken(error) {
  if (error.name === "AbortError" || error instanceof Refused) return error;
  tell("lost");
  return new Lost("the connection to the server was lost");
}

function parsed(block) {
  let name = "message", data = "";
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
  }
  if (data === "") return null; // a comment that keeps the connection alive
  return data === "[DONE]" ? { name: "end", data: null } : { name, data: JSON.parse(data) };
}
