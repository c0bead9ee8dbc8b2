// The text of a document, a stretch at a time, with what is cited or pinned marked in it.

import { request } from "./api.js";
import { $, el } from "./page.js";
import { count, find, length, slice } from "./words.js";

const AROUND = 800;
const MORE = 3000;

let shown = null; // {id, name, start, end, total, text, mark: {start, end} | null, page}
let pins = [];
let picked = null; // a selection in the text: {start, end, words}
let back = null;

/** Begin. */
export function start() {
  const dialog = $("reader");
  $("reader-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => back?.isConnected && back.focus());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
  $("earlier").addEventListener("click", () => extend(Math.max(0, shown.start - MORE), shown.end));
  $("later").addEventListener("click", () => extend(shown.start, Math.min(shown.total, shown.end + MORE)));
  document.addEventListener("selectionchange", pick);
  $("pin").addEventListener("submit", (event) => { event.preventDefault(); pin(); });
}

/** Show `start` to `end` of a document, marked, with what stands around it. */
export async function openPlace({ id, name, start, end, page }) {
  await open({ id, name, mark: { start, end }, page, first: Math.max(0, start - AROUND), last: end + AROUND });
}

/** Show the beginning of a document. */
export async function openText(id, name) {
  await open({ id, name, mark: null, page: null, first: 0, last: MORE });
}

async function open({ id, name, mark, page, first, last }) {
  const dialog = $("reader");
  if (!dialog.open) back = document.activeElement;
  shown = { id, name, start: first, end: first, total: null, text: "", mark, page };
  pins = [];
  picked = null;
  $("reader-title").textContent = name;
  $("reader-place").textContent = "";
  $("pin-words").value = $("pin-key").value = $("pin-said").textContent = "";
  $("text").replaceChildren();
  if (!dialog.open) dialog.showModal();
  $("reader-title").focus();
  try {
    await load(first, last);
    await listPins();
  } catch (error) {
    if (shown.id !== id) return;
    $("reader-place").textContent = error.status === 404
      ? "This document was deleted. The quotation in the answer is what it said."
      : `The text cannot be shown: ${error.message}.`;
    $("earlier").hidden = $("later").hidden = true;
    return;
  }
  $("text").querySelector("mark")?.scrollIntoView({ block: "center" });
}

async function load(start, end) {
  const { id } = shown, path = `/v1/documents/${encodeURIComponent(id)}`;
  // How long it is, is known only after the first look.
  if (shown.total === null) shown.total = (await request("GET", path)).num_characters;
  if (shown.total === null) throw new Error("it has not been got out of the file yet");
  const found = await request("GET", `${path}/text?start=${start}&end=${Math.min(end, shown.total)}`);
  if (shown.id !== id) return;
  Object.assign(shown, { start: found.start, end: found.end, text: found.text });
  render();
}

async function extend(start, end) {
  const body = $("reader-body"), fromEnd = body.scrollHeight - body.scrollTop, isUp = start < shown.start;
  try {
    await load(start, end);
  } catch (error) {
    $("reader-place").textContent = `More of it cannot be shown: ${error.message}.`;
    return;
  }
  if (isUp) body.scrollTop = body.scrollHeight - fromEnd;
}

function render() {
  const { start, end, total, mark, page, text } = shown;
  const characters = Array.from(text);
  const spans = [
    ...(mark ? [{ ...mark, name: "mark" }] : []),
    ...pins.map((each) => ({ start: each.start, end: each.end, name: "pinned" })),
  ].filter((each) => each.end > start && each.start < end);
  const borders = [...new Set([start, end, ...spans.flatMap((each) => [each.start, each.end])])]
    .filter((at) => at >= start && at <= end).sort((one, other) => one - other);
  const pieces = [];
  for (let place = 0; place + 1 < borders.length; place += 1) {
    const [from, to] = [borders[place], borders[place + 1]];
    const words = characters.slice(from - start, to - start).join("");
    const over = new Set(spans.filter((each) => each.start <= from && to <= each.end).map((each) => each.name));
    if (over.has("mark")) pieces.push(el("mark", { text: words, class: over.has("pinned") ? "pinned" : null }));
    else if (over.has("pinned")) pieces.push(el("span", { text: words, class: "pinned" }));
    else pieces.push(document.createTextNode(words));
  }
  $("text").replaceChildren(...pieces);
  $("earlier").hidden = start === 0;
  $("later").hidden = end === total;
  const where = `characters ${count(start)} to ${count(end)} of ${count(total)}`;
  $("reader-place").textContent = mark
    ? `Quoted from characters ${count(mark.start)} to ${count(mark.end)}${page ? `, page ${page}` : ""}; shown are ${where}`
    : `Shown are ${where}`;
}

/** What is selected in the text becomes the words to pin. */
function pick() {
  const selection = document.getSelection();
  if (!shown || !$("reader").open || selection.isCollapsed || selection.rangeCount === 0) return;
  const range = selection.getRangeAt(0), text = $("text");
  if (!text.contains(range.startContainer) || !text.contains(range.endContainer)) return;
  const before = document.createRange();
  before.selectNodeContents(text);
  before.setEnd(range.startContainer, range.startOffset);
  const words = range.toString(), start = shown.start + length(before.toString());
  picked = { start, end: start + length(words), words };
  $("pin-words").value = words;
}

async function pin() {
  const words = $("pin-words").value, key = $("pin-key").value.trim();
  if (words.trim() === "") {
    $("pin-said").textContent = "Select some words in the text first, or write them.";
    $("pin-words").focus();
    return;
  }
  // An input field keeps no line ends; what was selected has its place all the same.
  const isPicked = picked !== null && words === picked.words.replace(/[\r\n]/g, "");
  const at = isPicked ? picked.start - shown.start : find(shown.text, words);
  if (at < 0) {
    $("pin-said").textContent = "These words do not stand in the text that is shown, letter for letter.";
    return;
  }
  const start = shown.start + at, end = isPicked ? picked.end : start + length(words);
  try {
    await request("POST", facts(), key === "" ? { start, end } : { start, end, key });
    await listPins();
    $("pin-said").textContent = `Pinned: ${slice(shown.text, start - shown.start, end - shown.start)}`;
    $("pin-words").value = $("pin-key").value = "";
    picked = null;
  } catch (error) {
    $("pin-said").textContent = `Not pinned: ${error.message}.`;
  }
}

async function listPins() {
  const { id } = shown;
  const found = await request("GET", `${facts()}?source=user&limit=1000`);
  if (shown.id !== id) return;
  pins = found.data;
  $("pins").replaceChildren(...pins.map((each) => el("li", {},
    el("button", { type: "button", class: "quote", text: each.text, click: () => jump(each) }),
    each.key ? el("span", { class: "soft", text: ` asked by ${each.key}` }) : null,
    el("button", { type: "button", text: "Unpin", "aria-label": `Unpin ${each.text}`, click: () => unpin(each) }),
  )));
  $("no-pins").hidden = pins.length > 0;
  render();
}

async function jump({ start, end, page }) {
  Object.assign(shown, { mark: { start, end }, page });
  try {
    await load(Math.max(0, start - AROUND), end + AROUND);
    $("text").querySelector("mark")?.scrollIntoView({ block: "center" });
  } catch (error) {
    $("pin-said").textContent = `It cannot be shown: ${error.message}.`;
  }
}

async function unpin(each) {
  try {
    await request("DELETE", `${facts()}/${encodeURIComponent(each.id)}`);
    await listPins();
    $("pin-said").textContent = "Unpinned.";
    $("pin-words").focus();
  } catch (error) {
    $("pin-said").textContent = `Not unpinned: ${error.message}.`;
  }
}

const facts = () => `/v1/documents/${encodeURIComponent(shown.id)}/facts`;
