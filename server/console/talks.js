// Conversations with a name: what each holds, and saving, restoring, forking, deleting.

import { request } from "./api.js";
import { goOn, keepTurns, offer, turnsOf } from "./asking.js";
import { $, announce, dismiss, el, notify, sure, tab } from "./page.js";
import { bytes, plural } from "./words.js";

const TIERS = {
  resident: "in the device's memory",
  host: "in host memory",
  saved: "on the disk",
  tokens: "its tokens alone are kept; its state is made again when it goes on",
};

/** Begin. */
export function start() {
  document.addEventListener("talks-changed", () => refresh().catch(() => {}));
}

/** Look up what the server has. What has a colon in its name is its own affair: readings of documents, and what it
    remembers of responses. */
export async function refresh() {
  const found = [];
  for (let after = ""; ; ) {
    const page = await request("GET", `/v1/sessions?limit=100${after && `&after=${encodeURIComponent(after)}`}`);
    found.push(...page.data.filter((each) => !each.name.includes(":")));
    if (!page.has_more) break;
    after = page.last_id;
  }
  const focused = document.activeElement?.getAttribute?.("aria-label");
  $("sessions").replaceChildren(...found.map(row));
  $("no-sessions").hidden = found.length > 0;
  offer(found.map((each) => each.name));
  if (focused) $("sessions").querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
}

function row(session) {
  const { name, bytes: held } = session;
  const size = held.ssm_state + held.conv_state + held.kv + (held.kv_archive ?? 0);
  const isSaved = session.saved_version === session.version;
  const act = (text, what, more = {}) =>
    el("button", { type: "button", text, "aria-label": `${text} ${name}`, click: what, ...more });
  return el("li", { class: "session", "data-name": name },
    el("p", { class: "name", text: name }),
    el("p", { class: "soft", text: [
      plural(session.num_tokens, "token"), size ? bytes(size) : null, TIERS[session.status] ?? session.status,
      isSaved ? "saved" : session.saved_version === null ? "not saved" : "saved, and went on since",
    ].filter(Boolean).join(" · ") }),
    el("div", { class: "row" },
      act("Go on", () => goOn(name)),
      act("Save", () => save(name)),
      act("Restore", () => restore(session), { disabled: session.saved_version === null }),
      act("Fork", () => fork(name)),
      act("Delete", () => remove(name))),
  );
}

async function change(name, what, done) {
  dismiss(`talk ${name}`);
  try {
    const session = await request("POST", `/v1/sessions/${encodeURIComponent(name)}/${what}`);
    await refresh();
    notify(`talk ${name}`, `${name} was ${done}: ${plural(session.num_tokens, "token")}.`);
    return session;
  } catch (error) {
    tell(name, `not ${done}`, error, () => change(name, what, done));
    return null;
  }
}

async function save(name) {
  const turns = turnsOf(name);
  if (await change(name, "save", "saved")) tab.keep(`fano-saved ${name}`, JSON.stringify(turns));
}

async function restore({ name }) {
  // What was said after it was saved is no part of the conversation any more.
  const turns = tab.kept(`fano-saved ${name}`);
  if (await change(name, "restore", "restored") && turns !== null) keepTurns(name, JSON.parse(turns));
}

async function fork(name) {
  const to = await sure({
    title: `Fork ${name}`, yes: "Fork", label: "Name of the fork", text: `${name}-2`,
    words: "Both go on from here, each on its own; what they share is held once.",
  });
  if (!to) return;
  try {
    await request("POST", `/v1/sessions/${encodeURIComponent(name)}/fork`, { to });
    keepTurns(to, turnsOf(name));
    await refresh();
    announce(`${name} was forked to ${to}.`);
  } catch (error) {
    tell(name, "not forked", error, () => fork(name));
  }
}

async function remove(name) {
  if (!await sure({ title: `Delete ${name}?`, yes: "Delete", words: "Its tokens and its state are taken off the disk." })) return;
  try {
    await request("DELETE", `/v1/sessions/${encodeURIComponent(name)}`);
    keepTurns(name, null);
    await refresh();
    announce(`${name} was deleted.`);
    $("talk").focus();
  } catch (error) {
    if (error.status === 404) return refresh();
    tell(name, "not deleted", error, () => remove(name));
  }
}

function tell(name, what, error, act) {
  notify(`talk ${name}`, `${name} was ${what}: ${error.message}.`, { bad: true, again: { label: "Try again", act } });
}
