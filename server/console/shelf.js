// The documents: sent, watched while they are read, chosen to be asked, deleted.

import { events, Lost, Refused, request, upload } from "./api.js";
import { $, announce, dismiss, el, notify, sure } from "./page.js";
import { bytes, count, duration, plural } from "./words.js";

const AGAIN_MS = 2000;
const RATE_SECONDS = 20;
// In the order of work; `dense` and `reading` go on while the document can be asked already.
const STAGES = [
  ["parsing", "its text"],
  ["indexing", "its words and keys"],
  ["dense", "its meanings"],
  ["reading", "by the model"],
];
const DOING = {
  queued: "waiting for its turn",
  parsing: "getting the text out of the file",
  indexing: "finding words, keys and facts",
  dense: "finding meanings",
  reading: "being read by the model",
};
const UNITS = { dense: "passages", reading: "tokens" };

const shelf = new Map(); // by id: {view, row, watching, seen}
const chosen = new Set();
let changed = () => {};
let openText = () => {};

/** Begin. `whenChosen()` is called when what is to be asked changed, `open(id)` to show a document's text. */
export function start({ whenChosen, open }) {
  changed = whenChosen;
  openText = open;
  const drop = $("drop");
  $("file").addEventListener("change", () => { send([...$("file").files]); $("file").value = ""; });
  for (const name of ["dragover", "dragenter"]) {
    document.addEventListener(name, (event) => {
      if (![...event.dataTransfer.types].includes("Files")) return;
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    drop.classList.remove("over");
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    send([...event.dataTransfer.files]);
  });
  drop.addEventListener("submit", (event) => { event.preventDefault(); paste(); });
}

/** The documents that are asked, as they are now. */
export const asked = () => [...chosen].map((id) => shelf.get(id)?.view).filter(Boolean);

/** A document by its id, if it is here. */
export const view = (id) => shelf.get(id)?.view ?? null;

/** All that is here. */
export const all = () => [...shelf.values()].map((each) => each.view);

/** How many tokens of all documents can be found by now. */
export const numIndexed = () => all().reduce((sum, { num_tokens, status, progress }) => {
  const isWhole = status === "ready" || progress.stage === "reading";
  return sum + (num_tokens ?? 0) * (isWhole ? 1 : progress.stage === "dense" && progress.total ? progress.done / progress.total : 0);
}, 0);

/** Whether something is being read now. */
export const isBusy = () => all().some((each) => !isOver(each));

/** Look up what the server has, and watch what is not finished. */
export async function refresh() {
  const found = [], before = [...shelf.keys()]; // what arrives meanwhile need not be in the list

  for (let after = ""; ; ) {
    const page = await request("GET", `/v1/documents?limit=100${after && `&after=${encodeURIComponent(after)}`}`);
    found.push(...page.data);
    if (!page.has_more) break;
    after = page.last_id;
  }
  const ids = new Set(found.map((each) => each.id));
  for (const id of before) if (!ids.has(id)) drop(id);
  const isFirst = before.length === 0 && chosen.size === 0;
  found.forEach(put);
  const newest = found.findLast((each) => each.status !== "failed");
  if (isFirst && newest) choose(newest.id, true);
  empty();
}

async function send(files) {
  for (const file of files) {
    const topic = `upload ${file.name}`;
    const progress = el("progress", { max: 1, value: 0, "aria-label": `Sending ${file.name}` });
    const row = el("li", { class: "document" }, el("p", { class: "name", text: file.name }), progress);
    $("documents").prepend(row);
    empty();
    dismiss(topic);
    try {
      arrived(await upload("/v1/documents", file, (fraction) => { progress.value = fraction; }));
    } catch (error) {
      tellRefusal(error, file.name, topic, () => send([file]));
    } finally {
      row.remove();
      empty();
    }
  }
}

async function paste() {
  const text = $("paste").value;
  if (text.trim() === "") {
    notify("paste", "There is no text in the field yet.", { bad: true });
    $("paste").focus();
    return;
  }
  dismiss("paste");
  const name = $("paste-name").value.trim() || "pasted.txt";
  try {
    arrived(await request("POST", "/v1/documents", { text, name }));
    $("paste").value = "";
  } catch (error) {
    tellRefusal(error, name, "paste", paste);
  }
}

function arrived(document) {
  put(document);
  if (document.status !== "failed") choose(document.id, true);
  announce(`${document.name} was taken in.`);
}

function tellRefusal(error, name, topic, again) {
  const words = error.status === 413 || error.status === 415
    ? `${name} was not taken: ${error.message}.`
    : `${name} was not sent: ${error.message}.`;
  const canHelp = error instanceof Lost || error.status === 429 || error.status === 503 || error.status === 507;
  notify(topic, words, { bad: true, again: canHelp ? { label: "Send it again", act: again } : null });
}

function put(document) {
  let entry = shelf.get(document.id);
  if (!entry) {
    entry = { view: document, row: el("li", { class: "document", "data-id": document.id }), watching: false, seen: [] };
    shelf.set(document.id, entry);
    $("documents").prepend(entry.row);
    build(entry);
  }
  entry.view = document;
  show(entry);
  if (!isOver(document)) watch(entry);
  empty();
  changed();
}

function drop(id) {
  const entry = shelf.get(id);
  if (!entry) return;
  entry.row.remove();
  shelf.delete(id);
  chosen.delete(id);
  empty();
  changed();
}

function choose(id, isChosen) {
  isChosen ? chosen.add(id) : chosen.delete(id);
  const entry = shelf.get(id);
  if (entry) entry.box.checked = isChosen;
  changed();
}

/** Follow the document's events to their end, over lost connections. */
async function watch(entry) {
  if (entry.watching) return;
  entry.watching = true;
  const id = entry.view.id;
  try {
    while (shelf.has(id) && !isOver(entry.view)) {
      try {
        for await (const event of events("GET", `/v1/documents/${encodeURIComponent(id)}/events`)) {
          if (event.name === "error") { drop(id); return; }
          note(entry, event.data);
        }
      } catch (error) {
        if (error.status === 404) { drop(id); return; }
        if (error instanceof Refused && error.status !== 503 && error.status !== 429) return;
      }
      if (!isOver(entry.view)) await new Promise((done) => setTimeout(done, AGAIN_MS));
    }
    if (shelf.has(id)) announce(`${entry.view.name} ${entry.view.status === "failed" ? "failed" : "is ready"}.`);
  } finally {
    entry.watching = false;
  }
}

function note(entry, document) {
  const { stage, done } = document.progress;
  const now = performance.now() / 1000;
  if (entry.view.progress.stage !== stage) entry.seen = [];
  if (entry.view.progress.done !== done || !entry.seen.length) entry.seen.push([now, done]);
  // Two at least, however slowly the work goes on.
  entry.seen = entry.seen.filter(([at], place) => now - at < RATE_SECONDS || place >= entry.seen.length - 2);
  const couldAsk = entry.view.answerable;
  entry.view = document;
  show(entry);
  if (!couldAsk && document.answerable) announce(`${document.name} can be asked now.`);
  changed();
}

function build(entry) {
  const { id } = entry.view;
  entry.box = el("input", { type: "checkbox", id: `ask-${id}`, change: () => choose(id, entry.box.checked) });
  entry.name = el("label", { for: `ask-${id}`, class: "name" });
  entry.facts = el("p", { class: "soft" });
  entry.steps = el("ol", { class: "steps", "aria-label": "Stages" });
  entry.bar = el("progress", {});
  entry.doing = el("p", { class: "doing" });
  entry.wrong = el("p", { class: "wrong" });
  entry.open = el("button", { type: "button", text: "Open", click: () => openText(id) });
  entry.remove = el("button", { type: "button", text: "Delete", click: () => remove(entry) });
  entry.row.append(
    el("div", { class: "line" }, entry.box, entry.name), entry.facts, entry.steps, entry.bar, entry.doing, entry.wrong,
    el("div", { class: "row" }, entry.open, entry.remove),
  );
}

function show(entry) {
  const { view } = entry, { progress } = view, isDone = isOver(view);
  entry.name.textContent = view.name;
  entry.open.setAttribute("aria-label", `Open ${view.name}`);
  entry.remove.setAttribute("aria-label", `Delete ${view.name}`);
  entry.bar.setAttribute("aria-label", `Reading ${view.name}`);
  entry.facts.textContent = [
    bytes(view.num_bytes),
    view.num_tokens !== null ? plural(view.num_tokens, "token") : null,
    view.status === "ready" ? "read" : view.answerable ? "can be asked" : null,
  ].filter(Boolean).join(" · ");
  entry.row.dataset.status = view.status;
  entry.row.dataset.answerable = view.answerable;
  entry.open.disabled = view.num_characters === null;
  entry.box.disabled = view.status === "failed";
  if (entry.box.disabled && chosen.delete(view.id)) entry.box.checked = false;
  entry.steps.hidden = entry.bar.hidden = isDone;
  entry.doing.textContent = isDone ? (progress.note ?? "") : doing(entry);
  entry.doing.hidden = entry.doing.textContent === "";
  entry.wrong.textContent = view.error ? `${view.error.message} (${view.error.code})` : "";
  entry.wrong.hidden = view.error === null;
  if (isDone) return;
  if (progress.total > 1) { entry.bar.max = progress.total; entry.bar.value = progress.done; }
  else entry.bar.removeAttribute("value");
  const at = STAGES.findIndex(([stage]) => stage === progress.stage);
  entry.steps.replaceChildren(...STAGES.map(([, words], place) => el("li", {
    text: words, class: place < at ? "done" : null, "aria-current": place === at ? "step" : null,
  })));
}

function doing(entry) {
  const { progress } = entry.view, unit = UNITS[progress.stage];
  const told = [DOING[progress.stage] ?? progress.stage];
  if (unit && progress.total > 1) told.push(`${count(progress.done)} of ${count(progress.total)} ${unit}`);
  const [first, last] = [entry.seen[0], entry.seen.at(-1)];
  if (unit && first && last[0] > first[0]) told.push(`${count((last[1] - first[1]) / (last[0] - first[0]))} ${unit}/s`);
  if (progress.seconds_left !== null && progress.stage !== "queued") told.push(`${duration(progress.seconds_left)} left`);
  return told.join(" · ");
}

async function remove(entry) {
  const { id, name } = entry.view, path = `/v1/documents/${encodeURIComponent(id)}`;
  if (!await sure({
    title: `Delete ${name}?`, yes: "Delete",
    words: "Its text, its index, its pins and what the model remembers of it are taken off the disk.",
  })) return;
  try {
    await request("DELETE", path);
  } catch (error) {
    if (error.code !== "document_in_use") return tellDeletion(error, name, () => remove(entry));
    if (!await sure({
      title: "Conversations hold it", yes: "Delete all of it",
      words: `${error.message}. The document and these conversations are deleted together, or neither is.`,
    })) return;
    try {
      await request("DELETE", `${path}?cascade=true`);
    } catch (again) {
      return tellDeletion(again, name, () => remove(entry));
    }
  }
  drop(id);
  dismiss(`delete ${id}`);
  document.dispatchEvent(new Event("talks-changed"));
  announce(`${name} was deleted.`);
  $("file").focus();
}

function tellDeletion(error, name, act) {
  if (error.status === 404) return refresh();
  notify(`delete ${name}`, `${name} was not deleted: ${error.message}.`, { bad: true, again: { label: "Delete it again", act } });
}

const isOver = (document) => document.status === "ready" || document.status === "failed";

function empty() { $("no-documents").hidden = $("documents").children.length > 0; }
