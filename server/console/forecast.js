// What a longer document costs, asked of the server (POST /v1/plan) for three lengths under each policy it offers.

import { request } from "./api.js";
import { $, el } from "./page.js";
import { bytes, count } from "./words.js";

const LENGTHS = [16_000, 256_000, 1_000_000];

/** Ask, and show under `policy` beside the other policies that `served` offers. */
export async function forecast(served, policy) {
  const place = $("forecast");
  if (!place) return;
  const { policies = [policy] } = served.fano;
  let rows;
  try {
    rows = await Promise.all(LENGTHS.map(async (tokens) => ({
      tokens,
      plans: Object.fromEntries(await Promise.all(policies.map(async (name) => [
        name, await request("POST", "/v1/plan", { prompt_tokens: tokens - 1, max_tokens: 1, fano: { policy: { name } } }),
      ]))),
    })));
  } catch (error) {
    place.replaceChildren(el("p", { class: "soft", text: `The plan is not to be had: ${error.message}.` }));
    return;
  }
  const shown = [policy, ...policies.filter((name) => name !== policy)];
  const most = Math.max(...rows.flatMap((row) => shown.map((name) => row.plans[name].total_bytes)));
  place.replaceChildren(
    el("p", { text: sentence(rows, policy) }),
    el("p", { text: beside(rows, shown) }),
    el("table", { class: "plan" },
      el("caption", { class: "unseen", text: "Memory for one conversation about a document, by its length and the attention policy" }),
      el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "tokens" }), ...shown.map((name) => el("th", { scope: "col", text: name })))),
      el("tbody", {}, ...rows.map((row) => el("tr", {},
        el("th", { scope: "row", text: count(row.tokens) }),
        ...shown.map((name) => cell(row.plans[name], most, name === policy)))))),
  );
  const unfit = rows.flatMap((row) => shown.filter((name) => !row.plans[name].fits.ever).map((name) => `${count(row.tokens)} under ${name}`));
  if (unfit.length) place.append(el("p", { class: "soft", text: `* More than this server was given room for: ${unfit.join(", ")}.` }));
}

function cell(plan, most, isChosen) {
  const size = el("span", { class: plan.fits.ever ? "size" : "size unfit", text: bytes(plan.total_bytes) });
  const host = archived(plan) ? el("span", { class: "soft host", text: `and ${bytes(archived(plan))} on the host` }) : null;
  const track = el("span", { class: isChosen ? "mini chosen" : "mini", "aria-hidden": "true" });
  track.style.width = `${Math.max(1, 100 * plan.total_bytes / most)}%`;
  return el("td", {}, size, track, host);
}

const archived = (plan) => plan.archive_bytes.kv_archive + plan.archive_bytes.kv_summaries;

/** What grows with a document, and where: never on the device alone. */
function beside(rows, shown) {
  const grows = "On the host, and it grows with the document: its text, the index of its words and its vectors, as the bill tells them";
  const name = shown.find((each) => archived(rows.at(-1).plans[each]));
  if (!name) return `${grows}.`;
  const [short, long] = [rows[0], rows.at(-1)];
  return `${grows}; under ${name} also the keys and values that left the window: ${bytes(archived(short.plans[name]))} for `
    + `${count(short.tokens)} tokens, ${bytes(archived(long.plans[name]))} for ${count(long.tokens)}.`;
}

function sentence(rows, policy) {
  const [short, long] = [rows[0], rows.at(-1)], of = (row, name) => row.plans[name].total_bytes;
  const [least, most] = [of(short, policy), of(long, policy)];
  if (most < 1.1 * least) {
    const words = `On the device: nothing more. Each conversation holds ${bytes(most)}, whether the document has ${count(short.tokens)} tokens or ${count(long.tokens)}.`;
    return long.plans.full && policy !== "full"
      ? `${words} With all of it in attention (full) a million would take ${bytes(of(long, "full"))}.`
      : words;
  }
  return `Under ${policy} a conversation holds more the longer the document is: ${bytes(least)} for ${count(short.tokens)} tokens, ${bytes(most)} for ${count(long.tokens)}.`;
}
