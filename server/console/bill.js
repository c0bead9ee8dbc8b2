// The live bill: what lies on the device beside what was planned, what grows beside it, and both against tokens read.

import { request } from "./api.js";
import { Chart } from "./chart.js";
import { $, el } from "./page.js";
import { bytes, count, plural } from "./words.js";

const BUSY_MS = 1000;
const IDLE_MS = 4000;
// What each pool is for, in words for someone who has never seen one.
const DEVICE = {
  weights: ["the model", "its weights"],
  ssm_state: ["state", "all that was read, in a fixed size"],
  conv_state: ["short state", "the last few tokens"],
  kv: ["window", "keys and values, newest tokens"],
  workspace: ["workspace", "room to compute in"],
};
const GROWS = {
  store: "texts and facts",
  index: "search index",
  embeddings: "meanings",
  kv_archive: "older keys and values",
  kv_summaries: "their summaries",
  sessions: "readings and conversations",
  files: "files as sent",
  responses: "replies that were stored",
};

let isBusy = () => false;
let numIndexed = () => 0;
let timer = null;
let first = null; // the bill when this page was opened
let bars = null;
const held = new Chart("On the device and in the process, in bytes, against tokens read");
const grown = new Chart("In the archive, in bytes, against tokens of documents that can be found");

/** Begin. While `busy()` it is asked for more often; `indexed()` are the tokens of documents that can be found. */
export function start({ busy, indexed }) {
  isBusy = busy;
  numIndexed = indexed;
  document.addEventListener("visibilitychange", () => document.hidden || look());
}

/** Look now, and from now on. */
export async function look() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    show(await request("GET", "/v1/memory"));
  } catch (error) {
    $("bill-wait").hidden = false;
    $("bill-wait").textContent = first === null
      ? `The bill is not to be had: ${error.message}.`
      : `The bill is as it was at ${new Date(first.seen).toLocaleTimeString()}: ${error.message}.`;
    if (error.status === 401) return;
  }
  clearTimeout(timer);
  timer = setTimeout(look, isBusy() ? BUSY_MS : IDLE_MS);
}

/** What is in the archive: the documents' texts, indexes and blocks, in memory and on the disk. */
const archived = ({ host, disk }) => total(without(host.pools, "sessions")) + total(without(disk.pools, "sessions", "files", "responses"));

/** The pools on the device but the workspace, which is taken while something is computed, up to its plan. */
const pooled = ({ device }) => device.held_bytes - (device.pools.workspace?.held_bytes ?? 0);

function show(bill) {
  const tokens = bill.tokens.prompt;
  // A process that began anew counts from nought, and so does the page.
  if (first === null || tokens < first.tokens) {
    first = { tokens, held: pooled(bill), archived: archived(bill) };
    held.clear();
    grown.clear();
  }
  first.seen = Date.now();
  bars ??= build();
  $("bill-wait").hidden = true;
  $("bill-body").hidden = false;

  const { device } = bill;
  bars.sum.textContent = bytes(device.held_bytes);
  bars.plan.textContent = `held on the device (${device.device}), of ${bytes(device.plan_bytes)} that were planned before anything was loaded. For a page or a million tokens, it never takes more.`;
  showDevice(device);
  showGrowing(bill);
  showProcess(bill);
  held.add(tokens, { device: pooled(bill), process: bill.resident_set_bytes });
  grown.add(Math.round(numIndexed()), { archive: archived(bill) });
  bars.since.textContent = since(tokens - first.tokens, pooled(bill) - first.held, archived(bill) - first.archived);
}

function build() {
  const made = {
    sum: el("p", { class: "sum" }),
    plan: el("p", { class: "soft" }),
    device: el("ul", { class: "bars", "aria-label": "Pools on the device" }),
    grows: el("ul", { class: "bars grows", "aria-label": "What grows" }),
    process: el("p", { class: "soft" }),
    since: el("p", { class: "since" }),
    forecast: el("div", { id: "forecast" }),
  };
  $("bill-body").replaceChildren(
    made.sum, made.plan, made.device,
    el("p", { class: "legend", "aria-hidden": "true" },
      el("span", { class: "used", text: "in use" }), el("span", { class: "cached", text: "kept until wanted" }),
      el("span", { class: "free", text: "free" })),
    el("h3", { text: "What a longer document costs" }), made.forecast,
    el("h3", { text: "What grows with it" }),
    el("p", { class: "soft", text: "The archive: the text itself and the ways to find things in it. It lies on the disk and in host memory, not on the device." }),
    made.grows,
    el("h3", { text: "As it is read" }),
    made.since,
    el("p", { class: "soft key-device", text: "On the device" }), held.drawing,
    el("p", { class: "soft key-archive", text: "In the archive" }), grown.drawing,
    made.process,
  );
  return made;
}

function showDevice({ pools, state_slots, kv_blocks }) {
  const most = Math.max(...Object.values(pools).map((each) => Math.max(each.plan_bytes, each.held_bytes)));
  bars.device.replaceChildren(...Object.entries(pools).map(([pool, { plan_bytes, held_bytes }]) => {
    const [name, what] = DEVICE[pool] ?? [pool, ""];
    const units = pool === "kv" ? kv_blocks : pool.endsWith("_state") ? state_slots : null;
    const parts = units === null || units.total === 0
      ? { used: held_bytes, cached: 0 }
      : { used: held_bytes * units.used / units.total, cached: held_bytes * units.cached / units.total };
    const told = held_bytes === plan_bytes ? bytes(held_bytes) : `${bytes(held_bytes)} of ${bytes(plan_bytes)}`;
    const use = units === null ? "" : `, ${count(units.used)} in use, ${count(units.cached)} kept, ${count(units.free)} free`;
    return bar(name, what, told, { whole: plan_bytes, most, ...parts }, use);
  }));
}

function showGrowing({ host, disk }) {
  const rows = new Map();
  for (const [tier, pools] of [["host", host.pools], ["disk", disk.pools]]) {
    for (const [pool, held_bytes] of Object.entries(pools)) {
      const row = rows.get(pool) ?? { host: 0, disk: 0 };
      row[tier] += held_bytes;
      rows.set(pool, row);
    }
  }
  const most = Math.max(1, ...[...rows.values()].map((row) => row.host + row.disk));
  bars.grows.replaceChildren(...[...rows].map(([pool, row]) => {
    const told = [row.host || !row.disk ? `${bytes(row.host)} memory` : null, row.disk ? `${bytes(row.disk)} disk` : null];
    return bar(GROWS[pool] ?? pool, "", told.filter(Boolean).join(", "), { whole: row.host + row.disk, most, used: row.host + row.disk, cached: 0 });
  }));
}

function showProcess(bill) {
  bars.process.textContent = bill.device_is_host
    ? `The whole process takes ${bytes(bill.resident_set_bytes)} of this machine's memory, as its kernel counts: ${bytes(bill.device.held_bytes)} in the pools above, ${bytes(bill.host.bytes)} in the archive, readings and conversations, ${bytes(bill.unaccounted_bytes)} of programs and libraries.`
    : `Beside the device the process takes ${bytes(bill.resident_set_bytes)} of host memory, ${bytes(bill.unaccounted_bytes)} of it programs and libraries.`;
}

function since(tokens, onDevice, inArchive) {
  if (tokens === 0) return "Nothing was read since this page was opened. Post a document and watch.";
  const moved = onDevice === 0 ? "not a byte more" : `${bytes(onDevice)} more`;
  return `Since this page was opened ${plural(tokens, "token")} were read: in the pools on the device ${moved}, in the archive ${bytes(Math.max(0, inArchive))} more.`;
}

/** A pool: its name, what it is for, its size, and, for those who do not see the bar, its `use`. */
function bar(name, what, told, { whole, most, used, cached }, use = "") {
  const track = el("div", { class: "track", "aria-hidden": "true" });
  track.style.width = `${Math.max(0.5, 100 * whole / most)}%`;
  for (const [part, size] of [["used", used], ["cached", cached]]) {
    const piece = el("span", { class: part });
    piece.style.width = `${whole ? 100 * size / whole : 0}%`;
    track.append(piece);
  }
  return el("li", {}, el("p", { class: "bar-words" }, el("b", { text: name }),
    what ? el("span", { class: "soft", text: what }) : null, el("span", { class: "size", text: told }, use ? el("span", { class: "unseen", text: use }) : null)), track);
}

const total = (pools) => Object.values(pools).reduce((sum, each) => sum + each, 0);
const without = (pools, ...names) => Object.fromEntries(Object.entries(pools).filter(([pool]) => !names.includes(pool)));
