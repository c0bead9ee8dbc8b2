// The question, its answer as it is written, and the quotations in it.

import { Lost } from "./api.js";
import { $, announce, el, tab } from "./page.js";
import { openPlace } from "./reader.js";
import { ask } from "./replies.js";
import { bytes, count, duration, plural, slice } from "./words.js";

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;
const BREATH_MS = 50;
const SHOWN = 300; // characters of the beginning and of the end of a long question
const AROUND = 120; // and on either side of what is quoted from one
const RECALLS = {
  verbatim: ["a quotation", "The answer is a part of the document, to the letter; nothing is written by the model."],
  grounded: ["written, quoting", "The model writes freely; what stands in the document word for word is marked."],
  free: ["plain chat", "No document is looked at."],
};
const POLICIES = {
  full: "full: all of it",
  window: "window: newest",
  archive: "archive: fetched",
};

let model = null;
let asked = () => [];
let known = () => null;
let answered = () => {};
let running = null; // the AbortController of the answer that is being written

/** Whether an answer is being written. */
export const isRunning = () => running !== null;

/**
 * Begin. `documents()` are those chosen, `documentOf(id)` any of them, `whenAnswered({usage, documents})` is told of
 * each end of an answer.
 */
export function start({ documents, documentOf, whenAnswered }) {
  asked = documents;
  known = documentOf;
  answered = whenAnswered;
  $("composer").addEventListener("submit", (event) => { event.preventDefault(); running ? running.abort() : send(); });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !running) { event.preventDefault(); send(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) running.abort();
  });
  $("recall").addEventListener("change", tellChoices);
  $("talk").addEventListener("input", tellChoices);
}

/** The model as /v1/models tells it: what can be chosen is what it offers. */
export function serve(served) {
  model = served;
  const { policies = [], recalls = [], policy } = served.fano;
  options($("recall"), recalls.map((each) => [each, RECALLS[each]?.[0] ?? each]), "grounded");
  options($("policy"), policies.map((each) => [each, POLICIES[each] ?? each]), policy.name);
  tellChoices();
}

/** Names of conversations that can be gone on with. */
export const offer = (names) => $("talk-names").replaceChildren(...names.map((name) => el("option", { value: name })));

/** Go on with a conversation. */
export function goOn(name) {
  $("talk").value = name;
  tellChoices();
  $("question").focus();
}

/** The words of a conversation, as far as this tab heard them. */
export const turnsOf = (name) => JSON.parse(tab.kept(`fano-talk ${name}`) ?? "[]");

/** Remember, or with null forget, the words of a conversation. */
export function keepTurns(name, turns) {
  tab.keep(`fano-talk ${name}`, turns === null ? null : JSON.stringify(turns));
  tellChoices();
}

/** The policy that is chosen. */
export const chosenPolicy = () => $("policy").value;

/** Say what will be asked, and how. */
export function tellChoices() {
  const documents = asked(), recall = $("recall").value;
  const names = documents.map((each) => each.name).join(", ");
  const unready = documents.filter((each) => !each.answerable);
  $("asked").textContent = recall === "free" || !documents.length
    ? documents.length ? "No document is looked at in a plain chat." : "No document is chosen: this is plain chat."
    : `Asking ${names}${unready.length ? ` (${unready.map((each) => each.name).join(", ")}: not yet)` : ""}`;
  $("recall-note").textContent = documents.length ? (RECALLS[recall]?.[1] ?? "") : "";
  const name = $("talk").value.trim();
  const isName = name === "" || NAME.test(name);
  $("talk").toggleAttribute("aria-invalid", !isName);
  $("talk-note").textContent = name === "" ? "Without a name each question stands alone."
    : !isName ? "A name is letters, digits, '.', '_' and '-', a letter or digit first."
    : turnsOf(name).length ? `Goes on after ${plural(turnsOf(name).length, "message")}; what was read of them is not read again.`
    : "Begins here: of a conversation held elsewhere the server keeps the memory, not the words.";
}

async function send() {
  const question = $("question").value.trim(), session = $("talk").value.trim();
  if (question === "") { $("question").setAttribute("aria-invalid", "true"); $("question").focus(); return; }
  $("question").removeAttribute("aria-invalid");
  if (session !== "" && !NAME.test(session)) { $("talk").focus(); return; }
  const recall = $("recall").value, documents = recall === "free" ? [] : asked();
  const policy = chosenPolicy() === model.fano.policy.name ? "" : chosenPolicy();
  const turns = session === "" ? [] : turnsOf(session);
  const exchange = show(question, session);
  exchange.said = [...turns, { role: "user", content: question }];
  $("welcome").hidden = true;
  running = new AbortController();
  $("go").textContent = "Stop";
  announce("The answer is being written.");
  const started = performance.now();
  let text = "", done = null, breathed = started;
  const citations = [];
  try {
    const order = { model: model.id, question, documents: documents.map((each) => each.id), recall, policy, session, turns };
    for await (const piece of ask(order, running.signal)) {
      if (piece.sources) exchange.sources = piece.sources;
      if (piece.text) { text += piece.text; exchange.written.appendData(piece.text); exchange.wait.textContent = ""; }
      if (piece.citation) citations.push({ ...piece.citation, name: piece.citation.name ?? known(piece.citation.document)?.name ?? "" });
      if (piece.reading) exchange.wait.textContent = reading(piece.reading);
      if (piece.done) done = piece.done;
      // An answer that comes faster than it can be shown must not keep keys and clicks waiting.
      if (!document.hidden && performance.now() - breathed > BREATH_MS) {
        exchange.words.scrollTop = exchange.words.scrollHeight;
        await new Promise((go) => setTimeout(go));
        breathed = performance.now();
      }
    }
    text = done.text ?? text;
    exchange.wait.remove();
    cite(exchange, text, citations);
    bill(exchange, done, (performance.now() - started) / 1000, documents);
    $("question").value = "";
    if (session !== "") {
      keepTurns(session, [...turns, { role: "user", content: question }, { role: "assistant", content: text }]);
      document.dispatchEvent(new Event("talks-changed"));
    }
    announce(`Answer: ${text || "nothing was written"}. ${plural(citations.length, "quotation")}.`);
  } catch (error) {
    exchange.wait.remove();
    fail(exchange, error, text, () => { $("question").value = question; send(); });
  } finally {
    running = null;
    $("go").textContent = "Ask";
    answered({ usage: done?.usage ?? null, documents });
  }
}

function show(question, session) {
  const written = document.createTextNode("");
  const words = el("p", { class: "words" }, written);
  const wait = el("p", { class: "wait soft", text: "looking it up" });
  const article = el("article", { class: "exchange", "aria-busy": "true" },
    el("h3", { text: shortened(question) }), session ? el("p", { class: "soft", text: `in ${session}` }) : null, words, wait);
  $("exchanges").append(article);
  article.scrollIntoView({ block: "nearest" });
  return { article, words, written, wait, sources: [], said: [] };
}

/** What was pasted is not shown again: how it begins, and what it asks. */
function shortened(question) {
  const characters = Array.from(question), left = characters.length - 2 * SHOWN;
  if (left < SHOWN) return question;
  return `${characters.slice(0, SHOWN).join("")} [… ${count(left)} characters …] ${characters.slice(-SHOWN).join("")}`;
}

/** The answer again, with its quotations as links to the place where they stand. */
function cite({ article, words, sources, said }, text, citations) {
  article.removeAttribute("aria-busy");
  if (text === "") words.replaceWith(el("p", { class: "soft", text: "The model wrote nothing." }));
  const characters = Array.from(text), pieces = [];
  let at = 0;
  for (const each of [...citations].sort((one, other) => one.answer_start - other.answer_start)) {
    if (each.answer_start < at) continue; // overlaps the one before, and is in the list below all the same
    pieces.push(characters.slice(at, each.answer_start).join(""));
    pieces.push(link(each, characters.slice(each.answer_start, each.answer_end).join(""), "cite"));
    at = each.answer_end;
  }
  words.replaceChildren(...pieces, characters.slice(at).join(""));
  if (citations.length) {
    // Of an answer that is one quotation the place says all.
    const rows = citations.length === 1 && citations[0].quote === text
      ? [el("li", {}, link(citations[0], place(citations[0]), "quote"), context(citations[0], said))]
      : citations.map((each) => el("li", {}, link(each, each.quote, "quote"), el("span", { class: "soft", text: ` ${place(each)}` }), context(each, said)));
    article.append(el("h4", { text: "Word for word in" }), el("ul", { class: "citations" }, ...rows));
  }
  if (sources.length) {
    article.append(el("details", {}, el("summary", { text: `${plural(sources.length, "passage")} found` }),
      el("ol", { class: "sources" }, ...sources.map((each) => el("li", {},
        link(each, each.text, "quote"), el("span", { class: "soft", text: ` ${place(each)}` }))))));
  }
}

/** The number of the message that is quoted from; null where a document is. */
const messageOf = ({ document }) => (/^messages\.\d+$/.test(document) ? Number(document.slice("messages.".length)) : null);

/** What stands around a quotation from a message; that of a document is in the reader. */
function context(where, said) {
  const message = said[messageOf(where) ?? -1];
  if (!message) return null;
  const around = slice(message.content, Math.max(0, where.start - AROUND), where.end + AROUND);
  return el("p", { class: "soft around", text: `… ${around} …` });
}

function link(where, text, name) {
  if (messageOf(where) !== null) return el("q", { class: name, text, title: place(where) });
  const spot = { id: where.document, name: where.name, start: where.start, end: where.end, page: where.page };
  return el("a", {
    class: name, text, href: `#${where.document}:${where.start}-${where.end}`, title: `Show it in ${where.name}`,
    click: (event) => { event.preventDefault(); openPlace(spot); },
  });
}

const place = ({ document, name, page, start, end }) =>
  `${messageOf({ document }) === null ? name : `message ${messageOf({ document }) + 1} of this conversation`}, ${page ? `page ${page}, ` : ""}characters ${count(start)} to ${count(end)}`;

const reading = ({ total, processed, cached }) =>
  `reading: ${count(processed)} of ${plural(total, "token")}${cached ? `, ${count(cached)} of them known` : ""}`;

/** What the answer took. */
function bill({ article }, { found, finish, usage }, seconds, documents) {
  const { fano } = usage, held = Object.values(fano.resident_bytes).reduce((sum, each) => sum + each, 0);
  const told = [], rest = fano.reading ? fano.reading.total - fano.reading.processed : 0;
  if (found === false) told.push("Nothing was found that answers it.");
  if (finish === "length") told.push("Cut off at the limit of tokens.");
  told.push(usage.prompt_tokens + usage.completion_tokens === 0
    ? "Looked up: no model was asked, no memory was held."
    : `Held ${bytes(held)} on the device under ${fano.policy.name}: ${bytes(fano.resident_bytes.kv)} of keys and values, `
      + `${bytes(held - fano.resident_bytes.kv)} of state`
      + `${fano.archive_bytes.kv_archive ? `, and ${bytes(fano.archive_bytes.kv_archive)} of older keys and values in the archive` : ""}`
      + `. ${plural(usage.prompt_tokens - rest, "token")} read`
      + `${usage.prompt_tokens_details.cached_tokens ? `, ${count(usage.prompt_tokens_details.cached_tokens)} of them known` : ""}`
      + `, ${count(usage.completion_tokens)} written, in ${duration(seconds)}.`);
  if (rest > 0) told.push(`The text before the question is read on, beside other work: ${plural(rest, "token")} to go.`);
  if (fano.retrieval.used && !documents.length) {
    told.push(`Searched what was pasted, which takes ${bytes(fano.archive_bytes.text + fano.archive_bytes.index)} in the host's memory until its room is wanted.`);
  }
  if (fano.retrieval.note) told.push(`${fano.retrieval.note[0].toUpperCase()}${fano.retrieval.note.slice(1)}.`);
  article.append(el("p", { class: "took soft", text: told.join(" ") }));
}

function fail({ article, words }, error, text, again) {
  article.removeAttribute("aria-busy");
  if (error.name === "AbortError") {
    article.append(el("p", { class: "took soft", text: text ? "Stopped here." : "Stopped before it began." }));
    announce("Stopped.");
    return;
  }
  const told = why(error);
  const broken = text ? `What stands above is not the whole answer: ${told}` : `No answer: ${told}`;
  if (!text) words.remove();
  article.append(el("div", { class: "wrong" }, el("p", { text: broken }),
    el("button", { type: "button", text: "Ask again", click: () => { article.remove(); again(); } })));
  announce(broken);
}

function why(error) {
  if (error instanceof Lost) return `${error.message}.`;
  if (error.code === "document_not_ready" && error.progress) {
    const { stage, seconds_left } = error.progress;
    return `the document cannot be asked yet; it is ${stage}${seconds_left === null ? "" : `, ${duration(seconds_left)} left`}.`;
  }
  if (error.code === "queue_full") {
    return `too many are waiting already${error.retryAfter ? `; try again in ${plural(error.retryAfter, "second")}` : ""}.`;
  }
  return `${error.message}${error.code ? ` (${error.code})` : ""}.`;
}

function options(select, offered, preferred) {
  const before = select.value;
  select.replaceChildren(...offered.map(([value, text]) => el("option", { value, text })));
  const values = offered.map(([value]) => value);
  select.value = [before, preferred, values[0]].find((each) => values.includes(each)) ?? "";
}
